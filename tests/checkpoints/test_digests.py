"""Digests written beside weights: a flipped bit is refused by name, a list is read in any of its usual forms."""

from __future__ import annotations

import hashlib

import pytest

from tests.checkpoints.folders import checkpoint
from workbench.checkpoints import verify_digests
from workbench.heads import BadCheckpoint


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
