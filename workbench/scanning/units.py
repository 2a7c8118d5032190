"""The units of a checkpoint, and the key of each: a digest of what determines its numbers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.detectors import WEIGHTS, AnyDetector, Detector, WeightDetector
from workbench.heads import BadCheckpoint, WorkbenchError
from workbench.loading.series_words import SeriesWords
from workbench.loading.tokenizers import ModelWords, model_words
from workbench.probes import Probe, build, default
from workbench.probes.token_ids import BareTokens
from workbench.scanning.job import Job
from workbench.scanning.kept_patterns import MapOptions
from workbench.scanning.machine import check_device, dtype_in_words
from workbench.store import (
    DEFAULT_DTYPE,
    DEFAULT_PROBE,
    KEY_SCHEMA,
    MAPS_SCHEMA,
    Origin,
    Settings,
    Table,
    WrittenProbe,
    canonical_digest,
)

METRICS_VERSION = 1


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


def with_patterns(probes: Sequence[Probe]) -> list[Probe]:
    """The probes whose patterns a scan keeps: all but controls."""
    return [probe for probe in probes if not probe.is_control]


def tokens_of_pattern(probe: Probe) -> int:
    """Tokens that the model runs over for the patterns of a probe: its first sequence."""
    return probe.tokens.shape[1]


class Units:
    """The units of a job. Probes are made once for all checkpoints, in the words that they share."""

    def __init__(
        self, job: Job, ready: Sequence[Probe], detectors: Sequence[AnyDetector], series_words: SeriesWords
    ) -> None:
        self._job, self._ready, self._detectors, self._series_words = job, ready, detectors, series_words
        check_device(job)
        self._dtype = dtype_in_words(job)
        self._probes: list[Probe] | None = None
        self._words: ModelWords | None = None
        self._remarks: list[str] = []

    @property
    def map_options(self) -> MapOptions:
        """How patterns are kept."""
        return MapOptions(self._job.keep == "qk", self._dtype, self._job.far_window)

    def probes(self, checkpoint: Path) -> list[Probe]:
        """The probes of the series.

        Raises:
            BadCheckpoint: with the fault of `checkpoint` if no config.json of the series describes a known model.
            WorkbenchError: if a probe cannot be made, or two have the same name.
        """
        if self._probes is None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self._probes = self._make_probes(checkpoint)
            self._remarks = [str(each.message) for each in caught if not issubclass(each.category, BareTokens)]
        return self._probes

    def words(self, checkpoint: Path) -> ModelWords:
        """The configuration and the tokenizer that the checkpoints share.

        Raises:
            BadCheckpoint: as `probes`.
        """
        if self._words is None:
            try:
                self._words = self._series_words.words()
            except BadCheckpoint:
                model_words(checkpoint)
                raise
        return self._words

    def remarks(self) -> list[str]:
        """What the user should know of the probes' words: sentences."""
        words, bare = self._series_words, self._words is not None and self._words.tokenizer is None
        reason = [
            f"{words.no_tokenizer}: probes are token ids of the whole vocabulary, drawn without words; name a "
            "tokenizer with --tokenizer FOLDER (tokenizer=)"
        ]
        return list(dict.fromkeys([*words.remarks, *(reason if bare else []), *self._remarks]))

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
            for p in (with_patterns(probes) if self._job.maps else ())
        ]
        return measured + maps

    def tokens(self, probes: Sequence[Probe]) -> int:
        """Tokens that the model of each checkpoint runs over, patterns included."""
        of_patterns = map(tokens_of_pattern, with_patterns(probes) if self._job.maps else ())
        return sum(probe.tokens.numel() for probe in probes) + sum(of_patterns)

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
            for probe, text in zip(probes, written or [DEFAULT_PROBE] * len(probes), strict=True):
                words[probe.name] = text
                digests.setdefault(probe.name, set()).add(probe.digest)
        return {name: WrittenProbe(text, tuple(sorted(digests[name]))) for name, text in words.items()}

    def _detectors_on(self, probe: Probe | None) -> list[AnyDetector | None]:
        if probe is None:
            return [d for d in self._detectors if isinstance(d, WeightDetector)]
        if probe.is_control:
            return [None]
        fitting: list[AnyDetector | None] = [d for d in self._detectors if isinstance(d, Detector) and d.fits(probe)]
        return fitting if probe.answer_rows is None else [*fitting, None]

    def _make_probes(self, checkpoint: Path) -> list[Probe]:
        made = [build(self.words(checkpoint), written) for written in self._job.probes or ()]
        probes = [*made, *self._ready]
        if self._job.probes is None and not self._ready:
            has_recordings = any(isinstance(d, Detector) for d in self._detectors)
            probes = default(self.words(checkpoint)) if has_recordings else []
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
