"""The registry of probes, and their notation on a command line or in a job file: `name:key=value,…`.

A probe's maker is a function under `@probe("name")`. A package announces the modules that hold its makers:

    [project.entry-points."workbench.probes"]
    my_package = "my_package.probes"
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from workbench.extensions import Registry
from workbench.heads import WorkbenchError
from workbench.probes.known_answers import Probe
from workbench.probes.token_ids import HasVocabulary, Vocabulary

Maker = TypeVar("Maker", bound=Callable[..., Probe])

PROBES: Registry[Callable[..., Probe]] = Registry("workbench.probes", noun="probe", builtin="workbench.probes")


def probe(name: str) -> Callable[[Maker], Maker]:
    """Register the decorated function as the maker of the probe `name`.

    A maker takes a model, a `Vocabulary` or a vocabulary size first, then keyword arguments: whole numbers, lists of
    them, numbers with a decimal point, or text. It returns a Probe, the same for the same arguments.

    Raises:
        WorkbenchError: for a function without a docstring, or a name that another function holds.
    """

    def register(maker: Maker) -> Maker:
        PROBES.add(name, maker, function=maker)
        return maker

    return register


def build(source: HasVocabulary | Vocabulary | int, written: str) -> Probe:
    """Make the probe that `written` names: `repeats`, `needle:length=4096,depth=0+50+100`, `text:path=FILE`.

    Values are numbers, lists of whole numbers joined by `+`, or text.

    Raises:
        WorkbenchError: for an unknown name, an unknown or missing argument, or arguments that the probe refuses.
    """
    name, _, arguments = written.partition(":")
    maker = PROBES.find(name)
    keywords: dict[str, Any] = {}
    for argument in filter(None, arguments.split(",")):
        key, equals, value = argument.partition("=")
        if not equals:
            raise WorkbenchError(f"probe {written!r}: {argument!r} is not of the form key=value")
        keywords[key.strip()] = _parse_value(value.strip())
    try:
        return maker(source, **keywords)
    except TypeError as error:
        raise WorkbenchError(f"probe {written!r}: {error}") from error


def _parse_value(written: str) -> int | float | list[int] | str:
    numbers = written.split("+")
    if all(number.isdigit() for number in numbers):
        return int(numbers[0]) if len(numbers) == 1 else [int(number) for number in numbers]
    if re.fullmatch(r"\d*\.\d+", written):
        return float(written)
    return written
