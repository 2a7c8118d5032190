"""The style of figures: colours and dashes of runs, letters of layer kinds, score colours, light and dark themes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

Theme = Literal["light", "dark"]

# The first three after Okabe and Ito 2008. The others are the farthest from all before them, one after the other, among
# colours with a contrast of 3 or more to the card. Any two differ by 15 or more (CIEDE2000), and by 7 or more without
# the red or the green cones (Machado et al. 2009).
COLOURS = {
    "light": (
        *("#0072B2", "#C24E00", "#008F68", "#B8548F", "#0D0066", "#454021", "#5A2B3C", "#9C7AFF"),
        *("#085E5E", "#4000FF", "#979749", "#0F9FB3", "#35436E", "#83613F", "#D24B5C", "#970C2F"),
    ),
    "dark": (
        *("#4FA8E8", "#F28C45", "#2FC49C", "#E87FC0", "#FFFF00", "#6A6A1B", "#6E3DFF", "#356E6E"),
        *("#EC1349", "#CFE5E8", "#FFE4B8", "#D1C6F1", "#D011A0", "#3F8350", "#FFBF00", "#A7C07C"),
    ),
}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
ONSET = "#E4572E"

# More runs than this have their legend beside a figure, not above it.
MOST_ABOVE = 6

LETTERS = {"full": "F", "sliding": "W", "chunked": "C", "sparse": "K", "linear": "L", "none": "N"}
# Letters are text, which takes a contrast of 4.5.
_LETTER_COLOURS = {
    "light": {
        "full": "#0069A5",
        "sliding": "#B34700",
        "chunked": "#00755A",
        "linear": "#A23F7C",
        "none": "#5B6777",
        "sparse": "#6B4FBB",
    },
    "dark": {
        "full": "#4FA8E8",
        "sliding": "#F28C45",
        "chunked": "#2FC49C",
        "linear": "#E87FC0",
        "none": "#A6B0BF",
        "sparse": "#B39DFF",
    },
}

# Plotly's buttons that upload a figure, by the names of several versions; wherever a figure is shown, also a notebook.
_SENDS_AWAY = ("sendDataToCloud", "sendChartToCloud")
FONT = 'Inter, "Segoe UI", "DejaVu Sans", sans-serif'
_POSITIVE = {
    "light": ("#f7fbff", "#d0e1f2", "#6baed6", "#2171b5", "#08306b"),
    "dark": ("#141b27", "#1d3a5f", "#2f7fb5", "#7fd0c8", "#fdf6b2"),
}
_NEGATIVE = {
    "light": ("#f7fbff", "#fddcc4", "#f5a26b", "#d9601c", "#7f2704"),
    "dark": ("#141b27", "#451b2e", "#8c2450", "#b52f8a", "#b03ad8"),
}
_STOPS = (0.0, 0.15, 0.42, 0.72, 1.0)
# The nearest and the farthest distance of one run's lines, and how many shades lie from the one to the other.
_SHADE_ENDS = {"light": ((8, 48, 107), (150, 190, 225)), "dark": ((253, 246, 178), (60, 110, 160))}
_N_SHADES = 33


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
    """Colour and dash of the i-th run of a figure: 16 colours, and 48 pairs before one comes again."""
    colours = COLOURS[theme]
    return {"color": colours[i % len(colours)], "dash": DASHES[i % len(DASHES)]}


def letter(kind: str, theme: Theme) -> str:
    """A layer kind as its coloured letter, for tick labels."""
    return f'<span style="color:{_LETTER_COLOURS[theme][kind]}"><b>{LETTERS[kind]}</b></span>'


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


def sign_colours(theme: Theme) -> tuple[str, str]:
    """The colours of bars above and below zero, from the two sides of the diverging scale."""
    return _POSITIVE[theme][3], _NEGATIVE[theme][3]


def shade(distance: float | int, theme: Theme) -> str:
    """A colour from strong to pale, for a distance from 0 (nearest) to 1 (farthest), in 33 steps."""
    near, far = _SHADE_ENDS[theme]
    share = round(distance * (_N_SHADES - 1)) / (_N_SHADES - 1)
    return "rgb({},{},{})".format(*(round(a + share * (b - a)) for a, b in zip(near, far, strict=True)))


def paired_colours() -> dict[str, list[tuple[str, str]]]:
    """The colours that mean the same in the light and in the dark theme, as pairs: those of text first.

    A drawn figure changes its theme by them alone. `letters` are those of layer kinds, which stand in tick labels.
    """
    light, dark = ([*PALETTES[t], *COLOURS[t], *_POSITIVE[t], *_NEGATIVE[t]] for t in ("light", "dark"))
    steps = [i / (_N_SHADES - 1) for i in range(_N_SHADES)]
    shades = [(shade(step, "light"), shade(step, "dark")) for step in steps]
    letters = [(colour, _LETTER_COLOURS["dark"][kind]) for kind, colour in _LETTER_COLOURS["light"].items()]
    return {"colours": [*zip(light, dark, strict=True), *shades], "letters": letters}


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


def legend_beside(figure: go.Figure, n: int) -> go.Figure:
    """Of many runs, set the legend beside the figure, one below the other, and make room for all of them."""
    if n <= MOST_ABOVE:
        return figure
    layout: Any = figure.layout
    height = max(layout.height or 0, 110 + 26 * n)
    beside = {"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top", "font": {"size": 11}}
    return figure.update_layout(legend=beside, height=height)


def pin_run(figure: go.Figure, name: str, theme: Theme) -> go.Figure:
    """Draw one run's lines, the baseline, in the colour of text and unbroken, and mark its name in the legend."""
    traces: Any = figure.data
    for trace in traces:
        if trace.type == "scatter" and name in (trace.legendgroup, trace.name):
            trace.line.color, trace.line.dash = PALETTES[theme].text, "solid"
            trace.name = f"{name} (baseline)" if trace.showlegend is not False and trace.name == name else trace.name
    return figure


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
        modebar={
            "bgcolor": "rgba(0,0,0,0)",
            "color": palette.muted,
            "activecolor": palette.text,
            "remove": list(_SENDS_AWAY),
        },
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
