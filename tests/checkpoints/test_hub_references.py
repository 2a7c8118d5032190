"""A model in a Hugging Face cache opens by its id, its folder or a revision, all offline; what is not there is said."""

from __future__ import annotations

import pytest

from tests.checkpoints.folders import checkpoint
from workbench.checkpoints import find_checkpoints
from workbench.checkpoints.hub_references import locate_checkpoint, locate_series
from workbench.heads import BadCheckpoint, NoCheckpoints

COMMITS = [f"{digit}{'0123456789' * 3}abcdef123" for digit in "abcdef"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache, and a function that puts a model's revisions there: one per seed, with the names of some."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(repo, seeds, refs):
        folder = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        for commit, seed in zip(COMMITS, seeds, strict=False):
            checkpoint(folder / "snapshots" / commit, seed=seed)
        for name, i in refs.items():
            (folder / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "refs" / name).write_text(COMMITS[i])
        return folder

    return put


def test_revisions_without_a_name_are_listed_after_those_with_one_each_on_a_branch_of_its_own(cache):
    repo = cache("org/name", [0, 1, 2, 3], {"step10": 3, "main": 1})
    series = find_checkpoints(repo)
    assert [(c.name, c.branch) for c in series.checkpoints] == [
        ("step10", None),
        ("main", None),
        (COMMITS[0], COMMITS[0][:12]),
        (COMMITS[2], COMMITS[2][:12]),
    ]
    (remark,) = series.remarks
    assert remark.startswith(f"{COMMITS[0]}, {COMMITS[2]}: known by the commit alone")
    assert "stand last, in the order of their commits" in remark
    assert "series.toml" in remark


def test_a_series_of_commits_alone_is_listed(cache):
    repo = cache("org/name", [0, 1], {})
    assert [c.name for c in find_checkpoints(repo).checkpoints] == COMMITS[:2]


def test_one_commit_alone_needs_no_branch(cache):
    (only,) = find_checkpoints(cache("org/name", [0], {})).checkpoints
    assert (only.name, only.branch) == (COMMITS[0], None)


def test_a_commit_with_the_weights_of_a_named_revision_is_its_alias(cache):
    repo = cache("org/name", [5, 0, 5], {"main": 2})
    series = find_checkpoints(repo)
    assert {c.name: c.alias_of for c in series.checkpoints} == {"main": None, COMMITS[0]: "main", COMMITS[1]: None}


def test_a_step_of_the_users_puts_a_commit_into_the_trunk(cache):
    repo = cache("org/name", [0, 1, 2], {"step10": 0, "step30": 1})
    (repo / "series.toml").write_text(f"[checkpoints.'{COMMITS[2]}']\nstep = 20\n")
    series = find_checkpoints(repo)
    assert [(c.name, c.branch) for c in series.checkpoints] == [("step10", None), (COMMITS[2], None), ("step30", None)]
    assert series.remarks == ()


def test_a_revision_fetched_by_the_first_digits_of_its_commit_has_no_name(cache):
    repo = cache("org/name", [0, 1], {"main": 0, COMMITS[1][:8]: 1})
    assert [c.name for c in find_checkpoints(repo).checkpoints] == ["main", COMMITS[1]]


def test_pull_requests_and_revisions_without_files_or_weights_are_left_out_with_the_reason(cache):
    repo = cache("org/name", [0, 1, 2], {"main": 0, "pr/1": 1, "step5": 5})
    (repo / "snapshots" / COMMITS[2] / "model.safetensors").unlink()
    series = find_checkpoints(repo)
    assert [c.name for c in series.checkpoints] == ["main"]
    assert series.ignored == {
        "pr/1": "a pull request",
        "step5": "no files of this revision are in the cache",
        COMMITS[2]: "no weights of this revision are in the cache",
    }


@pytest.mark.parametrize("content", ["../../..", "", "\x80\x81", "/etc"])
def test_a_name_that_leads_out_of_the_snapshots_is_not_followed(cache, content):
    repo = cache("org/name", [0], {"main": 0})
    (repo / "refs" / "step1").write_text(content, encoding="latin-1")
    assert [c.name for c in find_checkpoints(repo).checkpoints] == ["main"]


def test_the_folder_of_the_snapshots_and_a_cache_of_one_model_are_that_model(cache, tmp_path):
    repo = cache("org/name", [0, 1], {"step1": 0, "main": 1})
    for directory in (repo / "snapshots", tmp_path / "hub", tmp_path):
        assert find_checkpoints(directory).root == repo


def test_of_a_cache_of_several_models_one_has_to_be_named(cache, tmp_path):
    cache("org/name", [0], {"main": 0})
    cache("gpt", [0], {"main": 0})
    with pytest.raises(
        NoCheckpoints, match=r"cache of 2 models; pass the id or the folder of one of them: gpt, org/na"
    ):
        find_checkpoints(tmp_path / "hub")
    with pytest.raises(BadCheckpoint, match=r"cache with 2 models \(gpt, org/name\); pass one of them"):
        locate_checkpoint(tmp_path / "hub")


@pytest.mark.parametrize("name", ["org/name", "hf://org/name", "https://huggingface.co/org/name", "org/name@main"])
def test_an_id_is_its_main_revision(cache, name):
    repo = cache("org/name", [0, 1], {"step1": 0, "main": 1})
    located = locate_checkpoint(name)
    assert (located.folder, located.name) == (repo / "snapshots" / COMMITS[1], "name")


@pytest.mark.parametrize("revision", ["step1", COMMITS[0], COMMITS[0][:7]])
def test_a_revision_is_named_after_the_id(cache, revision):
    repo = cache("org/name", [0, 1], {"step1": 0, "main": 1})
    assert locate_checkpoint(f"org/name@{revision}").folder == repo / "snapshots" / COMMITS[0]
    assert locate_series(f"org/name@{revision}") == repo / "snapshots" / COMMITS[0]


def test_the_only_revision_needs_no_name(cache):
    repo = cache("org/name", [0], {})
    assert locate_checkpoint(repo).folder == locate_checkpoint("org/name").folder == repo / "snapshots" / COMMITS[0]


def test_of_several_revisions_without_a_main_one_has_to_be_named(cache):
    cache("org/name", [0, 1], {"step1": 0})
    expected = rf"2 revisions \(step1, {COMMITS[1]}\) of org/name, and none is main; pass one, as org/name@step1"
    with pytest.raises(BadCheckpoint, match=expected):
        locate_checkpoint("org/name")


def test_a_revision_that_is_not_there_is_refused_with_those_that_are(cache):
    cache("org/name", [0], {"main": 0})
    with pytest.raises(
        BadCheckpoint, match=r"org/name@step9: no such revision .* holds 1 revision \(main\).*--revision s"
    ):
        locate_checkpoint("org/name@step9")
    with pytest.raises(NoCheckpoints, match="org/name@step9"):
        find_checkpoints("org/name@step9")


def test_a_model_that_is_not_there_is_refused_with_the_command_that_fetches_it(cache, tmp_path):
    expected = rf"no such {{}}, and no model of that name in .*{tmp_path}/hub.*`hf download org/name`"
    with pytest.raises(BadCheckpoint, match=expected.format("folder")):
        locate_checkpoint("org/name")
    with pytest.raises(NoCheckpoints, match=expected.format("directory")):
        find_checkpoints("org/name")
    with pytest.raises(BadCheckpoint, match=r"/no/where/at/all: no such folder; check the path"):
        locate_checkpoint("/no/where/at/all")


def test_a_folder_goes_before_the_cache(cache, tmp_path, monkeypatch):
    cache("org/name", [0], {"main": 0})
    own = checkpoint(tmp_path / "here" / "org" / "name")
    monkeypatch.chdir(tmp_path / "here")
    assert locate_checkpoint("org/name").folder.resolve() == own


def test_the_home_of_hugging_face_is_followed_too(cache, tmp_path, monkeypatch):
    repo = cache("org/name", [0], {"main": 0})
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert locate_series("org/name") == repo
