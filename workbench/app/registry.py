"""Register the pages of the app: the header, the address, the layouts and the exports read them from here.

Pages of other packages are named in an entry point group:

    [project.entry-points."workbench.pages"]
    my_package = "my_package.pages"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from dash import Dash

from workbench.app.state.content import Content
from workbench.app.state.view import View
from workbench.extensions import Registry
from workbench.heads import WorkbenchError

Layout = Callable[[Content], Sequence[Any]]
# Makes a table, or the bytes of a file, of a view, the app's content, and a step (None: the last).
Export = Callable[[View, Content, int | None], pd.DataFrame | bytes]

# The controls above the pages.
CONTROLS = ("runs", "detector", "probe", "checkpoint")
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Page:
    """A registered page; see `page` for what its fields mean."""

    name: str
    layout: Layout
    register: Callable[[Dash, Content], None]
    parameters: tuple[str, ...]
    settle: Callable[[View, Content], View]
    exports: Mapping[str, Export]
    follows_checkpoint: bool
    controls: tuple[str, ...]
    title: str

    @property
    def frame_id(self) -> str:
        """The id of the element that holds the page's components."""
        return f"page-{self.name}"


PAGES: Registry[Page] = Registry("workbench.pages", noun="page", builtin="workbench.app.pages")


def _no_callbacks(app: Dash, content: Content) -> None:
    """A page without callbacks."""


def _unchanged(view: View, _: Content) -> View:
    return view


def page(  # noqa: PLR0913  # what a page declares, a keyword each
    name: str,
    *,
    register: Callable[[Dash, Content], None] = _no_callbacks,
    parameters: Sequence[str] = (),
    settle: Callable[[View, Content], View] = _unchanged,
    exports: Mapping[str, Export] | None = None,
    follows_checkpoint: bool = False,
    controls: Sequence[str] = CONTROLS,
    title: str = "",
) -> Callable[[Layout], Layout]:
    """Register a function that returns a page's components, given the app's content, as the page `name`.

    Args:
        name: in the address and, capitalised, in the header; lower-case letters, digits, `_` and `-`.
        register: adds the page's callbacks to the app.
        parameters: what the page's address carries besides runs, detector, probe and step. `of` and `head` are the run
            and the head of `View`; the others are read with `View.get`, and written by `components.choice`.
        settle: replaces parameters that are missing or cannot be shown by those that can.
        exports: by name, tables that the page shows; a name with an extension (`plan.json`) gives that file's bytes.
            Each is served as `/export/NAME.csv` and `/export/NAME.parquet`, or as `/export/plan.json`.
        follows_checkpoint: whether `ids.RUN_CHECKPOINTS` follows the slider while the page is shown.
        controls: those of "runs", "detector", "probe" and "checkpoint" that the page follows; others are not shown.
        title: in the header; default the name, capitalised.

    Raises:
        WorkbenchError: for a name that no address can carry, a function without a docstring, a name that is taken, or
            a control that does not exist.
    """
    if unknown := [control for control in controls if control not in CONTROLS]:
        raise WorkbenchError(f"page {name!r} follows {unknown}; the controls are {', '.join(CONTROLS)}")
    if not _NAME.fullmatch(name):
        raise WorkbenchError(
            f"page {name!r} cannot stand in an address; use lower-case letters, digits, _ and -, a letter first"
        )

    def add(layout: Layout) -> Layout:
        entry = Page(
            name,
            layout,
            register,
            tuple(parameters),
            settle,
            dict(exports or {}),
            follows_checkpoint,
            tuple(controls),
            title or name.replace("_", " ").capitalize(),
        )
        PAGES.add(name, entry, function=layout)
        return layout

    return add


def pages() -> list[Page]:
    """All pages, in the header's order: those of the workbench, then those of other packages."""
    return list(PAGES.all().values())
