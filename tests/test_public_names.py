"""The notebook's names: each resolves, none is shadowed by a submodule, and what is not built does not exist."""

import importlib
import pkgutil
from importlib.metadata import version

import pytest

import workbench


def submodules(package):
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        yield info.name


@pytest.mark.parametrize("name", workbench.__all__)
def test_every_public_name_resolves(name):
    assert getattr(workbench, name) is not None
    assert name in dir(workbench)


def test_a_name_that_is_not_built_is_an_attribute_error_with_the_installed_version():
    installed = version("attention-workbench")
    with pytest.raises(AttributeError, match=f"attention-workbench {installed} has no 'telepathy'"):
        workbench.telepathy  # noqa: B018


def test_no_public_function_bears_a_submodules_name_and_importing_all_rebinds_none():
    before = {name: getattr(workbench, name) for name in workbench.__all__}
    for name in submodules(workbench):
        importlib.import_module(name)
    for name, value in before.items():
        assert getattr(workbench, name) is value
    for name in submodules(workbench):
        module = importlib.import_module(name)
        if hasattr(module, "__path__"):
            below = {info.name for info in pkgutil.iter_modules(module.__path__)}
            shadowed = {n for n in getattr(module, "__all__", ()) if n in below and callable(getattr(module, n))}
            assert not shadowed, (name, shadowed)
