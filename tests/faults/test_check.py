"""`workbench check`: whatever is changed in a part by a program that writes whole Parquet files is found and named."""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.series import write_series
from workbench import scan
from workbench.store import Store, canonical_digest
from workbench.store.score_settings import SETTING_NAMES


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("check")
    series = write_series(root / "series", steps=(0, 2))
    return scan(series, root / "run", ["sink", "far_mass"], ["repeats:n=12,n_sequences=6"]).path


@pytest.fixture
def run(whole, tmp_path):
    return Store.open(shutil.copytree(whole, tmp_path / "run"))


def rewritten(store, change, *, table="scores"):
    """A part whose rows and metadata were changed, written as the store itself would."""
    part = next(p for p in store.parts() if p.label.table == table and p.label.rows)
    rows = pq.read_table(part.path).replace_schema_metadata(None)
    metadata = {k: v for k, v in pq.read_metadata(part.path).metadata.items() if k.startswith(b"wb.")}
    rows, metadata = change(rows, metadata)
    with pq.ParquetWriter(part.path, rows.schema, store_schema=False, write_page_checksum=True) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata(metadata)
    return part.path


def set_column(rows, name, values):
    at = rows.schema.get_field_index(name)
    return rows.set_column(at, rows.schema.field(at), pa.array(values, rows.schema.field(at).type))


def another_score(rows, metadata):
    scores = rows["score"].to_pylist()
    return set_column(rows, "score", [scores[0] + 1e-9, *scores[1:]]), metadata


def another_head(rows, metadata):
    return set_column(rows, "head", rows["head"].to_pylist()[::-1]), metadata


def another_flag(rows, metadata):
    return set_column(rows, "flags", ["seen=1"] * len(rows)), metadata


def a_row_less(rows, metadata):
    return rows.slice(1), metadata | {b"wb.rows": str(len(rows) - 1).encode()}


def a_row_twice(rows, metadata):
    return pa.concat_tables([rows, rows.slice(0, 1)]), metadata | {b"wb.rows": str(len(rows) + 1).encode()}


def rows_of_another_checkpoint(rows, metadata):
    return set_column(rows, "ckpt", ["checkpoint-9"] * len(rows)), metadata


def one_row_of_another_unit(rows, metadata):
    return set_column(rows, "unit", [canonical_digest("x"), *rows["unit"].to_pylist()[1:]]), metadata


def origin(metadata, **changes):
    return metadata | {b"wb.origin": json.dumps(json.loads(metadata[b"wb.origin"]) | changes).encode()}


def another_step_throughout(rows, metadata):
    return set_column(rows, "step", pc.add(rows["step"], 1).to_pylist()), origin(metadata, step=1)


def other_tokens_throughout(rows, metadata):
    return set_column(rows, "tokens", [7] * len(rows)), origin(metadata, tokens=7)


def another_probe_throughout(rows, metadata):
    return set_column(rows, "probe_digest", ["d" * 32] * len(rows)), metadata | {b"wb.probe_digest": b"d" * 32}


def another_seed(rows, metadata):
    determined = json.loads(metadata[b"wb.determined"]) | {"seed": 1}
    return rows, metadata | {b"wb.determined": json.dumps(determined).encode()}


def another_type(rows, metadata):
    at = rows.schema.get_field_index("score")
    return rows.set_column(at, "score", rows["score"].cast(pa.float32())), metadata


def a_column_less(rows, metadata):
    return rows.drop_columns(["flags"]), metadata


def a_newer_schema(rows, metadata):
    return rows, metadata | {b"wb.schema": b"99"}


CHANGES = {
    another_score: "other rows than were written",
    another_head: "other rows than were written",
    another_flag: "other rows than were written",
    a_row_less: "other rows than were written",
    a_row_twice: "other rows than were written",
    rows_of_another_checkpoint: "says ckpt 'checkpoint-0' and has rows of ['checkpoint-9']",
    one_row_of_another_unit: "says unit",
    another_step_throughout: "other rows than were written",
    other_tokens_throughout: "other rows than were written",
    another_probe_throughout: "other rows than were written",
    another_seed: "says seed 1 and has rows of [0]",
    another_type: "other columns than schema 2",
    a_column_less: "other columns than schema 2",
    a_newer_schema: "has schema 99",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_part_that_was_changed_is_named_and_nothing_is_mended(run, change):
    assert run.check() == []
    path = rewritten(run, change)
    before = path.read_bytes()
    (problem,) = run.check()
    assert problem.path == path
    assert CHANGES[change] in problem.reason
    assert path.read_bytes() == before


def test_metrics_are_looked_over_as_scores_are(run):
    path = rewritten(run, lambda rows, kept: (set_column(rows, "value", [0.5] * len(rows)), kept), table="metrics")
    assert [(p.path, p.reason) for p in run.check()] == [(path, "holds other rows than were written")]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 1}, "says seed 1 and has rows of [0]"),
        ({"weights": "f" * 32}, "is named unit"),
        ({"detector": ["sink", 9]}, "is named unit"),
    ],
    ids=str,
)
def test_a_key_that_does_not_belong_to_its_content_is_found_though_digests_agree(run, change, told):
    """Forged whole: the digest of the part is made anew, the unit's key is not."""
    from workbench.store.part_files import read_label
    from workbench.store.part_format import DIGEST, part_digest

    def forge(rows, metadata):
        determined = json.loads(metadata[b"wb.determined"]) | change
        metadata = metadata | {b"wb.determined": json.dumps(determined).encode()}
        return rows, metadata

    path = rewritten(run, forge)
    label = read_label(run.path, path).label
    rewritten(run, lambda rows, metadata: (rows, metadata | {DIGEST: part_digest(rows, label).encode()}))
    (problem,) = run.check()
    assert (problem.path, told in problem.reason) == (path, True)


def test_a_part_that_says_it_is_of_other_weights_than_its_numbers_is_found(run):
    from workbench.store.part_format import DIGEST, Label, part_digest

    def forge(rows, metadata):
        label = Label.from_metadata(metadata)
        config = "c" * 32
        metadata = origin(metadata, config=config)
        rows = set_column(rows, "config", [config] * len(rows))
        label = Label.from_metadata(metadata)
        return rows, metadata | {DIGEST: part_digest(rows, label).encode()}

    path = rewritten(run, forge)
    (problem,) = run.check()
    assert problem.path == path
    assert "has numbers of config" in problem.reason


def test_parts_of_before_digests_were_kept_are_read_and_looked_over_as_far_as_they_go(run):
    def older(rows, metadata):
        metadata = {k: v for k, v in metadata.items() if k not in (b"wb.digest", b"wb.determined")}
        return rows.drop_columns(list(SETTING_NAMES)), metadata | {b"wb.schema": b"1"}

    rewritten(run, older)
    assert run.check() == []
    assert len(run.scores())
    path = rewritten(run, rows_of_another_checkpoint)
    assert [p.path for p in run.check()] == [path]
