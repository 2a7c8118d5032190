"""The tests' hub answers huggingface_hub as the real one does, and fails as it is told to."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.hub_server import HubServer, blob_of

FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": bytes(range(256)) * 300}


@pytest.fixture
def repo(hub: HubServer) -> str:
    hub.put("org/name", "main", FILES)
    hub.put("org/name", "step10", {**FILES, "model.safetensors": b"other" * 100}, is_tag=True)
    return "org/name"


def test_branches_tags_files_and_their_blobs_are_listed(hub, repo):
    refs = HfApi().list_repo_refs(repo)
    assert [b.name for b in refs.branches] == ["main"]
    assert [t.name for t in refs.tags] == ["step10"]
    config, weights = HfApi().list_repo_tree(repo, revision=refs.branches[0].target_commit, recursive=True)
    assert (config.path, config.size, config.blob_id) == (
        "config.json",
        23,
        blob_of("config.json", FILES["config.json"]),
    )
    assert weights.lfs.sha256 == blob_of("model.safetensors", FILES["model.safetensors"])
    assert weights.lfs.size == weights.size == 76_800
    assert HfApi().model_info(repo, revision="step10").sha == refs.tags[0].target_commit


def test_a_tree_of_more_files_than_one_page_is_listed_whole(hub):
    hub.put("org/many", "main", {f"{i}.json": b"{}" for i in range(250)})
    assert len(list(HfApi().list_repo_tree("org/many", recursive=True))) == 250


def test_repositories_are_searched_by_author_and_words(hub, repo):
    hub.put("other/name", "main", FILES)
    assert [m.id for m in HfApi().list_models(author="org", search="nam")] == [repo]


def test_a_snapshot_is_the_files(hub, repo, tmp_path):
    folder = snapshot_download(repo, revision="main", cache_dir=tmp_path)
    assert (tmp_path / folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert {r.file for r in hub.gets()} == set(FILES)


def test_a_renamed_repository_redirects(hub, repo, tmp_path):
    hub.rename(repo, "org/new")
    assert HfApi().model_info(repo).id == "org/new"
    assert hf_hub_download(repo, "config.json", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("gated", GatedRepoError),
        ("forbidden", HfHubHTTPError),
        ("no_repository", RepositoryNotFoundError),
        ("no_revision", RevisionNotFoundError),
        ("no_file", RemoteEntryNotFoundError),
    ],
)
def test_a_refusal_is_the_error_of_the_client(hub, repo, kind, error):
    hub.fault(kind, revision="step10", file=None)
    with pytest.raises(error):
        HfApi().model_info(repo, revision="step10")
    assert HfApi().model_info(repo, revision="main").id == repo


def test_a_cut_body_is_resumed_at_the_byte_where_it_ended(hub, repo, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # the client loses the chunk that was cut
    hub.fault("cut", file="model.safetensors", times=1, after=1000)
    path = Path(hf_hub_download(repo, "model.safetensors", cache_dir=tmp_path))
    assert path.read_bytes() == FILES["model.safetensors"]
    assert hub.bytes_sent == len(FILES["model.safetensors"])


@pytest.mark.parametrize("kind", ["reset", "slow", "cut"])
def test_a_body_that_never_comes_is_an_error_of_the_client(hub, repo, tmp_path, kind):
    hub.fault(kind, file="model.safetensors", after=10)
    with pytest.raises(Exception, match=r"reset|timed out|peer closed"):
        hf_hub_download(repo, "model.safetensors", cache_dir=tmp_path)


def test_a_wrong_body_has_the_right_length_and_the_client_takes_it(hub, repo, tmp_path):
    hub.fault("wrong", file="model.safetensors")
    body = Path(hf_hub_download(repo, "model.safetensors", cache_dir=tmp_path)).read_bytes()
    assert len(body) == 76_800
    assert body != FILES["model.safetensors"]


def test_a_fault_ends_after_its_times(hub, repo, tmp_path):
    hub.fault("unavailable", file="config.json", times=1)
    hub.fault("rate_limited", file="config.json", times=2)
    assert hf_hub_download(repo, "config.json", cache_dir=tmp_path)
    assert [r.method for r in hub.requests] == ["HEAD"] * 4 + ["GET"]
