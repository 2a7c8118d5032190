"""What a card shows whose callback failed: the reason and the next step; the other cards stay."""

from __future__ import annotations

import sys
import traceback
from typing import Any

from dash import ctx, html, no_update

from workbench.app import ids
from workbench.app.components import attributes, message, theme_of
from workbench.heads import WorkbenchError


def answer_with_reason(error: Exception) -> Any:
    """The outputs of the callback that failed: the reason where a figure or elements go, nothing new elsewhere.

    What is no mistake of the reader is printed whole where the app was started.
    """
    outputs: Any = ctx.outputs_list
    reason = reason_of(error)
    theme = theme_of({**ctx.inputs, **ctx.states}.get(f"{ids.THEME}.data"))
    if isinstance(outputs, dict):
        return _shown(outputs, reason, theme)
    return [_shown(output, reason, theme) for output in outputs or ()]


def reason_of(error: Exception) -> str:
    """The reason as a sentence, with the next step."""
    if isinstance(error, WorkbenchError):
        return str(error)
    print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)
    return (
        f"this card cannot be drawn ({type(error).__name__}: {error}); that is a fault of the app: please report it "
        "with the lines that were printed where `workbench app` was started"
    )


def _shown(output: Any, reason: str, theme: Any) -> Any:
    if isinstance(output, list):  # of a pattern of ids
        return [_shown(each, reason, theme) for each in output]
    if output["property"] == "figure":
        return message(reason, theme)
    if output["property"] == "children" and output["id"] != ids.STATUS:
        return html.Div(reason, className="reason", **attributes(role="note"))
    return no_update
