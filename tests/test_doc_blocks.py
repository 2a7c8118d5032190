"""Every Python block of README and docs runs, on a tiny model with a tokenizer and on the runs of examples/.

The blocks of one document run in one namespace, from top to bottom. `_CASES` says what a small model needs in place of
what is written: another folder, a smaller window. Nothing else of a block is changed.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.probes.models import bpe_model
from workbench.app.registry import PAGES
from workbench.detectors.registry import DETECTORS
from workbench.hooks.taps.linear.registry import MIXERS
from workbench.planning.rankings.registry import RANKINGS
from workbench.planning.task_abilities import TaskAbility
from workbench.planning.tasks_it_can_do import DefaultTasks
from workbench.planning.verdict_over_length import verdict_work
from workbench.probes import copy_needle
from workbench.probes.registry import PROBES

ROOT = Path(__file__).parent.parent
# Packages of which a block is left out where they are not installed.
_EXTRAS = ("lm_eval",)
DOCUMENTS = sorted(p.relative_to(ROOT).as_posix() for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"```python\n(.*?)```", re.S)


@dataclass(frozen=True)
class Case:
    """What a document's blocks need: texts that are replaced, and code that runs before the first block.

    `checkpoint` names the fixture that gives the model.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    before: str = ""
    checkpoint: str = "checkpoint"


_MODEL = """
import workbench as wb
m = wb.open_model("path/to/checkpoint")
"""
_RUN = """
import workbench as wb
run = wb.open_run("runs/pythia-160m")
"""
_CASES = {
    "README.md": Case(
        {"window=256": "window=8", "rows=512, prefill=8192": "rows=16, prefill=32"},
        before=_MODEL + "bridge = wb.open_model('path/to/checkpoint').bridge",
    ),
    "docs/conversion.md": Case(
        {
            "quick_study()": "replace(STUDY, trained='main', is_from_scratch=False, early=())",
            "window=12": "window=6",
            "seeds=3, workers=2": "seeds=1, workers=1",
            "seeds=3": "seeds=1",
            "60 steps at 0.3 of the peak rates": "2 steps at 0.3 of the peak rates",
        },
        before="from tests.experiments.small import STUDY",
    ),
    "docs/emergence.md": Case(
        {"step1000": "checkpoint-641", "k=20": "k=4"},
        before=_MODEL + "needles = wb.probes.copy_needle(m, [16], length=48)",
        checkpoint="checkpoint_of_the_run",
    ),
    "docs/jobs.md": Case({'{"dtype": "bfloat16", "rows": 512}': '{"dtype": "float32", "rows": "all"}'}),
    "docs/kernels.md": Case(
        {"tokens=4096": "tokens=64"},
        before="""
            import json
            from pathlib import Path
            Path("MiniMax-Text-01").mkdir()
            config = {"model_type": "minimax", "num_hidden_layers": 4, "num_attention_heads": 8}
            Path("MiniMax-Text-01/config.json").write_text(json.dumps(config))
        """,
    ),
    "docs/patterns.md": Case(
        {
            "runs/pythia-160m": "runs/patterns",
            "5, 1": "1, 1",
            "step=1000, ": "",
            "slice(4000, 4512), slice(0, 512)": "slice(8, 16), slice(0, 8)",
            'kind="linear"': 'kind="full"',
        },
        before="""
            import workbench as wb
            wb.scan("path/to", "runs/patterns", ["induction"], ["repeats:n=16"], keep="qk")
        """,
        checkpoint="trained_checkpoint",  # which has induction heads
    ),
    "docs/planning.md": Case(
        {
            "window=1024": "window=8",
            "window=256": "window=8",
            "window=128": "window=8",
            "SparseAttention(block=16, n_blocks=8,": "SparseAttention(block=4, n_blocks=3,",
            "keep=0.25, unit": "keep=0.5, unit",
        },
        before=_MODEL + "probe = wb.probes.copy_needle(m, [16], length=48)\nprompt = probe.tokens[:1]",
    ),
    "docs/pretraining.md": Case(
        {
            'python_sources(), Path("runs/code/corpus")': 'python_sources()[:40], Path("runs/code/corpus"), SMALL',
            'text_recipe("hybrid", corpus.digest)': 'text_recipe("hybrid", corpus.digest, **SHORT)',
        },
        before="""
            from workbench.pretrain import Shape
            from workbench.pretrain.corpus import CorpusSettings
            SMALL = CorpusSettings("python", vocabulary=300, max_bytes=60_000)
            SHORT = {"shape": Shape(n_layers=2, d_model=32, n_heads=2, d_head=16, d_ff=32, window=8, vocabulary=300)}
            SHORT["steps"] = 2
        """,
    ),
    "docs/probes.md": Case(
        {"length=16384": "length=256", "length=1024": "length=128", "16384": "256"},
        before="import torch\nids = torch.arange(40, 400)",
    ),
    "docs/recipes.md": Case(
        before="""
            import re
            from pathlib import Path
            from tests.planning.plans import plan_of
            from tests.test_doc_blocks import ROOT
            m = __import__("workbench").open_model("path/to/checkpoint")
            plan_of(m.layers, [(0, 0)], window=8).save("plan.json")
            Path("tasks").mkdir()
            written = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
            for name, kind in (("colours.yaml", "yaml"), ("rows.jsonl", "json")):
                Path("tasks", name).write_text(re.search(f"```{kind}.(.*?)```", written, re.S)[1])
        """,
    ),
    "docs/transformerlens.md": Case(before="import torch\ntokens = torch.randint(40, 400, (1, 24))"),
}


def blocks(document):
    return BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))


def test_documents_have_blocks():
    assert sum(len(blocks(document)) for document in DOCUMENTS) >= 15


def save_llama(path, *, n_layers, n_kv_heads):
    """A Llama of layers of four heads, saved with a byte-pair tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1500,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=n_kv_heads,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    bpe_model("bytes").tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("documented") / "checkpoint", n_layers=2, n_kv_heads=2)


@pytest.fixture
def checkpoint_of_the_run(tmp_path):
    """A model with the heads of the run in examples/."""
    return save_llama(tmp_path / "of_the_run" / "checkpoint", n_layers=4, n_kv_heads=4)


@pytest.fixture
def trained_checkpoint(demo):
    """The last checkpoint of the quick demo's full model."""
    return max((demo / "checkpoints" / "full").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))


@pytest.fixture
def registries():
    """What a document registers is gone after it."""
    doors = (DETECTORS, MIXERS, PAGES, PROBES, RANKINGS)
    names = [set(door.all()) for door in doors]
    yield
    for door, before in zip(doors, names, strict=True):
        for name in set(door.all()) - before:
            door.remove(name)


@pytest.fixture
def able(monkeypatch):
    """An untrained model can do no task that a plan is judged on. Here it counts as able, and the tasks are small."""

    def needles(m, *_, seed, **__):
        ranked_on, held_out = (copy_needle(m, [40], length=64, n_sequences=5, seed=seed + i) for i in range(2))
        return DefaultTasks(ranked_on, (held_out,), ())

    def short(m, window, *_, **settings):
        return verdict_work(m, window, [64], ["copy_needle:distance=40"], **settings)

    monkeypatch.setattr(TaskAbility, "verdict", "does")
    monkeypatch.setattr("workbench.planning.evaluation_tasks.tasks_of_text", needles)
    for module in ("planner", "verdict_over_length"):
        monkeypatch.setattr(f"workbench.planning.{module}.verdict_work", short)


@pytest.mark.usefixtures("registries", "able")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d)])
def test_the_python_blocks_of_a_document_run(document, request, tmp_path, monkeypatch):
    case = _CASES.get(document, Case())
    checkpoint = request.getfixturevalue(case.checkpoint)
    shutil.copytree(ROOT / "examples" / "python_source" / "full", tmp_path / "runs" / "pythia-160m")
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "checkpoint").symlink_to(checkpoint)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "documented"}
    exec(compile(textwrap.dedent(case.before), f"before {document}", "exec"), namespace)
    for number, block in enumerate(blocks(document)):
        if any(name in block and find_spec(name) is None for name in _EXTRAS):
            continue
        for old, new in case.replaced.items():
            block = block.replace(old, new)
        exec(compile(block, f"{document} block {number}", "exec"), namespace)
