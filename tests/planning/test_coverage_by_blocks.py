"""Coverage of attention by selected blocks: against eager patterns."""

import pytest
import torch

import workbench as wb
from tests.families import tiny
from workbench.heads import WorkbenchError
from workbench.planning import block_coverage

TOKENS = torch.randint(3, 90, (1, 40), generator=torch.Generator().manual_seed(0))


def test_oracle_coverage_is_the_mass_of_the_heaviest_blocks_of_each_row() -> None:
    m = wb.open_model(tiny("llama"))
    table = block_coverage(m, TOKENS, (1, 2, 3), block=5)
    size = m.layers[0].n_heads // m.layers[0].n_kv_heads
    for layer, pattern in m.patterns(TOKENS).items():
        mass = pattern.double().reshape(-1, size, 40, 8, 5).sum(-1).mean(1)
        for kv_head, of_head in enumerate(mass):
            shares = torch.zeros(3, dtype=torch.float64)
            for row in range(15, 40):
                own = row // 5
                rest = of_head[row, :own].sort(descending=True).values
                shares += torch.cat([of_head[row, own : own + 1], rest]).cumsum(0)[:3]
            of_rule = table[(table.layer == layer) & (table.kv_head == kv_head) & (table.rule == "oracle")]
            assert of_rule.coverage.tolist() == pytest.approx((shares / 25).tolist(), abs=1e-5)
            assert set(of_rule.n_rows) == {25}
    by_rule = table.set_index(["layer", "kv_head", "n_blocks"]).groupby("rule").coverage
    best = by_rule.get_group("oracle")
    assert (best >= by_rule.get_group("mean") - 1e-6).all()
    assert (best >= by_rule.get_group("minmax") - 1e-6).all()


def test_a_text_that_has_no_more_blocks_is_refused() -> None:
    with pytest.raises(WorkbenchError, match="longer than 64 tokens"):
        block_coverage(tiny("llama"), TOKENS, (8,), block=8)
