"""Triton kernels of the gated delta rule: chunks prepared side by side, then sequences walked chunk by chunk.

The writes of a chunk depend on one another: (I + L) U = β(v − k S), with L_ij = β_i exp(g_i − g_j) k_i · k_j below the
diagonal. `delta_chunks` solves for both right-hand sides by forward substitution, which stays exact where keys repeat
(a product of powers would not); `delta_rows` carries the state in float32 registers and writes the rows.
Bytes per token and head: q, v and two solved tensors read once, k twice, out and the solved tensors written once.
"""
# pyright: basic
# (The kernels' language is Triton; its values have no Python types.)

from __future__ import annotations

from typing import no_type_check

from workbench.kernels.dialect import jit, tl


@jit
@no_type_check
def delta_chunks(
    K, V, G, BETA, SEGMENTS, UPDATES, ERASED,
    stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt, n_tokens,
    HEADS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Solve one chunk: UPDATES = (I + L)⁻¹ β v and ERASED = (I + L)⁻¹ β exp(g) k. Grid: chunks, heads."""
    chunk = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    b = tl.load(SEGMENTS + chunk * 3).to(tl.int64)
    t0 = tl.load(SEGMENTS + chunk * 3 + 1)
    n = tl.load(SEGMENTS + chunk * 3 + 2) - t0
    c = tl.arange(0, C)
    d = tl.arange(0, DP)
    is_token = c < n
    first = t0.to(tl.int64)
    row_base = (b * HEADS + h) * n_tokens + first
    beta = tl.load(BETA + row_base + c, mask=is_token, other=0.0).to(tl.float32)
    g = tl.load(G + row_base + c, mask=is_token, other=0.0).to(tl.float32) * 1.4426950408889634
    through = tl.cumsum(g, 0)
    k_base = b * stride_kb + h * stride_kh + first * stride_kt
    k_mask = is_token[:, None] & (d < D)[None, :]
    k = tl.load(K + k_base + (c[:, None] * stride_kt + d[None, :]), mask=k_mask, other=0.0)
    k_t = tl.load(
        K + k_base + (c[None, :] * stride_kt + d[:, None]), mask=is_token[None, :] & (d < D)[:, None], other=0.0
    )
    apart = tl.minimum(through[:, None] - through[None, :], 0.0)
    below = c[:, None] > c[None, :]
    links = tl.dot(k, k_t, input_precision=PRECISION) * beta[:, None]
    links = tl.where(below, links * tl.math.exp2(apart), 0.0)
    solved = tl.where(c[:, None] == c[None, :], 1.0, 0.0)
    for i in range(1, C):
        link = tl.sum(tl.where(c[:, None] == i, links, 0.0), 0)
        row = tl.sum(link[:, None] * solved, 0)
        solved = tl.where(c[:, None] == i, solved - row[None, :], solved)
    weight = (beta * tl.math.exp2(through))[:, None]
    erased = tl.dot(solved, k.to(tl.float32) * weight, input_precision=PRECISION)
    erased_at = ERASED + row_base * D + (c[:, None] * D + d[None, :])
    tl.store(erased_at, erased.to(ERASED.dtype.element_ty), mask=k_mask)
    v_base = b * stride_vb + h * stride_vh + first * stride_vt
    for block in range((DV + BV - 1) // BV):
        dv = block * BV + tl.arange(0, BV)
        v_mask = is_token[:, None] & (dv < DV)[None, :]
        v = tl.load(V + v_base + (c[:, None] * stride_vt + dv[None, :]), mask=v_mask, other=0.0)
        update = tl.dot(solved, v.to(tl.float32) * beta[:, None], input_precision=PRECISION)
        out_at = UPDATES + row_base * DV + (c[:, None] * DV + dv[None, :])
        tl.store(out_at, update, mask=v_mask)


@jit
@no_type_check
def delta_rows(
    Q, K, G, UPDATES, ERASED, BOUNDS, STATE, OUT, NEW_STATE,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, n_tokens, scale,
    HEADS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Walk one sequence for BV value channels: rows and the last state. Grid: sequences, value blocks, heads."""
    sequence = tl.program_id(0)
    h = tl.program_id(2).to(tl.int64)
    b = tl.load(BOUNDS + sequence * 3).to(tl.int64)
    t0 = tl.load(BOUNDS + sequence * 3 + 1)
    t1 = tl.load(BOUNDS + sequence * 3 + 2)
    c = tl.arange(0, C)
    d = tl.arange(0, DP)
    dv = tl.program_id(1) * BV + tl.arange(0, BV)
    state_at = ((sequence.to(tl.int64) * HEADS + h) * D + d[:, None]) * DV + dv[None, :]
    state_mask = (d < D)[:, None] & (dv < DV)[None, :]
    state = tl.load(STATE + state_at, mask=state_mask, other=0.0)
    for s in tl.range(t0, t1, C):
        first = tl.cast(s, tl.int64)
        n = tl.minimum(t1 - s, C)
        is_token = c < n
        row_base = (b * HEADS + h) * n_tokens + first
        in_rows = is_token[:, None] & (d < D)[None, :]
        in_values = is_token[:, None] & (dv < DV)[None, :]
        q_base = Q + (b * stride_qb + h * stride_qh + first * stride_qt)
        q = tl.load(q_base + (c[:, None] * stride_qt + d[None, :]), mask=in_rows, other=0.0)
        k_base = K + (b * stride_kb + h * stride_kh + first * stride_kt)
        k_t = tl.load(
            k_base + (c[None, :] * stride_kt + d[:, None]), mask=is_token[None, :] & (d < D)[:, None], other=0.0
        )
        erased = tl.load(ERASED + row_base * D + (c[:, None] * D + d[None, :]), mask=in_rows, other=0.0)
        update = tl.load(UPDATES + row_base * DV + (c[:, None] * DV + dv[None, :]), mask=in_values, other=0.0)
        g = tl.load(G + row_base + c, mask=is_token, other=0.0).to(tl.float32) * 1.4426950408889634
        after = tl.load(G + row_base + c + 1, mask=c + 1 < n, other=0.0).to(tl.float32) * 1.4426950408889634
        through = tl.cumsum(g, 0)
        to_end = tl.where(is_token, tl.math.exp2(tl.cumsum(after, 0, reverse=True)), 0.0)
        whole = tl.sum(g, 0)
        narrow = state.to(q.dtype)
        update = update - tl.dot(erased, narrow, input_precision=PRECISION)
        apart = tl.minimum(through[:, None] - through[None, :], 0.0)
        between = tl.where(c[:, None] >= c[None, :], tl.math.exp2(apart), 0.0)
        rows = tl.dot(q, k_t, input_precision=PRECISION) * between
        inter = tl.dot(q, narrow, input_precision=PRECISION) * tl.math.exp2(through)[:, None]
        out = tl.dot(rows, update, inter, input_precision=PRECISION) * scale
        out_at = OUT + row_base * DV + (c[:, None] * DV + dv[None, :])
        tl.store(out_at, out.to(OUT.dtype.element_ty), mask=in_values)
        written = update * to_end[:, None]
        state = state * tl.math.exp2(whole) + tl.dot(k_t.to(tl.float32), written, input_precision=PRECISION)
    tl.store(NEW_STATE + state_at, state, mask=state_mask)
