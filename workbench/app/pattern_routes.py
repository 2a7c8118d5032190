"""Routes that send attention patterns to the browser, as JSON and as bytes that a canvas draws.

A request names a run or a probe run by its name in this app, never by a path. A pattern that cannot be shown is
answered with `{"error": …}`: the reason and what to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import flask
from dash import ClientsideFunction, Dash, Input

from workbench.app import ids
from workbench.app.state.content import Content
from workbench.figures.style import Scale, colour_scale
from workbench.heads import WorkbenchError
from workbench.store import PatternFile, Tile

# The most cells along a side of a tile: a canvas has no more pixels to show.
CELLS = 512

Query = Mapping[str, str]
Find = Callable[[Query], PatternFile]


def register(app: Dash, content: Content) -> None:
    """Add the routes, and the callback that shows the patterns of the Head page."""

    def find(query: Query) -> PatternFile:
        """The patterns that a query names.

        Raises:
            WorkbenchError: if there is no such run or probe run, or it kept no patterns.
        """
        if "job" in query:
            return content.probings.result(query["job"])
        run = content.runs.get(query.get("run", ""))
        if run is None:
            raise WorkbenchError(f"there is no run {query.get('run', '')!r} here; there is: {', '.join(content.runs)}")
        # The probe of some detectors has no sequence, as the weights have none: any other probe shows the head.
        probes = [name for name in run.maps.probes if name == query.get("probe")] or [*run.maps.probes, None]
        return run.maps.find(ckpt=query.get("ckpt"), probe=probes[0])

    prefix = f"{app.config.routes_pathname_prefix}patterns/"
    for name, answer in (("of", _file), ("far", _far), ("head", _head), ("atlas", _atlas), ("tile", _tile)):
        app.server.add_url_rule(f"{prefix}{name}", f"patterns-{name}", _view_function(find, answer))
    app.clientside_callback(
        ClientsideFunction("workbench", "showHeadPatterns"),
        Input(ids.VIEW, "data"),
        Input(ids.RUN_CHECKPOINTS, "data"),
        Input(ids.THEME, "data"),
        Input(ids.HEAD_CHANGED, "data"),
    )


def _view_function(find: Find, answer: Callable[[PatternFile, Query], flask.Response]) -> Callable[[], flask.Response]:
    def respond() -> flask.Response:
        query = flask.request.args
        try:
            return answer(find(query), query)
        except WorkbenchError as error:
            return flask.jsonify({"error": str(error)})
        except (KeyError, ValueError):
            return flask.jsonify({"error": f"{flask.request.query_string.decode()!r} does not say which pattern"})

    return respond


def _file(file: PatternFile, _: Query) -> flask.Response:
    """The sequence, the layers, and the heads that are stored finer or exactly."""
    label = file.label
    both = Scale(-1, 1, "")
    return flask.jsonify(
        {
            "ckpt": label.origin.ckpt,
            "probe": label.probe,
            "n": label.n_tokens,
            "ids": file.ids.tolist(),
            "pieces": file.pieces,
            "block": label.block,
            "far": label.far,
            "layers": label.layers,
            "finer": [str(head) for head in file.finer],
            "exact": [str(head) for head in file.exact],
            "colours": {theme: colour_scale(both, theme) for theme in ("light", "dark")},
        }
    )


def _far(file: PatternFile, _: Query) -> flask.Response:
    """How far every head looks on this sequence: the share of its attention `from` or more tokens back."""
    heads = zip(file.heads, file.kinds, file.far_mass().tolist(), strict=True)
    rows = [[head.layer, head.head, kind, None if math.isnan(mass) else mass] for head, kind, mass in heads]
    return flask.jsonify({"from": file.far_from, "heads": rows})


def _layer_head_kind(file: PatternFile, query: Query) -> tuple[int, int, str | None]:
    """The layer and the head of a query, and their kind if the layer has heads of that kind."""
    layer, head, kind = int(query["layer"]), int(query["head"]), query.get("kind")
    kinds = {entry["kind"] for entry in file.label.layers if entry["layer"] == layer}
    return layer, head, kind if kind in kinds else None


def _head(file: PatternFile, query: Query) -> flask.Response:
    """A head's strongest links, its attention by distance, and the distance within which most of it lies."""
    layer, head, kind = _layer_head_kind(file, query)
    return flask.jsonify(
        {
            "links": file.links(layer, head, kind=kind).to_dict("records"),
            "profile": file.distance_profile(layer, head, kind=kind).to_dict("records"),
            "sink": file.sink_mass(layer, head, kind=kind),
            "window": file.effective_window(layer, head, kind=kind),
            "blocks": file.blocks(layer, head, kind=kind),
        }
    )


def _atlas(file: PatternFile, query: Query) -> flask.Response:
    """All heads of a layer, one after the other."""
    tiles = file.atlas(int(query["layer"]))
    kinds = zip(file.heads, file.kinds, strict=True)
    heads = [(head.head, kind) for head, kind in kinds if head.layer == int(query["layer"])]
    header = {
        "side": len(tiles[0].codes),
        "heads": [head for head, _ in heads],
        "kinds": [kind for _, kind in heads],
        "signed": [tile.is_signed for tile in tiles],
        "scale": [tile.scale for tile in tiles],
    }
    return _binary(b"".join(tile.codes.tobytes() for tile in tiles), header)


def _tile(file: PatternFile, query: Query) -> flask.Response:
    """A part of a head's pattern, as fine as it is stored and at most `CELLS` cells a side."""
    queries, keys = (slice(int(query[f"{axis}0"]), int(query[f"{axis}1"])) for axis in "qk")
    if min(queries.start, keys.start) < 0:
        raise WorkbenchError(f"tokens count from 0; asked for {queries.start} and {keys.start}")
    layer, head, kind = _layer_head_kind(file, query)
    tile: Tile = file.tile(layer, head, queries, keys, cells=CELLS, kind=kind)
    rows, columns = tile.codes.shape
    header = {
        "rows": rows,
        "columns": columns,
        "query": tile.query,
        "key": tile.key,
        "block": tile.block,
        "signed": tile.is_signed,
        "scale": tile.scale,
    }
    return _binary(tile.codes.tobytes(), header)


def _binary(payload: bytes, header: Mapping[str, Any]) -> flask.Response:
    response = flask.Response(payload, mimetype="application/octet-stream")
    response.headers["X-Workbench"] = json.dumps(header)
    response.headers["Cache-Control"] = "no-store"
    return response
