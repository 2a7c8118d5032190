"""Patterns for the browser: what is kept of a checkpoint's heads, as numbers and as bytes that a canvas draws.

Every answer names a run or a probing by what this app calls it, never by a path. What cannot be shown is an answer too,
`{"error": …}`: the reason and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import flask
from dash import ClientsideFunction, Dash, Input

from workbench.app import components as p
from workbench.figures.style import Scale, colour_scale
from workbench.heads import WorkbenchError
from workbench.store import PatternFile, Tile

HEAD_PATTERNS = "head-patterns"
# Cells along a side of what a canvas is sent: more than its pixels would be lost.
CELLS = 512

Find = Callable[[Mapping[str, str]], PatternFile]


def register(app: Dash, content: p.Content) -> None:
    """The routes that patterns are fetched from, and the Head page's part that shows them."""

    def find(asked: Mapping[str, str]) -> PatternFile:
        """The patterns that a request is about.

        Raises:
            WorkbenchError: if there is no such run or probing, or nothing was kept.
        """
        if "job" in asked:
            return content.probings.result(asked["job"])
        run = content.runs.get(asked.get("run", ""))
        if run is None:
            raise WorkbenchError(f"there is no run {asked.get('run', '')!r} here; there is: {', '.join(content.runs)}")
        # A detector may have a probe that has no sequence, such as the weights: any other shows the head as well.
        probes = [name for name in run.maps.probes if name == asked.get("probe")] or [*run.maps.probes, None]
        return run.maps.find(ckpt=asked.get("ckpt"), probe=probes[0])

    prefix = f"{app.config.routes_pathname_prefix}patterns/"
    for name, answer in (("of", _of), ("head", _head), ("atlas", _atlas), ("tile", _tile)):
        app.server.add_url_rule(f"{prefix}{name}", f"patterns-{name}", _answering(find, answer))
    app.clientside_callback(
        ClientsideFunction("workbench", "patterned"),
        Input(p.VIEW, "data"),
        Input(p.STEPS, "data"),
        Input(p.THEME, "data"),
        Input(p.HEAD_CHANGED, "data"),
    )


def _answering(find: Find, answer: Callable[[PatternFile, Mapping[str, str]], flask.Response]) -> Callable[[], Any]:
    def answered() -> flask.Response:
        asked = flask.request.args
        try:
            return answer(find(asked), asked)
        except WorkbenchError as error:
            return flask.jsonify({"error": str(error)})
        except (KeyError, ValueError):
            return flask.jsonify({"error": f"{flask.request.query_string.decode()!r} does not say which pattern"})

    return answered


def _of(file: PatternFile, _: Mapping[str, str]) -> flask.Response:
    """The sequence, the layers, and which heads are kept finer or exactly."""
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


def _at(file: PatternFile, asked: Mapping[str, str]) -> tuple[int, int, str | None]:
    """The layer and head that are asked for, and their kind where the layer has one of that."""
    layer, head, kind = int(asked["layer"]), int(asked["head"]), asked.get("kind")
    there = {one["kind"] for one in file.label.layers if one["layer"] == layer}
    return layer, head, kind if kind in there else None


def _head(file: PatternFile, asked: Mapping[str, str]) -> flask.Response:
    """A head's strongest links, where its attention lies by distance, and how far most of it reaches."""
    layer, head, kind = _at(file, asked)
    return flask.jsonify(
        {
            "links": file.links(layer, head, kind=kind).to_dict("records"),
            "profile": file.distance_profile(layer, head, kind=kind).to_dict("records"),
            "sink": file.sink_mass(layer, head, kind=kind),
            "window": file.effective_window(layer, head, kind=kind),
            "blocks": file.blocks(layer, head, kind=kind),
        }
    )


def _atlas(file: PatternFile, asked: Mapping[str, str]) -> flask.Response:
    """All heads of a layer, one after the other."""
    tiles = file.atlas(int(asked["layer"]))
    every = zip(file.heads, file.kinds, strict=True)
    heads = [(head.head, kind) for head, kind in every if head.layer == int(asked["layer"])]
    described = {
        "side": len(tiles[0].codes),
        "heads": [head for head, _ in heads],
        "kinds": [kind for _, kind in heads],
        "signed": [tile.is_signed for tile in tiles],
        "scale": [tile.scale for tile in tiles],
    }
    return _bytes(b"".join(tile.codes.tobytes() for tile in tiles), described)


def _tile(file: PatternFile, asked: Mapping[str, str]) -> flask.Response:
    """A part of a head's pattern, as fine as it is kept and as a canvas has pixels."""
    queries, keys = (slice(int(asked[f"{axis}0"]), int(asked[f"{axis}1"])) for axis in "qk")
    if min(queries.start, keys.start) < 0:
        raise WorkbenchError(f"tokens count from 0; asked for {queries.start} and {keys.start}")
    layer, head, kind = _at(file, asked)
    tile: Tile = file.tile(layer, head, queries, keys, cells=CELLS, kind=kind)
    rows, columns = tile.codes.shape
    described = {
        "rows": rows,
        "columns": columns,
        "query": tile.query,
        "key": tile.key,
        "block": tile.block,
        "signed": tile.is_signed,
        "scale": tile.scale,
    }
    return _bytes(tile.codes.tobytes(), described)


def _bytes(payload: bytes, described: Mapping[str, Any]) -> flask.Response:
    response = flask.Response(payload, mimetype="application/octet-stream")
    response.headers["X-Workbench"] = json.dumps(described)
    response.headers["Cache-Control"] = "no-store"
    return response
