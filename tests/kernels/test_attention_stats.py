"""The statistics kernels, interpreted, and the row-blocked torch form against the float64 definitions."""

import pytest
import torch

from workbench.kernels.dialect import HAS_TRITON
from workbench.kernels.intervals import intervals
from workbench.kernels.softmax import profile_blockwise, profiles, triton_launch
from workbench.kernels.softmax.profiles import ProfileRequest

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
FORMS = {
    "triton": pytest.param(triton_launch, id="triton", marks=needs_triton),
    "torch": pytest.param(profile_blockwise, id="torch"),
}


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
    return dict(
        q=normal(b, n_heads, n_q, d, size=1.5),
        k=normal(b, n_kv, n_k, d, size=1.5),
        v=normal(b, n_kv, n_k, spec.get("d_v", d)),
        seen=intervals(
            n_q,
            n_k,
            causal=spec.get("causal", True),
            window=spec.get("window"),
            documents=documents,
            cu_seqlens=cu_seqlens,
        ),
        request=ProfileRequest(
            entropy=True,
            top=True,
            distance=True,
            windows=LADDER,
            query_tags=tokens[:, n_k - n_q :],
            key_tags=tokens.roll(1, -1),
        ),
        options=dict(
            scale=d**-0.5,
            softcap=spec.get("softcap"),
            sinks=1 + 2 * torch.randn(n_heads, generator=generator) if spec.get("sinks") else None,
        ),
    )


def run(form, p):
    return form.attention_profile(p["q"], p["k"], p["v"], p["seen"], p["request"], **p["options"])


def rms(found, exact):
    return float((found.double() - exact).norm() / exact.norm().clamp_min(1e-30))


def assert_top_is_likely(found, exact, p, slack):
    pattern = profiles._pattern(p["q"], p["k"], p["seen"], **p["options"])[0]
    mass = pattern.gather(-1, found.top_key.long().clamp_min(0)[..., None])[..., 0]
    assert (mass >= exact.top_mass - slack).all()


@pytest.mark.parametrize("form", FORMS.values())
@pytest.mark.parametrize("case", CASES)
def test_float32_statistics_equal_their_definitions(case, form, generator, poisoned):
    p = problem(case, generator)
    found, exact = run(form, p), run(profiles, p)
    for name in ("out", "lse", "entropy", "top_mass", "mean_distance", "beyond", "tag_mass", "sink_mass"):
        if getattr(exact, name) is not None:
            assert rms(getattr(found, name), getattr(exact, name)) <= 2e-6, name
    assert_top_is_likely(found, exact, p, 1e-6)


@pytest.mark.parametrize("form", FORMS.values())
@pytest.mark.parametrize("case", ["group of four, odd length", "window and sinks", "softcap"])
def test_bfloat16_inputs_give_float32_statistics(case, form, generator, poisoned):
    p = problem(case, generator, torch.bfloat16)
    found, exact = run(form, p), run(profiles, p)
    assert found.out.dtype == torch.bfloat16
    assert rms(found.out, exact.out) <= 5e-3
    for name in ("lse", "entropy", "top_mass", "mean_distance"):
        assert getattr(found, name).dtype == torch.float32
        assert rms(getattr(found, name), getattr(exact, name)) <= 2e-6, name
    for name in ("beyond", "tag_mass"):
        assert (getattr(found, name).double() - getattr(exact, name)).abs().max() <= 1e-3, name
    assert_top_is_likely(found, exact, p, 1e-3)


@pytest.mark.parametrize("form", FORMS.values())
@pytest.mark.parametrize(
    "case", ["causal", "prefix", "window and sinks", "softcap", "not causal", "packed", "one token"]
)
def test_column_sums_equal_their_definition(case, form, generator, poisoned):
    p = problem(case, generator)
    exact = profiles.column_sums(p["q"], p["k"], p["seen"], **p["options"])
    lse = run(profiles, p).lse.float()
    options = {x: p["options"][x] for x in ("scale", "softcap")}
    found = form.column_sums(p["q"], p["k"], lse, p["seen"], **options)
    assert rms(found, exact) <= 2e-6


@pytest.mark.parametrize("form", FORMS.values())
def test_what_is_not_asked_for_is_absent_and_changes_nothing(form, generator, poisoned):
    p = problem("window and sinks", generator)
    everything = run(form, p)
    plain = form.attention_profile(p["q"], p["k"], p["v"], p["seen"], ProfileRequest(), **p["options"])
    assert torch.equal(plain.lse, everything.lse)
    torch.testing.assert_close(plain.out, everything.out)
    assert plain.entropy is plain.top_key is plain.mean_distance is plain.beyond is plain.tag_mass is None
    scores_only = form.attention_profile(p["q"], p["k"], None, p["seen"], p["request"], **p["options"])
    assert scores_only.out is None
    torch.testing.assert_close(scores_only.entropy, everything.entropy)


@pytest.mark.parametrize("n_keys", [127, 128, 129, 191, 192, 300])
def test_arg_maxima_of_long_rows_are_the_first_of_the_highest(n_keys, generator):
    q = torch.ones(1, 1, n_keys, 1)
    k = torch.randint(0, 40, (1, 1, n_keys, 1), generator=generator).float()
    seen, asked = intervals(n_keys, n_keys), ProfileRequest(top=True)
    found = profile_blockwise.attention_profile(q, k, None, seen, asked, scale=1.0)
    exact = profiles.attention_profile(q, k, None, seen, asked, scale=1.0)
    first_highest = [int(k[0, 0, : i + 1, 0].argmax()) for i in range(n_keys)]
    assert found.top_key[0, 0].tolist() == first_highest
    assert rms(found.top_mass, exact.top_mass) <= 2e-6


def test_rows_past_every_key_see_nothing(generator):
    q, k = (torch.randn(1, 1, 40, 16, generator=generator) for _ in range(2))
    seen = intervals(40, 40)
    blind = type(seen)(seen.position, torch.full_like(seen.low, 40), seen.high)
    found = profile_blockwise.attention_profile(q, k, k, blind, ProfileRequest(entropy=True), scale=1.0)
    assert torch.isneginf(found.lse).all()
    assert (found.out == 0).all()


@pytest.mark.parametrize("form", FORMS.values())
def test_rows_that_see_nothing_have_no_mass_and_no_nan(form, generator, poisoned):
    q, k, v = (torch.randn(1, 2, 40, 32, generator=generator) for _ in range(3))
    seen = intervals(40, 40)
    blind = type(seen)(seen.position, seen.low.clamp_min(35), seen.high)
    request = ProfileRequest(entropy=True, top=True, distance=True, windows=(2,))
    found = form.attention_profile(q, k, v, blind, request, scale=1.0)
    assert torch.isneginf(found.lse[..., :35]).all()
    assert (found.top_key[..., :35] == -1).all()
    for x in (found.out, found.entropy, found.top_mass, found.mean_distance, found.beyond):
        assert (x[:, :, :35] == 0).all()
        assert torch.isfinite(x).all()


@needs_triton
def test_a_second_launch_gives_the_same_bits(generator, poisoned):
    p = problem("window", generator)
    one, two = run(triton_launch, p), run(triton_launch, p)
    for name in ("out", "lse", "entropy", "top_key", "mean_distance", "beyond", "tag_mass"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name


@pytest.mark.parametrize("form", FORMS.values())
def test_mean_distance_keeps_its_digits_far_from_zero(form, generator, poisoned):
    q, k = torch.randn(1, 1, 3, 32, generator=generator), torch.randn(1, 1, 70, 32, generator=generator)
    seen = intervals(3, 70)
    far = type(seen)(seen.position + 2**20, seen.low, seen.high)
    found = form.attention_profile(q, k, None, far, ProfileRequest(distance=True), scale=0.2)
    exact = profiles.attention_profile(q, k, None, far, ProfileRequest(distance=True), scale=0.2)
    near = profiles.attention_profile(q, k, None, seen, ProfileRequest(distance=True), scale=0.2)
    assert rms(found.mean_distance, exact.mean_distance) <= 2e-6
    assert torch.allclose(exact.mean_distance - near.mean_distance, torch.tensor(2.0**20, dtype=torch.float64))
