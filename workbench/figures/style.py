"""The style of figures: colours and dashes of runs, letters of layer kinds, score colours, light and dark themes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

Theme = Literal["light", "dark"]

# Okabe and Ito 2008, told apart with any colour vision, without black and yellow, which vanish on a background;
# lighter on dark ground, where their blue has a contrast of 3.
COLOURS = {
    "light": ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8A6FB0", "#7F7F7F"),
    "dark": ("#4FA8E8", "#F28C45", "#2FC49C", "#E39AC6", "#9AD8F7", "#F4BE4F", "#B7A0E6", "#A6B0BF"),
}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
ONSET = "#E4572E"

LETTERS = {"full": "F", "sliding": "W", "chunked": "C", "sparse": "K", "linear": "L", "none": "N"}
_LETTER_COLOURS = {"full": 0, "sliding": 1, "chunked": 2, "sparse": 5, "linear": 3, "none": 7}

FONT = 'Inter, "Segoe UI", "DejaVu Sans", sans-serif'
_POSITIVE = {
    "light": ("#f7fbff", "#d0e1f2", "#6baed6", "#2171b5", "#08306b"),
    "dark": ("#141b27", "#1d3a5f", "#2f7fb5", "#7fd0c8", "#fdf6b2"),
}
_NEGATIVE = {
    "light": ("#f7fbff", "#fddcc4", "#f5a26b", "#d9601c", "#7f2704"),
    "dark": ("#141b27", "#4a2a2a", "#a3492f", "#e08a4c", "#ffe0c0"),
}
_STOPS = (0.0, 0.15, 0.42, 0.72, 1.0)


class Palette(NamedTuple):
    """The colours of text and lines on one background."""

    text: str
    muted: str
    grid: str
    missing: str
    cursor: str


PALETTES: dict[str, Palette] = {
    "light": Palette("#1f2a37", "#5b6777", "#e6eaf0", "#eceff3", "#475569"),
    "dark": Palette("#dbe3ee", "#93a1b5", "#263143", "#232c3a", "#cbd5e1"),
}


class Scale(NamedTuple):
    """The fixed range of a score, in its unit ("" for a share or a signed share)."""

    low: float | int
    high: float | int
    unit: str

    @property
    def is_signed(self) -> bool:
        """Whether it is shown on both sides of zero."""
        return self.low < 0

    def lowered(self, arrays: Iterable[Float[np.ndarray, "..."]]) -> Scale:
        """A signed scale from just below the lowest score, for lines and histograms, which need no symmetry."""
        if not self.is_signed:
            return self
        low = min((float(np.nanmin(array)) for array in arrays if not np.isnan(array).all()), default=0.0)
        return Scale(max(self.low, math.floor(10 * low) / 10), self.high, self.unit)


def line_style(i: int, theme: Theme) -> dict[str, str]:
    """Colour and dash of the i-th run of a figure."""
    colours = COLOURS[theme]
    return {"color": colours[i % len(colours)], "dash": DASHES[i % len(DASHES)]}


def letter(kind: str, theme: Theme) -> str:
    """A layer kind as its coloured letter, for tick labels."""
    return f'<span style="color:{COLOURS[theme][_LETTER_COLOURS[kind]]}"><b>{LETTERS[kind]}</b></span>'


def colour_scale(scale: Scale, theme: Theme) -> list[tuple[float, str]]:
    """Sequential from the background; with negative scores also diverging, with zero at the background.

    Positive scores have the same colours either way.
    """
    positive = list(zip(_STOPS, _POSITIVE[theme], strict=True))
    if not scale.is_signed:
        return positive
    zero = -scale.low / (scale.high - scale.low)
    below = [(zero * (1 - stop), colour) for stop, colour in zip(_STOPS, _NEGATIVE[theme], strict=True)]
    return [*reversed(below), *((zero + (1 - zero) * stop, colour) for stop, colour in positive[1:])]


def colour_axis(scale: Scale, theme: Theme) -> dict[str, Any]:
    """The layout's `coloraxis` for a score, with a slim bar."""
    ticks = [scale.low, 0, scale.high] if scale.is_signed else None
    return {
        "colorscale": colour_scale(scale, theme),
        "cmin": scale.low,
        "cmax": scale.high,
        "colorbar": {
            "thickness": 10,
            "outlinewidth": 0,
            "len": 1,
            "ticks": "outside",
            "ticklen": 3,
            "tickvals": ticks,
            "nticks": 5,
            "tickformat": ".3~g",
            "title": {"text": scale.unit, "side": "top", "font": {"size": 11}},
        },
    }


def faint(colour: str, strength: float | int) -> str:
    """A colour (#rrggbb) made transparent; strength 1 is opaque."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {strength})"


def styled(figure: go.Figure, theme: Theme, *, height: int) -> go.Figure:
    """Apply the theme to a figure."""
    palette = PALETTES[theme]
    figure.update_layout(
        template="none",
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 12, "color": palette.text},
        margin={"l": 52, "r": 12, "t": 28, "b": 42},
        hoverlabel={"font": {"family": FONT, "size": 12}, "align": "left"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": palette.muted, "activecolor": palette.text},
        hovermode="closest",
        uirevision="keep",
    )
    axis: dict[str, Any] = {
        "gridcolor": palette.grid,
        "linecolor": palette.grid,
        "tickcolor": palette.grid,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "ticklabeloverflow": "allow",  # without it each drawing measures the position of each label
        "tickfont": {"size": 11, "color": palette.muted},
        "title": {"font": {"size": 12, "color": palette.muted}, "standoff": 6},
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure
