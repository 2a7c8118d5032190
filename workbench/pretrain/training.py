"""One pretraining run, from recipe to checkpoints; after a kill the same call resumes it and writes the same bytes.

1. `recipe.json` reserves the folder for one recipe.
2. Step s always trains on the same tokens, drawn from the seed: see `TrainingBatches`.
3. Each checkpoint step writes first the checkpoint folder, then `resume.pt` (weights, optimisers, log), each in one
   step. After a kill between the two, the steps before the checkpoint are repeated, with the same weights as result.

Muon updates matrices; AdamW (β = 0.9, 0.95, weight decay 0.1) updates embeddings, unembedding, norms and router.
Gradients are clipped to norm 1. Training uses one torch thread: models of this size are slower with two. On a GPU the
order of some sums is not fixed: two runs agree to rounding, not in their bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.console import watched_bar
from workbench.files.atomic import replace_file, replacing_file, sweep_temporaries
from workbench.heads import StoreNotWritable, WorkbenchError
from workbench.pretrain.checkpoint_writer import checkpoint_path, save_checkpoint
from workbench.pretrain.corpus import Corpus
from workbench.pretrain.muon import Muon
from workbench.pretrain.recipes import Recipe
from workbench.pretrain.training_batches import TrainingBatches
from workbench.pretrain.variants import build_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOG_EVERY = 10
_RECIPE = "recipe.json"
_RESUME = "resume.pt"
_DEFAULTS = asdict(Recipe("full"))


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """The state of a run after a step. `loss` in nats; `checkpoint`: the folder written after this step, or None."""

    recipe: Recipe
    step: int
    tokens: int
    loss: float
    checkpoint: Path | None


def pretrain_run(
    recipe: Recipe,
    out: Path,
    corpus: Corpus | None = None,
    *,
    device: torch.device | str = "cpu",
    on_step: Callable[[TrainingProgress], None] | None = None,
) -> list[Path]:
    """Train a recipe's model and write its checkpoints to `out`/checkpoint-<step>, or resume an earlier call.

    A finished run stays untouched. `corpus` is the text that the recipe names; None for the synthetic language.
    `device` may change when a run is resumed. `on_step` is called after every trained step; None: a progress bar on a
    terminal or in a notebook.

    Returns:
        The checkpoint folders in order of step.

    Raises:
        WorkbenchError: if `out` holds the checkpoints of another recipe, the corpus is not the recipe's, or the device
            does not exist.
        StoreNotWritable: if `out` cannot be made or written.
    """
    training_batches = TrainingBatches(recipe, corpus)
    device = _existing(device)
    try:
        out.mkdir(parents=True, exist_ok=True)
        _claim(recipe, out)
    except OSError as error:
        raise StoreNotWritable(f"{out} cannot be written ({error.strerror}); choose another folder") from error
    sweep_temporaries(out)
    paths = [checkpoint_path(out, step) for step in recipe.checkpoint_steps]
    if not all(path.exists() for path in paths):
        run = _Run(training_batches, device)
        if on_step is not None:
            _train(run, out, on_step)
        else:
            with watched_bar("step") as show:
                _train(run, out, lambda p: show(p.step, recipe.steps, f"{recipe.variant}, loss {p.loss:.3f}"))
    return paths


class _Run:
    """The state of training that a checkpoint step saves: the model, its optimisers with their rates, and the log."""

    def __init__(self, training_batches: TrainingBatches, device: torch.device) -> None:
        self.device = device
        self.training_batches = training_batches
        self.recipe = recipe = training_batches.recipe
        self.tokenizer = training_batches.tokenizer()
        self.step = 0
        self.log_history: list[dict[str, float]] = []
        self.losses: list[float] = []  # since the last entry of the log
        self.model = build_model(recipe)
        nn.Module.to(self.model, device)
        self.optimisers = optimisers(self.model, recipe)
        self.peaks = [group["lr"] for group in self._groups()]

    def advance(self, tokens: Int[Tensor, "b t"]) -> float:
        """Do one update; return the loss before it, in nats."""
        scale = self.recipe.lr_scale(self.step)
        for group, peak in zip(self._groups(), self.peaks, strict=True):
            group["lr"] = peak * scale
        tokens = tokens.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            logits = self.model(input_ids=tokens, use_cache=False).logits
        loss = next_token_loss(logits.float(), tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.losses.append(loss.item())
        return self.losses[-1]

    def log(self) -> None:
        """Record the mean loss since the last entry, as Hugging Face's Trainer does."""
        rate = self.recipe.lr_matrices * self.recipe.lr_scale(self.step - 1)
        mean = sum(self.losses) / len(self.losses)
        epoch = self.step / self.recipe.steps
        self.log_history.append({"epoch": epoch, "learning_rate": rate, "loss": mean, "step": self.step})
        self.losses = []

    def save(self, out: Path) -> Path:
        """Write the checkpoint of this step, then the state from which training can be resumed."""
        path = save_checkpoint(
            self.model, self.recipe, out, step=self.step, log_history=self.log_history, tokenizer=self.tokenizer
        )
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "log_history": self.log_history,
        }
        with replacing_file(out / _RESUME) as stream:
            torch.save(state, stream)
        return path

    def resume(self, state: dict[str, Any]) -> None:
        """Restore the state that `save` wrote."""
        self.step, self.log_history = state["step"], state["log_history"]
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimiser in self.optimisers for group in optimiser.param_groups]


def next_token_loss(logits: Float[Tensor, "b t vocab"], tokens: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
    """Mean cross entropy of every token but the first, in nats."""
    predicted = rearrange(logits[:, :-1], "b t vocab -> (b t) vocab")
    return F.cross_entropy(predicted, rearrange(tokens[:, 1:], "b t -> (b t)"))


def _existing(device: torch.device | str) -> torch.device:
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise WorkbenchError(f"device {device} was asked for, and torch sees no GPU; expected cpu")
    return device


def _train(run: _Run, out: Path, on_step: Callable[[TrainingProgress], None]) -> None:
    recipe = run.recipe
    state = _resume_state(recipe, out)
    if state is None:
        run.save(out)
    else:
        run.resume(state)
    checkpoints = set(recipe.checkpoint_steps)
    for batch in run.training_batches.batches(run.step):
        loss = run.advance(batch)
        is_checkpoint = run.step in checkpoints
        if is_checkpoint or run.step % _LOG_EVERY == 0:
            run.log()
        path = run.save(out) if is_checkpoint else None
        on_step(TrainingProgress(recipe, run.step, run.step * recipe.tokens_per_step, loss, path))


def optimisers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices and AdamW for the rest, or AdamW for all."""
    embeddings: list[Tensor] = []
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, weight in model.named_parameters():
        if "embed_tokens" in name:
            embeddings.append(weight)
        elif weight.ndim < 2 or name == "lm_head.weight" or name.endswith("mlp.gate.weight"):
            rest.append(weight)
        else:
            matrices.append(weight)
    groups = [{"params": rest, "lr": recipe.lr_rest}, {"params": embeddings, "lr": recipe.lr_embeddings}]
    if recipe.optimiser == "adamw":
        groups.append({"params": matrices, "lr": recipe.lr_matrices})
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    return [adamw] if recipe.optimiser == "adamw" else [Muon(matrices, recipe.lr_matrices), adamw]


def _resume_state(recipe: Recipe, out: Path) -> dict[str, Any] | None:
    """The state of the last checkpoint; None if an earlier checkpoint is missing, so that training starts again."""
    path = out / _RESUME
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    passed = [step for step in recipe.checkpoint_steps if step <= state["step"]]
    return state if all(checkpoint_path(out, step).exists() for step in passed) else None


def _claim(recipe: Recipe, out: Path) -> None:
    """Write the recipe into the folder, or check that it is the stored one."""
    path = out / _RECIPE
    fields = asdict(recipe)
    if path.exists():
        # Fields that an older file lacks had their default value.
        stored: dict[str, Any] = {**_DEFAULTS, **json.loads(path.read_text(encoding="utf-8"))}
        if stored != fields:
            differences = [
                f"{k} {stored.get(k)!r}, asked for {fields.get(k)!r}"
                for k in {**fields, **stored}
                if stored.get(k) != fields.get(k)
            ]
            raise WorkbenchError(f"{out} holds another run: {'; '.join(differences)}. Choose another folder")
        return
    if any(out.glob("checkpoint-*")):
        raise WorkbenchError(f"{out} holds checkpoints but no {_RECIPE}; choose a folder of its own for this run")
    replace_file(path, (json.dumps(fields, indent=2) + "\n").encode())


@contextmanager
def one_thread() -> Generator[None]:
    """Let torch compute in one thread inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
