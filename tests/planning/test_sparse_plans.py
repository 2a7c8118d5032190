"""Plans whose heads have windows, linear and sparse attention at once: applied, kept in a file, exported or refused."""

import json
from dataclasses import replace

import pytest
import torch

import workbench as wb
from tests.families import tiny
from workbench.heads import KVHead, WorkbenchError
from workbench.store.conversions import Window
from workbench.store.plan_file import Plan, RankedHead

SPARSE = wb.SparseAttention(4, 2, sink_blocks=1, rule="mean")
LINEAR = wb.LinearAttention("elu", 1.5, 0.9)
TOKENS = torch.randint(3, 90, (1, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def m() -> wb.HookedModel:
    return wb.open_model(tiny("llama"))


@pytest.fixture(scope="module")
def plan(m: wb.HookedModel) -> Plan:
    heads = [KVHead(i.index, h) for i in m.layers for h in range(i.n_kv_heads)]
    return Plan(
        model="tiny",
        layers=m.layers,
        window=6,
        sink=1,
        unit="head",
        method="window_gates",
        units="nats",
        probe="p",
        probe_digest="d",
        seed=0,
        context=64,
        keep=(heads[0],),
        ranking=tuple(RankedHead(*h, 0.0, 0.0, 0.0) for h in heads),
        curve=(),
        evidence={},
        conversions={heads[1]: LINEAR, heads[2]: SPARSE},
    )


def test_a_plan_of_all_choices_is_its_parts(m: wb.HookedModel, plan: Plan) -> None:
    with torch.no_grad():
        with m.apply(plan):
            applied = m.model(TOKENS).logits
        with m.restrict(plan.windowed, 6, 1), m.linearize(plan.linear), m.sparsify(plan.sparse):
            parts = m.model(TOKENS).logits
        with m.apply(replace(plan, conversions={KVHead(0, 1): LINEAR})):
            windowed = m.model(TOKENS).logits
    torch.testing.assert_close(applied, parts, atol=1e-5, rtol=0)
    assert not torch.allclose(applied, windowed, atol=1e-3)


def test_a_sparse_head_saves_no_cache_and_reads_fewer_keys(plan: Plan) -> None:
    head = next(iter(plan.sparse))
    full = plan.keeping([*plan.keep, head])
    assert plan.kv_bytes == full.kv_bytes
    assert full.keys_read - plan.keys_read == 64 - 8
    assert plan.table().set_index("head_name").choice[str(head)] == "sparse"


def test_the_plan_file_and_the_json_for_engines_hold_sparse_heads(plan: Plan, tmp_path) -> None:
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    plan.to_json_spec(tmp_path / "spec.json")
    spec = json.loads((tmp_path / "spec.json").read_text())
    kinds = [head["kind"] for layer in spec["layers"] for head in layer["kv_heads"]]
    assert kinds == ["full", "linear", "sparse", "window"]


def test_exports_that_cannot_say_sparse_heads_refuse_them(m: wb.HookedModel, plan: Plan, tmp_path) -> None:
    sparse = replace(plan, conversions=plan.sparse, sink=0)
    assert set(sparse.choices.values()) == {"full", SPARSE, Window(6, 0)}
    for export in (
        sparse.to_layer_types,
        lambda: sparse.to_duo_attention(tmp_path / "duo.tsv"),
        lambda: m.save_planned(sparse, tmp_path / "folder"),
    ):
        with pytest.raises(WorkbenchError, match="sparse attention"):
            export()
    assert not list(tmp_path.iterdir())
