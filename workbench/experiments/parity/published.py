"""Published figures about single heads of public models, with their sources. No torch.

`published.json` holds facts: scores, orders or names of heads, each with its source. Where a repository has no licence,
it holds only the 50 best heads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from workbench.heads import WorkbenchError

_STRICT = ConfigDict(frozen=True, extra="forbid")
_LABELS = {"head": r"L(\d+)H(\d+)", "kv_head": r"L(\d+)KV(\d+)"}


class Shape(BaseModel):
    """The fields of a configuration that identify a published model."""

    model_config = _STRICT

    model_type: str
    n_layers: int = Field(ge=1)
    n_heads: int = Field(ge=1)
    n_kv_heads: int = Field(ge=1)
    d_model: int = Field(ge=1)

    def __str__(self) -> str:
        return (
            f"{self.model_type} of {self.n_layers} layers, {self.n_heads} heads, {self.n_kv_heads} key/value heads, "
            f"width {self.d_model}"
        )

    @property
    def heads(self) -> tuple[int, int, int]:
        """The numbers that two models must share for their heads to be compared one by one."""
        return self.n_layers, self.n_heads, self.n_kv_heads


class Figure(BaseModel):
    """One source's figure about one model's heads by one detector.

    `kind`: scores of heads, all or the highest; heads in order, the best first; a set of heads without order; or the
    mean score over all heads (`share`, in `value`). `of`: query heads, labelled `L3H7`, or key/value heads, `L3KV1`.
    `detector`: of `workbench detectors`, or for key/value heads a ranking method of `workbench plan`. `probe`: what we
    score on, as `workbench scan --probe` takes it; it is of the source's kind, not the source's own input.
    """

    model_config = _STRICT

    detector: str
    kind: Literal["scores", "ranked", "set", "share"]
    of: Literal["head", "kv_head"] = "head"
    probe: str
    source: str = Field(min_length=1)
    heads: dict[str, float] | list[str] = Field(default_factory=list[str])
    value: float | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Figure:
        if (self.kind == "share") != (self.value is not None) or (self.kind == "share") == bool(self.heads):
            raise ValueError("a share has a value and no heads, every other kind has heads and no value")
        if (self.kind == "scores") != isinstance(self.heads, dict):
            raise ValueError("scores are heads with a number each, other kinds are lists of heads")
        self.layers_and_heads()
        return self

    def layers_and_heads(self) -> list[tuple[int, int]]:
        """(layer, head) of the heads listed, the best first unless it is a set."""
        if isinstance(self.heads, dict):
            labels = sorted(self.heads, key=self.heads.__getitem__, reverse=True)
        else:
            labels = self.heads
        return [_layer_and_head(label, self.of) for label in labels]

    def scores(self) -> list[float]:
        """A number for each of `layers_and_heads()`: the score, or its distance from the end of the order."""
        if isinstance(self.heads, dict):
            return sorted(self.heads.values(), reverse=True)
        return [float(n) for n in range(len(self.heads), 0, -1)]


def _layer_and_head(label: str, of: str) -> tuple[int, int]:
    match = re.fullmatch(_LABELS[of], label)
    if match is None:
        raise ValueError(f"{label!r} is no label of a {of}; expected {'L3H7' if of == 'head' else 'L3KV1'}")
    return int(match[1]), int(match[2])


class Published(BaseModel):
    """A model and the figures about it."""

    model_config = _STRICT

    name: str
    shape: Shape
    figures: tuple[Figure, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_its_heads(self) -> Published:
        for figure in self.figures:
            n = self.shape.n_heads if figure.of == "head" else self.shape.n_kv_heads
            beyond = [
                (layer, head) for layer, head in figure.layers_and_heads() if layer >= self.shape.n_layers or head >= n
            ]
            if beyond:
                raise ValueError(f"{figure.detector} names layer and head {beyond[0]} of a {self.shape}")
        return self


class _Document(BaseModel):
    model_config = _STRICT

    models: tuple[Published, ...] = Field(min_length=1)


def published_models() -> tuple[Published, ...]:
    """Every model with figures in `published.json`."""
    return _parsed(
        files("workbench.experiments.parity").joinpath("published.json").read_text(encoding="utf-8"), "published.json"
    )


def read_published(path: Path) -> tuple[Published, ...]:
    """The models of a file like `published.json`.

    Raises:
        WorkbenchError: if it cannot be read, or does not have that structure.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"cannot read the published figures {path}: {error}") from error
    return _parsed(text, str(path))


def _parsed(text: str, name: str) -> tuple[Published, ...]:
    try:
        return _Document.model_validate_json(text).models
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise WorkbenchError(
            f"{name} does not hold published figures: {problems}; expected "
            '{"models": [{"name", "shape", "figures"}]}'
        ) from error


def shape_of(folder: Path) -> Shape:
    """The shape of the model in a folder, read from its config.json.

    Raises:
        WorkbenchError: if there is no configuration, or it has no attention heads.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"{folder} is no model folder: {error}; expected a config.json") from error
    inner = {**config, **config.get("text_config", {})}
    n_heads = _first(inner, folder, "num_attention_heads", "n_head")
    return Shape(
        model_type=config.get("model_type", ""),
        n_layers=_first(inner, folder, "num_hidden_layers", "n_layer"),
        n_heads=n_heads,
        n_kv_heads=inner.get("num_key_value_heads") or n_heads,
        d_model=_first(inner, folder, "hidden_size", "n_embd"),
    )


def _first(config: dict[str, Any], folder: Path, *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return config[name]
    raise WorkbenchError(f"the configuration in {folder} has none of {', '.join(names)}")


def choose(shape: Shape, known: Sequence[Published], against: str | None = None) -> Published:
    """The published model of this shape, or the one named.

    Raises:
        WorkbenchError: if none or several have the shape, the name is unknown, or the named one has other heads.
    """
    names = ", ".join(p.name for p in known)
    if against is not None:
        named = [p for p in known if p.name == against]
        if not named:
            raise WorkbenchError(f"no published figures are called {against!r}; expected one of {names}, or a file")
        if named[0].shape.heads != shape.heads:
            raise WorkbenchError(
                f"{against} is a {named[0].shape}; given: a {shape}. Heads are compared one by one, so layers and "
                "heads must be as many"
            )
        return named[0]
    same_shape = [p for p in known if p.shape == shape]
    if not same_shape:
        raise WorkbenchError(
            f"nothing is published here about a {shape}; known: {names}. Pass --against NAME for a model derived from "
            "one of them, or --against FILE with figures of your own"
        )
    if len(same_shape) > 1:
        candidates = ", ".join(p.name for p in same_shape)
        raise WorkbenchError(f"{candidates} all are a {shape}; pass --against with the one it is or derives from")
    return same_shape[0]
