"""Extension points: one kind of registry for detectors, probes, rankings, mixers and app pages.

Built-in entries and those of other packages arrive in the same way: a module registers its functions when it is
imported. A package names such modules in an entry point group:

    [project.entry-points."workbench.detectors"]
    my_package = "my_package.detectors"
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

from workbench.heads import WorkbenchError

T = TypeVar("T")


class ExtensionWarning(UserWarning):
    """An installed extension could not be imported and is left out."""


class Registry(Generic[T]):
    """Entries of one extension point by name, in the order of their registration.

    `group` is the entry point group, `noun` what an entry is called in messages, `builtin` the package whose modules
    register the entries that come with the workbench. Those that the package itself imports come first, in that order;
    then come the other modules of its folder by name, so a new file needs no list.
    """

    def __init__(self, group: str, *, noun: str, builtin: str) -> None:
        self.group = group
        self.noun = noun
        self._builtin = builtin
        self._entries: dict[str, T] = {}
        self._homes: dict[str, tuple[str, str]] = {}
        self._is_loaded = False

    def add(self, name: str, entry: T, *, function: Callable[..., Any]) -> None:
        """Register an entry. `function` is what the decorator was put on: its docstring and its module are checked.

        The same function may be registered again, as when its module is reloaded.

        Raises:
            WorkbenchError: for a function without a docstring, or a name that another function holds.
        """
        home = (function.__module__, function.__qualname__)
        holder = self._homes.get(name, home)
        if holder != home:
            raise WorkbenchError(
                f"{self.noun} {name!r} of {home[0]} is already registered by {holder[0]}; rename one of them"
            )
        if not inspect.getdoc(function):
            raise WorkbenchError(f"{self.noun} {name!r} has no docstring; say in one sentence what it measures or does")
        self._entries[name] = entry
        self._homes[name] = home

    def remove(self, name: str) -> None:
        """Forget an entry; tests of extensions call this."""
        self._entries.pop(name, None)
        self._homes.pop(name, None)

    def all(self) -> dict[str, T]:
        """Every entry by name, those of installed packages included. An extension that fails to import is warned of."""
        if not self._is_loaded:
            self._is_loaded = True  # before the extensions, which may ask for entries while they are imported
            try:
                _import_all(self._builtin)
                for entry_point in entry_points(group=self.group):
                    self._load(entry_point)
            except BaseException:
                self._is_loaded = False  # two packages with one name are refused at every call
                raise
        return dict(self._entries)

    def find(self, name: str) -> T:
        """The entry of a name.

        Raises:
            WorkbenchError: for an unknown name, listing the known ones.
        """
        entries = self.all()
        if name not in entries:
            raise WorkbenchError(f"unknown {self.noun} {name!r}; expected one of {', '.join(entries)}")
        return entries[name]

    # Any: where a package has installed the backport importlib_metadata, its entry points are of a class of their own.
    def _load(self, entry_point: Any) -> None:
        try:
            entry_point.load()
        except WorkbenchError:
            raise
        except Exception as error:  # whatever another package's import may raise
            package = entry_point.dist.name if entry_point.dist else entry_point.value
            warnings.warn(
                f"{self.noun}s of {package} are left out: importing {entry_point.value} failed with "
                f"{type(error).__name__}: {error}",
                ExtensionWarning,
                stacklevel=4,
            )


def _import_all(package_name: str) -> None:
    package = import_module(package_name)
    for module in iter_modules(package.__path__, f"{package_name}."):
        import_module(module.name)
