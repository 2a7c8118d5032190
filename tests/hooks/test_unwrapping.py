"""What holds a model in memory is opened where it computes exactly what the plain model does, else refused by name."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaForTokenClassification
from transformers.pipelines.text_generation import TextGenerationPipeline

import workbench as wb
from tests.families import tiny
from workbench.hooks import open_model

TOKENS = torch.arange(3, 20)


def class_of(package, name, base=nn.Module, **members):
    """A class as a package that is not installed has it."""
    return type(name, (base,), {"__module__": f"{package}.somewhere", **members})


def holding(package, name, attribute, model, base=nn.Module):
    holder = class_of(package, name, base)()
    setattr(holder, attribute, model)
    return holder


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def plain(model):
    return open_model(model)


class OfPeft(nn.Module):
    """As PEFT wraps a model: adapters inside of it, and for prompts a forward of its own."""

    def __init__(self, base, *, prompts=0, is_prompt_learning=False):
        super().__init__()
        self.base_model, self.prompts = base, prompts
        kind = type("Kind", (), {"value": "LORA"})
        self.active_peft_config = type("C", (), {"peft_type": kind, "is_prompt_learning": is_prompt_learning})

    def get_base_model(self):
        return self.base_model

    def forward(self, input_ids, **options):
        lead = input_ids.new_zeros(len(input_ids), self.prompts)
        out = self.base_model(input_ids=torch.cat([lead, input_ids], 1), **options)
        out.logits = out.logits[:, self.prompts :]
        return out


def of_peft(base, **options):
    return class_of("peft", "PeftModel", OfPeft)(base, **options)


WRAPPERS = {
    "torch.compile": lambda m: torch.compile(m, backend="eager"),
    "DataParallel": nn.DataParallel,
    "DataParallel of torch.compile": lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
    "AveragedModel": lambda m: torch.optim.swa_utils.AveragedModel(m),
    "DeepSpeed": lambda m: holding("deepspeed", "DeepSpeedEngine", "module", m),
    "PEFT": of_peft,
    "compiled PEFT": lambda m: torch.compile(of_peft(m), backend="eager"),
    "nnsight, as it was": lambda m: holding("nnsight", "LanguageModel", "_model", m, base=object),
    "nnsight": lambda m: holding("nnsight", "LanguageModel", "_module", m, base=object),
    "nnterp": lambda m: holding("nnterp", "StandardizedTransformer", "_module", m, base=object),
    "an opened model": open_model,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_model_inside_is_recorded_and_changed_as_the_plain_one(model, plain, wrapper):
    m = open_model(WRAPPERS[wrapper](model))
    assert torch.equal(m.pattern(TOKENS, 1, 3), plain.pattern(TOKENS, 1, 3))
    with plain.ablate([wb.Head(0, 1)]):
        ablated = plain.pattern(TOKENS, 1, 3)
    with m.ablate([wb.Head(0, 1)]):
        assert torch.equal(m.pattern(TOKENS, 1, 3), ablated)


@pytest.mark.parametrize("wrapper", ["torch.compile", "PEFT"])
def test_the_wrapper_itself_is_left_as_it_was(model, wrapper):
    wrapped = WRAPPERS[wrapper](model).train()
    open_model(wrapped)
    assert wrapped.training
    model.eval()


def test_a_pipeline_brings_its_tokenizer(model, plain):
    words = object.__new__(TextGenerationPipeline)
    words.model, words.tokenizer = model, "its tokenizer"
    m = open_model(words)
    assert m.tokenizer == "its tokenizer"
    assert torch.equal(m.pattern(TOKENS, 1, 3), plain.pattern(TOKENS, 1, 3))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT uses names that transformers gives up
def test_lora_of_peft_is_recorded_with_its_adapters(model):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        copy.deepcopy(model), peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    merged = open_model(adapted).pattern(TOKENS, 1, 3)
    assert not torch.allclose(merged, open_model(model).pattern(TOKENS, 1, 3))
    assert torch.allclose(merged, open_model(adapted.merge_and_unload()).pattern(TOKENS, 1, 3), atol=1e-6)


@pytest.mark.parametrize("options", [{"prompts": 2}, {"is_prompt_learning": True}])
def test_adapters_that_add_tokens_are_refused(model, options):
    with pytest.raises(
        wb.WorkbenchError, match=r"PeftModel \(LORA\) does not compute what the LlamaForCausalLM inside"
    ):
        open_model(of_peft(model, **options))


def test_a_model_without_numbers_is_refused(model):
    with torch.device("meta"):
        empty = LlamaForCausalLM(model.config)
    with pytest.raises(
        wb.WorkbenchError, match=r"23 tensors of this LlamaForCausalLM are on the meta device .*from_pre"
    ):
        open_model(empty)
    with pytest.raises(wb.WorkbenchError, match="dispatch=True"):
        open_model(holding("nnsight", "LanguageModel", "_model", empty, base=object))


def test_an_offloaded_model_is_refused_with_the_way_out(model):
    accelerate = pytest.importorskip("accelerate")
    offloaded = accelerate.cpu_offload(LlamaForCausalLM(model.config), execution_device="cpu")
    with pytest.raises(wb.WorkbenchError, match=r"accelerate has offloaded 21 tensors .* without offloading"):
        open_model(offloaded)


def test_sharded_weights_are_refused(model):
    sharded = LlamaForCausalLM(model.config)
    sharded.lm_head.weight.ds_shape = (1, 1)
    with pytest.raises(wb.WorkbenchError, match="1 tensors of this LlamaForCausalLM are sharded over processes"):
        open_model(sharded)


class Trained(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.policy = nn.ModuleDict({"lm": model})


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda m: Trained(m), r"cannot record a Trained; .* It holds a LlamaForCausalLM: pass its \.policy\.lm"),
        (lambda m: nn.Linear(2, 2), "cannot record a Linear"),
        (lambda m: class_of("transformer_lens", "HookedTransformer")(), "TransformerBridge.boot_transformers"),
        (lambda m: class_of("torch", "FullyShardedDataParallel")(), "sharded over processes"),
        (lambda m: class_of("nnsight", "LanguageModel", object)(), "dispatch=True"),
        (lambda m: LlamaForSequenceClassification(m.config), r"gives logits of shape \(1, 2\) for 3 tokens"),
        (lambda m: LlamaForTokenClassification(m.config), r"gives logits of shape \(1, 3, 2\) for 3 tokens"),
        (lambda m: LlamaForCausalLM, "cannot open the class LlamaForCausalLM"),
        (lambda m: LlamaConfig(), "cannot open a LlamaConfig"),
        (lambda m: None, "cannot open a NoneType"),
        (lambda m: 3, "cannot open a int"),
        (lambda m: m.state_dict(), "cannot open a OrderedDict"),
        (lambda m: b"path", "cannot open a bytes"),
    ],
)
def test_what_is_no_such_model_is_called_what_it_is(model, made, message):
    with pytest.raises(wb.WorkbenchError, match=message):
        open_model(made(model))


@pytest.mark.parametrize("wrapper", ["PEFT", "torch.compile", "nnsight", "an opened model"])
def test_a_model_in_memory_keeps_its_dtype_however_it_is_wrapped(model, wrapper):
    with pytest.raises(wb.WorkbenchError, match="keeps its own"):
        open_model(WRAPPERS[wrapper](model), dtype=torch.float16)


def test_a_path_like_object_and_a_cached_id_are_paths(model, plain, tmp_path, monkeypatch):
    folder = tmp_path / "hub" / "models--org--name" / "snapshots" / "c0ffee1"
    model.save_pretrained(folder)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    class Somewhere(os.PathLike):
        def __fspath__(self):
            return str(folder)

    for source in (Somewhere(), "org/name"):
        m = open_model(source, "cpu")
        assert torch.equal(m.pattern(TOKENS, 1, 3), plain.pattern(TOKENS, 1, 3))
    assert repr(m).startswith("HookedModel(name: 2 layers")


def test_every_wrapper_is_scored_as_it_is(model):
    scores = [wb.score(m, ["sink"], TOKENS).score.tolist() for m in (model, nn.DataParallel(model))]
    assert scores[0] == scores[1]
