"""Patterns that a scan keeps: equal to the model's own, pooled by brute force; whole or not there."""

from __future__ import annotations

import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

import workbench as wb
from tests import linear_families
from tests.children import run_child
from tests.families import random_tokens, tiny
from tests.preloaded import PreloadedReading
from workbench.heads import Head, WorkbenchError
from workbench.hooks import open_model
from workbench.hooks.recording.pattern_maps import blocks_of, record_maps
from workbench.probes import make_probe, repeats
from workbench.runs import open_run
from workbench.scanning.kept_patterns import MapOptions, arrays_of, map_probe
from workbench.store import Origin, Store, map_codes

N, FAR = 150, 20
FINE = (Head(1, 1),)


def peaks(pattern, block):
    """The entry of largest size of each block, by brute force."""
    n = -(-len(pattern) // block)
    padded = torch.zeros(n * block, n * block)
    padded[: len(pattern), : len(pattern)] = pattern
    cells = padded.view(n, block, n, block).permute(0, 2, 1, 3).reshape(n, n, -1)
    return cells.gather(-1, cells.abs().argmax(-1, keepdim=True))[..., 0]


FAMILIES = ["llama", "mistral", "gemma2", "gpt_oss", "minimax", "gptj", "llama4"]


@pytest.mark.parametrize("family", FAMILIES)
def test_peaks_shares_and_links_are_those_of_the_whole_pattern(family):
    model, tokens = open_model(tiny(family)), random_tokens(1, N)[0]
    found = record_maps(model, tokens, far=FAR, fine=[Head(1, 2)])
    back = torch.arange(N)[:, None] - torch.arange(N)
    for place, layer in enumerate(model.layers):
        for h in range(layer.n_heads):
            pattern = model.pattern(tokens, layer.index, h, mixer=layer.mixer)
            mine = found.summaries[place]
            atol = 1e-4 * max(1.0, float(pattern.abs().max()))
            torch.testing.assert_close(mine.peak[h], peaks(pattern, found.block), atol=atol, rtol=0)
            share = pattern.abs() / (pattern.abs().sum(-1, keepdim=True) if layer.kind == "linear" else 1)
            assert float(mine.sink[h]) == pytest.approx(float(share[:, 0].mean()), abs=1e-4)
            beyond = [float((share * (back >= d))[:, 1:].sum(1).mean()) for d in found.distances]
            assert mine.beyond[h].tolist() == pytest.approx(beyond, abs=1e-4)
            far = pattern.abs() * (back >= FAR)
            far[:, 0] = 0
            strongest = far.amax(1).topk(16).values
            torch.testing.assert_close(mine.link_value[h].abs(), strongest, atol=atol, rtol=0)
            at = pattern[mine.link_row[h], mine.link_key[h]]
            torch.testing.assert_close(at, mine.link_value[h], atol=atol, rtol=0)
            assert ((place, h) in found.fine) == ((layer.index, h) == (1, 2))
            for block, peak in found.fine.get((place, h), {}).items():
                torch.testing.assert_close(peak, peaks(pattern, block), atol=atol, rtol=0)


@pytest.mark.parametrize("family", ["llama", "minimax", "gemma2"])
def test_a_finer_head_is_as_if_all_were_and_leaves_the_others_alone(family, monkeypatch):
    monkeypatch.setattr("workbench.hooks.recording.pattern_maps.COARSE", 16)
    model, tokens = open_model(tiny(family)), random_tokens(1, N)[0]
    one, every, none = (record_maps(model, tokens, far=FAR, fine=fine) for fine in (FINE, None, ()))
    kept = {(i, 1) for i, layer in enumerate(model.layers) if layer.index == 1}
    assert one.fine.keys() == kept
    assert not none.fine
    for place in kept:
        for block, peak in one.fine[place].items():
            torch.testing.assert_close(peak, every.fine[place][block], atol=0, rtol=0)
    for mine, alone in zip(one.summaries, none.summaries, strict=True):
        torch.testing.assert_close(mine.peak, alone.peak, atol=0, rtol=0)


@pytest.mark.parametrize("n_tokens", [1, 2, 63, 64, 65, 255, 257, 300, 1500, 8192, 131_072])
def test_blocks_are_multiples_of_each_other_and_few_enough(n_tokens):
    blocks = blocks_of(n_tokens)
    assert all(a % b == 0 for a, b in pairwise(blocks))
    assert -(-n_tokens // blocks[0]) <= 64
    assert -(-n_tokens // blocks[-1]) <= 1024
    if n_tokens > 1024 or n_tokens <= 64:
        assert len(blocks) == (3 if n_tokens > 1024 else 1)


def test_codes_are_right_to_their_bound_and_keep_zero_and_sign():
    values = np.concatenate([[0.0, 1.0, 2.0**-24, 1e-9], np.logspace(-7, 0, 5000)])
    codes = map_codes.encode(values)
    back = map_codes.decode(codes)
    assert codes[:3].tolist() == [0, 255, 1]
    assert back[3] == np.float32(2.0**-24)
    assert np.abs(back[4:] / values[4:] - 1).max() <= 2 ** (24 / 508) - 1 + 1e-6
    signed = np.concatenate([values, -values]) * 3.7
    large = np.abs(signed) > 3.7 * 2.0**-16
    again = map_codes.decode_signed(map_codes.encode_signed(signed, 3.7), 3.7)
    assert np.array_equal(np.sign(again), np.sign(signed))
    assert np.abs(again[large] / signed[large] - 1).max() <= 2 ** (16 / 252) - 1 + 1e-6


def written(folder, family, *, n_tokens=N, mask=None, fine=FINE, keep_qk=True):
    """A run's folder with the maps of one tiny model on one sequence, and the model and the tokens that count."""
    model, tokens = open_model(tiny(family)), random_tokens(2, n_tokens)
    store = Store.create(folder, job={}, versions={})
    origin = Origin("r", "checkpoint-7", "ab" * 16, "cd" * 16, None, None, 7, 7, 700)
    probe = make_probe("given", tokens, attention_mask=mask)
    map_probe(store, origin, model, probe, MapOptions(keep_qk, far_window=FAR), fine=fine)
    counted = tokens[0] if mask is None else tokens[0][mask[0] == 1]
    return open_run(folder), model, counted


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss", "cwm", "llama4"])
def test_crops_from_kept_queries_and_keys_are_the_pattern(tmp_path, family):
    run, model, tokens = written(tmp_path, family)
    exact = model.pattern(tokens, 1, 1).numpy()
    file = run.maps.find()
    assert file.crop(1, 1) == pytest.approx(exact, abs=1e-3)
    assert file.crop(1, 1, slice(40, 90), slice(10, 60)) == pytest.approx(exact[40:90, 10:60], abs=1e-3)
    tile = file.tile(1, 1, slice(40, 90), slice(10, 60))
    assert (tile.block, tile.query, tile.key) == (1, 40, 10)
    assert map_codes.decode(tile.codes) == pytest.approx(exact[40:90, 10:60], rel=0.04, abs=2e-3)
    with pytest.raises(WorkbenchError, match=r"kept are those of: L1H1.*--keep qk"):
        file.crop(1, 0)


def test_a_map_is_read_back_with_its_edges_tokens_and_finer_blocks(tmp_path):
    run, model, tokens = written(tmp_path, "llama", keep_qk=False)
    found = run.map(1, 1, step=7)
    block = -(-N // 64)
    assert found.values.shape == (50, 50)
    assert found.edges.tolist() == [*range(0, N, block), N]
    pattern = model.pattern(tokens, 1, 1)
    assert found.values == pytest.approx(peaks(pattern, block).numpy(), rel=0.034, abs=1e-7)
    file = run.maps.find(ckpt="checkpoint-7", probe="given")
    assert file.ids.tolist() == tokens.tolist()
    assert file.pieces is None
    assert file.finer == (Head(1, 1),)
    assert file.blocks(1, 1) == (3, 1)
    assert file.map(1, 1, block=1).values == pytest.approx(pattern.numpy(), rel=0.034, abs=1e-7)
    table = run.maps.table().iloc[0]
    assert (table.ckpt, table.probe, table.n_tokens) == ("checkpoint-7", "given", N)
    assert table.bytes < 50 * 50 * 8 + N * N + 20_000


def test_padding_is_left_out_and_only_the_first_document_is_kept(tmp_path):
    mask = torch.ones(2, N, dtype=torch.long)
    mask[0, :30] = 0
    run, model, tokens = written(tmp_path, "llama", mask=mask, fine=())
    assert run.maps.find().ids.tolist() == tokens.tolist()
    expected = peaks(model.pattern(tokens, 0, 3), 2).numpy()
    assert run.map(0, 3).values == pytest.approx(expected, rel=0.034, abs=1e-7)


def test_linear_layers_keep_their_sign_and_size(tmp_path):
    run, model, tokens = written(tmp_path, "minimax", fine=(Head(0, 0),))
    found, pattern = run.map(0, 0), model.pattern(tokens, 0, 0)
    expected = peaks(pattern, 3).numpy()
    assert found.is_signed
    assert (found.values < 0).any()
    assert found.values == pytest.approx(expected, rel=0.046, abs=float(2.0**-15 * np.abs(expected).max()))
    assert not run.map(1, 0).is_signed
    assert run.maps.find().exact == ()


def test_of_a_layer_with_two_mixers_either_head_is_read(tmp_path):
    model, tokens = open_model(linear_families.tiny("falcon_h1")), random_tokens(1, 40)[0]
    store = Store.create(tmp_path, job={}, versions={})
    arrays = arrays_of(record_maps(model, tokens, far=FAR, fine=()), None)
    origin = Origin("r", "c", "ab" * 16, "cd" * 16, None, None, 7, 7, 700)
    store.commit_maps(origin, "1" * 32, arrays, probe="p", probe_digest="d")
    file = open_run(tmp_path).maps.find()
    for layer in model.layers:
        pattern = model.pattern(tokens, layer.index, 1, mixer=layer.mixer).numpy()
        found = file.map(layer.index, 1, kind=layer.kind)
        assert found.is_signed == (layer.kind == "linear")
        np.testing.assert_allclose(found.values, pattern, rtol=0.05, atol=1e-4 * max(1, np.abs(pattern).max()))
    np.testing.assert_array_equal(file.map(0, 1).values, file.map(0, 1, kind="full").values)
    with pytest.raises(WorkbenchError, match="no sliding head L0H1"):
        file.map(0, 1, kind="sliding")


def test_what_is_not_there_is_refused_with_what_is(tmp_path):
    run, _, _ = written(tmp_path, "llama")
    with pytest.raises(WorkbenchError, match="there is L0H0 … L1H3"):
        run.map(5, 0)
    with pytest.raises(WorkbenchError, match="there are maps of checkpoint-7 on given"):
        run.map(0, 0, step=9)
    with pytest.raises(WorkbenchError, match=r"kept in blocks of \(3, 1\) tokens"):
        run.maps.find().map(1, 1, block=7)
    empty = Store.create(tmp_path / "none", job={}, versions={})
    with pytest.raises(WorkbenchError, match="--no-maps"):
        open_run(empty.path).map(0, 0)


def test_the_distance_profile_adds_up_and_finds_the_window(tmp_path):
    run, _, _ = written(tmp_path, "mistral", fine=())
    file = run.maps.find()
    profile = file.distance_profile(1, 0)
    assert profile["mass"].sum() + file.sink_mass(1, 0) == pytest.approx(1, abs=1e-5)
    assert profile.loc[profile["least"] >= 8, "mass"].sum() == pytest.approx(0, abs=1e-6)
    assert 1 <= file.effective_window(1, 0) <= 8


def test_a_part_that_was_changed_on_disk_is_found_by_check(tmp_path):
    run, _, _ = written(tmp_path, "llama")
    store, path = Store.open(tmp_path), run.maps.find().path
    assert store.check() == []
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + bytes([whole[-40] ^ 64]) + whole[-39:])
    assert [p.reason for p in store.check()] == ["holds other numbers than were written"]
    path.write_bytes(whole[:-40])
    assert len(store.check()) == 1
    with pytest.raises(WorkbenchError, match="not a whole part of patterns"):
        open_run(tmp_path).map(0, 0)


def test_maps_are_read_without_torch(tmp_path):
    written(tmp_path, "llama")
    code = f"""
import sys
from workbench.runs import open_run
run = open_run({str(tmp_path)!r})
run.map(1, 1); run.maps.find().crop(1, 1); run.maps.table()
print(sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code]
    read = run_child(command, start=PreloadedReading, capture_output=True, text=True, check=True)
    assert read.stdout == "[]\n"


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    for step in (1, 2):
        tiny("llama").save_pretrained(folder / f"step{step}")
    return folder


def test_a_scan_keeps_maps_unless_told_not_to_and_makes_up_for_them_later(series, tmp_path):
    probe = repeats(tiny_words(), n=16, n_sequences=4)
    job = dict(detectors=["induction"], probes=probe)
    run = wb.scan(series, tmp_path / "run", maps=False, **job)
    assert run.maps.files() == ()
    run = wb.scan(series, tmp_path / "run", **job)
    assert [f.label.origin.ckpt for f in run.maps.files()] == ["step1", "step2"]
    before = run.maps.find().path.stat().st_mtime_ns
    assert wb.scan(series, tmp_path / "run", **job).maps.find().path.stat().st_mtime_ns == before
    assert run.status().is_complete
    assert run.failures().empty


def tiny_words():
    from workbench.probes import Vocabulary

    return Vocabulary(torch.arange(3, 60), bos=1)


def test_heads_above_a_long_range_threshold_are_kept_finer(tmp_path):
    from workbench.heads import Row
    from workbench.scanning.kept_patterns import flagged

    store = Store.create(tmp_path, job={}, versions={})
    origin = Origin("r", "c", "ab" * 16, "cd" * 16, None, None, 7, 7, 700)

    def rows(detector, scores):
        return [
            Row(
                *(0, h, h, "full", None, detector, 1, "p", s, s, s, 0.0),
                n_seq=5,
                n=9,
                ci_lo=s,
                ci_hi=s,
            )
            for h, s in enumerate(scores)
        ]

    for unit, detector, scores in (
        ("1" * 32, "induction", [0.5, 0.1, 0.9, float("nan")]),
        ("2" * 32, "sink", [1.0, 1.0, 1.0, 1.0]),
        ("3" * 32, "retrieval", [0.0, 0.31, 0.2, 0.0]),
    ):
        store.commit_scores(origin, unit, rows(detector, scores), probe_digest="d", seq_len=9)
    assert flagged(store, origin) == [Head(0, 2), Head(0, 0), Head(0, 1)]


def test_maps_of_a_model_under_intervention_are_refused():
    model = open_model(tiny("llama"))
    with model.ablate([Head(0, 0)]), pytest.raises(WorkbenchError, match="leave restrict, ablate and patch"):
        record_maps(model, random_tokens(1, 8)[0], far=2)


def test_pieces_begin_with_their_space(tmp_path):
    class Tokenizer:
        def convert_ids_to_tokens(self, ids):
            return [["▁the", "<script>", "Ġx"][i] for i in ids]

        def decode(self, ids, **_):
            return ["the", "<script>", " x"][ids[0]]

    model = open_model(tiny("llama"))
    recorded = record_maps(model, torch.tensor([0, 1, 2]), far=1)
    assert arrays_of(recorded, Tokenizer()).pieces == (" the", "<script>", " x")
