"""A link out of a checkpoint's folder is refused, but to the blobs of its own Hugging Face cache."""

from __future__ import annotations

import pytest

from workbench.checkpoints.own_files import own_file
from workbench.heads import BadCheckpoint

HASH = "ab" * 32


@pytest.fixture
def linked(tmp_path):
    """A cache in which a snapshot's file is a link to a blob, and that a link into the store that models share."""
    repository, store = tmp_path / "hub" / "models--org--name", tmp_path / "hub" / "blobs"
    snapshot = repository / "snapshots" / "commit"
    for folder in (snapshot, repository / "blobs", store / "ab"):
        folder.mkdir(parents=True)
    (store / "ab" / HASH).write_bytes(b"weights")
    (store / ".huggingface-shared-blobs").write_text("1\n")
    (repository / "blobs" / "etag").symlink_to(store / "ab" / HASH)
    file = snapshot / "model.safetensors"
    file.symlink_to(repository / "blobs" / "etag")
    return file


def test_a_blob_that_the_models_of_a_cache_share_is_a_checkpoints_own(linked):
    assert own_file(linked.parent, linked) == linked


def test_a_folder_of_that_name_without_the_caches_mark_is_elsewhere(linked):
    (linked.parents[3] / "blobs" / ".huggingface-shared-blobs").unlink()
    with pytest.raises(BadCheckpoint, match="outside the checkpoint"):
        own_file(linked.parent, linked)


def test_a_link_to_another_place_is_refused(linked, tmp_path):
    elsewhere = tmp_path / "hub" / "elsewhere"
    elsewhere.write_bytes(b"weights")
    linked.unlink()
    linked.symlink_to(elsewhere)
    with pytest.raises(BadCheckpoint, match="outside the checkpoint"):
        own_file(linked.parent, linked)
