"""Triton kernels of linear attention with a decay per head or token: S_t = exp(g_t) S_{t−1} + k_t v_tᵀ, o_t = q_t S_t.

Tokens are cut into segments and segments into chunks. `segment_state` sums each segment on its own, a scan over the few
segments follows on the host, and `segment_rows` then runs all segments side by side with the state in registers.
The backward pass is the same kernel three times: dq reads (do, v, k), and dk and dv read (v, do, q) and (k, q, do)
with time reversed. Each call computes its own orientation of the score matrix, so no product is ever transposed.

Bytes per token and head: k and v read twice, q once, out written once. State and accumulators are float32 whatever the
inputs. Only non-positive exponents occur, so no decay overflows. Intermediate factors of later products have the
inputs' type, or, if WIDE, TF32.
"""
# pyright: basic
# (The kernels' language is Triton, whose values have no Python types.)

from __future__ import annotations

from typing import no_type_check

from workbench.kernels.dialect import jit, tl


@jit
@no_type_check
def _log_decay(G, g_base, stride_gt, t, is_token, n, C: tl.constexpr, PER_TOKEN: tl.constexpr):
    """log2 of the decay from a chunk's start through each token, from after it to the end, and over the chunk.

    The middle one is summed by itself: as a difference of the others it would lose what they have in common.
    """
    c = tl.arange(0, C)
    if PER_TOKEN:
        g = tl.load(G + g_base + t * stride_gt, mask=is_token, other=0.0).to(tl.float32) * 1.4426950408889634
        is_followed = c + 1 < n
        after = tl.load(G + g_base + (t + 1) * stride_gt, mask=is_followed, other=0.0).to(tl.float32)
        through = tl.cumsum(g, 0)
        to_end = tl.cumsum(after * 1.4426950408889634, 0, reverse=True)
        whole = tl.sum(g, 0)
    else:
        g = tl.load(G + g_base).to(tl.float32) * 1.4426950408889634
        through = g * (c + 1).to(tl.float32)
        to_end = g * tl.maximum(n - 1 - c, 0).to(tl.float32)
        whole = g * n.to(tl.float32)
    return through, to_end, whole


@jit
@no_type_check
def segment_state(
    K, V, G, SEGMENTS, STATES,
    stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt, stride_gb, stride_gh, stride_gt, update_scale,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    PER_TOKEN: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What each segment adds to the state, from zero. Grid: segments, value blocks, heads.

    REVERSE: what it adds to the state's gradient, Σ exp(decay through i) k_i v_iᵀ, carried to the segment's start.
    """
    segment = tl.program_id(0)
    h = tl.program_id(2).to(tl.int64)
    b = tl.load(SEGMENTS + segment * 3).to(tl.int64)
    t0 = tl.load(SEGMENTS + segment * 3 + 1)
    t1 = tl.load(SEGMENTS + segment * 3 + 2)
    d = tl.arange(0, DP)
    dv = tl.program_id(1) * BV + tl.arange(0, BV)
    c = tl.arange(0, C)
    k_base = b * stride_kb + h * stride_kh
    v_base = b * stride_vb + h * stride_vh
    g_base = b * stride_gb + h * stride_gh
    state = tl.zeros([DP, BV], tl.float32)
    factor = tl.float32 if WIDE else V.dtype.element_ty
    n_chunks = (t1 - t0 + C - 1) // C
    for x in tl.range(0, n_chunks):
        s = t0 + (n_chunks - 1 - x) * C if REVERSE else t0 + x * C
        t = s + c
        first = s.to(tl.int64)  # offsets in a chunk fit 32 bits, which halves the registers they take
        n = tl.minimum(t1 - s, C)
        is_token = c < n
        k_at = K + (k_base + first * stride_kt) + (c[None, :] * stride_kt + d[:, None])
        v_at = V + (v_base + first * stride_vt) + (c[:, None] * stride_vt + dv[None, :])
        k_t = tl.load(k_at, mask=is_token[None, :] & (d < D)[:, None], other=0.0)
        v = tl.load(v_at, mask=is_token[:, None] & (dv < DV)[None, :], other=0.0)
        through, to_end, whole = _log_decay(G, g_base, stride_gt, t, is_token, n, C, PER_TOKEN)
        to_edge = through if REVERSE else to_end
        weight = tl.where(is_token, tl.math.exp2(to_edge), 0.0) * update_scale
        weighted = (k_t.to(tl.float32) * weight[None, :]).to(factor)
        update = tl.dot(weighted, v.to(factor), input_precision=PRECISION)
        state = state * tl.math.exp2(whole) + update
    state_at = STATES + ((segment.to(tl.int64) * tl.num_programs(2) + h) * D + d[:, None]) * DV + dv[None, :]
    tl.store(state_at, state, mask=(d < D)[:, None] & (dv < DV)[None, :])


@jit
@no_type_check
def segment_rows(
    Q, K, V, G, SEGMENTS, STATES, OUT,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_gb, stride_gh, stride_gt, stride_ob, stride_oh, stride_ot, stride_sd, stride_sv,
    scale, state_scale, update_scale,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    PER_TOKEN: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of every token, given the state at its segment's start (its end, if REVERSE). Grid as `segment_state`.

    Row i is scale · Σ_j decay(i, j) (q_i · k_j) v_j over the segment plus state_scale · decay(i, edge) q_i · state.
    """
    segment = tl.program_id(0)
    h = tl.program_id(2).to(tl.int64)
    b = tl.load(SEGMENTS + segment * 3).to(tl.int64)
    t0 = tl.load(SEGMENTS + segment * 3 + 1)
    t1 = tl.load(SEGMENTS + segment * 3 + 2)
    d = tl.arange(0, DP)
    dv = tl.program_id(1) * BV + tl.arange(0, BV)
    c = tl.arange(0, C)
    q_base = b * stride_qb + h * stride_qh
    k_base = b * stride_kb + h * stride_kh
    v_base = b * stride_vb + h * stride_vh
    g_base = b * stride_gb + h * stride_gh
    o_base = b * stride_ob + h * stride_oh
    state_base = (segment.to(tl.int64) * tl.num_programs(2) + h) * D * DV
    state_at = STATES + state_base + d[:, None] * stride_sd + dv[None, :] * stride_sv
    state = tl.load(state_at, mask=(d < D)[:, None] & (dv < DV)[None, :], other=0.0)
    is_before = c[:, None] <= c[None, :] if REVERSE else c[:, None] >= c[None, :]
    factor = tl.float32 if WIDE else V.dtype.element_ty
    n_chunks = (t1 - t0 + C - 1) // C
    for x in tl.range(0, n_chunks):
        s = t0 + (n_chunks - 1 - x) * C if REVERSE else t0 + x * C
        t = s + c
        first = s.to(tl.int64)  # offsets in a chunk fit 32 bits, which halves the registers they take
        n = tl.minimum(t1 - s, C)
        is_token = c < n
        q_at = Q + (q_base + first * stride_qt) + (c[:, None] * stride_qt + d[None, :])
        k_at = K + (k_base + first * stride_kt) + (c[None, :] * stride_kt + d[:, None])
        v_at = V + (v_base + first * stride_vt) + (c[:, None] * stride_vt + dv[None, :])
        q = tl.load(q_at, mask=is_token[:, None] & (d < D)[None, :], other=0.0)
        k_t = tl.load(k_at, mask=is_token[None, :] & (d < D)[:, None], other=0.0)
        v = tl.load(v_at, mask=is_token[:, None] & (dv < DV)[None, :], other=0.0)
        through, to_end, whole = _log_decay(G, g_base, stride_gt, t, is_token, n, C, PER_TOKEN)
        from_edge = to_end if REVERSE else through
        to_edge = through if REVERSE else to_end
        apart = from_edge[:, None] - from_edge[None, :]
        decay = tl.where(is_before, tl.math.exp2(tl.minimum(apart, 0.0)), 0.0)
        rows = tl.dot(q, k_t, input_precision=PRECISION) * (decay * scale)
        inter = tl.dot(q.to(factor), state.to(factor), input_precision=PRECISION)
        inter = inter * (tl.math.exp2(from_edge) * state_scale)[:, None]
        out = tl.dot(rows.to(factor), v.to(factor), inter, input_precision=PRECISION)
        out_at = OUT + (o_base + first * stride_ot) + (c[:, None] * stride_ot + dv[None, :])
        tl.store(out_at, out.to(OUT.dtype.element_ty), mask=is_token[:, None] & (dv < DV)[None, :])
        weight = tl.where(is_token, tl.math.exp2(to_edge), 0.0) * update_scale
        weighted = (k_t.to(tl.float32) * weight[None, :]).to(factor)
        update = tl.dot(weighted, v.to(factor), input_precision=PRECISION)
        state = state * tl.math.exp2(whole) + update


@jit
@no_type_check
def recurrent_step(
    Q, K, V, G, STATE, OUT, NEW_STATE, stride_gb, scale,
    HEADS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """One token: new state and its row. Grid: sequences · heads, value blocks. All tensors contiguous."""
    bh = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, DP)
    dv = tl.program_id(1) * BV + tl.arange(0, BV)
    is_d = d < D
    is_dv = dv < DV
    g = tl.load(G + (bh // HEADS) * stride_gb + bh % HEADS).to(tl.float32)
    q = tl.load(Q + bh * D + d, mask=is_d, other=0.0).to(tl.float32)
    k = tl.load(K + bh * D + d, mask=is_d, other=0.0).to(tl.float32)
    v = tl.load(V + bh * DV + dv, mask=is_dv, other=0.0).to(tl.float32)
    at = (bh * D + d[:, None]) * DV + dv[None, :]
    both = is_d[:, None] & is_dv[None, :]
    state = tl.load(STATE + at, mask=both, other=0.0) * tl.math.exp2(g * 1.4426950408889634)
    state = state + k[:, None] * v[None, :]
    tl.store(NEW_STATE + at, state, mask=both)
    out = tl.sum(q[:, None] * state, 0) * scale
    tl.store(OUT + bh * DV + dv, out.to(OUT.dtype.element_ty), mask=is_dv)
