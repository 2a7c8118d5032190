"""The catalogue of published models is pinned, and their place is where the user or the platform has caches."""

import sys
from pathlib import Path

import pytest

from workbench.hub.published_models import PUBLISHED, models_folder, published_folder, published_here


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_model_is_pinned_by_versions_sizes_and_digests_and_names_its_licence(name):
    model = PUBLISHED[name]
    assert model.name == name
    assert model.licence_url.startswith("https://")
    for package in model.packages:
        assert package.version[0].isdigit()
        assert package.n_bytes > 0
    for digest in [*(p.sha256 for p in model.packages), *(m.sha256 for m in model.members)]:
        assert len(bytes.fromhex(digest)) == 32


def test_models_lie_where_the_variable_says_else_in_the_platforms_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_MODELS", str(tmp_path))
    assert models_folder() == tmp_path
    monkeypatch.delenv("WORKBENCH_MODELS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert models_folder() == tmp_path / "cache" / "attention-workbench" / "models"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert models_folder() == Path.home() / "Library" / "Caches" / "attention-workbench" / "models"


def test_only_names_of_the_catalogue_are_names_of_published_models(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_MODELS", str(tmp_path))
    (tmp_path / "another").mkdir()
    assert published_here() == {}
    assert published_folder("another") is None
    assert published_folder("org/smollm2") is None
