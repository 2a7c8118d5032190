"""Revisions are fetched while others are used: in order, never above the bound, and each failure is its own."""

from __future__ import annotations

import time

import pytest
from filelock import FileLock

from tests.hub.hub_client import user_cache
from tests.hub.test_held_files import contents
from tests.hub.watched_folder import Watched
from workbench.heads import StoreNotWritable, WorkbenchError
from workbench.hub import RemoteRevision, downloads, fetch_ahead, needed_files, remote_files
from workbench.hub.byte_sizes import bytes_in_words, parse_bytes
from workbench.hub.downloads import Watch, download
from workbench.hub.fetch_ahead import Bound, Errand, FetchAhead
from workbench.hub.held_files import HeldFiles, bytes_to_hold
from workbench.hub.kept_files import KEPT_LEDGER, KeptFiles

ONE = bytes_to_hold(needed_files([])) + 15_041 + 4 * 1024  # the bytes of one revision


@pytest.fixture
def errands(hub, monkeypatch):
    """Five revisions of which a shard is the same."""
    monkeypatch.setattr(downloads, "_PAUSES", (0.01,))
    every = []
    for step in range(1, 6):
        revision = RemoteRevision("org/name", f"step{step}", hub.put("org/name", f"step{step}", contents(step)))
        every.append(Errand(revision.name, revision, needed_files(remote_files(revision.repo, revision.commit))))
    hub.requests.clear()
    return every


def used(ahead, use=lambda fetched: None):
    """Take, use and release every revision; the results by name."""
    results = {}
    while ahead.remaining():
        fetched = ahead.take()
        if fetched is None:
            ahead.wait(1.0)
            continue
        use(fetched)
        results[fetched.name] = fetched
        ahead.release(fetched.name)
    return results


def test_all_are_there_once_in_order_and_gone_in_the_end(errands, tmp_path):
    held = HeldFiles(tmp_path)
    there = []
    with FetchAhead(errands, held, Bound(None, 2, 0)) as ahead:
        results = used(ahead, lambda f: there.append((f.folder / "model-00002-of-00002.safetensors").read_bytes()))
    assert list(results) == [w.name for w in errands]
    assert there == [contents(step)["model-00002-of-00002.safetensors"] for step in range(1, 6)]
    assert held.held == {}


def test_the_next_is_fetched_while_one_is_used_and_no_more(hub, errands, tmp_path):
    with FetchAhead(errands, HeldFiles(tmp_path), Bound(None, 2, 0)) as ahead:
        while (first := ahead.take()) is None:
            ahead.wait(1.0)
        while len(list(tmp_path.glob("*/model-00002*"))) < 2:
            time.sleep(0.01)
        assert len(hub.gets("model-00002*")) == 2
        ahead.release(first.name)
        while len(hub.gets("model-00002*")) < 3:
            time.sleep(0.01)


@pytest.mark.parametrize("n_bytes", [ONE, ONE + 20_000, 3 * ONE])
def test_the_disk_never_holds_more_than_the_bound(hub, errands, tmp_path, n_bytes):
    hub.pace = 1e6
    with Watched(tmp_path) as watched, FetchAhead(errands, HeldFiles(tmp_path), Bound(n_bytes, 9, 0)) as ahead:
        results = used(ahead, lambda _: time.sleep(0.01))
    assert [f.error for f in results.values()] == [None] * 5
    assert 10_000 < watched.most <= n_bytes


def test_one_that_does_not_fit_alone_fails_by_its_size_and_the_others_are_fetched(hub, tmp_path, errands):
    big = RemoteRevision("org/name", "big", hub.put("org/name", "big", {"model.safetensors": bytes(100_000)}))
    errands.insert(1, Errand("big", big, needed_files(remote_files(big.repo, big.commit))))
    with FetchAhead(errands, HeldFiles(tmp_path), Bound(80_000, 2, 0)) as ahead:
        results = used(ahead)
    message = str(results["big"].error)
    assert "org/name@big: takes 100 kB of disk, and the scan may hold 80 kB of weights; raise --disk" in message
    assert {name for name, f in results.items() if f.error is None} == {f"step{i}" for i in range(1, 6)}
    assert not hub.gets("model.safetensors")


def test_a_full_disk_is_left_alone(errands, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_ahead, "free_bytes", lambda _: 1_000_000)
    with FetchAhead(errands, HeldFiles(tmp_path), Bound(None, 2, 999_000)) as ahead:
        results = used(ahead)
    assert all("1 MB are free, of which 999 kB are left alone" in str(f.error) for f in results.values())


def test_a_failure_is_that_of_one_revision(hub, errands, tmp_path):
    hub.fault("gated", revision="step2")
    hub.fault("cut", revision="step4", file="*.safetensors", after=10)
    with FetchAhead(errands, HeldFiles(tmp_path), Bound(None, 2, 0)) as ahead:
        results = used(ahead)
    assert {n: type(f.error).__name__ for n, f in results.items() if f.error} == {
        "step2": "GatedModel",
        "step4": "Unreachable",
    }
    assert not list(tmp_path.glob("*/*.safetensors"))


def test_what_the_users_cache_has_is_used_from_there_and_stays(hub, errands, tmp_path):
    folder = download(errands[1].revision, errands[1].files)
    sent = hub.bytes_sent
    with FetchAhead(errands[1:2], HeldFiles(tmp_path / "own"), Bound(1, 2, 0)) as ahead:
        results = used(ahead)
    assert results["step2"].folder == folder
    assert hub.bytes_sent == sent
    assert (folder / "model-00001-of-00002.safetensors").exists()


def test_two_names_of_one_commit_are_fetched_once_and_removed_after_both(hub, errands, tmp_path):
    first = errands[0]
    twice = [first, Errand("final", first.revision, first.files)]
    with FetchAhead(twice, HeldFiles(tmp_path), Bound(None, 2, 0)) as ahead:
        while len(list(ahead._ready)) < 2:
            time.sleep(0.01)
        one, two = ahead.take(), ahead.take()
        ahead.release(one.name)
        assert (two.folder / "config.json").exists()
        ahead.release(two.name)
    assert len(hub.gets("model-00002*")) == 1
    assert not list(tmp_path.glob("*/*"))


def test_to_stop_ends_a_download_in_the_middle(hub, errands, tmp_path):
    hub.pace = 1000.0
    began = time.monotonic()
    with FetchAhead(errands, HeldFiles(tmp_path), Bound(None, 2, 0)) as ahead:
        while not hub.gets("*.safetensors"):
            time.sleep(0.01)
        hub.pace = None
    assert not ahead._thread.is_alive()
    assert time.monotonic() - began < 60
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_disk_that_refuses_ends_all(errands, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with (
        FetchAhead(errands, HeldFiles(tmp_path), Bound(None, 2, 0)) as ahead,
        pytest.raises(StoreNotWritable, match="no space left"),
    ):
        used(ahead)


def test_what_is_kept_goes_to_the_users_cache_and_stays(errands, tmp_path):
    kept = KeptFiles(tmp_path / "own")
    with FetchAhead(errands, kept, Bound(None, 2, 0)) as ahead:
        results = used(ahead)
    kept.close()
    assert all(f.folder.parent.parent == user_cache(tmp_path) / "models--org--name" for f in results.values())
    assert all((f.folder / "model-00001-of-00002.safetensors").exists() for f in results.values())
    assert not (tmp_path / "own").exists()


def test_what_a_kill_left_unproven_in_the_users_cache_is_read_again_and_removed_if_bad(hub, errands, tmp_path):
    (first, second), own = errands[:2], tmp_path / "own"
    before = download(second.revision, second.files)
    kept = KeptFiles(own)
    kept.fetch(first.revision, first.files, watch=Watch())
    shard = before.parent / first.revision.commit / "model-00002-of-00002.safetensors"
    shared = (before / "model-00001-of-00002.safetensors").resolve()
    names = [[f.name, f.size, f.blob] for f in first.files if "00002-of" in f.name]
    ledger = f'{{"repo": "org/name", "commit": "{first.revision.commit}", "files": {names}}}'.replace("'", '"')
    (own / KEPT_LEDGER).write_text(ledger)
    shard.resolve().write_bytes(bytes(9000))  # the right size, and other bytes
    shared.write_bytes(b"damaged by someone else")
    part = shard.resolve().with_name(shard.resolve().name + ".0a1b2c3d.incomplete")
    part.write_bytes(b"half")
    with FileLock(user_cache(tmp_path) / ".locks" / "models--org--name" / f"{shard.resolve().name}.lock"):
        KeptFiles(own)
    assert part.exists()  # another process fetches it
    (own / KEPT_LEDGER).write_text(ledger)
    KeptFiles(own)
    assert not part.exists()
    assert not shard.exists()
    assert shared.read_bytes() == b"damaged by someone else"
    assert not (own / KEPT_LEDGER).exists()


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("50GB", 50 * 10**9), ("1.5 TB", 15 * 10**11), ("800MiB", 800 << 20), ("12", 12), ("7k", 7000), ("3 B", 3)],
)
def test_sizes_are_read_as_people_write_them(text, n_bytes):
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GB", "0", "-5GB", "50 apples", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(WorkbenchError, match="no size of a disk"):
        parse_bytes(text)


def test_sizes_are_said_in_a_unit_that_fits():
    assert [bytes_in_words(n) for n in (0, 999, 1000, 999_499, 13_200_000_000)] == [
        "0 B",
        "999 B",
        "1 kB",
        "999 kB",
        "13.2 GB",
    ]
