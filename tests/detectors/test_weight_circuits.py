"""Scores of weights: exact on circuits written by hand, equal to full-size brute force, about 0 for random heads."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests import planted
from tests.families import CONFIGS, random_tokens, tiny
from tests.more_families import MORE_CONFIGS
from tests.weights import UNREADABLE, head_matrices
from workbench import WorkbenchError, open_model, probes, scan, score
from workbench.detectors import all_detectors, composition, find_detectors
from workbench.detectors.builtin.weight_circuits import composition_table, copying, k_composition, random_ratio
from workbench.heads import LayerInfo
from workbench.hooks.head_weights import HeadWeights, Weights, linear_part, read_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
V = planted.VOCABULARY
RANDOM = math.sqrt(1 / planted.WIDTH)


def by_hand(layers, *, embed=None, unembed=None):
    """Weights of planted heads: values are the residual times `ov`, written back as they are."""
    infos, heads = [], []
    for index, planted_heads in enumerate(layers):
        q, k, v = (torch.stack([getattr(head, name) for head in planted_heads]) for name in ("q", "k", "ov"))
        heads.append(HeadWeights(q, k, v, torch.eye(planted.WIDTH).expand_as(v)))
        n = len(planted_heads)
        infos.append(LayerInfo(index, "full", "softmax", None, False, n, n, planted.WIDTH))
    token_rows = torch.eye(V, planted.WIDTH)
    embed = token_rows if embed is None else embed
    return Weights(tuple(infos), embed, token_rows.T if unembed is None else unembed, tuple(heads))


def induction(on_tokens=None):
    ov = torch.zeros(planted.WIDTH, planted.WIDTH)
    ov[planted.TOKEN, planted.TOKEN] = torch.eye(V) if on_tokens is None else on_tokens
    return dataclasses.replace(planted.induction_head(), ov=ov)


def permutation(order):
    return torch.eye(len(order))[order]


CYCLES = permutation([i - 2 if i % 3 == 2 else i + 1 for i in range(V)])  # 17 cycles of 3


def test_the_cycles_are_not_their_own_transpose():
    assert V % 3 == 0
    assert not torch.equal(CYCLES, CYCLES.T)
    assert torch.equal(CYCLES @ CYCLES @ CYCLES, torch.eye(V))


@pytest.mark.parametrize(
    ("on_tokens", "unembed", "expected"),
    [
        (torch.eye(V), torch.eye(V), 1),
        (-torch.eye(V), torch.eye(V), -1),
        (CYCLES, torch.eye(V), 0),  # the cube roots of 1 sum to 0
        (CYCLES, CYCLES.T, 1),  # the unembedding undoes the cycle
        (CYCLES, CYCLES, 0),  # twice round
        (torch.eye(V), CYCLES, 0),
        (permutation([1, 2, 0, *range(3, V)]), torch.eye(V), (V - 3) / V),
    ],
)
def test_copying_of_a_permutation_is_the_mean_of_its_eigenvalues(on_tokens, unembed, expected):
    read_out = torch.zeros(planted.WIDTH, V)
    read_out[planted.TOKEN] = unembed
    weights = by_hand([[induction(on_tokens)]], unembed=read_out)
    assert copying(weights).score[0, 0] == pytest.approx(expected, abs=1e-6)


def test_a_head_that_writes_nothing_has_no_copying_score():
    scores = copying(by_hand([[planted.sink_head(), induction()]]))
    assert math.isnan(scores.score[0, 0])
    assert scores.n.tolist() == [[0, planted.WIDTH]]


@pytest.mark.parametrize(("into", "expected"), [("K", 1 / math.sqrt(V)), ("Q", 0), ("V", 0)])
def test_a_previous_token_head_composes_with_the_keys_of_an_induction_head_only(into, expected):
    table = composition_table(by_hand([[planted.previous_token_head()], [induction()]]), into)
    assert table[["layer", "head", "from_layer", "from_head"]].to_numpy().tolist() == [[1, 0, 0, 0]]
    assert table.ratio[0] == pytest.approx(expected, abs=1e-6)
    assert table.score[0] == table.ratio[0] - table.baseline[0]
    assert table.baseline[0] == pytest.approx(RANDOM, rel=0.02)


def test_the_score_of_a_head_is_that_of_its_strongest_earlier_head():
    weights = by_hand(
        [[planted.sink_head(), planted.previous_token_head()], [planted.uniform_head(), induction()], [induction()]]
    )
    scores = k_composition(weights)
    best = 1 / math.sqrt(V) - random_ratio(planted.WIDTH, planted.WIDTH, planted.WIDTH, seed=0)
    assert scores.n.tolist() == [[0, 0], [0, 1], [2, 0]]  # heads of zeros take no part
    assert scores.score.isnan().tolist() == [[True, True], [True, False], [False, True]]
    assert scores.score[1, 1] == pytest.approx(best, abs=1e-6)
    assert scores.score[2, 0] == pytest.approx(best, abs=1e-6)


def planted_llama(n=50, *, on_tokens=None):
    """Two layers on the residual [token | previous token] of width 2n, two heads as wide as the vocabulary each.

    Layer 0 head 0 writes tokens to the previous-token block; layer 1 head 1 looks tokens up there and copies.
    """
    config = LlamaConfig(
        vocab_size=n,
        hidden_size=2 * n,
        intermediate_size=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=n,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    token, previous = slice(0, n), slice(n, 2 * n)
    first, second = slice(0, n), slice(n, 2 * n)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0 if parameter.ndim == 1 else 0.0)
        model.model.embed_tokens.weight[:, token] = torch.eye(n)
        model.lm_head.weight[:, token] = torch.eye(n)
        mover, looker = (layer.self_attn for layer in model.model.layers)
        mover.v_proj.weight[first, token] = torch.eye(n)
        mover.o_proj.weight[previous, first] = torch.eye(n)
        looker.q_proj.weight[second, token] = torch.eye(n)
        looker.k_proj.weight[second, previous] = torch.eye(n)
        looker.v_proj.weight[second, token] = torch.eye(n)
        looker.o_proj.weight[token, second] = (torch.eye(n) if on_tokens is None else on_tokens).T
    return model


def test_a_model_with_a_planted_circuit_scores_as_it_was_planted():
    m = open_model(planted_llama())
    table = score(m, ["copying", "k_composition"]).set_index(["detector", "layer", "head"]).score
    assert table["copying", 1, 1] == pytest.approx(1, abs=1e-5)
    assert math.isnan(table["copying", 0, 0])  # what the mover writes reaches no token directly
    for into, expected in (("K", 0.141421), ("Q", 0), ("V", 0)):
        pair = composition(m, into).query("layer == 1 and head == 1 and from_layer == 0 and from_head == 0")
        assert pair.ratio.item() == pytest.approx(expected, abs=1e-6)
    assert table["k_composition", 1, 1] == pytest.approx(0.141421 - random_ratio(100, 50, 50, seed=0), abs=1e-6)


def test_a_three_cycle_planted_in_a_model_does_not_copy():
    cycles = permutation([i - 2 if i % 3 == 2 else i + 1 for i in range(24)])
    table = score(planted_llama(24, on_tokens=cycles), ["copying"]).set_index(["layer", "head"]).score
    assert table[1, 1] == pytest.approx(0, abs=1e-5)


FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2", "olmo2", "phi3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_brute_force_over_vocabulary_sized_matrices(family):
    model = with_odd_norms(family)
    matrices = head_matrices(family, model)
    table = score(model, ["copying", "k_composition"]).set_index(["detector", "layer", "head"]).score
    pairs = composition(model)
    for layer in range(2):
        for head in range(4):
            q, k, v, o = (x[layer][head] for x in (matrices.q, matrices.k, matrices.v, matrices.o))
            eigenvalues = np.linalg.eigvals(matrices.embed @ v @ o @ matrices.unembed)
            expected = eigenvalues.sum().real / np.abs(eigenvalues).sum()
            assert table["copying", layer, head] == pytest.approx(expected, abs=1e-4)
            if layer == 0:
                assert math.isnan(table["k_composition", 0, head])
                continue
            ratios = [
                np.linalg.norm(q @ k.T @ (v0 @ o0).T) / (np.linalg.norm(q @ k.T) * np.linalg.norm(v0 @ o0))
                for v0, o0 in zip(matrices.v[0], matrices.o[0], strict=True)
            ]
            of_head = pairs[pairs["head"] == head].sort_values("from_head")
            assert of_head.ratio.to_numpy() == pytest.approx(ratios, abs=1e-5)
            assert table["k_composition", 1, head] == pytest.approx(max(ratios) - pairs.baseline[0], abs=1e-5)


def with_odd_norms(family):
    """The tiny model of a family with gains and biases of its norms far from 1 and 0."""
    model = type(tiny(family))(tiny(family).config)
    model.load_state_dict(tiny(family).state_dict())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or ".ln_" in name:
                parameter.add_(0.5 * torch.rand(parameter.shape, generator=generator))
    return model.eval()


def test_a_ratio_is_that_of_transformerlens_where_the_norms_do_nothing():
    m = open_model(tiny("llama"))
    expected = m.bridge.all_composition_scores("K").scores
    for pair in composition(m).itertuples():
        assert pair.ratio == pytest.approx(
            float(expected[pair.from_layer, pair.from_head, pair.layer, pair.head]), abs=1e-5
        )


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_moving_a_gain_from_a_norm_into_the_weights_behind_it_changes_no_score(family):
    plain, moved = with_odd_norms(family), with_odd_norms(family)
    names = ["copying", "k_composition"]
    before = score(plain, names)
    with torch.no_grad():
        for block in moved.get_submodule("model.layers" if family == "llama" else "gpt_neox.layers"):
            gain = block.input_layernorm.weight.clone()
            block.input_layernorm.weight.fill_(1)
            attention = block.self_attn if family == "llama" else block.attention
            if family == "gpt_neox":
                block.input_layernorm.bias.div_(gain)
            for name in ("q_proj", "k_proj", "v_proj", "query_key_value"):
                if hasattr(attention, name):
                    getattr(attention, name).weight.mul_(gain)
        tokens = random_tokens(2, 9)
        assert torch.allclose(plain(tokens).logits, moved(tokens).logits, atol=1e-4)
    assert score(moved, names).score.to_numpy() == pytest.approx(before.score.to_numpy(), abs=1e-5, nan_ok=True)


def test_random_heads_score_about_nothing():
    torch.manual_seed(7)
    config = random_llama_config()
    model = LlamaForCausalLM(config).eval()
    table = score(model, ["copying", "k_composition"]).dropna(subset="score")
    pairs = composition(model)
    assert table[table.detector == "copying"].score.abs().mean() < 0.15
    assert abs(pairs.score.mean()) < 0.02 * pairs.baseline[0]
    # the strongest of 16 stands a little above the average of one
    assert table[table.detector == "k_composition"].score.abs().max() < 0.1 * pairs.baseline[0]


def random_llama_config():
    return LlamaConfig(
        vocab_size=300,
        hidden_size=256,
        intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
    )


def test_the_random_baseline_is_near_the_root_of_the_width_and_the_same_every_time():
    assert random_ratio(256, 32, 32, seed=0) == pytest.approx(1 / 16, rel=0.02)
    random_ratio.cache_clear()
    first = random_ratio(64, 8, 16, seed=0)
    random_ratio.cache_clear()
    assert random_ratio(64, 8, 16, seed=0) == first != random_ratio(64, 8, 16, seed=1)


OPENED = [name for name in {**CONFIGS, **MORE_CONFIGS} if name not in UNREADABLE]


@pytest.mark.parametrize("family", OPENED)
def test_a_norm_is_folded_in_where_the_model_has_it(family):
    """In a bridge `ln1` is what attention reads, `ln1_post` reads attention, `ln_final` is what unembedding reads."""
    m = open_model(tiny(family))
    with torch.no_grad():
        _, cache = m.bridge.run_with_cache(random_tokens(1, 7))
    for i in range(2):
        parts = m.bridge.blocks[i]._modules
        read = f"blocks.{i}.ln1.hook_out" if "ln1" in parts else f"blocks.{i}.hook_in"
        assert torch.equal(cache[read], cache[f"blocks.{i}.attn.hook_in"])
        if "ln1_post" in parts:
            assert torch.equal(cache[f"blocks.{i}.attn.hook_out"], cache[f"blocks.{i}.ln1_post.hook_in"])
    assert torch.equal(cache["ln_final.hook_out"], cache["unembed.hook_in"])
    assert read_weights(m).heads[1].q.shape[0] == 4


@pytest.mark.parametrize("d_model", [32, 33])
def test_a_norm_shows_its_gain_and_whether_it_subtracts_the_mean(d_model):
    gain = torch.rand(d_model) + 0.5
    for norm, centres in ((torch.nn.LayerNorm(d_model), True), (torch.nn.RMSNorm(d_model), False)):
        with torch.no_grad():
            norm.weight.copy_(gain)
            seen, is_centred = linear_part(norm, d_model, torch.device("cpu"))
        assert is_centred == centres
        assert (seen / gain).std() < 1e-5


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("cwm", "TransformerLens cannot open a CwmForCausalLM"),
        ("deepseek_v3", "gives no W_Q, W_K, W_V, W_O per head for layer 0 of DeepseekV3ForCausalLM"),
        ("gemma4", "gives no W_Q, W_K, W_V, W_O per head for layer 1 of Gemma4ForCausalLM"),
    ],
)
def test_a_family_without_weights_per_head_is_refused_with_the_reason(family, reason):
    with pytest.raises(WorkbenchError, match=reason):
        score(open_model(tiny(family)), ["copying"])
    with pytest.raises(WorkbenchError, match="into is 'k'; expected one of K, Q, V"):
        composition(tiny("llama"), "k")


def test_linear_layers_have_rows_without_a_score():
    from tests.linear_families import tiny as linear

    table = score(linear("qwen3_5"), ["copying"])
    assert table[table.kind == "linear"].score.isna().all()
    assert table[table.kind == "linear"].n.eq(0).all()
    assert table[table.kind == "full"].score.between(-1, 1).all()


def test_weight_detectors_are_listed_and_run_only_where_named():
    known = all_detectors()
    assert {"copying", "k_composition"} <= known.keys()
    assert not {"copying", "k_composition"} & {d.name for d in find_detectors(None)}
    m = open_model(tiny("cwm"))
    assert "copying" not in set(score(m, tokens=random_tokens(1, 9)).detector)


def test_rows_of_weights_stand_beside_rows_of_probes():
    m = open_model(tiny("llama"))
    probe = probes.repeats(97, n=8, n_sequences=6)
    table = score(m, ["copying", "induction"], probes=[probe])
    assert table.groupby("detector").probe.unique().map(list).to_dict() == {
        "copying": ["weights"],
        "induction": ["repeats"],
    }
    weights = table[table.detector == "copying"]
    assert weights[["ci_lo", "ci_hi", "half_a", "half_b", "sd_seq"]].isna().all(axis=None)
    assert weights.n.eq(16).all()
    assert weights.n_seq.eq(0).all()
    assert list(zip(weights["head"], weights.kv_head, strict=True)) == [(0, 0), (1, 0), (2, 1), (3, 1)] * 2


def test_a_scan_stores_scores_of_weights_once_per_checkpoint_and_resumes(tmp_path):
    for step, family in ((1, "llama"), (2, "llama")):
        tiny(family).save_pretrained(tmp_path / "series" / f"checkpoint-{step}")
    folder = tmp_path / "run"
    run = scan(tmp_path / "series", folder, ["copying", "sink"], ["repeats:n=8,n_sequences=5"])
    assert run.status().is_complete
    stored = run.scores(detector="copying", step=2)
    assert set(run.probes_of("copying")) == {"weights"}
    expected = score(tiny("llama"), ["copying"]).score
    assert stored.score.to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-6)
    assert stored.seq_len.eq(0).all()
    before = {p: p.stat().st_mtime_ns for p in folder.glob("scores/*/*.parquet")}
    wider = scan(tmp_path / "series", folder, ["copying", "k_composition"])
    assert wider.status().is_complete
    after = {p: p.stat().st_mtime_ns for p in folder.glob("scores/*/*.parquet")}
    assert before.items() <= after.items()
    assert set(wider.detectors) == {"copying", "k_composition", "sink"}


def test_a_scan_of_a_family_without_a_bridge_stores_why_and_goes_on(tmp_path):
    tiny("cwm").save_pretrained(tmp_path / "series" / "checkpoint-1")
    run = scan(tmp_path / "series", tmp_path / "run", ["copying", "sink"], ["repeats:n=8,n_sequences=5"])
    assert run.detectors == ("sink",)
    assert "TransformerLens cannot open a CwmForCausalLM" in run.failures().message[0]


def test_a_probe_must_not_be_called_as_the_scores_of_weights_are(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "series" / "checkpoint-1")
    probe = dataclasses.replace(probes.repeats(97, n=8, n_sequences=5), name="weights")
    with pytest.raises(WorkbenchError, match=r"called \['weights'\]"):
        scan(tmp_path / "series", tmp_path / "run", ["sink"], probe)
