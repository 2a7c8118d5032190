"""One head's attention pattern on a text, with the tokens to point at."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import plotly.graph_objects as go

from workbench.figures.style import PALETTES, Scale, Theme, colour_axis, styled
from workbench.files.token_text import pieces_of
from workbench.heads import WorkbenchError

# More squares than this make a figure of tens of MB.
_MOST_SQUARES = 1_000_000
# Up to so many tokens along a side, each has its label.
_LABELLED = 48


@runtime_checkable
class PatternModel(Protocol):
    """What the figure asks of a model; `workbench.HookedModel` has it."""

    @property
    def tokenizer(self) -> Any: ...
    def pattern(self, tokens: Any, layer: Any, head: Any = None, queries: Any = ..., keys: Any = ...) -> Any:
        """As `HookedModel.pattern`."""
        ...

    def token_ids(self, tokens: Any) -> Any:
        """As `HookedModel.token_ids`."""
        ...


def pattern(  # noqa: PLR0913  # public keywords
    m: PatternModel | Any,
    tokens: Any,
    layer: Any,
    head: int | None = None,
    *,
    queries: Any = slice(None),
    keys: Any = slice(None),
    theme: Theme = "light",
) -> go.Figure:
    """A head's exact pattern on one sequence, from a model without a run: queries down, keys across, tokens on hover.

    The weights of linear heads are signed, on a scale of their own. Interventions in force hold.

    Args:
        m: an opened model.
        tokens: token ids or text, as `HookedModel.pattern` takes them.
        layer, head: two numbers, or the head alone: `Head(1, 3)`, `"L1H3"`.
        queries, keys: the crop to draw, as in `HookedModel.pattern`.

    Raises:
        WorkbenchError: as `HookedModel.pattern`; for what is no opened model; or for a crop of more than a million
            squares.
    """
    if not isinstance(m, PatternModel):
        raise WorkbenchError(f"a {type(m).__name__} was given; expected an opened model: wb.open_model(...)")
    ids = [int(i) for i in m.token_ids(tokens)]
    rows, columns = (_positions(chosen, len(ids)) for chosen in (queries, keys))
    if len(rows) * len(columns) > _MOST_SQUARES:
        raise WorkbenchError(
            f"the pattern has {len(rows):,} queries by {len(columns):,} keys, more than {_MOST_SQUARES:,} squares; "
            "crop it with queries= and keys="
        )
    weights = np.asarray(m.pattern(tokens, layer, head, rows, columns).cpu())
    names = _names(ids, m.tokenizer)
    title = str(layer) if head is None else f"L{layer}H{head}"
    top = float(np.abs(weights).max(initial=0.0))
    scale = Scale(-top, top, "weight") if weights.min(initial=0.0) < 0 else Scale(0.0, max(1.0, top), "")
    figure = go.Figure()
    figure.add_heatmap(
        z=weights,
        x=np.arange(len(columns)),
        y=np.arange(len(rows)),
        customdata=np.stack(
            np.broadcast_arrays(
                np.array([f"{i} {names[i]}" for i in rows])[:, None], np.array([f"{i} {names[i]}" for i in columns])
            ),
            -1,
        ),
        hovertemplate="query %{customdata[0]}<br>key %{customdata[1]}<br>%{z:.4~g}<extra></extra>",
        coloraxis="coloraxis",
        name=title,
    )
    side = int(np.clip(14 * max(len(rows), 8), 320, 760))
    styled(figure, theme, height=side + 90)
    figure.update_layout(coloraxis=colour_axis(scale, theme), plot_bgcolor=PALETTES[theme].missing, title_text=title)
    figure.update_xaxes(**_ticks(columns, names), title_text="key", showgrid=False, constrain="domain")
    figure.update_yaxes(
        **_ticks(rows, names), title_text="query", showgrid=False, autorange="reversed", scaleanchor="x"
    )
    return figure


def _positions(chosen: Any, n_tokens: int) -> list[int]:
    """Positions as Python reads indices, negative ones and masks included."""
    return [int(i) for i in np.atleast_1d(np.arange(n_tokens)[np.asarray(chosen) if _is_list(chosen) else chosen])]


def _is_list(chosen: Any) -> bool:
    return not isinstance(chosen, slice | int)


def _names(ids: list[int], tokenizer: Any) -> list[str]:
    """The text of tokens, or their ids; < and & are not read as markup."""
    texts = pieces_of(tokenizer, ids) or [str(i) for i in ids]
    return [repr(text)[1:-1].replace("&", "&amp;").replace("<", "&lt;") for text in texts]


def _ticks(positions: list[int], names: list[str]) -> dict[str, Any]:
    every = max(1, -(-len(positions) // _LABELLED))
    shown = range(0, len(positions), every)
    return {"tickvals": list(shown), "ticktext": [names[positions[i]] for i in shown], "ticks": ""}
