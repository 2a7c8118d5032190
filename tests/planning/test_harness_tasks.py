"""Tasks of the evaluation harness on a model and under a plan, side by side on the same documents."""

from __future__ import annotations

import importlib.util
import json
import math

import pytest
import torch

from tests.families import tiny
from tests.loading.word_tokenizers import word_tokenizer
from tests.planning.plans import plan_of
from workbench import open_model
from workbench.heads import WorkbenchError
from workbench.planning import HarnessSettings, evaluate_tasks, harness_tasks, table_of_tasks

TASK = """task: colours
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""
RIGHT = [[1, 1, 1, 0, 1], [1, 0, 1, 0, 0]]


def outcome(values):
    """What the harness returns, with these values of its documents."""
    mean = sum(values) / len(values)
    return {
        "results": {"t": {"alias": "t", "acc,none": mean, "acc_stderr,none": 0.2, "perplexity,none": 3.5}},
        "samples": {"t": [{"doc_id": i, "filter": "none", "acc": float(x)} for i, x in enumerate(values)]},
        "n-samples": {"t": {"original": 9, "effective": len(values)}},
        "higher_is_better": {"t": {"acc": True}},
    }


@pytest.fixture
def m():
    return open_model(tiny("llama"), tokenizer=word_tokenizer())


def test_differences_are_of_the_same_documents(m, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    runs = iter(map(outcome, RIGHT))
    monkeypatch.setattr(harness_tasks, "_run", lambda *_: next(runs))
    scores = evaluate_tasks(m, ["t"], plan_of(m.layers, [(0, 0)]))
    accuracy, perplexity = scores
    assert (accuracy.full, accuracy.planned, accuracy.n) == (0.8, 0.4, 5)
    assert accuracy.difference == pytest.approx(-0.4)
    differences = torch.tensor(RIGHT[1]) - torch.tensor(RIGHT[0])
    assert accuracy.difference_stderr == pytest.approx(float(differences.double().std() / 5**0.5))
    assert accuracy.higher_is_better is True
    assert (perplexity.full, perplexity.difference) == (3.5, 0)  # of which no document has a share
    assert math.isnan(perplexity.difference_stderr)
    assert list(table_of_tasks(scores).metric) == ["acc", "perplexity"]


def test_what_is_missing_is_named(m, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(WorkbenchError, match=r"pip install \"attention-workbench\[eval\]\""):
        evaluate_tasks(m, ["t"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    with pytest.raises(WorkbenchError, match="no tokenizer"):
        evaluate_tasks(open_model(tiny("llama")), ["t"])
    with pytest.raises(WorkbenchError, match="no task was named"):
        evaluate_tasks(m, [])


@pytest.mark.filterwarnings("ignore")  # of the harness and what it imports
def test_the_harness_itself_evaluates_both_on_a_task_of_ones_own(m, monkeypatch, tmp_path):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    words = sorted(word for word in m.tokenizer.get_vocab() if word.startswith("w"))[:4]
    rows = [{"text": " ".join(words * 4), "choices": words[:2], "gold": i % 2} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "colours.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"))
    settings = HarnessSettings(include_path=tmp_path, only_included=True)
    (score,) = evaluate_tasks(m, ["colours"], plan_of(m.layers, [(0, 0)], window=3), settings)
    assert (score.task, score.metric, score.n, score.full) == ("colours", "acc", 4, 0.5)
    assert score.planned == 0.5
    with pytest.raises(WorkbenchError, match="no task 'nowhere'"):
        evaluate_tasks(m, ["nowhere"], None, settings)
