"""Every probe is built by its name and described in docs/probes.md."""

import inspect
import re
from pathlib import Path

import pytest

from tests.probes.models import TEXT, bare_model, bpe_model
from workbench import probes
from workbench.heads import WorkbenchError
from workbench.probes.registry import PROBES

DOCUMENT = Path(__file__).parents[2] / "docs" / "probes.md"
TABLE = {m[1]: m[2].split(" | ") for m in re.finditer(r"^\| `(\w+)` \| (.*) \|$", DOCUMENT.read_text(), re.M)}


def test_every_registered_probe_is_built_by_name_and_named_in_the_error():
    with pytest.raises(WorkbenchError) as error:
        probes.build(bare_model(), "haystack")
    assert all(name in str(error.value) for name in PROBES.all())
    for name in PROBES.all():
        if name not in (
            "text",
            "repeated_ngrams",
            "without_answers",
            "far_answers",
        ):  # the last two have another's name
            assert probes.build(bare_model(), f"{name}:n_sequences=1").name == name


@pytest.mark.parametrize("name", PROBES.all())
def test_the_documentation_describes_every_probe_with_its_class_metric_and_defaults(name, tmp_path):
    _, _, class_name, metric, defaults, _ = TABLE[name]
    (tmp_path / "text").write_text(TEXT[:60_000])
    built = probes.build(bpe_model(), name + (f":path={tmp_path / 'text'}" if name == "text" else ""))
    assert re.match(r"`(\w+)`", class_name)[1] == built.class_name
    assert metric.strip("`") == (built.metric or "loss only")
    parameters = inspect.signature(PROBES.find(name)).parameters
    for default in defaults.split(", ") if defaults != "as above" else ():
        key, _, value = default.partition("=")
        assert str(parameters[key].default) == value


def test_no_probe_is_documented_that_does_not_exist():
    assert set(TABLE) == set(PROBES.all())
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S):
        compile(block, "docs/probes.md", "exec")


def test_a_probe_written_as_the_documentation_shows_is_built_by_its_name():
    block = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)[-1]
    try:
        exec(compile(block, "docs/probes.md", "exec"), {"__name__": "mine"})
        built = probes.build(60, "same_again:n_sequences=3")
        assert built.target_cells.tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0]]
    finally:
        PROBES.remove("same_again")
