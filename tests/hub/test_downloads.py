"""Files are fetched once, compared with what the hub lists, and tried again where that may help."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from tests.hub.hub_client import user_cache
from workbench.heads import StoreNotWritable
from workbench.hub import (
    GatedModel,
    NotAtHub,
    RateLimited,
    RemoteRevision,
    Unreachable,
    downloads,
    needed_files,
    remote_files,
)
from workbench.hub.downloads import BadDownload, DownloadStopped, Watch, check_file, download
from workbench.hub.hub_errors import HubFault
from workbench.hub.user_cache import cached_snapshot

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(range(256)) * 300,
    "flax_model.msgpack": b"other weights",
    "README.md": b"read me",
}
NEEDED = {"config.json", "tokenizer.json", "model.safetensors"}
N_TRIES = len(downloads._PAUSES) + 1


@pytest.fixture
def revision(hub, monkeypatch):
    monkeypatch.setattr(downloads, "_PAUSES", (0.01, 0.01))
    return RemoteRevision("org/name", "step10", hub.put("org/name", "step10", FILES))


@pytest.fixture
def files(revision):
    return needed_files(remote_files(revision.repo, revision.commit))


def test_only_needed_files_are_fetched_and_only_once(hub, revision, files, tmp_path):
    folder = download(revision, files, tmp_path / "step10")
    assert {f.name for f in folder.iterdir() if f.is_file()} == NEEDED
    assert all((folder / name).read_bytes() == FILES[name] for name in NEEDED)
    n_sent = hub.bytes_sent
    download(revision, files, folder)
    assert hub.bytes_sent == n_sent == sum(len(FILES[name]) for name in NEEDED)
    downloads.forget_records(folder)
    assert not (folder / ".cache" / "huggingface").exists()


def test_without_a_folder_they_go_to_the_users_cache_as_hf_download_puts_them(hub, revision, files, tmp_path):
    assert cached_snapshot(revision.repo, revision.commit, files) is None
    folder = download(revision, files)
    repository = user_cache(tmp_path) / "models--org--name"
    assert folder == repository / "snapshots" / revision.commit
    assert (repository / "refs" / "step10").read_text() == revision.commit
    assert cached_snapshot(revision.repo, revision.commit, files) == folder
    assert (folder / "config.json").read_bytes() == FILES["config.json"]
    (folder / "model.safetensors").resolve().write_bytes(b"short")
    assert cached_snapshot(revision.repo, revision.commit, files) is None


def test_bytes_are_counted_as_they_come(revision, files, tmp_path):
    counts = []
    download(revision, files, tmp_path / "step10", watch=Watch(counts.append))
    assert sum(counts) == sum(file.size for file in files)


def test_a_request_to_stop_ends_a_download_and_leaves_no_part_of_a_file(revision, files, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    counts = []
    watch = Watch(counts.append, lambda: sum(counts) > 5000)
    with pytest.raises(DownloadStopped):
        download(revision, files, tmp_path / "step10", watch=watch)
    assert not list(tmp_path.glob("step10/**/*.incomplete"))
    assert not (tmp_path / "step10" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["rate_limited", "unavailable", "cut", "reset", "wrong", "slow"])
def test_a_fault_that_passes_costs_nothing_but_time(hub, revision, files, tmp_path, kind):
    hub.fault(kind, file="model.safetensors", times=2)
    folder = download(revision, files, tmp_path / "step10")
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


@pytest.mark.parametrize(
    ("kind", "error", "reason"),
    [
        ("rate_limited", RateLimited, "429"),
        ("unavailable", HubFault, "503"),
        ("cut", Unreachable, "peer closed connection"),
        ("reset", Unreachable, "reset"),
        ("slow", Unreachable, "timed out"),
        ("wrong", BadDownload, "has the sha256 .* the hub lists .* it was removed"),
    ],
)
def test_a_fault_that_lasts_is_an_error_after_a_few_tries_that_says_so(
    hub, revision, files, tmp_path, kind, error, reason
):
    hub.fault(kind, file="model.safetensors", after=1000)
    with pytest.raises(
        error, match=rf"org/name@step10: .*{reason}.*\. Tried {N_TRIES} times; the same command"
    ) as raised:
        download(revision, files, tmp_path / "step10")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "step10" / "model.safetensors").exists()
    assert not list(tmp_path.glob("step10/**/*.incomplete"))


@pytest.mark.parametrize(
    ("kind", "error", "reason"),
    [
        ("gated", GatedModel, "accept it at"),
        ("forbidden", GatedModel, "403"),
        ("no_repository", NotAtHub, "no such model"),
        ("no_revision", NotAtHub, "no revision step10"),
        ("no_file", NotAtHub, "not this file"),
    ],
)
def test_a_refusal_is_not_tried_again(hub, revision, files, tmp_path, kind, error, reason):
    hub.fault(kind, file="model.safetensors")
    with pytest.raises(error, match=reason):
        download(revision, files, tmp_path / "step10")
    assert len([r for r in hub.requests if r.file == "model.safetensors"]) == 1


def test_a_damaged_file_in_the_users_cache_that_was_there_before_is_never_removed(hub, revision, files, tmp_path):
    folder = download(revision, files)
    blob = (folder / "model.safetensors").resolve()
    blob.write_bytes(b"damaged")
    download(revision, files)
    assert blob.read_bytes() == b"damaged"


def test_offline_nothing_is_asked_and_the_cache_serves(hub, revision, files, tmp_path, monkeypatch):
    download(revision, files)
    n_requests = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (download(revision, files) / "config.json").is_file()
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE"):
        download(RemoteRevision("org/name", "other", "f" * 40), files)
    assert len(hub.requests) == n_requests


def test_a_full_disk_is_said_as_such(revision, files, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(StoreNotWritable, match="no space left"):
        download(revision, files, tmp_path / "step10")


def test_a_small_file_is_compared_with_its_git_id(revision, files, tmp_path):
    config = next(file for file in files if file.name == "config.json")
    (tmp_path / "config.json").write_bytes(FILES["config.json"])
    check_file(tmp_path / "config.json", config)
    (tmp_path / "config.json").write_bytes(FILES["config.json"].replace(b"l", b"L"))
    with pytest.raises(BadDownload, match="git id"):
        check_file(tmp_path / "config.json", config)
    (tmp_path / "config.json").write_bytes(b"{}")
    with pytest.raises(BadDownload, match="has 2 bytes, the hub lists 23"):
        check_file(tmp_path / "config.json", config)
