"""Which parts of a run readers show: those of the weights, settings, detectors and probes of now, and what is left out.

Of a checkpoint's name, the weights, configuration and place that a scan saw last. Of each detector on each probe, what
the newest request asked for that has a score. Where no scan wrote that down, what was written last decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.heads import WorkbenchError, some_of
from workbench.store import (
    Current,
    Part,
    PatternFile,
    Reader,
    Request,
    Settings,
    Store,
    accounts_stamp,
    in_words,
    read_current,
    read_requests,
)

_Group = tuple[str, str, str]
# Names that a remark lists.
_FEW = 3


@dataclass(frozen=True, slots=True)
class Accounts:
    """What scans wrote down beside the parts.

    `last`: the settings of the last scan, for runs whose scans wrote no requests. `chosen`: settings that the reader
    wants instead of the newest.
    """

    requests: tuple[Request, ...]
    current: Mapping[str, Current]
    last: Mapping[str, Any]
    chosen: Mapping[str, Any]

    @classmethod
    def read(cls, root: Path, chosen: Mapping[str, Any]) -> Accounts:
        """Read them from a run's folder."""
        job = Store(root).last_job()
        far = [job.far_window, job.far_sink]
        last = Settings.of({"dtype": job.dtype, "rows": job.rows, "seed": job.seed, "far": far})
        return cls(read_requests(root), read_current(root), last.as_dict(), chosen)


@dataclass(frozen=True, slots=True)
class Shown:
    """The parts that readers show, by path, and a sentence for each kind of what they do not."""

    paths: frozenset[Path]
    remarks: tuple[str, ...]


@dataclass(slots=True)
class _LeftOut:
    """What is not shown, by reason: the checkpoints, and the detectors on their probes."""

    by_reason: dict[tuple[str, str], tuple[set[str], set[str]]] = field(default_factory=dict[Any, Any])

    def add(self, reason: str, remedy: str, part: Part) -> None:
        label = part.label
        ckpts, names = self.by_reason.setdefault((reason, remedy), (set(), set()))
        ckpts.add(label.ckpt)
        names.add(f"{label.detector or label.table} on {label.probe}")

    def remarks(self) -> tuple[str, ...]:
        return tuple(
            f"{reason} ({_listed(names)}; {_listed(ckpts, 'checkpoint')}); {remedy}"
            for (reason, remedy), (ckpts, names) in self.by_reason.items()
        )


class NewestParts:
    """Chooses the parts of a run that readers show, anew when its parts have changed or after `refresh`."""

    def __init__(self, root: Path, chosen: Mapping[str, Any]) -> None:
        self._root, self._chosen = root, dict(chosen)
        self._accounts: tuple[tuple[int, ...], Accounts] | None = None
        self._used: Accounts | None = None
        self._shown: tuple[Accounts, int, Shown] | None = None

    def accounts(self) -> Accounts:
        """What scans have written down by now."""
        stamp = accounts_stamp(self._root)
        if self._accounts is None or self._accounts[0] != stamp:
            self._accounts = stamp, Accounts.read(self._root, self._chosen)
        return self._accounts[1]

    def refresh(self) -> None:
        """Choose by what scans have written down by now."""
        self._used = self.accounts()

    def shown(self, reader: Reader) -> Shown:
        """The parts to show of those of a reader.

        Raises:
            WorkbenchError: if no part has the chosen settings; it lists those that there are.
        """
        if self._used is None:
            self.refresh()
        assert self._used is not None
        if self._shown is None or self._shown[0] is not self._used or self._shown[1] != reader.generation:
            self._shown = self._used, reader.generation, choose(reader.parts(), self._used, reader.written)
        return self._shown[2]


def choose(parts: Sequence[Part], accounts: Accounts, written: Callable[[Part], int]) -> Shown:
    """The parts to show of these.

    Raises:
        WorkbenchError: as `NewestParts.shown`.
    """
    left_out = _LeftOut()
    groups: dict[_Group, list[Part]] = {}
    for part in current_parts(parts, accounts, written, left_out):
        groups.setdefault((part.label.table, part.label.detector, part.label.probe), []).append(part)
    chosen = {group: [p for p in members if p.label.settings.has(accounts.chosen)] for group, members in groups.items()}
    _require_settings(accounts.chosen, groups, chosen)
    paths: set[Path] = set()
    for group, members in groups.items():
        newest = _newest(chosen[group], accounts, written)
        paths.update(part.path for part in newest)
        _say(members, newest, left_out)
    return Shown(frozenset(paths), left_out.remarks())


def current_parts(
    parts: Sequence[Part], accounts: Accounts, written: Callable[[Part], int], left_out: _LeftOut | None = None
) -> list[Part]:
    """The parts of what each checkpoint's name stands for now."""
    states: dict[str, set[tuple[Any, ...]]] = {}
    for part in parts:
        states.setdefault(part.label.ckpt, set()).add(part.label.origin.state)
    state_of = {
        ckpt: accounts.current[ckpt].state if ckpt in accounts.current else _newest_state(ckpt, each, parts, written)
        for ckpt, each in states.items()
    }
    shown: list[Part] = []
    for part in parts:
        ckpt = part.label.ckpt
        if part.label.origin.state == state_of[ckpt]:
            shown.append(part)
        elif left_out is not None:
            unscored = "" if state_of[ckpt] in states[ckpt] else ", not scored yet"
            what = "weights" if part.label.origin.weights != state_of[ckpt][0] else "configuration or place"
            left_out.add(f"other {what} now{unscored}; the scores of the earlier are not shown", _ALL, part)
    return shown


def newest_maps(files: Sequence[PatternFile], accounts: Accounts) -> list[PatternFile]:
    """Of the patterns of a run, those to show."""
    current = [
        file
        for file in files
        if (known := accounts.current.get(file.label.origin.ckpt)) is None or file.label.origin.state == known.state
    ]
    shown: list[PatternFile] = []
    for probe in dict.fromkeys(file.label.probe for file in current):
        members = [file for file in current if file.label.probe == probe]
        requests = [r for r in accounts.requests if _map_settings(r, probe).has(accounts.chosen)]
        newest = next((r for r in requests if any(r.maps_are(file.label) for file in members)), None)
        shown += members if newest is None else [file for file in members if newest.maps_are(file.label)]
    return shown


def _map_settings(request: Request, probe: str) -> Settings:
    return request.units.get(("maps", "maps", probe), (0, Settings()))[1]


def _newest_state(
    ckpt: str, states: set[tuple[Any, ...]], parts: Sequence[Part], written: Callable[[Part], int]
) -> tuple[Any, ...]:
    if len(states) == 1:
        return next(iter(states))
    return max((part for part in parts if part.label.ckpt == ckpt), key=written).label.origin.state


def _newest(members: Sequence[Part], accounts: Accounts, written: Callable[[Part], int]) -> list[Part]:
    """Of the parts of one detector on one probe, those that the newest request asks for; one at each checkpoint."""
    if not members:
        return []
    request = next((r for r in accounts.requests if any(r.names(part.label) for part in members)), None)
    if request is None:
        members = [part for part in members if part.label.settings.has(accounts.last)] or members
        last = max(members, key=written).label
        newest = [part for part in members if _made_as(part) == (last.settings, last.version, last.probe_digest)]
    else:
        newest = [part for part in members if request.names(part.label)]
    if len({part.label.ckpt for part in newest}) == len(newest):
        return newest
    one: dict[str, Part] = {}
    for part in sorted(newest, key=lambda part: (_is_in_vocabulary(part, accounts), written(part))):
        one[part.label.ckpt] = part
    return [part for part in newest if one[part.label.ckpt] is part]


def _made_as(part: Part) -> tuple[Settings, int, str]:
    return part.label.settings, part.label.version, part.label.probe_digest


def _is_in_vocabulary(part: Part, accounts: Accounts) -> bool:
    """Whether the part's probe is the one that its checkpoint's vocabulary gives now."""
    current = accounts.current.get(part.label.ckpt)
    return current is not None and current.probes.get(part.label.probe) == part.label.probe_digest


def _say(members: Sequence[Part], newest: Sequence[Part], left_out: _LeftOut) -> None:
    """Note which parts of one detector on one probe are not shown, and how to have them."""
    if len(newest) == len(members):
        return
    paths = {part.path for part in newest}
    example = newest[0].label if newest else None
    n_ckpts = len({part.label.ckpt for part in newest})
    for part in members:
        if part.path in paths:
            continue
        label = part.label
        if example is None:
            left_out.add("with other settings than the chosen, not shown", _ALL, part)
        elif label.settings != example.settings:
            others, shown = label.settings.beside(example.settings), example.settings.beside(label.settings)
            words = others | ({"dtype": "not written down"} if _is_of_unknown_dtype(part) and "dtype" in others else {})
            reason = f"shown: {_words(shown)}, {n_ckpts} checkpoint{'s' * (n_ckpts != 1)}; not shown: {_words(words)}"
            left_out.add(reason, _remedy(others), part)
        elif label.version != example.version:
            left_out.add(f"scores of version {label.version} are not shown, version {example.version} is", _ALL, part)
        elif label.probe_digest != example.probe_digest:
            left_out.add("scores on another form of the probe are not shown", _ALL, part)


def _is_of_unknown_dtype(part: Part) -> bool:
    return part.label.shared()["dtype"] is None


def _words(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


_ALL = 'open_run(path, select="all") has them'


def _remedy(settings: Mapping[str, str]) -> str:
    flags = " ".join(f"--setting {name}={value}" for name, value in settings.items())
    return f"choose them with {flags}, or open_run(path, settings={dict(settings)!r})"


def _listed(names: Iterable[str], noun: str = "") -> str:
    """Names in one order; many by number."""
    every = sorted(names)
    return f"{len(every)} {noun}s" if noun and len(every) > _FEW else some_of(every, _FEW)


def _require_settings(
    chosen: Mapping[str, Any], groups: Mapping[_Group, list[Part]], matches: Mapping[_Group, list[Part]]
) -> None:
    """Raise if no part has the chosen settings, as far as they touch it."""
    every = {part.label.settings for members in groups.values() for part in members}
    matching = {part.label.settings for members in matches.values() for part in members}
    if every and any(not any(each.is_touched_by(name) for each in matching) for name in chosen):
        words = _words({name: in_words(name, value) for name, value in chosen.items()})
        touched = [each for each in every if all(each.is_touched_by(name) for name in chosen)]
        there = {_words({name: in_words(name, getattr(each, name)) for name in chosen}) for each in touched}
        raise WorkbenchError(f"there are no scores with {words}; there are such with {'; '.join(sorted(there))}")
