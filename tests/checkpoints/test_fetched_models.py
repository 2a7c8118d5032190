"""A model that the cache lacks is fetched into it, after its size was said; what is not read is not fetched."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from huggingface_hub import snapshot_download

import workbench as wb
from tests.families import tiny
from tests.hub.hub_client import user_cache
from workbench.checkpoints import fetched_models, find_checkpoints
from workbench.checkpoints.fetched_models import obtain_checkpoint, obtain_configuration, plan_download
from workbench.heads import BadCheckpoint, NoCheckpoints, StoreNotWritable
from workbench.hub import BadReference, GatedModel, HubReference, NotAtHub, Unreachable
from workbench.hub.downloads import BadDownload
from workbench.loading.tokenizer_files import open_tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def repo(hub, llama):
    hub.put("org/name", "main", llama)
    hub.put("org/name", "step1", llama, is_tag=True)
    return "org/name"


def fetched(hub):
    return sorted({r.file for r in hub.gets()})


def test_a_model_is_fetched_with_its_size_said_and_opened_as_the_folder_is(repo, hub, llama, tmp_path, capsys):
    m = wb.open_model(repo)
    size = sum((llama / name).stat().st_size for name in ("config.json", "generation_config.json", "model.safetensors"))
    said = capsys.readouterr().err
    assert f"org/name@main: fetching {size / 1000:.3g} kB (3 files) from {hub.url} into {user_cache(tmp_path)}" in said
    tokens = torch.arange(9)
    assert torch.equal(m.pattern(tokens, 1, 2), wb.open_model(llama).pattern(tokens, 1, 2))
    assert m.name == "name"
    assert fetched(hub) == ["config.json", "generation_config.json", "model.safetensors"]


def test_what_is_cached_is_taken_without_a_question_and_as_hf_download_has_it(repo, hub, tmp_path, capsys):
    folder = obtain_checkpoint(repo).folder
    assert str(folder) == snapshot_download(repo, cache_dir=user_cache(tmp_path), local_files_only=True)
    hub.requests.clear()
    capsys.readouterr()
    assert obtain_checkpoint("org/name@main").folder == folder
    assert obtain_checkpoint(f"org/name@{folder.name[:8]}").folder == folder
    assert (hub.requests, capsys.readouterr().err) == ([], "")
    assert obtain_checkpoint("org/name@step1").folder.name != folder.name


def test_an_index_that_names_a_shard_which_the_hub_lacks_is_refused_before_weights_are_fetched(hub, llama):
    files = {file.name: file.read_bytes() for file in llama.iterdir() if file.suffix == ".json"}
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    hub.put("org/half", "main", {**files, "model-00001-of-00002.safetensors": b"half"})
    with pytest.raises(BadCheckpoint, match=r"org/half@main: .*names model-00002-of-00002.*, which the hub does not"):
        obtain_checkpoint("org/half")
    assert hub.gets("*.safetensors") == []


def test_an_adapter_at_a_hub_is_named_as_one_before_anything_of_it_is_fetched(hub):
    hub.put("org/adapter", "main", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"0"})
    with pytest.raises(NoCheckpoints, match=r"main: has adapter weights alone, which are not read; merge it into"):
        find_checkpoints("org/adapter")
    assert hub.gets() == []


def test_a_snapshot_without_a_shard_is_completed(hub, llama, tmp_path):
    shards = {f"model-0000{i}-of-00002.safetensors": f"weights {i}".encode() for i in (1, 2)}
    index = json.dumps({"weight_map": {str(i): name for i, name in enumerate(shards)}}).encode()
    files = {**shards, "model.safetensors.index.json": index, "config.json": (llama / "config.json").read_bytes()}
    hub.put("org/shards", "main", files)
    folder = obtain_checkpoint("org/shards").folder
    (folder / "model-00002-of-00002.safetensors").resolve().unlink()
    (folder / "model-00002-of-00002.safetensors").unlink()
    hub.requests.clear()
    assert obtain_checkpoint("org/shards").folder == folder
    assert fetched(hub) == ["model-00002-of-00002.safetensors"]


def test_weights_in_a_form_that_is_not_read_are_refused_before_they_are_fetched(hub):
    hub.put("org/pickle", "main", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    hub.put("org/flax", "main", {"config.json": b"{}", "flax_model.msgpack": b"flax"})
    hub.put("org/adapter", "main", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"lora"})
    with pytest.raises(BadCheckpoint, match=r"org/pickle@main: has no safetensors, .*nothing was fetched\. Pass --al"):
        wb.open_model("org/pickle")
    with pytest.raises(BadCheckpoint, match=r"org/flax@main: has no weights at http://\S+, there are config"):
        wb.open_model("org/flax")
    with pytest.raises(BadCheckpoint, match=r"org/adapter@main: has adapter weights alone, .*merge it into its model"):
        wb.open_model("org/adapter")
    assert hub.gets() == []
    assert plan_download(HubReference("org/pickle"), allow_pickle=True).n_bytes == 8


def test_safetensors_are_fetched_where_the_cache_has_a_pickle_alone(hub, llama):
    own = {path.name: path.read_bytes() for path in llama.iterdir()}
    hub.put("org/both", "main", {**own, "pytorch_model.bin": b"pickle"})
    snapshot_download("org/both", allow_patterns=["*.json", "*.bin"])
    assert len(wb.open_model("org/both").layers) == 2
    assert fetched(hub) == ["config.json", "generation_config.json", "model.safetensors", "pytorch_model.bin"]


def test_a_model_whose_licence_was_not_accepted_is_said_with_its_page(repo, hub, monkeypatch):
    hub.fault("gated", file="*")
    with pytest.raises(
        GatedModel, match=r"org/name@main: its licence has to be accepted.*auth login.*http://\S+/org/name"
    ):
        wb.open_model(repo)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}, "needs code of its own"),
        ({"model_type": "future"}, "unknown to transformers"),
    ],
)
def test_a_model_that_cannot_be_recorded_is_refused_before_its_weights_are_fetched(hub, config, reason):
    hub.put("org/other", "main", {"config.json": json.dumps(config).encode(), "model.safetensors": b"many bytes"})
    with pytest.raises(BadCheckpoint, match=reason):
        wb.open_model("org/other")
    assert fetched(hub) == ["config.json"]


def test_a_disk_without_room_is_said_before_the_download(repo, hub, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(fetched_models.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreNotWritable, match=r"org/name@main: \S+ kB to fetch, and \S+ has 1 kB free; make room"):
        wb.open_model(repo)
    assert hub.gets() == []


def test_a_download_with_wrong_bytes_is_refused_and_removed(repo, hub, tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.hub.downloads._PAUSES", (0.0,))
    hub.fault("wrong", file="model.safetensors")
    with pytest.raises(BadDownload, match=r"model\.safetensors has the sha256 \w+, the hub lists \w+; it was removed"):
        wb.open_model(repo)
    hub.heal()
    assert len(wb.open_model(repo).layers) == 2


def test_what_is_not_there_is_refused_with_both_places(repo):
    with pytest.raises(NotAtHub, match=r"org/nmae: .*Near: org/name\. On this disk, there is no folder org/nmae"):
        wb.open_model("org/nmae")
    with pytest.raises(BadReference, match=r"org/n\*: names several models; pass one of them"):
        wb.open_model("org/n*")
    with pytest.raises(BadCheckpoint, match=r"\./org/name: no such folder; check the path"):
        wb.open_model("./org/name")


@pytest.mark.parametrize("how", ["offline", "no network"])
def test_without_a_hub_what_is_cached_opens_and_the_rest_is_refused(repo, hub, monkeypatch, capsys, how):
    obtain_checkpoint("org/name@step1")
    monkeypatch.setenv(*(("HF_HUB_OFFLINE", "1") if how == "offline" else ("HF_ENDPOINT", "http://127.0.0.1:9")))
    assert obtain_checkpoint("org/name@step1").folder == obtain_checkpoint("org/name").folder  # the only one
    error, reason = (BadCheckpoint, "HF_HUB_OFFLINE is set") if how == "offline" else (Unreachable, "cannot be reached")
    with pytest.raises(error, match=rf"org/else: .*{reason}"):
        wb.open_model("org/else")
    with pytest.raises(error, match=r"no such revision is in the cache; \S+ holds 1 revision \(step1\)"):
        wb.open_model("org/name@step2")


def test_a_configuration_and_a_tokenizer_are_fetched_without_weights(hub, llama, tmp_path):
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
        "pre_tokenizer": {"type": "Whitespace"},
    }
    own = {path.name: path.read_bytes() for path in llama.iterdir()}
    hub.put("org/words", "main", {**own, "tokenizer.json": json.dumps(tokenizer).encode()})
    assert open_tokenizer("org/words")("b a b")["input_ids"] == [1, 0, 1]
    assert (obtain_configuration("org/words") / "config.json").read_bytes() == own["config.json"]
    assert fetched(hub) == ["config.json", "generation_config.json", "tokenizer.json"]
    hub.requests.clear()
    assert open_tokenizer("org/words")("b")["input_ids"] == [1]
    assert hub.requests == []
    with pytest.raises(NotAtHub, match=r"org/wrods: .*Near: org/words"):
        open_tokenizer("org/wrods")
    assert obtain_configuration(tmp_path) == tmp_path
