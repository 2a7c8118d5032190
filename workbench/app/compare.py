"""Compare: two runs or two checkpoints beside each other."""

from __future__ import annotations

from dash import Dash, html

from workbench.app import parts as p


def register(app: Dash, content: p.Content) -> None:
    """The Compare page."""


def layout(_: p.Content) -> html.Div:
    """The Compare page."""
    return p.page_of("compare", [])


PAGE = p.Page("compare", layout, register, ())
