"""A scan's own downloads: within their folder, named before they are fetched, and removed without touching others'."""

from __future__ import annotations

import json
import os

import pytest

from tests.hub.hub_client import user_cache
from tests.hub.watched_folder import on_disk
from workbench.hub import RemoteRevision, downloads, needed_files, remote_files
from workbench.hub.downloads import DownloadStopped, Watch, download
from workbench.hub.held_files import LEDGER, HeldFiles, bytes_to_hold
from workbench.hub.hub_errors import HubFault
from workbench.hub.small_files import fetch_small_files, small_files

CONFIG, TOKENIZER = b'{"model_type": "llama"}', b'{"version": "1.0"}'


def contents(step):
    return {
        "config.json": CONFIG,
        "tokenizer.json": TOKENIZER,
        "model-00001-of-00002.safetensors": b"frozen" * 1000,
        "model-00002-of-00002.safetensors": bytes([step]) * 9000,
    }


@pytest.fixture
def series(hub, monkeypatch):
    """Three revisions with their needed files; the first shard is the same in all."""
    monkeypatch.setattr(downloads, "_PAUSES", (0.01,))
    found = {}
    for step in (1, 2, 3):
        revision = RemoteRevision("org/name", f"step{step}", hub.put("org/name", f"step{step}", contents(step)))
        found[revision] = needed_files(remote_files(revision.repo, revision.commit))
    hub.requests.clear()
    return found


def test_a_revision_is_held_whole_and_removed_whole(series, tmp_path):
    held = HeldFiles(tmp_path / "own")
    revision, files = next(iter(series.items()))
    folder = held.fetch(revision, files, watch=Watch())
    assert {f.name for f in folder.iterdir()} == {f.name for f in files}
    assert list(held.held) == [revision.commit]
    assert on_disk(tmp_path / "own") <= held.n_bytes() == bytes_to_hold(files)
    held.remove(revision.commit)
    assert held.held == {}
    held.close()
    assert not (tmp_path / "own").exists()


def test_equal_files_of_two_revisions_are_fetched_and_counted_once(hub, series, tmp_path):
    held = HeldFiles(tmp_path / "own")
    (one, files), (two, others), _ = series.items()
    held.fetch(one, files, watch=Watch())
    assert held.bytes_for(two, others) == pytest.approx(9000, abs=5 * 1024)
    held.fetch(two, others, watch=Watch())
    assert hub.bytes_sent == sum(f.size for f in files) + 9000
    assert on_disk(tmp_path / "own") <= held.n_bytes()
    held.remove(one.commit)
    assert (tmp_path / "own" / two.commit / "model-00001-of-00002.safetensors").read_bytes() == b"frozen" * 1000


def test_the_ledger_names_a_revision_before_its_first_byte(hub, series, tmp_path):
    ledgers = []
    hub.before = lambda _: ledgers.append(json.loads((tmp_path / "own" / LEDGER).read_text()))
    revision, files = next(iter(series.items()))
    HeldFiles(tmp_path / "own").fetch(revision, files, watch=Watch())
    assert list(ledgers[0]) == [revision.commit]
    assert ledgers[0][revision.commit]["name"] == "step1"


def test_another_process_goes_on_where_one_was_stopped_and_reads_what_is_there_again(hub, series, tmp_path):
    (one, files), *_ = series.items()
    counts = []
    held = HeldFiles(tmp_path / "own")
    with pytest.raises(DownloadStopped):
        held.fetch(one, files, watch=Watch(counts.append, lambda: sum(counts) > 6000))
    first = tmp_path / "own" / one.commit / "model-00001-of-00002.safetensors"
    first.write_bytes(b"Frozen" * 1000)  # as a disk that lost its cache
    partial = tmp_path / "own" / one.commit / ".cache" / "huggingface" / "download" / "abc.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"part")
    again = HeldFiles(tmp_path / "own")
    assert again.remove_all_but([one.commit]) == []
    assert not partial.exists()
    present = {file.name for file in first.parent.iterdir()}
    sent = hub.bytes_sent
    folder = again.fetch(one, files, watch=Watch())
    assert first.read_bytes() == b"frozen" * 1000
    assert hub.bytes_sent - sent == 6000 + sum(file.size for file in files if file.name not in present)
    assert {f.name for f in folder.iterdir()} == {f.name for f in files}


def test_only_what_the_ledger_names_is_removed(series, tmp_path):
    (one, files), (two, others), _ = series.items()
    held = HeldFiles(tmp_path / "own")
    held.fetch(one, files, watch=Watch())
    held.fetch(two, others, watch=Watch())
    foreign = [
        tmp_path / "own" / "mine.txt",
        tmp_path / "own" / one.commit / "notes.txt",
        tmp_path / "own" / "abc" / "x",
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("of the user")
    again = HeldFiles(tmp_path / "own")
    assert again.remove_all_but([]) == [one.commit, two.commit]
    again.close()
    assert [path.read_text() for path in foreign] == ["of the user"] * 3
    assert sorted(f.name for f in (tmp_path / "own").rglob("*") if f.is_file()) == ["mine.txt", "notes.txt", "x"]


def test_what_fails_stays_named_until_it_is_removed(hub, series, tmp_path):
    (one, files), *_ = series.items()
    hub.fault("unavailable", file="*00002*")
    held = HeldFiles(tmp_path / "own")
    with pytest.raises(HubFault):
        held.fetch(one, files, watch=Watch())
    assert list(held.held) == [one.commit]
    held.remove(one.commit)
    assert not (tmp_path / "own" / one.commit).exists()


def test_an_unreadable_ledger_names_nothing(tmp_path):
    (tmp_path / LEDGER).write_text("{")
    assert HeldFiles(tmp_path).held == {}


def test_small_files_of_all_revisions_cost_one_download_per_content(hub, series, tmp_path):
    assert fetch_small_files(series, tmp_path / "series", staging=tmp_path / "staging") == {}
    assert len(hub.gets()) == 2
    for revision, files in series.items():
        folder = tmp_path / "series" / revision.commit
        assert {f.name for f in folder.iterdir()} == {f.name for f in small_files(files)}
        assert (folder / "config.json").read_bytes() == CONFIG
    assert not (tmp_path / "staging").exists()
    fetch_small_files(series, tmp_path / "series", staging=tmp_path / "staging")
    assert len(hub.gets()) == 2


def test_a_content_that_one_revision_refuses_is_taken_from_another(hub, series, tmp_path):
    hub.fault("gated", revision="step1")
    assert fetch_small_files(series, tmp_path / "series", staging=tmp_path / "staging") == {}
    assert len(list((tmp_path / "series").glob("*/config.json"))) == 3


def test_a_content_that_none_hands_out_is_an_error_of_each_after_a_few_requests(hub, series, tmp_path):
    hub.fault("gated")
    errors = fetch_small_files(series, tmp_path / "series", staging=tmp_path / "staging")
    assert set(errors) == set(series)
    assert all("accept it" in str(error) for error in errors.values())


def test_a_file_in_the_users_cache_is_copied_and_stays(hub, series, tmp_path):
    (one, files), *_ = series.items()
    download(one, files)
    sent = hub.bytes_sent
    held = HeldFiles(tmp_path / "own")
    held.fetch(one, files, watch=Watch())
    assert hub.bytes_sent == sent
    held.remove(one.commit)
    assert len([f for f in user_cache(tmp_path).rglob("*.safetensors") if os.path.exists(f)]) == 2


def test_two_equal_files_of_a_revision_are_fetched_once(hub, series, tmp_path):
    twins = {"model-00001-of-00002.safetensors": bytes(5000), "model-00002-of-00002.safetensors": bytes(5000)}
    revision = RemoteRevision("org/name", "twins", hub.put("org/name", "twins", twins))
    files = needed_files(remote_files(revision.repo, revision.commit))
    sent = hub.bytes_sent
    folder = HeldFiles(tmp_path / "own").fetch(revision, files, watch=Watch())
    assert hub.bytes_sent - sent == 5000
    assert [(folder / name).read_bytes() for name in twins] == [bytes(5000)] * 2
