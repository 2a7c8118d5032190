"""Scores on decoded answers: equal to their authors' loops over whole patterns."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.brute import eager_patterns
from tests.families import tiny
from tests.planted import TOKEN, VOCABULARY, PlantedModel, induction_head, previous_token_head, uniform_head
from workbench import probes
from workbench.detectors import Decoding, decode, decoded, detector, score
from workbench.detectors.builtin.retrieval_decoded import (
    NEEDLE,
    answer_rows,
    most_attended_in_needle,
    retrieval_headkv,
    retrieval_wu,
)
from workbench.detectors.decoded_probes import overlapping, recall_and_f1
from workbench.detectors.registry import DETECTORS
from workbench.heads import WorkbenchError
from workbench.hooks import RowReading, open_model
from workbench.hooks.recording.greedy_decoding import greedy
from workbench.probes import Vocabulary

WORDS = Vocabulary(torch.arange(3, 90), bos=1)
FAMILIES = ("llama", "gpt2", "gpt_oss", "mistral", "minimax")


@pytest.fixture
def ungated():
    """The authors' scores of all instances: a random model has no right replies."""
    detector("wu_all", needs={"answer_top1", NEEDLE}, decoding=Decoding("none", "overlap"))(retrieval_wu)
    reading = RowReading("headkv", answer_rows, most_attended_in_needle)
    detector("headkv_all", needs={reading}, decoding=Decoding("none", "offsets"))(retrieval_headkv)
    yield
    for name in ("wu_all", "headkv_all"):
        DETECTORS.remove(name)


def authors_loops(model, prompt, needle):
    """Wu's and HeadKV's scores of one instance by (layer, head), and the reply, as their scripts compute them."""
    ids, answer = prompt.tolist(), prompt[slice(*needle)].tolist()
    wu, headkv, reply = Counter(), Counter(), []
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
        reply.append(token)
    return wu, headkv, reply


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_on_decoded_answers_equal_their_authors_loops(family, ungated):
    probe = probes.repeats(WORDS, n=40, n_sequences=2, seed=3)
    m = open_model(tiny(family))
    table = score(m, ["wu_all", "headkv_all"], probes=probe)
    measured = {(r.detector, r.layer, r.head): r.score for r in table.itertuples()}
    loops = [authors_loops(tiny(family, "eager"), probe.tokens[b, :42], (2, 41)) for b in range(2)]
    for layer in range(2):
        for head in range(4):
            for i, name in enumerate(("wu_all", "headkv_all")):
                expected = sum(loop[i][layer, head] for loop in loops) / 2
                assert measured[name, layer, head] == pytest.approx(expected, abs=1e-5), (name, layer, head)
    assert sum(loop[0].total() for loop in loops) > 0
    assert [instance.reply.tolist() for instance in decode(m, probe)] == [loop[2] for loop in loops]
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
    replies = greedy(m, prompts, 8)
    stop = int(replies[0][2])
    assert torch.equal(
        greedy(m, prompts, 8, stop=frozenset({stop}))[0], replies[0][: replies[0].tolist().index(stop) + 1]
    )
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
    assert any(not torch.equal(a.reply[:3], b.reply[:3]) for a, b in zip(before, after, strict=True))


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
    measured = table.set_index(["detector", "layer", "head"])
    assert measured.score["retrieval", 1, 0] == pytest.approx(1, abs=1e-6)
    assert measured.score["retrieval_wu_offsets", 1, 0] >= 1  # a token that is said again is counted again
    assert measured.score["retrieval_wu_offsets", 1, 1] == 0
    assert measured["flags"]["retrieval_wu", 1, 0] == "counted=6/6"


def test_instances_that_were_not_told_right_do_not_count():
    m = open_model(PlantedModel([[uniform_head()]]))
    table = score(m, ["retrieval_wu", "retrieval_headkv"], probes=needles())
    assert table.score.isna().all()
    assert table.n.eq(0).all()
    assert table["flags"].eq("counted=0/6").all()
    assert decoded(m, needles()) is None


def test_decoded_answers_are_a_probe_of_decode_rows_and_matching_needle_cells():
    m = open_model(copying_model())
    instances = decode(m, needles())
    probe = decoded(m, needles(), instances=instances)
    assert probe is not None
    for b, instance in enumerate(instances):
        rows = probe.answer_rows[probe.answer_rows[:, 0] == b][:, 1]
        assert rows.tolist() == list(range(len(instance.prompt) - 1, len(instance.prompt) + len(instance.reply) - 1))
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
    assert recall_and_f1(needle, ["a", "a", "a", "d"]) == (0.5, 0.5)
    assert recall_and_f1(needle, [*needle, "x", "y", "z", "w"]) == (1, 8 / 12)
    assert recall_and_f1(needle, ["z"]) == (0, 0)


def test_a_probe_that_does_not_say_where_answers_are_is_refused():
    m = open_model(tiny("llama"))
    text = probes.token_sequences(torch.randint(3, 90, (2, 12)))
    with pytest.raises(WorkbenchError, match="'retrieval_wu' does not fit probe 'tokens'"):
        score(m, ["retrieval_wu"], probes=text)
    with pytest.raises(WorkbenchError, match="'qr_head' does not fit probe 'repeats'; expected pairs"):
        score(m, ["qr_head"], probes=probes.repeats(WORDS, n=8, n_sequences=2))
    with pytest.raises(WorkbenchError, match="need a probe with answers"):
        score(m, ["retrieval_wu"], torch.randint(3, 90, (2, 12)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "minimax"])
def test_the_spread_over_needles_is_that_of_their_mean_retrieval(family):
    probe = probes.key_value(WORDS, n_pairs=6, n_queries=4, gap=5, n_sequences=3)
    measured = score(open_model(tiny(family)), ["retrieval_spread"], probes=probe)
    patterns, _, linear = eager_patterns(tiny(family, "eager"), probe.tokens)
    for r in measured.itertuples():
        pattern = patterns[r.layer][:, r.head]
        pattern = pattern / pattern.abs().sum(-1, keepdim=True) if r.layer in linear else pattern
        spreads = []
        for b in range(3):
            cells = probe.target_cells[probe.target_cells[:, 0] == b]
            spreads.append(pattern[b, cells[:, 1], cells[:, 2]].std().item())
        assert r.score == pytest.approx(sum(spreads) / 3, abs=1e-5)


def test_a_scan_stores_each_score_for_the_probes_it_is_defined_on(tmp_path):
    from tests.series import write_series
    from workbench import scan

    names = ["retrieval", "retrieval_wu", "retrieval_headkv", "qr_head"]
    written = ["repeats:n=8,n_sequences=2", "gold_document:length=48,n_documents=2,n_sequences=2"]
    run = scan(write_series(tmp_path / "series", steps=(0,)), tmp_path / "run", names, written)
    measured = run.scores().groupby("detector").probe.unique().map(list).to_dict()
    assert measured == {
        "retrieval": ["repeats"],
        "retrieval_wu": ["repeats"],
        "retrieval_headkv": ["repeats"],
        "qr_head": ["gold_document"],
    }
    assert run.scores(detector="retrieval_wu")["flags"].str.fullmatch(r"counted=\d/2").all()


def test_words_decide_whether_an_answer_was_right_and_a_newline_ends_it(speaking, monkeypatch):
    from workbench.detectors import decoded_probes

    probe = probes.needle(speaking, length=200, depth=[20, 80], n_sequences=1)
    stops, texts = set(), [" It is 1234567, I think", " The number is"]

    def reciting(m, prompts, steps, *, stop):
        stops.update(stop)
        for prompt in prompts:
            reply = texts.pop(0)
            number = speaking.tokenizer.decode(prompt.tolist()).split(" is: ")[1].split(".")[0]
            yield torch.tensor(speaking.tokenizer(reply.replace("1234567", number))["input_ids"])

    monkeypatch.setattr(decoded_probes, "greedy", reciting)
    instances = decode(speaking, probe)
    assert {speaking.tokenizer.decode([i]) for i in stops} == {"\n"}
    assert len(decoded(speaking, probe, Decoding("none"), instances=instances).tokens) == 2
    recalled = decoded(speaking, probe, Decoding("recall"), instances=instances)
    assert len(recalled.tokens) == 1
    right = next(instance for instance in instances if "think" in speaking.tokenizer.decode(instance.reply.tolist()))
    assert torch.equal(recalled.tokens[0, : len(right.prompt)], right.prompt)
    assert decoded(speaking, probe, Decoding("f1"), instances=instances) is None  # one word of five
