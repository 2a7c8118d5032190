"""Runs: reproducible to the byte, resumable to the byte, never half-written, ordinary Hugging Face directories."""

import dataclasses
import json
import os
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.children import child, until
from tests.preloaded import Preloaded
from workbench.heads import StoreNotWritable, WorkbenchError
from workbench.pretrain import VARIANTS, Recipe, checkpoint_writer, pretrain_run, recipe

TINY = {"steps": 20, "batch": 2}


class Killed(Exception):
    pass


def stop_after(step):
    def on_step(progress):
        if progress.step == step:
            raise Killed

    return on_step


def contents(out):
    """Every byte of every checkpoint."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.glob("checkpoint-*/*")}


@pytest.fixture(scope="module", params=VARIANTS)
def finished(request, tmp_path_factory):
    """A run that nothing interrupted."""
    chosen = Recipe(request.param, **TINY)
    out = tmp_path_factory.mktemp(request.param)
    return chosen, out, pretrain_run(chosen, out)


def test_a_run_prints_nothing(tmp_path, capfd):
    pretrain_run(Recipe("full", **TINY), tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_run_returns_its_checkpoints_in_order_of_step(finished):
    chosen, out, paths = finished
    assert [path.name for path in paths] == [f"checkpoint-{step}" for step in chosen.checkpoint_steps]
    assert sorted(p.name for p in out.iterdir()) == sorted([*(p.name for p in paths), "recipe.json", "resume.pt"])


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_does_not(finished, tmp_path):
    chosen, out, _ = finished
    pretrain_run(chosen, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(out)
    pretrain_run(dataclasses.replace(chosen, seed=1), tmp_path / "other")
    for step in chosen.checkpoint_steps:
        weights = f"checkpoint-{step}/model.safetensors"
        assert contents(tmp_path / "other")[weights] != contents(out)[weights]


@pytest.mark.parametrize("step", [3, 13])
def test_an_interrupted_run_goes_on_from_its_last_checkpoint_to_the_same_bytes(finished, step, tmp_path):
    chosen, out, paths = finished
    with pytest.raises(Killed):
        pretrain_run(chosen, tmp_path, on_step=stop_after(step))
    steps = []
    assert pretrain_run(chosen, tmp_path, on_step=lambda p: steps.append(p.step)) == [tmp_path / p.name for p in paths]
    last = max(kept for kept in chosen.checkpoint_steps if kept <= step)
    assert steps == list(range(last + 1, chosen.steps + 1))
    assert contents(tmp_path) == contents(out)


def test_a_kill_between_a_checkpoint_and_its_resume_file_costs_only_repeated_steps(finished, tmp_path, monkeypatch):
    chosen, out, _ = finished
    save = torch.save

    def killed_at_step_8(state, path):
        if state["step"] == 8:
            raise Killed
        save(state, path)

    monkeypatch.setattr(torch, "save", killed_at_step_8)
    with pytest.raises(Killed):
        pretrain_run(chosen, tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "checkpoint-8").exists()
    steps = []
    pretrain_run(chosen, tmp_path, on_step=lambda p: steps.append(p.step))
    assert steps[0] == 1
    assert contents(tmp_path) == contents(out)


def test_a_kill_while_writing_leaves_no_visible_checkpoint_and_the_next_call_clears_up(tmp_path, monkeypatch):
    chosen = Recipe("full", **TINY)
    write = checkpoint_writer._trainer_state

    def killed_at_step_8(*args):
        if args[1] == 8:
            raise Killed
        return write(*args)

    monkeypatch.setattr(checkpoint_writer, "_trainer_state", killed_at_step_8)
    with pytest.raises(Killed):
        pretrain_run(chosen, tmp_path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir() if "checkpoint-8" in p.name] == [".partial-checkpoint-8"]
    pretrain_run(chosen, tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "checkpoint-8" / "trainer_state.json").exists()


def test_a_killed_process_leaves_only_whole_checkpoints_and_the_next_call_ends_as_if_nothing_happened(tmp_path):
    chosen = Recipe("full", steps=80, batch=1, n_checkpoints=20)
    code = (
        "import sys; from pathlib import Path; from workbench.pretrain import Recipe, pretrain_run;"
        f" pretrain_run({chosen!r}, Path(sys.argv[1]))"
    )
    awaited = tmp_path / "killed" / f"checkpoint-{chosen.checkpoint_steps[4]}"
    with child([sys.executable, "-c", code, tmp_path / "killed"], start=Preloaded) as training:
        until(lambda: awaited.exists() or training.poll() is not None, every=0.002)
        training.send_signal(signal.SIGKILL)
        assert training.wait(timeout=60) == -signal.SIGKILL, "killed in the middle"
    for checkpoint in (tmp_path / "killed").glob("checkpoint-*"):
        assert load_file(checkpoint / "model.safetensors")
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        assert checkpoint.name == f"checkpoint-{state['global_step']}"
        AutoTokenizer.from_pretrained(checkpoint)
    pretrain_run(chosen, tmp_path / "killed")
    pretrain_run(chosen, tmp_path / "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_finished_run_is_left_untouched(finished):
    chosen, out, paths = finished
    before = {p: os.stat(p).st_mtime_ns for p in out.rglob("*")}
    assert pretrain_run(chosen, out, on_step=stop_after(1)) == paths
    assert {p: os.stat(p).st_mtime_ns for p in out.rglob("*")} == before


def test_a_deleted_checkpoint_is_written_again(tmp_path):
    chosen = Recipe("full", **TINY)
    pretrain_run(chosen, tmp_path)
    before = contents(tmp_path)
    (tmp_path / "checkpoint-8").rename(tmp_path / "moved-away")
    pretrain_run(chosen, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"variant": "hybrid"}, {"steps": 30}])
def test_a_folder_of_another_recipe_is_refused_with_what_differs(change, tmp_path):
    chosen = Recipe("full", **TINY)
    pretrain_run(chosen, tmp_path)
    name, asked = next(iter(change.items()))
    with pytest.raises(WorkbenchError, match=f"{name} {getattr(chosen, name)!r}, asked for {asked!r}"):
        pretrain_run(dataclasses.replace(chosen, **change), tmp_path)


def test_a_folder_with_checkpoints_of_unknown_origin_is_refused(tmp_path):
    (tmp_path / "checkpoint-0").mkdir()
    with pytest.raises(WorkbenchError, match=r"checkpoints but no recipe\.json"):
        pretrain_run(Recipe("full", **TINY), tmp_path)


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreNotWritable, match="cannot be written"):
        pretrain_run(Recipe("full", **TINY), tmp_path / "file" / "out", on_step=stop_after(1))


def test_a_checkpoint_loads_with_no_missing_or_unexpected_weights_and_predicts_what_was_trained(finished):
    _, _, paths = finished
    model, info = AutoModelForCausalLM.from_pretrained(paths[-1], output_loading_info=True)
    assert not any(info.values())
    state = torch.load(paths[-1].parent / "resume.pt", weights_only=True)
    assert state["step"] == 20
    assert all(torch.equal(tensor, state["model"][name]) for name, tensor in model.state_dict().items())


def test_the_tokenizer_puts_bos_first_and_says_words_back(finished):
    _, _, paths = finished
    tokenizer = AutoTokenizer.from_pretrained(paths[0])
    assert len(tokenizer) == 40
    assert tokenizer("w00 w31 w05")["input_ids"] == [0, 8, 39, 13]
    assert tokenizer.decode([0, 8, 39, 13]) == "<bos> w00 w31 w05"
    assert tokenizer.bos_token_id == 0
    assert sorted(tokenizer.all_special_ids) == list(range(8)), "reserved tokens are no words"


def test_trainer_state_counts_steps_and_tokens_and_logs_loss_and_learning_rate(finished):
    chosen, _, paths = finished
    for step, path in zip(chosen.checkpoint_steps, paths, strict=True):
        state = json.loads((path / "trainer_state.json").read_text())
        assert state["global_step"] == step
        assert state["num_input_tokens_seen"] == step * 2 * 64
        logged = [entry["step"] for entry in state["log_history"]]
        assert logged == [s for s in (8, 10, 16, 20) if s <= step]
        for entry in state["log_history"]:
            assert 0 < entry["loss"] < 5
            assert entry["learning_rate"] == chosen.lr_matrices * chosen.lr_scale(entry["step"] - 1)


def test_progress_tells_step_tokens_loss_and_the_checkpoint_just_written(tmp_path):
    chosen, told, threads = Recipe("full", **TINY), [], torch.get_num_threads()

    def on_step(progress):
        assert torch.get_num_threads() == 1
        assert progress.checkpoint is None or progress.checkpoint.exists()
        told.append(progress)

    paths = pretrain_run(chosen, tmp_path, on_step=on_step)
    assert torch.get_num_threads() == threads
    assert [p.step for p in told] == list(range(1, 21))
    assert [p.tokens for p in told] == [step * 128 for step in range(1, 21)]
    assert [p.checkpoint for p in told if p.checkpoint] == paths[1:]
    logged = json.loads((paths[1] / "trainer_state.json").read_text())["log_history"][0]["loss"]
    assert logged == pytest.approx(sum(p.loss for p in told[:8]) / 8)


def test_forty_steps_learn_the_word_frequencies(tmp_path):
    losses = []
    chosen = dataclasses.replace(recipe("full"), steps=40)
    pretrain_run(chosen, tmp_path, on_step=lambda p: losses.append(p.loss))
    assert losses[0] == pytest.approx(torch.tensor(40.0).log().item(), abs=1e-4), "untrained: uniform over 40 tokens"
    assert sum(losses[-10:]) / 10 < 3.15
