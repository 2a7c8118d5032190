"""Profiles and column sums, by the interpreted kernels and row-blocked in torch, against the float64 definitions."""

from dataclasses import replace

import pytest
import torch

from tests.kernels.on_device import on_device
from workbench.kernels.dialect import HAS_TRITON
from workbench.kernels.key_intervals import intervals
from workbench.kernels.softmax.blockwise import blockwise_column_sums, blockwise_profile
from workbench.kernels.softmax.reference import reference_column_sums, reference_pattern, reference_profile
from workbench.kernels.softmax.softmax_tiles import SoftmaxLayer
from workbench.kernels.softmax.statistics_request import Request
from workbench.kernels.softmax.triton_launch import triton_column_sums, triton_profile

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed on this platform")
LADDER = (1, 4, 8, 33, 64, 100)
CASES = {
    "causal": dict(heads=(2, 2), n=(64, 64), d=32),
    "group of four, odd length": dict(heads=(4, 1), n=(71, 71), d=64),
    "prefix": dict(heads=(2, 1), n=(37, 101), d=64),
    "window": dict(heads=(2, 1), n=(120, 120), d=32, window=24),
    "window and sinks": dict(heads=(2, 1), n=(75, 75), d=32, window=24, sinks=True),
    "sinks": dict(heads=(2, 1), n=(70, 70), d=64, sinks=True),
    "softcap": dict(heads=(2, 1), n=(75, 75), d=64, softcap=50.0),
    "not causal": dict(heads=(2, 2), n=(40, 70), d=32, causal=False),
    "wide heads": dict(heads=(2, 1), n=(75, 75), d=128),
    "width of no power of two": dict(heads=(2, 1), n=(45, 45), d=24, d_v=40),
    "packed": dict(heads=(2, 2), b=1, n=(111, 111), d=32, cu_seqlens=[0, 5, 40, 41, 104, 111]),
    "packed documents with a window": dict(heads=(2, 1), n=(90, 90), d=32, documents=True, window=17),
    "packed after a prefix": dict(heads=(2, 1), n=(60, 90), d=32, documents=True),
    "one token": dict(heads=(2, 1), n=(1, 1), d=32),
}
PROFILES = [
    pytest.param(on_device(triton_profile), id="triton", marks=needs_triton),
    pytest.param(blockwise_profile, id="torch"),
]
COLUMN_SUMS = [
    pytest.param(on_device(triton_column_sums), id="triton", marks=needs_triton),
    pytest.param(blockwise_column_sums, id="torch"),
]


def problem(case, generator, dtype=torch.float32):
    spec = CASES[case]
    (n_heads, n_kv), (n_q, n_k), d = spec["heads"], spec["n"], spec["d"]
    b = spec.get("b", 2 if n_k < 72 else 1)

    def normal(*shape, size=1.0):
        return (size * torch.randn(*shape, generator=generator)).to(dtype)

    documents = None
    if spec.get("documents"):
        documents = (torch.rand(b, n_k, generator=generator) < 0.07).cumsum(-1)
    cu_seqlens = torch.tensor(spec["cu_seqlens"]) if "cu_seqlens" in spec else None
    tokens = torch.randint(0, 12, (b, n_k), generator=generator, dtype=torch.int32)
    q, k = normal(b, n_heads, n_q, d, size=1.5), normal(b, n_kv, n_k, d, size=1.5)
    v = normal(b, n_kv, n_k, spec.get("d_v", d))
    seen = intervals(
        n_q, n_k, causal=spec.get("causal", True), window=spec.get("window"), documents=documents, cu_seqlens=cu_seqlens
    )
    sinks = 1 + 2 * torch.randn(n_heads, generator=generator) if spec.get("sinks") else None
    return dict(
        layer=SoftmaxLayer(q, k, seen, d**-0.5, spec.get("softcap"), sinks),
        v=v,
        request=Request(
            entropy=True,
            top=True,
            distance=True,
            windows=LADDER,
            query_tags=tokens[:, n_k - n_q :],
            key_tags=tokens.roll(1, -1),
        ),
    )


def run(profile_of, p):
    return profile_of(p["layer"], p["v"], p["request"])


def rms(found, exact):
    return float((found.double() - exact).norm() / exact.norm().clamp_min(1e-30))


def assert_top_is_likely(found, exact, p, slack):
    pattern = reference_pattern(p["layer"])[0]
    mass = pattern.gather(-1, found.top_key.long().clamp_min(0)[..., None])[..., 0]
    assert (mass >= exact.top_mass - slack).all()


@pytest.mark.parametrize("profile_of", PROFILES)
@pytest.mark.parametrize("case", CASES)
def test_float32_statistics_equal_their_definitions(case, profile_of, generator, poisoned):
    p = problem(case, generator)
    found, exact = run(profile_of, p), run(reference_profile, p)
    for name in ("out", "lse", "entropy", "top_mass", "mean_distance", "beyond", "tag_mass", "sink_mass"):
        if getattr(exact, name) is not None:
            assert rms(getattr(found, name), getattr(exact, name)) <= 2e-6, name
    assert_top_is_likely(found, exact, p, 1e-6)


@pytest.mark.parametrize("profile_of", PROFILES)
@pytest.mark.parametrize("case", ["group of four, odd length", "window and sinks", "softcap"])
def test_bfloat16_inputs_give_float32_statistics(case, profile_of, generator, poisoned):
    p = problem(case, generator, torch.bfloat16)
    found, exact = run(profile_of, p), run(reference_profile, p)
    assert found.out.dtype == torch.bfloat16
    assert rms(found.out, exact.out) <= 5e-3
    for name in ("lse", "entropy", "top_mass", "mean_distance"):
        assert getattr(found, name).dtype == torch.float32
        assert rms(getattr(found, name), getattr(exact, name)) <= 2e-6, name
    for name in ("beyond", "tag_mass"):
        assert (getattr(found, name).double() - getattr(exact, name)).abs().max() <= 1e-3, name
    assert_top_is_likely(found, exact, p, 1e-3)


@pytest.mark.parametrize("column_sums_of", COLUMN_SUMS)
@pytest.mark.parametrize(
    "case", ["causal", "prefix", "window and sinks", "softcap", "not causal", "packed", "one token"]
)
def test_column_sums_equal_their_definition(case, column_sums_of, generator, poisoned):
    p = problem(case, generator)
    exact = reference_column_sums(p["layer"])
    lse = run(reference_profile, p).lse.float()
    found = column_sums_of(p["layer"], lse)
    assert rms(found, exact) <= 2e-6


@pytest.mark.parametrize("profile_of", PROFILES)
def test_what_is_not_asked_for_is_absent_and_changes_nothing(profile_of, generator, poisoned):
    p = problem("window and sinks", generator)
    everything = run(profile_of, p)
    plain = profile_of(p["layer"], p["v"], Request())
    assert torch.equal(plain.lse, everything.lse)
    torch.testing.assert_close(plain.out, everything.out)
    assert plain.entropy is plain.top_key is plain.mean_distance is plain.beyond is plain.tag_mass is None
    scores_only = profile_of(p["layer"], None, p["request"])
    assert scores_only.out is None
    torch.testing.assert_close(scores_only.entropy, everything.entropy)


@pytest.mark.parametrize("n_keys", [127, 128, 129, 191, 192, 300])
def test_arg_maxima_of_long_rows_are_the_first_of_the_highest(n_keys, generator):
    q = torch.ones(1, 1, n_keys, 1)
    k = torch.randint(0, 40, (1, 1, n_keys, 1), generator=generator).float()
    layer, request = SoftmaxLayer(q, k, intervals(n_keys, n_keys), scale=1.0), Request(top=True)
    found = blockwise_profile(layer, None, request)
    exact = reference_profile(layer, None, request)
    first_highest = [int(k[0, 0, : i + 1, 0].argmax()) for i in range(n_keys)]
    assert found.top_key[0, 0].tolist() == first_highest
    assert rms(found.top_mass, exact.top_mass) <= 2e-6


def test_rows_past_every_key_see_nothing(generator):
    q, k = (torch.randn(1, 1, 40, 16, generator=generator) for _ in range(2))
    seen = intervals(40, 40)
    blind = type(seen)(seen.position, torch.full_like(seen.low, 40), seen.high)
    found = blockwise_profile(SoftmaxLayer(q, k, blind, scale=1.0), k, Request(entropy=True))
    assert torch.isneginf(found.lse).all()
    assert (found.out == 0).all()


@pytest.mark.parametrize("profile_of", PROFILES)
def test_rows_that_see_nothing_have_no_mass_and_no_nan(profile_of, generator, poisoned):
    q, k, v = (torch.randn(1, 2, 40, 32, generator=generator) for _ in range(3))
    seen = intervals(40, 40)
    blind = type(seen)(seen.position, seen.low.clamp_min(35), seen.high)
    request = Request(entropy=True, top=True, distance=True, windows=(2,))
    found = profile_of(SoftmaxLayer(q, k, blind, scale=1.0), v, request)
    assert torch.isneginf(found.lse[..., :35]).all()
    assert (found.top_key[..., :35] == -1).all()
    for x in (found.out, found.entropy, found.top_mass, found.mean_distance, found.beyond):
        assert (x[:, :, :35] == 0).all()
        assert torch.isfinite(x).all()


@needs_triton
def test_a_second_launch_gives_the_same_bits(generator, poisoned):
    p = problem("window", generator)
    one, two = (run(on_device(triton_profile), p) for _ in range(2))
    for name in ("out", "lse", "entropy", "top_key", "mean_distance", "beyond", "tag_mass"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name


@pytest.mark.parametrize("profile_of", PROFILES)
def test_mean_distance_keeps_its_digits_far_from_zero(profile_of, generator, poisoned):
    q, k = torch.randn(1, 1, 3, 32, generator=generator), torch.randn(1, 1, 70, 32, generator=generator)
    seen = intervals(3, 70)
    near_layer, request = SoftmaxLayer(q, k, seen, scale=0.2), Request(distance=True)
    far_layer = replace(near_layer, mask=type(seen)(seen.position + 2**20, seen.low, seen.high))
    found = profile_of(far_layer, None, request)
    exact = reference_profile(far_layer, None, request)
    near = reference_profile(near_layer, None, request)
    assert rms(found.mean_distance, exact.mean_distance) <= 2e-6
    assert torch.allclose(exact.mean_distance - near.mean_distance, torch.tensor(2.0**20, dtype=torch.float64))
