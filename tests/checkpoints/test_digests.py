"""A fingerprint covers every byte of the weights and the config; a written digest shows a flipped bit by file."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from tests.checkpoints.folders import CONFIG, checkpoint
from workbench.checkpoints import fingerprint, same_weights, verify_digests
from workbench.checkpoints.digests import fingerprint_at_hub, note_at_hub
from workbench.heads import BadCheckpoint, StoreNotWritable


def flip(path, place=-3):
    content = bytearray(path.read_bytes())
    content[place] ^= 0x40
    path.write_bytes(bytes(content))


def test_copies_have_one_fingerprint_whatever_their_names_and_times(tmp_path):
    a, b = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    os.utime(b / "model.safetensors", (0, 0))
    assert fingerprint(a) == fingerprint(b)
    assert len(fingerprint(a).weights) == len(fingerprint(a).config) == 32
    assert same_weights(a, b)


def test_one_flipped_bit_of_tensor_data_is_another_fingerprint(tmp_path):
    a, b = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    flip(b / "model.safetensors")
    assert fingerprint(a).weights != fingerprint(b).weights
    assert fingerprint(a).config == fingerprint(b).config
    assert not same_weights(a, b)


def test_a_flip_between_the_samples_is_seen(tmp_path):
    a, b = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    for path in (a, b):
        (path / "model.safetensors").write_bytes(bytes(1 << 20))
    assert same_weights(a, b)
    flip(b / "model.safetensors", place=30_000)
    assert not same_weights(a, b)


def test_the_config_counts_and_its_layout_does_not(tmp_path):
    a, b, c = (checkpoint(tmp_path / name) for name in "abc")
    shuffled = {"_name_or_path": "x", "transformers_version": "9", **dict(reversed(CONFIG.items()))}
    (b / "config.json").write_text(json.dumps(shuffled, indent=7))
    (c / "config.json").write_text(json.dumps({**CONFIG, "rope_theta": 1e6}))
    assert fingerprint(a) == fingerprint(b)
    assert fingerprint(a).config != fingerprint(c).config


def test_the_cache_spares_reading_and_notices_a_rewrite(tmp_path, monkeypatch):
    path, cache = checkpoint(tmp_path / "a"), tmp_path / "deep" / "digests.json"
    first = fingerprint(path, cache)
    monkeypatch.setattr("workbench.checkpoints.digests._file_digest", lambda file: pytest.fail("read again"))
    assert fingerprint(path, cache) == first
    monkeypatch.undo()
    flip(path / "model.safetensors")
    assert fingerprint(path, cache).weights != first.weights
    assert fingerprint(path, cache) == fingerprint(path)
    assert [p.name for p in cache.parent.rglob("*") if p.is_file()] == ["digests.json"]


def test_the_first_bytes_are_looked_at_even_where_size_and_time_are_forged(tmp_path):
    path, cache = checkpoint(tmp_path / "a"), tmp_path / "digests.json"
    first = fingerprint(path, cache)
    stat = (path / "model.safetensors").stat()
    flip(path / "model.safetensors")
    os.utime(path / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(path, cache).weights != first.weights


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"a": 5}'])
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    path, cache = checkpoint(tmp_path / "a"), tmp_path / "digests.json"
    cache.write_text(damage)
    assert fingerprint(path, cache) == fingerprint(path)
    assert len(json.loads(cache.read_text())) == 1


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreNotWritable, match="digests"):
        fingerprint(checkpoint(tmp_path / "a"), tmp_path / "file" / "digests.json")


def test_nothing_is_the_same_as_a_folder_without_weights(tmp_path):
    a, b = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    for path in (a, b):
        (path / "model.safetensors").unlink()
    assert not same_weights(a, b)
    with pytest.raises(BadCheckpoint, match="no weights"):
        fingerprint(a)


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


FORMS = {
    "SHA256SUMS": lambda digest: f"{'0' * 64}  README.md\n{digest}  model.safetensors\n",
    "checksums.sha256": lambda digest: f"{digest.upper()} *./model.safetensors\n",
    "model.safetensors.sha256": lambda digest: f"{digest}\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_bit_that_flipped_on_the_way_is_refused_by_file_and_digests(tmp_path, form):
    path = checkpoint(tmp_path / "step1")
    weights = path / "model.safetensors"
    digest = sha256(weights)
    (path / form).write_text(FORMS[form](digest))
    assert verify_digests(path) == {"model.safetensors": digest}
    content = bytearray(weights.read_bytes())
    content[-3] ^= 0x40
    weights.write_bytes(bytes(content))
    with pytest.raises(BadCheckpoint, match=f"model.safetensors: sha256 is {sha256(weights)}, written is {digest}"):
        verify_digests(path)


def test_a_blob_of_a_hub_cache_is_compared_with_its_name(tmp_path):
    path = checkpoint(tmp_path / "snapshots" / "c0ffee")
    weights = path / "model.safetensors"
    blob = tmp_path / "blobs" / sha256(weights)
    blob.parent.mkdir()
    weights.rename(blob)
    weights.symlink_to(blob)
    assert verify_digests(path) == {"model.safetensors": blob.name}
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with pytest.raises(BadCheckpoint, match="fetch the file again"):
        verify_digests(path)


def test_weights_without_a_written_digest_are_not_called_verified(tmp_path):
    with pytest.raises(BadCheckpoint, match=r"no digest is written.*SHA256SUMS.*without --verify"):
        verify_digests(checkpoint(tmp_path / "step1"))


def test_weights_at_a_hub_are_known_by_its_digests_once_they_were_here(tmp_path):
    a, cache = checkpoint(tmp_path / "a"), tmp_path / "fingerprints.json"
    blobs = {"model.safetensors": "f" * 64}
    assert fingerprint_at_hub(a, blobs, cache) is None
    first = fingerprint(a, cache)
    note_at_hub(blobs, first.weights, cache)
    (a / "model.safetensors").unlink()
    assert fingerprint_at_hub(a, blobs, cache) == first
    assert fingerprint_at_hub(a, {"model.safetensors": "e" * 64}, cache) is None
    (a / "config.json").write_text(json.dumps({**CONFIG, "hidden_size": 8}))
    assert fingerprint_at_hub(a, blobs, cache).weights == first.weights
    assert fingerprint_at_hub(a, blobs, cache).config != first.config
