"""The registry of probes, and their notation on a command line or in a job file: `name:key=value,…`.

A probe's maker is a function under `@probe("name")`. A package announces the modules that hold its makers:

    [project.entry-points."workbench.probes"]
    my_package = "my_package.probes"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any, TypeVar

from workbench.extensions import Registry
from workbench.heads import WorkbenchError
from workbench.probes.known_answers import Probe
from workbench.probes.token_ids import HasVocabulary, Vocabulary, with_beginning

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

    Values are numbers, lists of whole numbers joined by `+`, or text. Every probe takes `bos=`, a token's id or `none`:
    what its sequences begin with. Text in quotes may hold anything else, as in
    `text:path="a, b.txt"`.

    Raises:
        WorkbenchError: for an unknown name, an unknown or missing argument, or arguments that the probe refuses.
    """
    name, _, arguments = written.partition(":")
    maker = PROBES.find(name)
    parameters = signature(maker).parameters
    keywords: dict[str, Any] = {}
    for key, value, is_quoted in _arguments(written, arguments):
        if key == "bos" and key not in parameters:
            source = with_beginning(source, _parse_bos(written, value))
            continue
        if key not in parameters and not any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
            raise _unknown(written, key, list(parameters)[1:])
        is_text = is_quoted or (key in parameters and _takes_text(str(parameters[key].annotation)))
        keywords[key] = value if is_text else _parse_value(value)
    if missing := [each for each in _required(parameters) if each not in keywords]:
        example = ",".join(f"{each}=…" for each in missing)
        raise WorkbenchError(f"probe {written!r}: needs {' and '.join(missing)}; write {name}:{example}")
    try:
        return maker(source, **keywords)
    except TypeError as error:
        raise WorkbenchError(f"probe {written!r}: {error}") from error


def _arguments(written: str, arguments: str) -> Iterator[tuple[str, str, bool]]:
    """Each key with its value, and whether that was in quotes."""
    rest = arguments
    while rest.strip():
        key, equals, rest = rest.partition("=")
        if not equals or "," in key:
            raise WorkbenchError(
                f"probe {written!r}: {key.partition(',')[0]!r} is not of the form key=value; a value with commas is "
                'written in quotes, as path="a, b.txt"'
            )
        quote = rest.lstrip()[:1]
        if quote and quote in "\"'":
            value, closing, rest = rest.lstrip()[1:].partition(quote)
            behind, _, rest = rest.partition(",")
            if not closing or behind.strip():
                raise WorkbenchError(
                    f"probe {written!r}: the value of {key.strip()} begins with {quote}, and no {quote} stands at its "
                    "end; write text with one kind of quotes inside the other"
                )
            yield key.strip(), value, True
        else:
            value, _, rest = rest.partition(",")
            yield key.strip(), value.strip(), False


def _parse_bos(written: str, value: str) -> int | None:
    if not value.isdigit() and value != "none":
        raise WorkbenchError(f"probe {written!r}: bos is {value!r}; expected a token's id, or none")
    return int(value) if value.isdigit() else None


def _required(parameters: Mapping[str, Parameter]) -> list[str]:
    """The arguments beside the model that have no default."""
    various = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return [name for name, p in list(parameters.items())[1:] if p.default is p.empty and p.kind not in various]


def _takes_text(annotation: str) -> bool:
    """Whether an argument takes text and no number, so that `12` is a file's name."""
    words = set(re.findall(r"\w+", annotation))
    return bool(words & {"str", "Path"}) and not words & {"int", "float", "Sequence"}


def _unknown(written: str, key: str, known: Sequence[str]) -> WorkbenchError:
    return WorkbenchError(
        f"probe {written!r}: there is no argument {key!r}; expected some of {', '.join(known)}. A value with commas is "
        'written in quotes, as path="a, b.txt"'
    )


def _parse_value(written: str) -> int | float | list[int] | str:
    numbers = written.split("+")
    if all(number.isdigit() for number in numbers):
        return int(numbers[0]) if len(numbers) == 1 else [int(number) for number in numbers]
    if re.fullmatch(r"\d*\.\d+", written):
        return float(written)
    return written
