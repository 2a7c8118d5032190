"""What is handed to a kernel on another device is moved there whole."""

import torch

from tests.kernels.on_device import moved, on_device
from workbench.kernels.key_intervals import intervals
from workbench.kernels.linear.delta import DeltaOutput
from workbench.kernels.softmax.softmax_tiles import SoftmaxLayer
from workbench.kernels.softmax.statistics_request import Request


def test_tensors_of_layers_requests_and_results_are_moved_and_the_rest_stays():
    q = torch.zeros(1, 1, 4, 16)
    layer = moved(SoftmaxLayer(q, q, intervals(4, 4), 0.25), "meta")
    assert {layer.q.device.type, layer.k.device.type, layer.mask.low.device.type} == {"meta"}
    assert layer.scale == 0.25
    request = moved(Request(windows=(1, 4), query_tags=torch.zeros(1, 4, dtype=torch.int32)), "meta")
    assert request.windows == (1, 4)
    assert request.query_tags.device.type == "meta"
    output = moved({"result": [DeltaOutput(q, q)]}, "meta")["result"][0]
    assert isinstance(output, DeltaOutput)
    assert output.state.device.type == "meta"


def test_without_a_device_the_function_is_itself():
    assert on_device(moved) is moved
