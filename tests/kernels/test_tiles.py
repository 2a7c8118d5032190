"""Tiles: how small ones may get does not show in the result, and a layer that does not fit at all is refused."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workbench.heads import WorkbenchError
from workbench.kernels import CausalMask, DecayRows, Far, Request, SoftmaxLayer
from workbench.kernels.key_intervals import intervals
from workbench.kernels.linear import signed_rows
from workbench.kernels.softmax.blockwise import blockwise_column_sums, blockwise_profile, blockwise_statistics
from workbench.kernels.softmax.differentiable_attention import attention_gradients
from workbench.kernels.softmax.reference import reference_statistics
from workbench.kernels.tiles import cut

EVERYTHING = Request(entropy=True, distance=True, far=Far(30, sink=3))


def exhausted_cpu():
    torch.empty(1 << 50)  # what PyTorch's allocator really says


def exhausted_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def broken():
    raise RuntimeError("CUDA error: device-side assert triggered")


class LittleMemory(TorchDispatchMode):
    """Every new tensor of more than `limit` bytes fails to be allocated."""

    def __init__(self, limit, fail):
        super().__init__()
        self.limit, self.fail, self.failures = limit, fail, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        handed = tree_leaves((args, kwargs))  # out= is no new tensor either
        given = {x.untyped_storage().data_ptr() for x in handed if isinstance(x, torch.Tensor)}
        found = function(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if not isinstance(x, torch.Tensor) or x.untyped_storage().data_ptr() in given:
                continue
            if x.untyped_storage().nbytes() > self.limit:
                self.failures += 1
                self.fail()
        return found


def attention_inputs(mask=None):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 301, 8, generator=generator) for heads in (4, 2, 2))
    return SoftmaxLayer(q, k, CausalMask(301) if mask is None else mask, scale=0.35), v


def statistics():
    layer, v = attention_inputs()
    out, found = blockwise_statistics(layer, v, EVERYTHING)
    return out, found.lse, found.mass, found.entropy, found.mean_distance, found.far_mass


def test_threads_that_share_a_request_get_the_numbers_of_one_alone():
    request = replace(EVERYTHING)
    layers = [attention_inputs(CausalMask(301, window=window)) for window in (3, 40, 301, 120)]
    alone = [blockwise_statistics(*layer, replace(EVERYTHING))[1].entropy for layer in layers]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda layer: blockwise_statistics(*layer, request)[1].entropy, 5 * layers))
    assert all(torch.equal(a, b) for a, b in zip(together, 5 * alone, strict=True))


def exact_statistics():
    layer, v = attention_inputs()
    out, exact = reference_statistics(layer, v, EVERYTHING)
    return out, exact.lse, exact.mass, exact.entropy, exact.mean_distance, exact.far_mass


def implied_rows():
    layer, _ = attention_inputs()
    found = signed_rows.signed_statistics(
        DecayRows(layer.q, layer.k.repeat_interleave(2, 1), -torch.rand(1, 4, 301) / 9), EVERYTHING
    )
    return found.lse, found.mass, found.entropy, found.mean_distance, found.far_mass


def profile():
    request = Request(entropy=True, top=True, distance=True, windows=(1, 30))
    found = blockwise_profile(*attention_inputs(intervals(301, 301)), request)
    return found.out, found.lse, found.entropy, found.top_mass, found.mean_distance, found.beyond


def column_sums():
    layer, _ = attention_inputs(intervals(301, 301))
    return (blockwise_column_sums(layer, torch.ones(2, 4, 301)),)


def gradients():
    layer, v = attention_inputs(intervals(301, 301))
    lse = torch.full((2, 4, 301), 6.0)
    return attention_gradients(layer, v, out=layer.q, lse=lse, d_out=layer.q, d_lse=lse)


@pytest.mark.parametrize("fail", [exhausted_cpu, exhausted_gpu])
@pytest.mark.parametrize("compute", [statistics, implied_rows, profile, column_sums, gradients])
def test_running_out_of_memory_does_not_change_the_result(compute, fail):
    torch.manual_seed(1)
    at_ease = compute()
    torch.manual_seed(1)
    with LittleMemory(200_000, fail) as memory:
        pressed = compute()
    assert memory.failures >= 2
    for a, b in zip(pressed, at_ease, strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm()


def test_what_is_computed_in_little_memory_equals_the_reference():
    with LittleMemory(200_000, exhausted_cpu) as memory:
        pressed = statistics()
    assert memory.failures
    for a, exact in zip(pressed, exact_statistics(), strict=True):
        assert (a - exact).norm() <= 2e-6 * exact.norm()


def test_a_layer_that_does_not_fit_row_by_row_is_refused_with_the_next_step():
    layer, v = attention_inputs()
    message = r"301 rows over 301 keys of 4 heads, 2 sequences.*rows=.*DefaultCPUAllocator"
    with pytest.raises(WorkbenchError, match=message), LittleMemory(4000, exhausted_cpu) as memory:
        blockwise_statistics(layer, v, Request())
    assert memory.failures > 2


def test_another_error_is_not_mistaken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="device-side assert"), LittleMemory(200_000, broken) as memory:
        statistics()
    assert memory.failures == 1


@pytest.mark.parametrize("tile_bytes", [1, 5000, 1 << 16, 1 << 20, 1 << 30])
@pytest.mark.parametrize("shape", [(3, 2, 4), (1, 8, 1), (40, 1, 2)])
def test_tiles_cover_a_layer_once_and_fit_where_a_row_fits(shape, tile_bytes):
    n_rows, n_keys = 70, 100
    found = cut(shape, n_rows=n_rows, n_keys=n_keys, tile_bytes=tile_bytes)
    for runs, n in ((found.batches, shape[0]), (found.kv_heads, shape[1]), (found.spans, n_rows)):
        assert [i for run in runs for i in range(run.start, run.stop)] == list(range(n))
    assert 4 * found.largest <= max(tile_bytes, 4 * shape[2] * n_keys)
    assert len(found.spans) == 1 or all(run.stop - run.start == 1 for run in found.batches)
