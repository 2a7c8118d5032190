"""Plan: which heads keep the whole context."""

from __future__ import annotations

from dash import Dash, html

from workbench.app import parts as p


def register(app: Dash, content: p.Content) -> None:
    """The Plan page."""


def layout(_: p.Content) -> html.Div:
    """The Plan page."""
    return p.page_of("plan", [])


PAGE = p.Page("plan", layout, register, ())
