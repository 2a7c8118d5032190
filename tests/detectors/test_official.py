"""Scores on decoded answers and on pairs of questions: equal to their authors' loops over whole patterns."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.brute import eager_patterns
from tests.families import CONFIGS, tiny
from tests.planted import TOKEN, VOCABULARY, PlantedModel, induction_head, previous_token_head, uniform_head
from workbench import probes
from workbench.detectors import Decoding, decode, decoded, detector, registry, score
from workbench.detectors.decoding import overlapping, said_right
from workbench.detectors.official import NEEDLE, answer_rows, most_attended_in_needle, retrieval_headkv, retrieval_wu
from workbench.detectors.writing import from_needle, spelling_rows
from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel, RowReading, open_model
from workbench.hooks.greedy import greedy
from workbench.probes import Vocabulary

WORDS = Vocabulary(torch.arange(3, 90), bos=1)
FAMILIES = ("llama", "gpt2", "gpt_oss", "mistral", "minimax")


@pytest.fixture
def ungated():
    """The official scores of all instances: a random model tells nothing right."""
    detector("wu_all", needs={"answer_top1", NEEDLE}, decoding=Decoding("none", "overlap"))(retrieval_wu)
    reading = RowReading("headkv", answer_rows, most_attended_in_needle)
    detector("headkv_all", needs={reading}, decoding=Decoding("none", "offsets"))(retrieval_headkv)
    yield
    for name in ("wu_all", "headkv_all"):
        registry._registered.pop(name)


def authors_loops(model, prompt, needle):
    """Wu's and HeadKV's scores of one instance by (layer, head), and what was said, as their scripts compute them."""
    ids, answer = prompt.tolist(), prompt[slice(*needle)].tolist()
    wu, headkv, said = Counter(), Counter(), []
    start, end = next(
        (i, i + len(answer))
        for i in range(len(ids))
        if len(set(ids[i : i + len(answer)]) & set(answer)) / len(set(answer)) > 0.9
    )
    for step in range(50):
        patterns, logits, linear = eager_patterns(model, torch.tensor([ids]))
        token = int(logits[0, -1].argmax())
        for layer, pattern in enumerate(patterns):
            for head in range(pattern.shape[1]):
                row = pattern[0, head, -1]
                row = row.abs() / row.abs().sum() if layer in linear else row
                best = int(row.argmax())
                if start <= best < end and token == ids[best]:
                    wu[layer, head] += 1 / (end - start)
                if step < len(answer):
                    top = row.topk(len(answer))
                    mass = sum(
                        v for v, j in zip(*map(torch.Tensor.tolist, top), strict=True) if needle[0] <= j < needle[1]
                    )
                    headkv[layer, head] += mass / len(answer) ** 2
        ids.append(token)
        said.append(token)
    return wu, headkv, said


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_on_decoded_answers_equal_their_authors_loops(family, ungated):
    probe = probes.repeats(WORDS, n=40, n_sequences=2, seed=3)
    m = open_model(tiny(family))
    table = score(m, ["wu_all", "headkv_all"], probes=probe)
    found = {(r.detector, r.layer, r.head): r.score for r in table.itertuples()}
    loops = [authors_loops(tiny(family, "eager"), probe.tokens[b, :42], (2, 41)) for b in range(2)]
    for layer in range(2):
        for head in range(4):
            for i, name in enumerate(("wu_all", "headkv_all")):
                expected = sum(loop[i][layer, head] for loop in loops) / 2
                assert found[name, layer, head] == pytest.approx(expected, abs=1e-5), (name, layer, head)
    assert sum(loop[0].total() for loop in loops) > 0
    assert [one.said.tolist() for one in decode(m, probe)] == [loop[2] for loop in loops]
    assert table[table.detector == "wu_all"].n.eq(100).all()


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "minimax"])
def test_greedy_decoding_is_the_models_own(family):
    m = open_model(tiny(family))
    prompts = torch.randint(3, 90, (2, 17), generator=torch.Generator().manual_seed(1))
    own = m.model.generate(
        prompts, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=2, use_cache=False
    )
    assert torch.equal(torch.stack(greedy(m, prompts, 12)), own[:, 17:])


def test_decoding_ends_after_a_stop_token_and_at_the_end_of_the_context():
    m = open_model(tiny("llama"))
    prompts = torch.randint(3, 90, (2, 17), generator=torch.Generator().manual_seed(1))
    said = greedy(m, prompts, 8)
    stop = int(said[0][2])
    assert torch.equal(greedy(m, prompts, 8, stop=frozenset({stop}))[0], said[0][: said[0].tolist().index(stop) + 1])
    short = open_model(PlantedModel([[uniform_head()]]))
    assert len(greedy(short, torch.ones(1, 126, dtype=torch.long), 50)[0]) == 2
    with pytest.raises(WorkbenchError, match="128 tokens leaves no room in 128 positions"):
        greedy(short, torch.ones(1, 128, dtype=torch.long), 50)


def test_decoding_is_of_the_model_under_the_interventions_in_force():
    m = open_model(copying_model())
    probe = needles()
    before = decode(m, probe)
    from workbench.heads import Head

    with m.ablate([Head(1, 0)]):
        after = decode(m, probe)
    assert any(not torch.equal(a.said[:3], b.said[:3]) for a, b in zip(before, after, strict=True))


def copying_model():
    """A previous-token head, then a head that copies what followed this token before, and one that does nothing."""
    copying = induction_head()
    ov = torch.zeros_like(copying.ov)
    ov[TOKEN, TOKEN] = 2 * torch.eye(VOCABULARY)
    return PlantedModel([[previous_token_head()], [replace(copying, ov=ov), uniform_head()]])


def needles():
    words = Vocabulary(torch.arange(1, VOCABULARY), bos=0)
    return probes.passkey(words, length=60, depth=[10, 50, 90], n_sequences=2, n_answer=4)


def test_a_head_that_copies_the_needle_has_the_official_score_of_one():
    table = score(open_model(copying_model()), ["retrieval_wu", "retrieval_wu_offsets", "retrieval"], probes=needles())
    found = table.set_index(["detector", "layer", "head"])
    assert found.score["retrieval", 1, 0] == pytest.approx(1, abs=1e-6)
    assert found.score["retrieval_wu_offsets", 1, 0] >= 1  # a token that is said again is counted again
    assert found.score["retrieval_wu_offsets", 1, 1] == 0
    assert found["flags"]["retrieval_wu", 1, 0] == "counted=6/6"


def test_instances_that_were_not_told_right_do_not_count():
    m = open_model(PlantedModel([[uniform_head()]]))
    table = score(m, ["retrieval_wu", "retrieval_headkv"], probes=needles())
    assert table.score.isna().all()
    assert table.n.eq(0).all()
    assert table["flags"].eq("counted=0/6").all()
    assert decoded(m, needles()) is None


def test_decoded_answers_are_a_probe_of_decode_rows_and_matching_needle_cells():
    m = open_model(copying_model())
    said = decode(m, needles())
    probe = decoded(m, needles(), said=said)
    assert probe is not None
    for b, one in enumerate(said):
        rows = probe.answer_rows[probe.answer_rows[:, 0] == b][:, 1]
        assert rows.tolist() == list(range(len(one.prompt) - 1, len(one.prompt) + len(one.said) - 1))
    sequence, row, key = probe.target_cells.unbind(-1)
    assert torch.equal(probe.tokens[sequence, key], probe.tokens[sequence, row + 1])
    start, stop = probe.needles[0].tolist()
    assert stop - start == 4


def test_a_needle_found_by_overlap_may_sit_early():
    prompt = torch.tensor([9, 5, 6, 7, 5, 6, 8, 1])
    assert overlapping(prompt, (3, 6)) == (1, 4)
    assert overlapping(prompt, (6, 8)) == (6, 8)


def test_recall_and_f1_count_words_as_often_as_they_stand():
    needle = ["a", "b", "a", "c"]
    assert said_right(needle, ["a", "a", "a", "d"]) == (0.5, 0.5)
    assert said_right(needle, [*needle, "x", "y", "z", "w"]) == (1, 8 / 12)
    assert said_right(needle, ["z"]) == (0, 0)


def test_a_probe_that_does_not_say_where_answers_are_is_refused():
    m = open_model(tiny("llama"))
    text = probes.token_sequences(torch.randint(3, 90, (2, 12)))
    with pytest.raises(WorkbenchError, match="'retrieval_wu' does not fit probe 'tokens'"):
        score(m, ["retrieval_wu"], probes=text)
    with pytest.raises(WorkbenchError, match="'qr_head' does not fit probe 'repeats'; expected pairs"):
        score(m, ["qr_head"], probes=probes.repeats(WORDS, n=8, n_sequences=2))
    with pytest.raises(WorkbenchError, match="need a probe with answers"):
        score(m, ["retrieval_wu"], torch.randint(3, 90, (2, 12)))


@pytest.mark.parametrize("family", CONFIGS)
def test_query_focused_scores_equal_the_authors_formula_over_whole_patterns(family):
    probe = probes.gold_document(WORDS, length=90, n_documents=4, n_sequences=3)
    table = score(open_model(tiny(family)), ["qr_head", "qr_head_mean"], probes=probe)
    found = {(r.detector, r.layer, r.head): r.score for r in table.itertuples()}
    expected = {name: Counter() for name in ("qr_head", "qr_head_mean")}
    for i in range(3):
        attention = []
        for b in (2 * i, 2 * i + 1):
            mask = None if probe.attention_mask is None else probe.attention_mask[b : b + 1].long()
            patterns, _, linear = eager_patterns(tiny(family, "eager"), probe.tokens[b : b + 1], mask)
            patterns = [p / p.abs().sum(-1, keepdim=True) if x in linear else p for x, p in enumerate(patterns)]
            mine = probe.answer_rows[:, 0] == b
            rows, (start, stop) = probe.answer_rows[mine][:, 1], probe.needles[mine][0].tolist()
            attention.append([p[0][:, rows][:, :, start:stop].mean(1) for p in patterns])
        for layer in range(2):
            gained = attention[0][layer] - attention[1][layer]
            for head in range(4):
                tokens = gained[head]
                kept = (tokens * (tokens > tokens.mean() - 2 * tokens.std())).sum().item()
                expected["qr_head"][layer, head] += kept / 3
                expected["qr_head_mean"][layer, head] += kept / len(tokens) / 3
    for name, by_head in expected.items():
        for (layer, head), value in by_head.items():
            assert found[name, layer, head] == pytest.approx(value, abs=1e-5)
    assert table.n_seq.eq(3).all()


def test_pairs_stay_together_in_batches_and_differ_in_the_question_alone(monkeypatch):
    from workbench.detectors import measuring

    probe = probes.gold_document(WORDS, length=90, n_documents=4, n_sequences=5)
    m = open_model(tiny("llama"))
    whole = score(m, ["qr_head"], probes=probe).score
    monkeypatch.setattr(measuring, "_BATCH_TOKENS", 3 * probe.tokens.shape[1])
    assert score(m, ["qr_head"], probes=probe).score.tolist() == pytest.approx(whole.tolist(), abs=1e-6)
    for i in range(5):
        first = probe.answer_rows[probe.answer_rows[:, 0] == 2 * i][0, 1]
        a, b = probe.tokens[2 * i], probe.tokens[2 * i + 1]
        assert torch.equal(a[:first], b[:first])
        assert not torch.equal(a[first : first + 2], b[first : first + 2])


def test_a_head_that_finds_the_key_of_the_question_has_a_high_query_focused_score():
    words = Vocabulary(torch.arange(1, VOCABULARY), bos=0)
    probe = probes.gold_document(words, length=60, n_documents=3, n_sequences=4)
    finder = induction_head()
    q, k = torch.zeros_like(finder.q), torch.zeros_like(finder.k)
    q[TOKEN, TOKEN], k[TOKEN, TOKEN] = 8 * torch.eye(VOCABULARY), torch.eye(VOCABULARY)
    m = open_model(PlantedModel([[replace(finder, q=q, k=k), uniform_head()]]))
    found = score(m, ["qr_head", "qr_head_mean"], probes=probe).set_index(["detector", "head"]).score
    assert found["qr_head", 0] > 0.2  # half goes to the question's own tokens, some to keys that share a token
    assert found["qr_head", 1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "minimax"])
def test_the_spread_over_needles_is_that_of_their_mean_retrieval(family):
    probe = probes.key_value(WORDS, n_pairs=6, n_queries=4, gap=5, n_sequences=3)
    found = score(open_model(tiny(family)), ["retrieval_spread"], probes=probe)
    patterns, _, linear = eager_patterns(tiny(family, "eager"), probe.tokens)
    for r in found.itertuples():
        pattern = patterns[r.layer][:, r.head]
        pattern = pattern / pattern.abs().sum(-1, keepdim=True) if r.layer in linear else pattern
        spreads = []
        for b in range(3):
            cells = probe.target_cells[probe.target_cells[:, 0] == b]
            spreads.append(pattern[b, cells[:, 1], cells[:, 2]].std().item())
        assert r.score == pytest.approx(sum(spreads) / 3, abs=1e-5)


def test_a_reading_of_rows_is_the_same_piece_by_piece_and_under_padding():
    m = open_model(tiny("mistral"))
    probe = probes.gold_document(WORDS, length=90, n_documents=4, n_sequences=2)
    needs = find_needs("qr_head")
    whole = m.record(probe, needs).readings["gold_columns"]
    pieces = m.record(probe, needs, prefill=11).readings["gold_columns"]
    assert torch.equal(whole.rows, pieces.rows)
    assert torch.allclose(whole.values, pieces.values, atol=1e-5, equal_nan=True)


def find_needs(name):
    from workbench.detectors import find_detectors

    return find_detectors([name])[0].needs


def test_packed_documents_have_no_readings_of_rows():
    m = open_model(tiny("llama"))
    reading = RowReading("mine", lambda batch: torch.zeros(0, 2, dtype=torch.long), lambda p, rows, batch: p.sum(0))
    with pytest.raises(WorkbenchError, match="'mine' reads rows of sequences; pass packed documents one by one"):
        m.record(torch.randint(3, 90, (1, 8)), {reading}, torch.tensor([[1, 1, 1, 2, 2, 2, 3, 3]]))


def test_a_scan_stores_each_score_for_the_probes_it_is_defined_on(tmp_path):
    from tests.series import write_series
    from workbench import scan

    names = ["retrieval", "retrieval_wu", "retrieval_headkv", "qr_head"]
    written = ["repeats:n=8,n_sequences=2", "gold_document:length=48,n_documents=2,n_sequences=2"]
    run = scan(write_series(tmp_path / "series", steps=(0,)), tmp_path / "run", names, written)
    found = run.scores().groupby("detector").probe.unique().map(list).to_dict()
    assert found == {
        "retrieval": ["repeats"],
        "retrieval_wu": ["repeats"],
        "retrieval_headkv": ["repeats"],
        "qr_head": ["gold_document"],
    }
    assert run.scores(detector="retrieval_wu")["flags"].str.fullmatch(r"counted=\d/2").all()


def values_and_weights(model, layer):
    """v [b, h, k, d] before attention and W_O [h, d, d_model] of a layer, from its own modules."""
    kind = model.config.model_type
    if kind == "llama":
        attention = model.model.layers[layer].self_attn
        group = attention.num_key_value_groups
        return (
            attention.v_proj,
            lambda out: out.unflatten(-1, (-1, 16)).transpose(1, 2).repeat_interleave(group, 1),
            (attention.o_proj.weight.T.unflatten(0, (4, -1))),
        )
    if kind == "gpt2":
        attention = model.transformer.h[layer].attn
        return (
            attention.c_attn,
            lambda out: out[..., 64:].unflatten(-1, (4, 8)).transpose(1, 2),
            (attention.c_proj.weight.unflatten(0, (4, -1))),
        )
    attention = model.gpt_neox.layers[layer].attention
    return (
        attention.query_key_value,
        lambda out: out.unflatten(-1, (4, 3, 8))[..., 2, :].transpose(1, 2),
        (attention.dense.weight.T.unflatten(0, (4, -1))),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_what_heads_write_from_the_needle_equals_the_authors_formula(family):
    model = tiny(family, "eager")
    probe = decoded(open_model(tiny(family)), probes.repeats(WORDS, n=12, n_sequences=2), Decoding("none"))
    need = RowReading("written", answer_rows, from_needle, of="logit")
    reading = open_model(tiny(family)).record(probe, {need}).readings["written"]
    kept = {}
    hooked = [values_and_weights(model, layer) for layer in range(2)]
    handles = [
        module.register_forward_hook(lambda _, __, out, layer=layer: kept.__setitem__(layer, out))
        for layer, (module, _, _) in enumerate(hooked)
    ]
    patterns, _, _ = eager_patterns(model, probe.tokens)
    for handle in handles:
        handle.remove()
    unembed = model.get_output_embeddings().weight.detach()
    for layer, (_, split, w_o) in enumerate(hooked):
        v = split(kept[layer].detach())
        for b in range(2):
            mine = probe.answer_rows[:, 0] == b
            start, stop = probe.needles[mine][0].tolist()
            for head in range(4):
                total = 0.0
                for row in probe.answer_rows[mine][:, 1].tolist():
                    phi = patterns[layer][b, head, row, : row + 1].float()
                    phi = phi * (v[b, head, : row + 1] @ w_o[head].detach() @ unembed[probe.tokens[b, row + 1]])
                    on, n = phi[start:stop].sum(), stop - start
                    total += float(on - (phi.sum() - on) * n / (row + 1 - n))
                assert float(reading.values[b, layer, head, 0]) == pytest.approx(total, abs=1e-4, rel=1e-4)


def test_the_steps_that_say_the_needle_are_its_first_saying_in_one_piece():
    from workbench.hooks.cells import sequences

    tokens = torch.tensor([[5, 6, 7, 1, 9, 6, 7, 6, 7, 2], [5, 6, 7, 1, 6, 9, 7, 9, 9, 2]])
    rows = torch.tensor([(b, row) for b in range(2) for row in range(3, 9)])
    batch = replace(sequences(tokens), answers=rows, needles=torch.tensor([[1, 3]] * 12))
    assert spelling_rows(batch).tolist() == [[0, 4], [0, 5]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_locos_scores_no_head_where_nothing_was_told_right():
    table = score(open_model(tiny("llama")), ["locos"], probes=probes.repeats(WORDS, n=12, n_sequences=2))
    assert table.score.isna().all()
    assert table["flags"].eq("counted=0/2").all()


@pytest.fixture(scope="module")
def speaking():
    """A small model with a real tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.probes.models import bpe_model

    config = LlamaConfig(
        vocab_size=1500,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    return HookedModel(LlamaForCausalLM(config).eval(), tokenizer=bpe_model("bytes").tokenizer)


def test_words_decide_whether_an_answer_was_right_and_a_newline_ends_it(speaking, monkeypatch):
    from workbench.detectors import decoding

    probe = probes.needle(speaking, length=200, depth=[20, 80], n_sequences=1)
    stops, texts = set(), [" It is 1234567, I think", " The number is"]

    def reciting(m, prompts, steps, *, stop):
        stops.update(stop)
        for prompt in prompts:
            said = texts.pop(0)
            number = speaking.tokenizer.decode(prompt.tolist()).split(" is: ")[1].split(".")[0]
            yield torch.tensor(speaking.tokenizer(said.replace("1234567", number))["input_ids"])

    monkeypatch.setattr(decoding, "greedy", reciting)
    said = decode(speaking, probe)
    assert {speaking.tokenizer.decode([i]) for i in stops} == {"\n"}
    assert len(decoded(speaking, probe, Decoding("none"), said=said).tokens) == 2
    recalled = decoded(speaking, probe, Decoding("recall"), said=said)
    assert len(recalled.tokens) == 1
    told = next(one for one in said if "think" in speaking.tokenizer.decode(one.said.tolist()))
    assert torch.equal(recalled.tokens[0, : len(told.prompt)], told.prompt)
    assert decoded(speaking, probe, Decoding("f1"), said=said) is None  # one word of five


def test_documents_and_questions_in_text_differ_in_the_question_alone(speaking):
    probe = probes.gold_document(speaking, length=400, n_documents=3, n_sequences=2)
    for i in range(4):
        mine = probe.answer_rows[:, 0] == i
        rows, (start, stop) = probe.answer_rows[mine][:, 1], probe.needles[mine][0].tolist()
        question = speaking.tokenizer.decode(probe.tokens[i, rows].tolist())
        document = speaking.tokenizer.decode(probe.tokens[i, start:stop].tolist())
        assert ("N/A" in question) == (i % 2 == 1)
        assert document.count("special magic number") == 1
        if i % 2 == 0:
            assert question.split(" for ")[1].split(" in the text")[0] in document
    table = score(speaking, ["qr_head", "qr_head_mean"], probes=probe)
    assert table.n_seq.eq(2).all()
    assert table.score.notna().all()
