"""What a detector or a probe is, in one line: the first sentence of the function that is registered under its name.

The functions are read as text, because to import them would import torch, which the app does without. Those of other
packages are not read, and have no line.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from dash import Dash, Input, Output, html

import workbench
from workbench.app import ids
from workbench.app.state.view import View
from workbench.heads import WITHOUT_ANSWERS

DEFINITIONS = "definitions"
# Folder of the package -> the decorators that register a function under the name that is their first argument.
_REGISTERED = {"detectors/builtin": {"detector", "weight_detector"}, "probes": {"probe"}}
# Those that are registered in a loop, without a docstring each.
_FAMILIES = {
    "niah": "Needles of RULER: facts hidden in other text, and behind it the question for them",
    "sink_gu": "1 where the first token has more than 0.3 of a sequence's attention on average, else 0",
    "window_gates": "What the loss rises by, in nats, as the head's far attention is gated off; from an intervention",
}


def register(app: Dash) -> None:
    """Fill the line below the controls."""

    @app.callback(Output(DEFINITIONS, "children"), Input(ids.VIEW, "data"), prevent_initial_call=True)
    def define(view_json: Any) -> Any:
        view = View.from_json(view_json)
        lines = {name: definition(name) for name in (view.detector, view.probe) if name}
        return [html.Span([html.B(name), ": ", *_with_code(line)]) for name, line in lines.items() if line]


def _with_code(line: str) -> list[Any]:
    """A line with what stands between backticks, the arguments of a probe, as code."""
    return [html.Code(part) if i % 2 else part for i, part in enumerate(line.split("`")) if part]


def definition(name: str) -> str:
    """What the detector or probe of this name is, or of the longest name that it begins with; "" for unknown ones.

    Names of arguments stand between backticks.
    """
    known = _definitions()
    if name.endswith(WITHOUT_ANSWERS):
        return f"the control of {name.removesuffix(WITHOUT_ANSWERS)}: the same tokens, their answers gone"
    family = max((each for each in known if name == each or name.startswith(f"{each}_")), key=len, default="")
    return known.get(family, "")


@cache
def _definitions() -> dict[str, str]:
    root = Path(workbench.__file__).parent
    files = [(path, names) for folder, names in _REGISTERED.items() for path in sorted((root / folder).glob("*.py"))]
    return _FAMILIES | {name: line for path, decorators in files for name, line in _defined_in(path, decorators)}


def _defined_in(path: Path, decorators: set[str]) -> Iterator[tuple[str, str]]:
    """The names that functions of a file are registered under, with the first line of their docstrings."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in decorators:
                first = call.args[0] if call.args else None
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    yield first.value, (ast.get_docstring(node) or "").splitlines()[0].removesuffix(".")
