"""A plan as the files of others: DuoAttention's folder, and a neutral JSON for engines that serve models. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.files.plain_json import json_text
from workbench.heads import KVHead, WorkbenchError
from workbench.store.conversions import LinearAttention, Window
from workbench.store.plan_file import Plan, write_text

# Raised when a field of `json_spec` changes its meaning.
SPEC_VERSION = 1


def conversion_record(plan: Plan, head: KVHead) -> dict[str, Any]:
    """What a key/value head becomes: `kind` full, window (with `window`, `sink`) or linear (with its form)."""
    choice = plan.choices.get(head, "full")
    if isinstance(choice, Window):
        return {"kind": "window", **asdict(choice)}
    return {"kind": "linear", **asdict(choice)} if isinstance(choice, LinearAttention) else {"kind": "full"}


def json_spec(plan: Plan) -> dict[str, Any]:
    """A plan for engines that serve models: what each key/value head of each layer sees.

    `schema`: "attention-plan"; `schema_version`: raised when a field changes its meaning. `model`: the name, and
    `fingerprint`, the sha256 of the JSON of `layers` in the plan file with sorted keys and no spaces, by which an
    engine knows whether the plan is for its model's layers. `layers`: one per token mixer, with `index`, `kind`,
    `mixer`, `window` (its own, null where it sees everything), `n_heads`, `n_kv_heads`, `d_head`, and `kv_heads`, the
    heads in order: `{"kind": "full"}`, `{"kind": "window", "window": W, "sink": S}` (the first S keys, and the last W,
    the query's own included) or `{"kind": "linear", "features", "sharpness", "decay"}`. Linear mixers have no
    `kv_heads`. `context` and `kv_bytes`: tokens, and the bytes of cache that these leave of them.
    """
    layers = [
        {
            **{name: getattr(info, name) for name in ("index", "kind", "mixer", "window", "has_sinks")},
            **{name: getattr(info, name) for name in ("n_heads", "n_kv_heads", "d_head")},
            "kv_heads": [conversion_record(plan, KVHead(info.index, h)) for h in range(info.n_kv_heads)]
            if info.mixer == "softmax"
            else [],
        }
        for info in plan.layers
    ]
    return {
        "schema": "attention-plan",
        "schema_version": SPEC_VERSION,
        "model": {"name": plan.model, "fingerprint": plan.fingerprint},
        "context": plan.context,
        "kv_bytes": plan.kv_bytes,
        "layers": layers,
    }
