"""The units of a checkpoint, and the key of each: a digest of what determines its numbers."""

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
from workbench.scanning.kept_patterns import MapOptions
from workbench.scanning.machine import dtype_in_words
from workbench.store import (
    DEFAULT_DTYPE,
    KEY_SCHEMA,
    MAPS_SCHEMA,
    Origin,
    Settings,
    Table,
    WrittenProbe,
    canonical_digest,
)

METRICS_VERSION = 1
# How a request writes the probes that nobody chose.
_DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Unit:
    """One part to compute. `detector` None: the probe's metrics. `determined`: all that determines its numbers."""

    determined: dict[str, Any]
    detector: AnyDetector | None

    @property
    def key(self) -> str:
        """The digest that names the part."""
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
    """The units of a job. Probes are made once for all checkpoints that share a vocabulary."""

    def __init__(self, job: Job, ready: Sequence[Probe], detectors: Sequence[AnyDetector]) -> None:
        self._job, self._ready, self._detectors = job, ready, detectors
        self._dtype = dtype_in_words(job)
        self._probes: dict[str, list[Probe]] = {}

    @property
    def map_options(self) -> MapOptions:
        """How patterns are kept."""
        return MapOptions(self._job.keep == "qk", self._dtype, self._job.far_window)

    def probes(self, checkpoint: Path) -> list[Probe]:
        """The probes in a checkpoint's vocabulary.

        Raises:
            BadCheckpoint: if its config.json is missing or describes no known model.
            WorkbenchError: if a probe cannot be made, or two have the same name.
        """
        digest = words_digest(checkpoint)
        if digest not in self._probes:
            self._probes[digest] = self._make_probes(model_words(checkpoint))
        return self._probes[digest]

    def of_probe(self, origin: Origin, probe: Probe | None) -> list[Unit]:
        """The units of a probe: the detectors defined on it, and its metrics if it has answers.

        `probe` None: the detectors of weights.
        """
        return [Unit(self._determined(origin, probe, d), d) for d in self._detectors_on(probe)]

    def planned(self, probes: Sequence[Probe]) -> list[dict[str, Any]]:
        """The units of each checkpoint, as in the store's plan, with the settings that change their numbers."""
        measured = [
            {
                "probe": WEIGHTS if p is None else p.name,
                "detector": u.name,
                "version": u.version,
                "table": u.table,
                "settings": Settings.of(self._settings(p, d)).as_dict(),
            }
            for p in [*probes, None]
            for d, u in ((d, Unit({}, d)) for d in self._detectors_on(p))
        ]
        options = self.map_options
        settings = Settings(dtype=options.dtype, far_window=options.far_window).as_dict()
        maps = [
            {"probe": p.name, "detector": "maps", "version": MAPS_SCHEMA, "table": "maps", "settings": settings}
            for p in (probes if self._job.maps else ())
        ]
        return measured + maps

    def written(self, checkpoints: Sequence[Path]) -> dict[str, WrittenProbe]:
        """The probes in the words of the job, with their digests in the vocabularies of these checkpoints."""
        words: dict[str, str] = {}
        digests: dict[str, set[str]] = {}
        for checkpoint in checkpoints:
            try:
                probes = self.probes(checkpoint)
            except Exception:  # the scan stores the reason as this checkpoint's failure
                continue
            written = [*(self._job.probes or ()), *(f"{p.name}:{p.digest}" for p in self._ready)]
            for probe, text in zip(probes, written or [_DEFAULT] * len(probes), strict=True):
                words[probe.name] = text
                digests.setdefault(probe.name, set()).add(probe.digest)
        return {name: WrittenProbe(text, tuple(sorted(digests[name]))) for name, text in words.items()}

    def _detectors_on(self, probe: Probe | None) -> list[AnyDetector | None]:
        if probe is None:
            return [d for d in self._detectors if isinstance(d, WeightDetector)]
        fitting: list[AnyDetector | None] = [d for d in self._detectors if isinstance(d, Detector) and d.fits(probe)]
        return fitting if probe.answer_rows is None else [*fitting, None]

    def _make_probes(self, words: ModelWords) -> list[Probe]:
        made = [build(words, written) for written in self._job.probes or ()]
        probes = [*made, *self._ready]
        if self._job.probes is None and not self._ready:
            probes = default(words) if any(isinstance(d, Detector) for d in self._detectors) else []
        names = [WEIGHTS, *(p.name for p in probes)]
        duplicates = sorted({n for n in names if names.count(n) > 1})
        if duplicates:
            raise WorkbenchError(
                f"two probes are called {duplicates}, or one has the name of the scores of weights; give one of them "
                "another name="
            )
        return probes

    def _determined(self, origin: Origin, probe: Probe | None, detector: AnyDetector | None) -> dict[str, Any]:
        """All that determines a unit's numbers and its place in the run. Engine, device, batch and time do not."""
        determined = {
            "schema": KEY_SCHEMA,
            "weights": origin.weights,
            "config": origin.config,
            "place": [origin.stage, origin.branch, origin.step],
            "detector": [detector.name, detector.version] if detector else ["metrics", METRICS_VERSION],
            **self._settings(probe, detector),
        }
        return determined if probe is None else {**determined, "probe": [probe.name, probe.digest]}

    def _settings(self, probe: Probe | None, detector: AnyDetector | None) -> dict[str, Any]:
        """The job's settings that change a unit's numbers, as its key has them."""
        job = self._job
        dtype = None if self._dtype == DEFAULT_DTYPE else self._dtype
        if probe is None:
            return {"dtype": dtype}
        has_far = isinstance(detector, Detector) and "far_mass" in detector.needs
        far = [job.far_window, job.far_sink] if has_far else None
        return {"dtype": dtype, "rows": job.rows, "far": far, "seed": job.seed}
