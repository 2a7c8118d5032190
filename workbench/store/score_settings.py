"""The settings of a scan that change its scores: part of what a row is, and how a reader names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from workbench.heads import WorkbenchError

# The dtype of a unit whose key has none: models on the CPU are float32 where nobody chooses.
DEFAULT_DTYPE = "float32"
# Of a checkpoint's own dtype, in which models on other devices are where nobody chooses.
OWN_DTYPE = "own"
# The words that `parse_setting` takes for None.
_NONE = {"rows": "all", "far_window": "own"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a scan was told that changes these numbers; None also where it does not touch them.

    Args:
        dtype: of the model; `own`: the checkpoint's own, as on CUDA where nobody chooses; None: not written down.
        rows: query rows per sequence; None: all.
        seed: of the bootstrap.
        far_window, far_sink: of `far_mass`, in tokens; a window of None is the model's own.
    """

    dtype: str | None = None
    rows: int | None = None
    seed: int | None = None
    far_window: int | None = None
    far_sink: int | None = None

    @classmethod
    def of(cls, determined: Mapping[str, Any]) -> Settings:
        """The settings in what determines a unit's numbers; none where nothing was written down."""
        if not determined:
            return cls()
        far_window, far_sink = determined.get("far") or (None, None)
        return cls(
            dtype=determined.get("dtype") or DEFAULT_DTYPE,
            rows=determined.get("rows"),
            seed=determined.get("seed"),
            far_window=far_window,
            far_sink=far_sink,
        )

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Settings:
        """Read settings that `as_dict` wrote; what another version added is left out."""
        return cls(**{name: document.get(name) for name in SETTING_NAMES})

    def as_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return asdict(self)

    def __str__(self) -> str:
        """The settings that touch the numbers, as a user writes them; "" where none is written down."""
        names = [name for name in SETTING_NAMES if name != "dtype" and self.is_touched_by(name)]
        words = ["dtype", *names] if self.dtype is not None else names
        return ", ".join(f"{name} {in_words(name, getattr(self, name))}" for name in words)

    def has(self, chosen: Mapping[str, Any]) -> bool:
        """Whether these are the settings that were chosen; what does not touch these numbers is not compared."""
        return all(getattr(self, name) == value for name, value in chosen.items() if self.is_touched_by(name))

    def beside(self, other: Settings) -> dict[str, str]:
        """In words, the settings that differ from those of another."""
        return {
            name: in_words(name, getattr(self, name))
            for name in SETTING_NAMES
            if getattr(self, name) != getattr(other, name)
        }

    def is_touched_by(self, name: str) -> bool:
        """Whether a setting changes these numbers: a window has its sink beside it, sampled rows a seed."""
        beside = {"far_window": self.far_sink, "far_sink": self.far_sink, "rows": self.seed, "seed": self.seed}
        return name not in beside or beside[name] is not None


SETTING_NAMES = tuple(f.name for f in fields(Settings))


def in_words(name: str, value: Any) -> str:
    """A setting's value as a user writes it."""
    return _NONE.get(name, "none") if value is None else str(value)


def parse_settings(written: Mapping[str, Any]) -> dict[str, Any]:
    """Chosen settings by name, as Python has them or as a command line writes them: `rows=all`, `seed=3`.

    Raises:
        WorkbenchError: for a setting that does not exist, or a value that it cannot have.
    """
    chosen: dict[str, Any] = {}
    for name, value in written.items():
        if name not in SETTING_NAMES:
            raise WorkbenchError(f"there is no setting {name!r}; expected {', '.join(SETTING_NAMES)}")
        chosen[name] = _parsed(name, value)
    return chosen


def _parsed(name: str, value: Any) -> Any:
    if value is None or value in {_NONE.get(name, "none"), "none"}:
        return None
    if name == "dtype":
        return str(value).removeprefix("torch.")
    text = str(value)
    if isinstance(value, bool) or not text.removeprefix("-").isdecimal():
        least = f"a whole number or {_NONE[name]!r}" if name in _NONE else "a whole number"
        raise WorkbenchError(f"{name} {value!r} is no value of this setting; expected {least}")
    return int(text)
