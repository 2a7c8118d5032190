"""The pieces of work of a study, each with a name and a file of its own; a piece whose file exists is skipped.

1. `prepare`: pretrain a seed's model, score and rank its heads, and measure every conversion of it without training;
   also with the heads that earlier checkpoints of it would have kept.
2. `run_arm`: continue training a converted model, or train it converted from scratch, and measure again.

Two methods that keep the same heads share their arm.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workbench.experiments.conversion.head_conversion import conversion_of, forms_from
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
from workbench.experiments.conversion.settings import Continued, Conversion, ConvertedTo
from workbench.experiments.conversion.study_data import Probes, batches, probes
from workbench.experiments.conversion.study_folder import piece_path, read, write
from workbench.experiments.conversion.training_runs import from_checkpoint, train, untrained
from workbench.heads import KVHead
from workbench.hooks import HookedModel, open_model
from workbench.planning import fit_linear_attention
from workbench.pretrain.checkpoint_writer import checkpoint_path, save_checkpoint
from workbench.pretrain.training import one_thread
from workbench.store.conversions import Forms

PREPARED = "prepared"


@dataclass(frozen=True, slots=True)
class Arm:
    """One training of a converted model: continued pretraining, or (`continued` None) all of it from scratch.

    `heads`: those that stay full. `sink`, `to`: as in `KeepSet`.
    """

    seed: int
    continued: Continued | None
    heads: tuple[KVHead, ...]
    sink: int
    to: ConvertedTo = "window"

    @property
    def name(self) -> str:
        """The name of its file, the same for the same work."""
        how = "scratch" if self.continued is None else f"continued-{self.continued.steps}-{self.continued.lr_share:g}"
        digest = hashlib.blake2b(" ".join(map(str, self.heads)).encode(), digest_size=4).hexdigest()
        others = f"sink{self.sink}" if self.to == "window" else self.to
        return f"{how}-{others}-keep{len(self.heads)}-{digest}"

    def __str__(self) -> str:
        how = "from scratch" if self.continued is None else f"{self.continued}"
        others = "windowed" if self.to == "window" else self.to
        return f"seed {self.seed}, {how}, {len(self.heads)} heads full, the others {others}"


def prepare(study: Conversion, out: Path, seed: int) -> None:
    """Pretrain, score, rank, convert without training."""
    path = piece_path(out, seed, PREPARED)
    if path.exists():
        return
    started = time.process_time()
    with one_thread():
        losses = _pretrain(study, out, seed)
        pretraining_s = time.process_time() - started
        m, study_probes = open_model(from_checkpoint(_checkpoint(study, out, seed)).eval()), probes(study)
        scores = head_scores(m, study_probes)
        form_rows = _form_rows(m, study, seed)
        forms = forms_from(form_rows)
        ranked = rankings(m, study, study_probes, scores, forms=forms)
        top = top_heads(m, study, study_probes, ranked)
        sets = keep_sets(study, seed, ranked, top)
        without_training = _measure_sets(m, study, sets, probes=study_probes, forms=forms)
        early = [
            (step, keep_set)
            for step in study.early_steps
            for keep_set in early_sets(_opened(study, out, seed, step), study, study_probes)
        ]
        of_early = _measure_sets(m, study, [keep_set for _, keep_set in early], probes=study_probes, forms={})
    write(
        path,
        {
            "seed": seed,
            "losses": losses,
            "head_scores": scores,
            "converted_retrieval": converted_retrieval(m, study_probes),
            "forms": form_rows,
            "rankings": [
                {"method": method, "layer": head.layer, "kv_head": head.kv_head, "score": score}
                for method, by_head in ranked.items()
                for head, score in by_head.items()
            ],
            "top": top,
            "sets": [_set_record(keep_set) for keep_set in sets],
            "converted": without_training,
            "early": [
                {"step": step, "method": keep_set.method, "heads": keep_set.heads, "measurements": rows}
                for (step, keep_set), rows in zip(early, of_early, strict=True)
            ],
            "pretraining_cpu_s": pretraining_s,
            "cpu_s": time.process_time() - started,
        },
    )


def arms_of(study: Conversion, out: Path, seed: int) -> list[Arm]:
    """All trainings of a prepared seed, each once."""
    sets = sets_of(read(piece_path(out, seed, PREPARED)))
    arms = [
        arm_of(keep_set, seed, None if n is None else study.continued[n])
        for keep_set in trained_sets(study, sets)
        for n in (None, *range(len(study.continued)))
        if is_trained(study, keep_set, n_th=n)
    ]
    return [*dict.fromkeys(arms)]


def n_steps(study: Conversion, arm: Arm) -> int:
    """How long an arm trains."""
    return study.steps if arm.continued is None else arm.continued.steps


def arm_of(keep_set: KeepSet, seed: int, continued: Continued | None) -> Arm:
    """The training of a keep-set."""
    return Arm(seed, continued, tuple(sorted(keep_set.heads)), keep_set.sink, keep_set.to)


def sets_of(prepared: dict[str, Any]) -> list[KeepSet]:
    """The keep-sets in the file of a prepared seed."""
    return [
        KeepSet(
            method=record["method"],
            n_kept=record["n_kept"],
            draw=record["draw"],
            sink=record["sink"],
            heads=tuple(KVHead(*head) for head in record["heads"]),
            to=record.get("form", "window"),
        )
        for record in prepared["sets"]
    ]


def run_arm(study: Conversion, out: Path, arm: Arm) -> None:
    """Train, measure, and write the file."""
    path = piece_path(out, arm.seed, arm.name)
    if path.exists():
        return
    started = time.process_time()
    forms = forms_from(read(piece_path(out, arm.seed, PREPARED)).get("forms", []))
    conversion = conversion_of(study, arm.heads, to=arm.to, sink=arm.sink, forms=forms)
    with one_thread():
        if arm.continued is None:
            model, recipe, stream = untrained(study, arm.seed), study.pretraining(arm.seed), 0
        else:
            model = from_checkpoint(_checkpoint(study, out, arm.seed))
            recipe, stream = study.continuing(arm.seed, arm.continued), 1
        losses = train(model, recipe, batches(study, recipe, stream=stream), conversion=conversion)
        m, study_probes = open_model(model), probes(study)
        with conversion.measuring(m):
            rows, converted_scores = measurements(m, study_probes), converted_retrieval(m, study_probes)
        scores = head_scores(m, study_probes) + converted_scores
    cost = time.process_time() - started
    write(path, {"arm": _arm_record(arm), "measurements": rows, "head_scores": scores, "losses": losses, "cpu_s": cost})


def pretrained(study: Conversion, out: Path, seed: int) -> Path:
    """The checkpoint of a seed's pretrained model, trained now if it is missing."""
    with one_thread():
        _pretrain(study, out, seed)
    return _checkpoint(study, out, seed)


def _set_record(keep_set: KeepSet) -> dict[str, Any]:
    """A keep-set as files have it, where `to` is called `form`."""
    record = keep_set._asdict()
    record["form"] = record.pop("to")
    return record


def _arm_record(arm: Arm) -> dict[str, Any]:
    """An arm as files have it, where `heads` is called `kept` and `to` is called `form`."""
    continued = None if arm.continued is None else asdict(arm.continued)
    return {
        "seed": arm.seed,
        "continued": continued,
        "kept": list(arm.heads),
        "sink": arm.sink,
        "form": arm.to,
    }


def _pretrain(study: Conversion, out: Path, seed: int) -> list[float]:
    """The loss before each step; empty where the model exists already and is not trained again."""
    if _checkpoint(study, out, seed).exists():
        return []
    recipe = study.pretraining(seed)
    model = untrained(study, seed)
    folder = _checkpoint(study, out, seed).parent
    shutil.rmtree(folder, ignore_errors=True)  # checkpoints of a killed call

    def save(step: int) -> None:
        if step in (*study.early_steps, recipe.steps):
            save_checkpoint(model, recipe, folder, step=step, log_history=[])

    return train(model, recipe, batches(study, recipe, stream=0), on_step=save)


def _checkpoint(study: Conversion, out: Path, seed: int, step: int | None = None) -> Path:
    return checkpoint_path(out / "models" / f"seed{seed}", study.steps if step is None else step)


def _opened(study: Conversion, out: Path, seed: int, step: int) -> HookedModel:
    return open_model(from_checkpoint(_checkpoint(study, out, seed, step)).eval())


def _form_rows(m: HookedModel, study: Conversion, seed: int) -> list[dict[str, Any]]:
    """The linear attention nearest to each head's output on text of continued pretraining, a row for each head."""
    if study.linear is None:
        return []
    text = next(iter(batches(study, study.continuing(seed, study.continued[0]), stream=1))).tokens
    fit = fit_linear_attention(m, text, features=study.linear)
    return [
        {"layer": head.layer, "head": head.kv_head, **asdict(form), "error": fit.error[head]}
        for head, form in fit.forms.items()
    ]


def _measure_sets(
    m: HookedModel, study: Conversion, sets: list[KeepSet], *, probes: Probes, forms: Forms
) -> list[list[Measurement]]:
    """Measurements of every keep-set without training, in the order of the sets; equal ones are measured once."""
    known: dict[tuple[ConvertedTo, int, tuple[KVHead, ...]], list[Measurement]] = {}

    def key(keep_set: KeepSet) -> tuple[ConvertedTo, int, tuple[KVHead, ...]]:
        return keep_set.to, keep_set.sink, tuple(sorted(keep_set.heads))

    for keep_set in sets:
        if key(keep_set) not in known:
            conversion = conversion_of(study, keep_set.heads, to=keep_set.to, sink=keep_set.sink, forms=forms)
            with conversion.measuring(m):
                known[key(keep_set)] = measurements(m, probes)
    return [known[key(keep_set)] for keep_set in sets]
