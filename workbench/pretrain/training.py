"""One pretraining run, from recipe to checkpoints; after a kill the same call goes on and writes the same bytes.

1. `recipe.json` claims the folder for one recipe.
2. Step s always trains on the same tokens, drawn from the seed: `material`.
3. At each checkpoint step: first the checkpoint folder, then `resume.pt` (weights, optimisers, log), each renamed into
   place. A kill between the two repeats the steps before the checkpoint, to the same weights.

Matrices are moved by Muon; embeddings, unembedding, norms and router by AdamW (β = 0.9, 0.95, weight decay 0.1).
Gradients are clipped to norm 1. One torch thread: a second one makes models of this size slower, not faster. On a GPU
some sums are taken in any order: two runs agree to rounding, not in their bytes.
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

from workbench.atomic import replace_file, replacing_file, sweep_temporaries
from workbench.heads import StoreNotWritable, WorkbenchError
from workbench.pretrain.checkpoint_writer import checkpoint_path, save_checkpoint
from workbench.pretrain.corpus import Corpus
from workbench.pretrain.muon import Muon
from workbench.pretrain.recipes import Recipe
from workbench.pretrain.training_batches import Material
from workbench.pretrain.variants import build_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOG_EVERY = 10
_RECIPE = "recipe.json"
_RESUME = "resume.pt"
_DEFAULTS = asdict(Recipe("full"))


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """Where a run stands after a step. `loss` in nats; `checkpoint`: the folder written after this step, if one was."""

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
    """Train a recipe's model and write its checkpoints to `out`/checkpoint-<step>; go on where an earlier call stopped.

    A finished run is left untouched. `corpus` is the text that the recipe names; None for the synthetic language.
    `device` may be another one when the run goes on. `on_step` is called after every step that is trained now.

    Returns:
        The checkpoint folders in order of step.

    Raises:
        WorkbenchError: if `out` holds the checkpoints of another recipe, the corpus is not the recipe's, or the device
            is not there.
        StoreNotWritable: if `out` cannot be made or written.
    """
    material = Material(recipe, corpus)
    device = _present(device)
    try:
        out.mkdir(parents=True, exist_ok=True)
        _claim(recipe, out)
    except OSError as error:
        raise StoreNotWritable(f"{out} cannot be written ({error.strerror}); choose another folder") from error
    sweep_temporaries(out)
    paths = [checkpoint_path(out, step) for step in recipe.checkpoint_steps]
    if not all(path.exists() for path in paths):
        with one_thread():
            _train(material, out, device, on_step)
    return paths


class _Run:
    """The model with its optimisers, their learning rates, and the log: what a checkpoint step must keep together."""

    def __init__(self, material: Material, device: torch.device) -> None:
        self.device = device
        self.recipe = recipe = material.recipe
        self.tokenizer = material.tokenizer()
        self.step = 0
        self.log_history: list[dict[str, float]] = []
        self.losses: list[float] = []  # since the last entry of the log
        self.model = build_model(recipe)
        nn.Module.to(self.model, device)
        self.optimisers = optimisers(self.model, recipe)
        self.peaks = [group["lr"] for group in self._groups()]

    def advance(self, tokens: Int[Tensor, "b t"]) -> float:
        """One update; the loss before it, in nats."""
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
        """Write the checkpoint of this step, then what going on from it needs."""
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
        """Take over what `save` left."""
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


def _present(device: torch.device | str) -> torch.device:
    found = torch.device(device)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise WorkbenchError(f"device {found} was asked for, and torch sees no GPU; expected cpu")
    return found


def _train(
    material: Material, out: Path, device: torch.device, on_step: Callable[[TrainingProgress], None] | None
) -> None:
    recipe, run = material.recipe, _Run(material, device)
    saved = _resume_state(recipe, out)
    if saved is None:
        run.save(out)
    else:
        run.resume(saved)
    checkpoints = set(recipe.checkpoint_steps)
    for batch in material.batches(run.step):
        loss = run.advance(batch)
        is_checkpoint = run.step in checkpoints
        if is_checkpoint or run.step % _LOG_EVERY == 0:
            run.log()
        path = run.save(out) if is_checkpoint else None
        if on_step is not None:
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
    """What the last checkpoint left, unless a checkpoint up to it is missing: then everything begins again."""
    path = out / _RESUME
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    passed = [step for step in recipe.checkpoint_steps if step <= state["step"]]
    return state if all(checkpoint_path(out, step).exists() for step in passed) else None


def _claim(recipe: Recipe, out: Path) -> None:
    """Write the recipe into the folder, or check that it is the one there."""
    path = out / _RECIPE
    ours = asdict(recipe)
    if path.exists():
        # A field that the file lacks had but one value when it was written, which is the default's.
        theirs: dict[str, Any] = {**_DEFAULTS, **json.loads(path.read_text(encoding="utf-8"))}
        if theirs != ours:
            differs = [
                f"{k} {theirs.get(k)!r}, asked for {ours.get(k)!r}"
                for k in {**ours, **theirs}
                if theirs.get(k) != ours.get(k)
            ]
            raise WorkbenchError(f"{out} holds another run: {'; '.join(differs)}. Choose another folder")
        return
    if any(out.glob("checkpoint-*")):
        raise WorkbenchError(f"{out} holds checkpoints but no {_RECIPE}; choose a folder of its own for this run")
    replace_file(path, (json.dumps(ours, indent=2) + "\n").encode())


@contextmanager
def one_thread() -> Generator[None]:
    """Inside the block torch computes in one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
