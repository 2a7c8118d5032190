"""A series from a folder, from the Hugging Face cache or from a hub: which one is meant, and the same when offline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checkpoints.folders import CONFIG, checkpoint
from tests.command_process import workbench
from tests.hub.hub_client import user_cache
from workbench.checkpoints import find_checkpoints
from workbench.checkpoints.fetched_models import obtain_checkpoint
from workbench.checkpoints.series_sources import settled_source
from workbench.heads import NoCheckpoints, WorkbenchError
from workbench.hub import BadReference, HubReference, NotAtHub, Unreachable

HUB = "http://127.0.0.1:9"  # where nobody answers


def files(weights, **config):
    return {"config.json": json.dumps({**CONFIG, **config}).encode(), "model.safetensors": weights.encode()}


@pytest.fixture
def pythia(hub):
    """A repository with steps, a tag and `main`, which is the last step; the commits by name."""
    commits = {name: hub.put("org/pythia", name, files(name)) for name in ("step1000", "step0", "step512")}
    commits["v1"] = hub.put("org/pythia", "v1", files("tagged"), is_tag=True)
    hub.point("org/pythia", "main", commits["step1000"])
    return commits


def names(series):
    return [c.name for c in series.checkpoints]


def test_revisions_at_a_hub_stand_in_order_with_their_sizes_and_aliases_and_nothing_is_fetched(pythia, hub, tmp_path):
    series = find_checkpoints("org/pythia", revisions="step*,main")
    assert names(series) == ["step0", "step512", "step1000", "main"]
    assert series.checkpoints[-1].alias_of == "step1000"
    assert [c.name for c in series.on_disk] == ["step0", "step512", "step1000"]
    remote = series.remote["step512"]
    assert (str(remote.revision), remote.revision.commit) == ("org/pythia@step512", pythia["step512"])
    assert remote.n_bytes == sum(map(len, files("step512").values()))
    assert series.records()[1] | {"repo": "org/pythia", "commit": pythia["step512"]} == series.records()[1]
    assert hub.gets() == []
    assert not user_cache(tmp_path).exists()


def test_one_revision_is_a_series_of_one_and_the_others_are_said(pythia):
    series = find_checkpoints("org/pythia")
    assert names(series) == ["main"]
    assert (
        "of its branches and tags, the hub has 4 more (step1000, step0, step512, v1): --revisions" in series.remarks[0]
    )
    assert names(find_checkpoints("org/pythia@step512")) == ["step512"]
    assert names(find_checkpoints("org/pythia@v1")) == ["v1"]


def test_a_repository_with_main_alone_has_no_others_to_say(hub):
    hub.put("org/one", "main", files("a"))
    assert find_checkpoints("org/one").remarks == ()


def test_a_bare_commit_says_nothing_of_its_place(pythia):
    commit = pythia["step512"]
    series = find_checkpoints(f"org/pythia@{commit}")
    assert names(series) == [commit]
    assert "known by the commit alone" in series.remarks[-1]


def test_several_references_are_one_series_by_a_list_or_with_commas(pythia, hub):
    for name in ("name-step-10", "name-step-20"):
        hub.put(f"org/{name}", "main", files(name))
    for source in (["org/name-step-20", "org/name-step-10"], "org/name-step-20, org/name-step-10"):
        assert names(find_checkpoints(source)) == ["name-step-10", "name-step-20"]
    mixed = find_checkpoints(["org/pythia@step0", "org/pythia@step512", "org/name-step-20"])
    assert names(mixed) == ["pythia/step0", "pythia/step512", "name-step-20/main"]
    assert mixed.remote["pythia/step0"].revision.name == "step0"


def test_one_training_may_lie_in_two_repositories(hub):
    for step in (0, 1000):
        hub.put("org/early", f"stage1-step{step}", files(f"early {step}"))
    for step in (1000, 2000):
        hub.put("org/late", f"stage1-step{step}", files("early 1000" if step == 1000 else "late"))
    series = find_checkpoints(["org/early", "org/late"], revisions="stage1-*")
    assert [(c.name, c.alias_of) for c in series.checkpoints] == [
        ("early/stage1-step0", None),
        ("early/stage1-step1000", None),
        ("late/stage1-step1000", "early/stage1-step1000"),
        ("late/stage1-step2000", None),
    ]


def test_revisions_without_weights_are_left_out_with_the_reason(hub):
    hub.put("org/name", "step1", files("a"))
    hub.put("org/name", "main", {"README.md": b"see the branches"})
    hub.put("org/name", "step2", {"config.json": b"{}"})
    series = find_checkpoints("org/name", revisions="*")
    assert names(series) == ["step1"]
    assert series.ignored == {"main": "no weights at the hub", "step2": "no weights at the hub, config.json alone"}
    with pytest.raises(NoCheckpoints, match=r"org/name: none of the revisions is a checkpoint\. main: no weights"):
        find_checkpoints("org/name")


def test_a_folder_goes_before_a_model_of_its_name(pythia, tmp_path, monkeypatch):
    checkpoint(tmp_path / "here" / "org" / "pythia" / "step7")
    monkeypatch.chdir(tmp_path / "here")
    assert names(find_checkpoints("org/pythia")) == ["step7"]
    assert names(find_checkpoints([HubReference("org/pythia", "step0")])) == ["step0"]
    with pytest.raises(WorkbenchError, match=r"org/pythia: is a folder, and revisions 'step\*' are those of a model"):
        find_checkpoints("org/pythia", revisions="step*")
    with pytest.raises(WorkbenchError, match=r"'org/pythia' is on this disk; several checkpoints are named by the ids"):
        find_checkpoints(["org/pythia", "org/other"])
    with pytest.raises(WorkbenchError, match=r"'a/b/c' is no id of a model"):
        find_checkpoints("a/b/c,org/other")


def test_a_single_word_is_a_folder_that_is_not_there_unless_it_is_said_to_be_an_id(hub):
    hub.put("gpt2", "main", files("a"))
    with pytest.raises(NoCheckpoints, match=r"gpt2: no such directory.*if it is a model's id, pass hf://gpt2, or"):
        find_checkpoints("gpt2")
    assert hub.requests == []
    for source in ("hf://gpt2", "gpt2@main", "https://huggingface.co/gpt2"):
        assert names(find_checkpoints(source)) == ["main"]
    assert names(find_checkpoints("gpt2", revisions="m*")) == ["main"]
    assert settled_source("hf://gpt2") == "hf://gpt2"  # as it is read again
    with pytest.raises(WorkbenchError, match="'my' is no id of a model"):
        find_checkpoints("my,dir")


def test_an_id_in_the_cache_is_its_revisions_there_and_no_hub_is_asked(pythia, hub, tmp_path):
    obtain_checkpoint("org/pythia@step512")
    obtain_checkpoint("org/pythia@v1")
    hub.requests.clear()
    series = find_checkpoints("org/pythia")
    assert (names(series), series.remote) == (["step512", "v1"], {})
    assert series.remarks[0].startswith("these are the revisions in the Hugging Face cache; --revisions PATTERN")
    assert hub.requests == []
    assert settled_source("org/pythia") == user_cache(tmp_path) / "models--org--pythia"
    assert settled_source("org/pythia", "step*") == "org/pythia"
    # A pattern asks the hub again, and what is cached is known.
    again = find_checkpoints("org/pythia", revisions="step*")
    assert [c.path.is_dir() for c in again.checkpoints] == [False, True, False]


def test_files_of_a_tokenizer_alone_are_no_cached_model(pythia, hub, tmp_path):
    folder = user_cache(tmp_path) / "models--org--pythia"
    (folder / "snapshots" / pythia["v1"]).mkdir(parents=True)
    (folder / "snapshots" / pythia["v1"] / "tokenizer.json").write_text("{}")
    assert list(find_checkpoints("org/pythia").remote) == ["main"]


@pytest.mark.parametrize("how", ["offline", "no network"])
def test_without_a_hub_branches_tags_and_commits_in_the_cache_are_listed(pythia, hub, monkeypatch, how):
    for revision in ("step512", "v1", pythia["step0"]):
        obtain_checkpoint(f"org/pythia@{revision}")
    monkeypatch.setenv(*(("HF_HUB_OFFLINE", "1") if how == "offline" else ("HF_ENDPOINT", HUB)))
    series = find_checkpoints("org/pythia", revisions="*")
    assert names(series) == ["step512", "v1", pythia["step0"]]
    assert "Only what is in the Hugging Face cache is listed" in series.remarks[0]
    assert names(find_checkpoints("org/pythia", revisions="step*")) == ["step512"]
    assert names(find_checkpoints("org/pythia", revisions=f"{pythia['step0'][:9]}*")) == [pythia["step0"]]
    for revision in ("step512", "v1", pythia["step0"], pythia["step0"][:9]):
        assert len(names(find_checkpoints(f"org/pythia@{revision}"))) == 1
    for pattern, error in (
        ("stpe*", r"the Hugging Face cache has step512, v1, \w+ of org/pythia, and none that fits"),
    ):
        with pytest.raises(Unreachable, match=error):
            find_checkpoints("org/pythia", revisions=pattern)
    with pytest.raises(Unreachable, match=r"The Hugging Face cache \S+ has org/pythia"):
        find_checkpoints("org/else", revisions="*")


def test_without_a_hub_a_glob_is_what_the_cache_has_of_it(hub, monkeypatch):
    for step in (10, 20, 30):
        hub.put(f"org/name-step-{step}", "main", files(str(step)))
    for step in (30, 10):
        obtain_checkpoint(f"org/name-step-{step}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert names(find_checkpoints("org/name-step-*")) == ["name-step-10", "name-step-30"]
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE is set"):
        find_checkpoints("org/name-stop-*")


def test_a_name_with_two_dashes_is_found_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789" * 4
    checkpoint(tmp_path / "models--org--na--me" / "snapshots" / commit)
    (tmp_path / "models--org--na--me" / "refs").mkdir()
    (tmp_path / "models--org--na--me" / "refs" / "main").write_text(commit)
    assert names(find_checkpoints("org/na--me")) == ["main"]
    assert names(find_checkpoints(tmp_path)) == ["main"]
    with pytest.raises(Unreachable, match="has org/na--me"):
        find_checkpoints("org/other", revisions="*")


def test_the_users_series_toml_lies_in_the_models_folder_of_the_cache(pythia, tmp_path):
    folder = user_cache(tmp_path) / "models--org--pythia"
    folder.mkdir(parents=True)
    (folder / "series.toml").write_text("tokens_per_step = 2097152\n[checkpoints.step512]\nskip = true\n")
    series = find_checkpoints("org/pythia", revisions="step*")
    assert [(c.name, c.tokens) for c in series.checkpoints] == [("step0", 0), ("step1000", 2_097_152_000)]
    assert series.root == folder


def test_a_checkpoint_that_the_hub_no_longer_has_keeps_its_place(pythia, hub):
    before = find_checkpoints("org/pythia", revisions="step*")
    hub.remove("org/pythia", "step512")
    after = find_checkpoints("org/pythia", revisions="step*", before=before.records())
    assert [(c.name, c.is_gone) for c in after.checkpoints] == [
        ("step0", False),
        ("step512", True),
        ("step1000", False),
    ]


def test_a_private_model_and_a_missing_one_are_refused_alike(pythia, hub):
    hub.fault("no_repository", repo="org/pythia", file=None)
    for source in ("org/pythia", "org/pythia@step0"):
        with pytest.raises(NotAtHub, match=r"does not show it to you.*if it is private, log in with `hf auth login`"):
            find_checkpoints(source)


def test_the_series_verb_lists_a_hub_with_bytes_and_says_what_a_scan_would_fetch(pythia, hub):
    obtain_checkpoint("org/pythia@step512")
    ended = workbench("series", "org/pythia", "--revisions", "step*", "--json")
    records = json.loads(ended.stdout)["checkpoints"]
    size = sum(map(len, files("step512").values()))
    assert [(r["name"], r["bytes"], r["is_cached"]) for r in records] == [
        ("step0", size - 2, False),
        ("step512", size, True),
        ("step1000", size + 1, False),
    ]
    assert [r["commit"] for r in records] == [pythia[r["name"]] for r in records]
    table = workbench("series", "org/pythia", "--revisions", "step*")
    assert table.stdout.split("\n")[0].split()[-2:] == ["bytes", "alias_of"]
    assert "3 checkpoints at the hub, aliases left out, 1 in the Hugging Face cache; a scan fetches " in table.stderr
    refused = workbench("series", "org/pythia", "--revisions", "stepp*")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert refused.stderr.startswith("error: org/pythia: none of its 5 branches and tags fits 'stepp*'. Near: step")


def test_a_glob_and_a_list_hold_no_path_and_no_wrong_glob(hub, tmp_path):
    with pytest.raises(BadReference, match="a glob needs its organization"):
        find_checkpoints("*/name", revisions="*")
    with pytest.raises(WorkbenchError, match="no checkpoints are named"):
        find_checkpoints([])
    with pytest.raises(NoCheckpoints, match="no such directory; check the path"):
        find_checkpoints("/no/where/at/all")
    assert isinstance(settled_source(Path("no/where/at/all")), Path)
