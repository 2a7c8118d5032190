"""Jobs: how far scans are."""

from __future__ import annotations

from dash import Dash, html

from workbench.app import parts as p


def register(app: Dash, content: p.Content) -> None:
    """The Jobs page."""


def layout(_: p.Content) -> html.Div:
    """The Jobs page."""
    return p.page_of("jobs", [])


PAGE = p.Page("jobs", layout, register, ())
