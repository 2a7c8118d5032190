"""Measures of other people's tools: equal to their own code, and to brute force over whole patterns."""

from dataclasses import replace

import pytest
import torch
from transformer_lens.head_detector import HEAD_NAMES, compute_head_attention_similarity_score, detect_head

from tests.brute import eager_patterns
from tests.families import CONFIGS, SOFTMAX, random_tokens, tiny
from tests.planted import (
    LENGTH,
    POSITION,
    VOCABULARY,
    PlantedModel,
    duplicate_token_head,
    induction_head,
    previous_token_head,
    uniform_head,
)
from workbench import probes
from workbench.detectors import score
from workbench.detectors.builtin.sinks import gu_sink
from workbench.detectors.registry import DETECTORS
from workbench.heads import WorkbenchError
from workbench.hooks import open_model
from workbench.probes import Vocabulary

MEASURES = ("mul", "abs")
FAMILIES = ("llama", "gpt2", "gpt_oss", "minimax")
WORDS = Vocabulary(torch.arange(3, 90), bos=1)


def by_head(model, names, tokens=None, **keywords):
    table = score(open_model(model), list(names), tokens, **keywords)
    return {(r.detector, r.layer, r.head): r.score for r in table.itertuples()}


def normalised(family, tokens, **keywords):
    """Patterns whose rows are A, or A / Σ|A| of linear layers."""
    patterns, _, linear = eager_patterns(tiny(family, "eager"), tokens, **keywords)
    return [p / p.abs().sum(-1, keepdim=True) if i in linear else p for i, p in enumerate(patterns)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_scores_equal_those_of_transformerlens_detect_head(family, monkeypatch):
    tokens = random_tokens(3, 29, vocabulary=7)
    m = open_model(tiny(family))
    names = [
        f"tl_{kind}_{measure}" for kind in ("previous_token", "duplicate_token", "induction") for measure in MEASURES
    ]
    measured = score(m, names, tokens).set_index(["detector", "layer", "head"]).score
    bridge = m.bridge
    texts = {str(i): tokens[i : i + 1] for i in range(3)}
    monkeypatch.setattr(bridge, "to_tokens", lambda seq: torch.cat([texts[one] for one in seq]), raising=False)
    for head_name in HEAD_NAMES:
        for measure in MEASURES:
            expected = detect_head(bridge, list(texts), head_name, error_measure=measure)
            name = f"tl_{head_name.removesuffix('_head')}_{measure}"
            for layer in range(2):
                for head in range(4):
                    assert measured[name, layer, head] == pytest.approx(float(expected[layer, head]), abs=1e-5)


@pytest.mark.parametrize("family", [f for f in SOFTMAX if f not in ("llama", "gpt2", "gpt_neox")])
def test_scores_equal_the_similarity_of_transformerlens_on_patterns_that_it_cannot_record(family):
    from transformer_lens import head_detector

    tokens = random_tokens(2, 31, seed=3, vocabulary=7)
    patterns = normalised(family, tokens)
    for kind in ("previous_token", "duplicate_token", "induction"):
        pattern_of = getattr(head_detector, f"get_{kind}_head_detection_pattern")
        for measure in MEASURES:
            name = f"tl_{kind}_{measure}"
            measured = by_head(tiny(family), [name], tokens)
            for layer, pattern in enumerate(patterns):
                for head in range(pattern.shape[1]):
                    expected = [
                        compute_head_attention_similarity_score(
                            pattern[b, head],
                            pattern_of(tokens[b : b + 1]),
                            exclude_bos=False,
                            exclude_current_token=False,
                            error_measure=measure,
                        )
                        for b in range(2)
                    ]
                    assert measured[name, layer, head] == pytest.approx(sum(expected) / 2, abs=1e-5)


def test_a_perfect_induction_head_is_far_from_one_in_transformerlens_measure():
    n = 24
    m = PlantedModel([[previous_token_head()], [induction_head()]])
    probe = probes.repeats(Vocabulary(torch.arange(1, VOCABULARY), bos=0), n=n, n_sequences=2)
    by_name = by_head(m, ["tl_induction_mul", "induction"], probes=probe)
    assert by_name["induction", 1, 0] == pytest.approx(1, abs=1e-6)
    assert by_name["tl_induction_mul", 1, 0] == pytest.approx(n / (2 * n + 1), abs=1e-6)


def favouring_the_last(head, *, slope):
    """The head with a preference of `slope` nats a token for later keys."""
    q, k = 20 * head.q, head.k.clone()
    q[POSITION, 0] += slope
    k[POSITION, 0] += torch.arange(LENGTH).float()
    return replace(head, q=q, k=k)


def test_a_perfect_last_copy_head_scores_half_officially_and_one_in_the_sum():
    probe = probes.repeats(Vocabulary(torch.arange(1, VOCABULARY), bos=0), n=24, copies=4, n_sequences=2)
    last = [favouring_the_last(head, slope=1.0) for head in (induction_head(), duplicate_token_head())]
    model = PlantedModel([[previous_token_head()], last])
    names = ("induction_razor", "induction_razor_sum", "echo_razor", "echo_razor_sum")
    by_name = by_head(model, names, probes=probe)
    assert [by_name[name, 1, 0] for name in names[:2]] == pytest.approx([0.5, 1], abs=1e-5)
    assert [by_name[name, 1, 1] for name in names[2:]] == pytest.approx([0.5, 1], abs=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_razorattention_scores_equal_the_mean_over_copies_of_whole_patterns(family):
    n, copies = 9, 4
    probe = probes.repeats(WORDS, n=n, copies=copies, n_sequences=3)
    by_name = by_head(tiny(family), ["induction_razor", "echo_razor", "induction_razor_sum"], probes=probe)
    patterns = normalised(family, probe.tokens)
    for layer, pattern in enumerate(patterns):
        for head in range(pattern.shape[1]):
            echo, after, together = [], [], []
            for k in range(1, copies):
                for i in range(1 + k * n, 1 + (k + 1) * n):
                    row = pattern[:, head, i]
                    echo += [row[:, i - n * d] for d in range(1, k + 1)]
                    after += [row[:, i - n * d + 1] for d in range(1, k + 1)]
                    together.append(sum(row[:, i - n * d + 1] for d in range(1, k + 1)))
            for name, values in (("echo", echo), ("induction", after)):
                expected = float(torch.stack(values).mean())
                assert by_name[f"{name}_razor", layer, head] == pytest.approx(expected, abs=1e-5)
            assert by_name["induction_razor_sum", layer, head] == pytest.approx(
                float(torch.stack(together).mean()), abs=1e-5
            )


@pytest.fixture
def own_sinks():
    names = ("sink_of_token_3", "sink_above_a_tenth")
    gu_sink(names[0], k=3, epsilon=0.1)
    gu_sink(names[1], epsilon=0.1)
    yield names
    for name in names:
        DETECTORS.remove(name)


@pytest.mark.parametrize("family", CONFIGS)
def test_sinks_of_gu_et_al_are_counted_sample_by_sample(family, own_sinks):
    tokens = random_tokens(6, 24, seed=5)
    mask = (torch.arange(24) >= torch.tensor([0, 0, 0, 5, 2, 0])[:, None]).long()
    by_name = by_head(tiny(family), ["sink_gu", *own_sinks], tokens, attention_mask=mask)
    patterns = normalised(family, tokens, attention_mask=mask)
    layers, n_mixed = open_model(tiny(family)).layers, 0
    for layer, pattern in enumerate(patterns):
        for head in range(pattern.shape[1]):
            for name, k, epsilon in (("sink_gu", 0, 0.3), (own_sinks[0], 3, 0.1), (own_sinks[1], 0, 0.1)):
                exceeds = []
                for b in range(len(tokens)):
                    first = int(mask[b].argmax())
                    column = pattern[b, head, first + k :, first + k].nan_to_num()
                    window = layers[layer].window or 24
                    exceeds.append(float(column[:window].mean()) > epsilon)
                assert by_name[name, layer, head] == pytest.approx(sum(exceeds) / len(exceeds), abs=1e-6)
                n_mixed += 0 < sum(exceeds) < len(exceeds)
    assert n_mixed > 0  # where every sample agrees the order of threshold and mean would not show


def test_gu_thresholds_before_it_averages():
    m = PlantedModel([[uniform_head()]])
    tokens = torch.randint(1, 50, (2, 20))
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, :17] = 0  # three tokens: α = (1 + 1/2 + 1/3) / 3 = .61; twenty: .18
    by_name = by_head(m, ["sink_gu", "sink"], tokens, attention_mask=mask)
    assert by_name["sink_gu", 0, 0] == 0.5
    assert by_name["sink", 0, 0] > 0.3


@pytest.mark.parametrize("family", CONFIGS)
def test_first_four_tokens_local_band_and_total_sink_equal_whole_patterns(family):
    tokens = random_tokens(2, 40, seed=6)
    by_name = by_head(tiny(family), ["sink_streaming", "local_band", "sink_total", "sink", "learned_sink"], tokens)
    patterns = normalised(family, tokens)
    layers = open_model(tiny(family)).layers
    for layer, pattern in enumerate(patterns):
        for head in range(pattern.shape[1]):
            a = pattern[:, head]
            seen = a[:, : layers[layer].window or 40]  # the rows that see the first token
            four = a[:, : (layers[layer].window or 40) + 3, :4].sum(-1).mean()
            assert by_name["sink_streaming", layer, head] == pytest.approx(float(four), abs=1e-5)
            band = torch.stack([a[:, i, i - 8 : i].mean(-1) for i in range(8, 40)]).mean()
            assert by_name["local_band", layer, head] == pytest.approx(float(band), abs=1e-5)
            total = seen[:, :, 0].mean() + ((1 - seen.sum(-1)).mean() if layers[layer].has_sinks else 0)
            assert by_name["sink_total", layer, head] == pytest.approx(float(total), abs=1e-5)


def test_a_uniform_head_with_a_learned_sink_has_its_exact_totals():
    s, t = 1.5, 20
    by_name = by_head(
        PlantedModel([[uniform_head(s)]]), ["sink_total", "sink_streaming", "local_band"], torch.arange(t)[None]
    )
    key = [1 / (i + 1 + torch.tensor(s).exp().item()) for i in range(t)]
    learned = [1 - (i + 1) * key[i] for i in range(t)]
    assert by_name["sink_total", 0, 0] == pytest.approx(
        sum(a + b for a, b in zip(key, learned, strict=True)) / t, abs=1e-6
    )
    assert by_name["sink_streaming", 0, 0] == pytest.approx(sum(min(i + 1, 4) * key[i] for i in range(t)) / t, abs=1e-6)
    assert by_name["local_band", 0, 0] == pytest.approx(sum(key[8:]) / 12, abs=1e-6)


def test_a_sink_threshold_that_is_no_share_is_refused():
    with pytest.raises(WorkbenchError, match=r"k is -1 and epsilon 0\.3"):
        gu_sink("wrong", k=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_matching_on_natural_text_equals_whole_patterns(family):
    from pydoc_data.topics import topics

    ids = torch.tensor([3 + ord(c) % 80 for c in topics["assert"][:160]])[None]
    by_name = by_head(tiny(family), ["induction"], ids)
    patterns = normalised(family, ids)
    x = ids[0].tolist()
    for layer, pattern in enumerate(patterns):
        for head in range(pattern.shape[1]):
            rows = []
            for i in range(len(x)):
                after = [j for j in range(1, i + 1) if x[j - 1] == x[i] and j - 1 < i]
                if after:
                    rows.append(float(pattern[0, head, i, after].sum()))
            assert by_name["induction", layer, head] == pytest.approx(sum(rows) / len(rows), abs=1e-5)
