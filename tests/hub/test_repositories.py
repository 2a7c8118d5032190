"""A hub's answers as revisions and files, and what it does not hand out as errors with the next step."""

from __future__ import annotations

import threading

import pytest

from tests.hub.hub_client import user_cache
from workbench.heads import WorkbenchError
from workbench.hub import (
    BadReference,
    GatedModel,
    HubReference,
    NotAtHub,
    RateLimited,
    RemoteRevision,
    Unreachable,
    hub_errors,
    remote_files,
    remote_revisions,
)
from workbench.hub.hub_errors import HubFault

FILES = {"config.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture
def commits(hub, monkeypatch):
    """A repository with branches and tags: the commit of each name."""
    monkeypatch.setattr(hub_errors.time, "sleep", lambda seconds: waits.append(seconds))
    waits = []
    commits = {name: hub.put("org/name", name, FILES) for name in ("main", "step1", "step10", "other")}
    commits["v1.0"] = hub.put("org/name", "v1.0", FILES, is_tag=True)
    commits["waits"] = waits
    return commits


def chosen(*args):
    return [(each.repo, each.name, each.commit) for each in remote_revisions(*args).chosen]


def test_without_a_pattern_the_default_branch_is_meant(commits):
    assert chosen("org/name") == [("org/name", "main", commits["main"])]
    assert remote_revisions("org/name").remarks == ()


@pytest.mark.parametrize("revision", ["step1", "v1.0"])
def test_a_branch_a_tag_and_a_commit_are_revisions(commits, revision):
    assert chosen(f"org/name@{revision}") == [("org/name", revision, commits[revision])]
    commit = commits[revision]
    assert chosen(f"org/name@{commit}") == [("org/name", commit, commit)]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("step*", ["step1", "step10"]),
        ("step?", ["step1"]),
        ("main, step10", ["main", "step10"]),
        ("*", ["main", "other", "step1", "step10", "v1.0"]),
        ("/step1/", ["step1"]),
        ("/.*1.*/", ["step1", "step10", "v1.0"]),
        ("v[0-9]*", ["v1.0"]),
    ],
)
def test_a_pattern_takes_branches_and_tags(commits, pattern, names):
    listed = remote_revisions("org/name", pattern)
    assert sorted(each.name for each in listed.chosen) == names
    assert all(each.commit == commits[each.name] for each in listed.chosen)
    assert len(listed.remarks) == (len(names) < 5)  # what is left out is said


def test_pull_requests_are_no_revisions(commits, hub, monkeypatch):
    from huggingface_hub import HfApi

    plain = HfApi.list_repo_refs
    with_requests = lambda api, repo, **_: plain(api, repo, include_pull_requests=True)  # noqa: E731
    monkeypatch.setattr(HfApi, "list_repo_refs", with_requests)
    assert not any("pr" in each.name for each in remote_revisions("org/name", "*").chosen)


def test_a_pattern_that_nothing_fits_is_refused_with_near_names(commits):
    with pytest.raises(NotAtHub, match=r"none of its 5 branches and tags fits 'stpe1\*'\. Near: step1, step10"):
        remote_revisions("org/name", "stpe1*")
    with pytest.raises(NotAtHub, match=r"fits '/1/'\. It has main, .*; a regular expression has to fit the whole name"):
        remote_revisions("org/name", "/1/")
    for bad in ("/(/", "", "step1,,step2"):
        with pytest.raises(WorkbenchError, match=r"regular expression"):
            remote_revisions("org/name", bad)
    with pytest.raises(WorkbenchError, match=r"org/name@step1 names a revision, and 'step\*' others; pass one of the"):
        remote_revisions("org/name@step1", "step*")


def test_a_tag_with_the_name_of_a_branch_elsewhere_is_said(commits, hub):
    hub.put("org/name", "step1", {"config.json": b"[]"}, is_tag=True)
    listed = remote_revisions("org/name", "step1")
    assert [each.commit for each in listed.chosen] == [commits["step1"]]
    assert listed.ignored == {"tag step1": "a branch has this name at another commit; the branch is read"}


def test_a_missing_model_or_revision_is_refused_with_near_names(commits):
    with pytest.raises(
        NotAtHub, match=r"org/nmae: .* has no such model, or does not show it.*auth login.*Near: org/name"
    ):
        remote_revisions("org/nmae")
    with pytest.raises(NotAtHub, match=r"org/name@step2: .* and no revision step2\. Near: step1, step10"):
        remote_revisions("org/name@step2")
    with pytest.raises(NotAtHub, match=r"a commit that is no branch's or tag's now is named by all of its 40 digits"):
        remote_revisions("org/name@0123456")
    with pytest.raises(NotAtHub, match=r"org/nmae: .*Near: org/name"):
        remote_revisions("org/nmae", "step*")


def test_the_first_digits_of_a_commit_name_it_where_they_are_of_one_alone(commits, hub):
    commit = commits["step1"]
    (revision,) = remote_revisions(f"org/name@{commit[:7]}").chosen
    assert (revision.name, revision.commit) == (commit, commit)
    hub.put("org/name", "twin", {"a.json": b"{}"})
    twin = f"{commit[:7]}{'0' * 33}"
    hub._repositories["org/name"].commits[twin] = {}
    hub.point("org/name", "twin", twin)
    with pytest.raises(NotAtHub, match=rf"{commit[:7]}: several commits begin so .*; pass more digits"):
        remote_revisions(f"org/name@{commit[:7]}")


def test_a_renamed_model_is_read_by_its_name_of_now_and_that_is_said(commits, hub):
    hub.rename("org/name", "org/renamed")
    for pattern in (None, "step1"):
        listed = remote_revisions("org/name", pattern)
        assert {each.repo for each in listed.chosen} == {"org/renamed"}
        assert listed.remarks[0].startswith("org/name is called org/renamed at http://")


def test_a_glob_is_every_model_of_the_organization_that_fits(hub):
    for name in ("base-step-10k", "base-step-20k", "base-chat", "other"):
        hub.put(f"org/{name}", "main", FILES)
    hub.put("another/base-step-30k", "main", FILES)
    assert [each.repo for each in remote_revisions("org/base-step-*").chosen] == [
        "org/base-step-10k",
        "org/base-step-20k",
    ]
    assert [each.repo for each in remote_revisions("org/*[0-9]0k").chosen] == ["org/base-step-10k", "org/base-step-20k"]
    assert [each.repo for each in remote_revisions("org/o*r").chosen] == ["org/other"]
    with pytest.raises(NotAtHub, match=r"shows no such model of org\. It has base-chat, .*Check the glob"):
        remote_revisions("org/nothing-*")
    with pytest.raises(BadReference, match="a glob needs its organization"):
        remote_revisions("*/base")


def test_several_references_are_listed_together(commits, hub):
    hub.put("org/second", "main", FILES)
    listed = remote_revisions(["org/name@step1", HubReference("org/second")])
    assert [str(each) for each in listed.chosen] == ["org/name@step1", "org/second@main"]


def test_the_files_of_a_revision_have_their_sizes_and_digests(commits):
    config, weights = remote_files("org/name", commits["step1"])
    assert (config.name, config.size, len(config.blob), config.is_weights) == ("config.json", 2, 40, False)
    assert (weights.name, weights.size, len(weights.blob), weights.is_weights) == ("model.safetensors", 7, 64, True)


def test_a_licence_that_was_not_accepted_is_said_with_its_page(commits, hub):
    hub.fault("gated", file=None)
    with pytest.raises(GatedModel, match=r"org/name: its licence has to be accepted.*auth login.*http://\S+/org/name"):
        remote_revisions("org/name")


def test_a_rate_limit_is_waited_for_as_long_as_the_hub_says(commits, hub, capsys):
    hub.fault("rate_limited", file=None, times=2, retry_after=7)
    assert chosen("org/name") == [("org/name", "main", commits["main"])]
    assert commits["waits"] == [7.0, 7.0]
    assert "429" in capsys.readouterr().err
    hub.fault("rate_limited", file=None, retry_after=4000)
    with pytest.raises(RateLimited, match=r"try again in 4000 s\. With `hf auth login`"):
        remote_revisions("org/name")
    assert commits["waits"] == [7.0, 7.0]


def test_a_server_that_fails_is_asked_three_times(commits, hub):
    hub.fault("unavailable", file=None, times=3)
    with pytest.raises(HubFault, match=r"org/name: .* fails \(503\).*try again later"):
        remote_revisions("org/name")
    assert commits["waits"] == [1.0, 4.0]
    assert chosen("org/name")


def test_what_is_no_hub_is_said(commits, monkeypatch):
    from huggingface_hub import HfApi

    for error in (ValueError("no JSON"), KeyError("branches")):
        monkeypatch.setattr(HfApi, "list_repo_refs", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(HubFault, match="answers with something that is no listing"):
            remote_revisions("org/name", "*")


def test_no_network_and_offline_are_told_apart(commits, hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unreachable, match=r"is not asked: HF_HUB_OFFLINE is set"):
        remote_revisions("org/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        Unreachable, match=r"org/name: http://127\.0\.0\.1:9 cannot be reached \(.*refused.*check the net"
    ):
        remote_revisions("org/name")


def test_names_that_the_hubs_library_does_not_know_are_refused(commits):
    with pytest.raises(BadReference, match=r"org/na--me: is no id of a model at a hub: Cannot have --"):
        remote_revisions("org/na--me")
    with pytest.raises(BadReference, match="a/b/c: is no id of a model"):
        remote_revisions("a/b/c")


def test_listing_fetches_no_file(commits, hub, tmp_path):
    remote_revisions("org/name", "*")
    remote_files("org/name", commits["main"])
    assert hub.gets() == []
    assert not user_cache(tmp_path).exists()
    assert str(RemoteRevision("org/name", "main", "c")) == "org/name@main"


# The request that is given up ends in a thread of its own, which may drop its connection without closing it.
@pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning", "ignore:.*<socket:pytest.PytestUnraisableExceptionWarning"
)
def test_a_hub_that_never_answers_is_given_up(commits, hub, monkeypatch):
    before = set(threading.enumerate())
    monkeypatch.setattr(hub_errors, "_DEADLINE_S", 0.05)
    hub.before = lambda _: hub.closing.wait(5)
    with pytest.raises(Unreachable, match=r"org/name: no answer from http://\S+ in 0 s; check the network"):
        remote_revisions("org/name", "*")
    hub.closing.set()
    for thread in set(threading.enumerate()) - before:
        if thread.name.endswith("(run)"):
            thread.join(timeout=10)
