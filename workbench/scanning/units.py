"""Which units a checkpoint has, and the key of each: a digest of what determines its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.detectors import WEIGHTS, AnyDetector, Detector, WeightDetector
from workbench.heads import WorkbenchError
from workbench.loading.tokenizers import ModelWords, model_words, words_digest
from workbench.probes import Probe, build, default
from workbench.scanning.job import Job
from workbench.store import MAPS_SCHEMA, SCHEMA, Origin, Table, canonical_digest

METRICS_VERSION = 1


@dataclass(frozen=True, slots=True)
class Unit:
    """One part to be: `detector` None is the probe's metrics. `determined`: what determines its numbers."""

    determined: dict[str, Any]
    detector: AnyDetector | None

    @property
    def key(self) -> str:
        """What it is filed under."""
        return canonical_digest(self.determined)

    @property
    def name(self) -> str:
        return "metrics" if self.detector is None else self.detector.name

    @property
    def version(self) -> int:
        return METRICS_VERSION if self.detector is None else self.detector.version

    @property
    def table(self) -> Table:
        return "metrics" if self.detector is None else "scores"


class Units:
    """The units of a job; the probes are made once for all checkpoints that share a vocabulary."""

    def __init__(self, job: Job, ready: Sequence[Probe], detectors: Sequence[AnyDetector]) -> None:
        self._job, self._ready, self._detectors = job, ready, detectors
        self._probes: dict[str, list[Probe]] = {}

    def probes(self, checkpoint: Path) -> list[Probe]:
        """The probes in a checkpoint's vocabulary.

        Raises:
            BadCheckpoint: if its config.json is missing or describes no known model.
            WorkbenchError: if a probe cannot be made, or two have one name.
        """
        digest = words_digest(checkpoint)
        if digest not in self._probes:
            self._probes[digest] = self._make_probes(model_words(checkpoint))
        return self._probes[digest]

    def of(self, origin: Origin, probe: Probe | None) -> list[Unit]:
        """The units of a probe: detectors that are defined on it, and its metrics if it has answers.

        In place of a probe, None: the detectors that read weights.
        """
        return [Unit(self._determined(origin, probe, d), d) for d in self._wanted(probe)]

    def planned(self, probes: Sequence[Probe]) -> list[dict[str, Any]]:
        """What each checkpoint will have, as the store's plan lists it."""
        measured = [
            {"probe": WEIGHTS if p is None else p.name, "detector": u.name, "version": u.version, "table": u.table}
            for p in [*probes, None]
            for u in (Unit({}, d) for d in self._wanted(p))
        ]
        kept = probes if self._job.maps else ()
        return measured + [{"probe": p.name, "detector": "maps", "version": MAPS_SCHEMA, "table": "maps"} for p in kept]

    def _wanted(self, probe: Probe | None) -> list[AnyDetector | None]:
        if probe is None:
            return [d for d in self._detectors if isinstance(d, WeightDetector)]
        wanted: list[AnyDetector | None] = [d for d in self._detectors if isinstance(d, Detector) and d.fits(probe)]
        return wanted if probe.answer_rows is None else [*wanted, None]

    def _make_probes(self, words: ModelWords) -> list[Probe]:
        made = [build(words, written) for written in self._job.probes or ()]
        probes = [*made, *self._ready]
        if self._job.probes is None and not self._ready:
            probes = default(words) if any(isinstance(d, Detector) for d in self._detectors) else []
        names = [WEIGHTS, *(p.name for p in probes)]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise WorkbenchError(
                f"two probes are called {twice}, or one as the scores of weights are; give one of them another name="
            )
        return probes

    def _determined(self, origin: Origin, probe: Probe | None, detector: AnyDetector | None) -> dict[str, Any]:
        """What determines a unit's numbers, and where they are filed; not the engine, device, batch or time."""
        job = self._job
        has_far = isinstance(detector, Detector) and "far_mass" in detector.needs
        determined = {
            "schema": SCHEMA,
            "weights": origin.weights,
            "config": origin.config,
            "place": [origin.stage, origin.branch, origin.step],
            "detector": [detector.name, detector.version] if detector else ["metrics", METRICS_VERSION],
            "dtype": job.dtype,
        }
        if probe is None:
            return determined
        return {
            **determined,
            "probe": [probe.name, probe.digest],
            "rows": job.rows,
            "far": [job.far_window, job.far_sink] if has_far else None,
            "seed": job.seed,
        }
