"""The pieces of work of a study. Each is named by what it is, ends as one part, and is skipped when the part is there.

1. `prepare`: pretrain a seed's model, score and rank its heads, and convert it in every way without training; also to
   the heads that earlier checkpoints of it would have kept.
2. `run_arm`: go on training the converted model, or train it so from scratch, and measure again.

Two methods that keep the same heads share their arm.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workbench.experiments.conversion.head_conversion import forms_from, left_by
from workbench.experiments.conversion.keep_sets import (
    KeepSet,
    early_sets,
    is_trained,
    keep_sets,
    rankings,
    top_heads,
    trained_sets,
)
from workbench.experiments.conversion.measurements import Measurement, converted_retrieval, head_scores, measurements
from workbench.experiments.conversion.settings import Continued, Conversion, Form
from workbench.experiments.conversion.study_data import Probes, batches, probes
from workbench.experiments.conversion.study_folder import part_path, read, write
from workbench.experiments.conversion.training_runs import opened, train, untrained
from workbench.heads import KVHead
from workbench.hooks import HookedModel, open_model
from workbench.hooks.interventions.windows import Forms
from workbench.planning import fit_linear_attention
from workbench.pretrain.checkpoint_writer import checkpoint_path, save_checkpoint
from workbench.pretrain.training import one_thread

PREPARED = "prepared"


@dataclass(frozen=True, slots=True)
class Arm:
    """One training of a converted model: continued pretraining, or (`continued` None) all of it from scratch."""

    seed: int
    continued: Continued | None
    kept: tuple[KVHead, ...]
    sink: int
    form: Form = "window"

    @property
    def name(self) -> str:
        """The same for the same work."""
        how = "scratch" if self.continued is None else f"continued-{self.continued.steps}-{self.continued.lr_share:g}"
        digest = hashlib.blake2b(" ".join(map(str, self.kept)).encode(), digest_size=4).hexdigest()
        others = f"sink{self.sink}" if self.form == "window" else self.form
        return f"{how}-{others}-keep{len(self.kept)}-{digest}"

    def __str__(self) -> str:
        how = "from scratch" if self.continued is None else f"{self.continued}"
        others = "windowed" if self.form == "window" else self.form
        return f"seed {self.seed}, {how}, {len(self.kept)} heads full, the others {others}"


def prepare(study: Conversion, out: Path, seed: int) -> None:
    """Pretrain, score, rank, convert without training."""
    path = part_path(out, seed, PREPARED)
    if path.exists():
        return
    started = time.process_time()
    with one_thread():
        losses = _pretrain(study, out, seed)
        pretraining_s = time.process_time() - started
        m, asked = open_model(opened(_checkpoint(study, out, seed)).eval()), probes(study)
        scores = head_scores(m, asked)
        forms = _forms(m, study, seed)
        ranked = rankings(m, study, asked, scores, forms=forms_from(forms))
        top = top_heads(m, study, asked, ranked)
        sets = keep_sets(study, seed, ranked, top)
        converted = _converted(m, study, asked, sets, forms_from(forms))
        early = [(step, one) for step in study.early_steps for one in _early_sets(study, out, seed, step, asked)]
        early_converted = _converted(m, study, asked, [one for _, one in early], {})
    write(
        path,
        {
            "seed": seed,
            "losses": losses,
            "head_scores": scores,
            "converted_retrieval": converted_retrieval(m, asked),
            "forms": forms,
            "rankings": [
                {"method": method, "layer": head.layer, "kv_head": head.kv_head, "score": score}
                for method, by_head in ranked.items()
                for head, score in by_head.items()
            ],
            "top": top,
            "sets": [one._asdict() for one in sets],
            "converted": converted,
            "early": [
                {"step": step, "method": one.method, "heads": one.heads, "measurements": rows}
                for (step, one), rows in zip(early, early_converted, strict=True)
            ],
            "pretraining_cpu_s": pretraining_s,
            "cpu_s": time.process_time() - started,
        },
    )


def arms_of(study: Conversion, out: Path, seed: int) -> list[Arm]:
    """All trainings of a prepared seed, each once."""
    sets = sets_of(read(part_path(out, seed, PREPARED)))
    found = [
        arm_of(one, seed, None if n is None else study.continued[n])
        for one in trained_sets(study, sets)
        for n in (None, *range(len(study.continued)))
        if is_trained(study, one, n_th=n)
    ]
    return [*dict.fromkeys(found)]


def n_steps(study: Conversion, arm: Arm) -> int:
    """How long an arm trains."""
    return study.steps if arm.continued is None else arm.continued.steps


def arm_of(one: KeepSet, seed: int, continued: Continued | None) -> Arm:
    """The training of a keep-set."""
    return Arm(seed, continued, tuple(sorted(one.heads)), one.sink, one.form)


def sets_of(prepared: dict[str, Any]) -> list[KeepSet]:
    """The keep-sets of a prepared part."""
    return [
        KeepSet(
            method=s["method"],
            n_kept=s["n_kept"],
            draw=s["draw"],
            sink=s["sink"],
            heads=tuple(KVHead(*head) for head in s["heads"]),
            form=s.get("form", "window"),
        )
        for s in prepared["sets"]
    ]


def run_arm(study: Conversion, out: Path, arm: Arm) -> None:
    """Train, measure, and write the part."""
    path = part_path(out, arm.seed, arm.name)
    if path.exists():
        return
    started = time.process_time()
    forms = forms_from(read(part_path(out, arm.seed, PREPARED)).get("forms", []))
    left = left_by(study, arm.kept, form=arm.form, sink=arm.sink, forms=forms)
    with one_thread():
        if arm.continued is None:
            model, recipe, stream = untrained(study, arm.seed), study.pretraining(arm.seed), 0
        else:
            model, recipe = opened(_checkpoint(study, out, arm.seed)), study.continuing(arm.seed, arm.continued)
            stream = 1
        losses = train(model, recipe, batches(study, recipe, stream=stream), left=left)
        m, asked = open_model(model), probes(study)
        with left.measuring(m):
            found, scores = measurements(m, asked), converted_retrieval(m, asked)
        scores = head_scores(m, asked) + scores
    identity = {**asdict(arm), "kept": list(arm.kept)}
    cost = time.process_time() - started
    write(path, {"arm": identity, "measurements": found, "head_scores": scores, "losses": losses, "cpu_s": cost})


def pretrained(study: Conversion, out: Path, seed: int) -> Path:
    """The checkpoint of a seed's pretrained model, trained now if it is not there."""
    with one_thread():
        _pretrain(study, out, seed)
    return _checkpoint(study, out, seed)


def _pretrain(study: Conversion, out: Path, seed: int) -> list[float]:
    """The loss before each step; a model that is there already is not trained again, and its losses are not known."""
    if _checkpoint(study, out, seed).exists():
        return []
    recipe = study.pretraining(seed)
    model = untrained(study, seed)
    folder = _checkpoint(study, out, seed).parent
    shutil.rmtree(folder, ignore_errors=True)  # what a killed call left

    def save(step: int) -> None:
        if step in (*study.early_steps, recipe.steps):
            save_checkpoint(model, recipe, folder, step=step, log_history=[])

    return train(model, recipe, batches(study, recipe, stream=0), on_step=save)


def _checkpoint(study: Conversion, out: Path, seed: int, step: int | None = None) -> Path:
    return checkpoint_path(out / "models" / f"seed{seed}", study.steps if step is None else step)


def _early_sets(study: Conversion, out: Path, seed: int, step: int, asked: Probes) -> list[KeepSet]:
    return early_sets(open_model(opened(_checkpoint(study, out, seed, step)).eval()), study, asked)


def _forms(m: HookedModel, study: Conversion, seed: int) -> list[dict[str, Any]]:
    """The linear attention nearest to what each head does on text of continued pretraining."""
    if study.linear is None:
        return []
    text = next(iter(batches(study, study.continuing(seed, study.continued[0]), stream=1))).tokens
    fit = fit_linear_attention(m, text, features=study.linear)
    return [
        {"layer": head.layer, "head": head.kv_head, **asdict(form), "error": fit.error[head]}
        for head, form in fit.forms.items()
    ]


def _converted(
    m: HookedModel, study: Conversion, asked: Probes, sets: list[KeepSet], forms: Forms
) -> list[list[Measurement]]:
    """Measurements of every keep-set without training, in the order of the sets; equal ones are measured once."""
    known: dict[tuple[Form, int, tuple[KVHead, ...]], list[Measurement]] = {}

    def key(one: KeepSet) -> tuple[Form, int, tuple[KVHead, ...]]:
        return one.form, one.sink, tuple(sorted(one.heads))

    for one in sets:
        if key(one) not in known:
            with left_by(study, one.heads, form=one.form, sink=one.sink, forms=forms).measuring(m):
                known[key(one)] = measurements(m, asked)
    return [known[key(one)] for one in sets]
