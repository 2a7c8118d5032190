"""Triton kernels of softmax attention's statistics: one pass for output and row statistics, and two small ones.

`profile_forward` takes a block of query rows against its keys with the online softmax. Entropy, arg-max, mean distance,
tag mass and whole-tile far mass cost one to three vector operations per score each. `window_edges` adds the far mass of
the tiles that a window's edge cuts: a loop over them inside the first kernel would switch its load pipeline off.
`column_sums` takes the rows of a block of keys instead and reads the denominators back. Under a selection,
`profile_forward` goes through a list of the tiles of keys that its rows select from, and a bit per row and block of
keys says who sees whom in them; see `workbench.kernels.selected_tiles`.

Bytes per token: q, k, v read once per block of the other side from L2, out and 4 bytes per statistic and head written.
Of a selection: k and v of the tiles that a block of rows selects from, and a bit per row and block of keys in them.
Accumulators are float32. No atomics, no dynamic inner loop: a second run gives the same bits. Tested to 2e-6 relative
of the float64 definitions in the interpreter on float32; bfloat16 inputs to 5e-3 on the output.
"""
# pyright: basic
# ruff: noqa: RET505, SIM108
# (The language is Triton: its values have no Python types, and only whole branches are dropped at compile time.)

from __future__ import annotations

from typing import no_type_check

from workbench.kernels.dialect import jit, tl


@jit
@no_type_check
def capped(scores, scale, softcap, HAS_CAP: tl.constexpr):
    """Scores in units of ln 2, after scale and soft cap; tanh by exp2, and by its series near 0, where that cancels."""
    if HAS_CAP:
        x = scores * (scale / softcap)
        y = x * x
        series = x * (
            1.0 + y * (-1.0 / 3 + y * (2.0 / 15 + y * (-17.0 / 315 + y * (62.0 / 2835 - y * 1382.0 / 155925))))
        )
        tanh = 1.0 - 2.0 / (tl.math.exp2(x * 2.8853900817779268) + 1.0)
        return tl.where(y < 0.1, series, tanh) * (softcap * 1.4426950408889634)
    else:
        return scores * (scale * 1.4426950408889634)


@jit
@no_type_check
def selects(words, j0, j, BN: tl.constexpr, BLOCK: tl.constexpr):
    """Which keys j of a tile each row selects, from a bit per block of keys, 32 to a word; `words`: of each row."""
    if (32 * BLOCK) % BN == 0:  # the tile lies in one word
        word = tl.load(words + j0 // (32 * BLOCK))[:, None]
    else:
        word = tl.load(words[:, None] + (j // (32 * BLOCK))[None, :])
    return ((word >> ((j // BLOCK) % 32)[None, :]) & 1) != 0


@jit
@no_type_check
def _over_keys(
    q, K, V, k_base, v_base, stride_kt, stride_vt, position, low, high, query_tag, KEY_TAG, edges,
    acc, m, l, plogp, distance, top, beyond, tagged,
    scale, softcap, first, last, reach, words, TILES,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, BN: tl.constexpr, STEP: tl.constexpr,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
    HAS_CAP: tl.constexpr, N_EDGES: tl.constexpr, HAS_TAGS: tl.constexpr, ENTROPY: tl.constexpr, TOP: tl.constexpr,
    DISTANCE: tl.constexpr, HAS_OUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The tiles of keys first..last, step BN; MASKED where some rows do not see some keys. No key is at `reach` or on.

    With a BLOCK, first..last number the tiles in the list TILES, and STEP is 1.
    """
    d = tl.arange(0, DP)
    dv = tl.arange(0, DVP)
    column = tl.arange(0, BN)
    number = column.to(tl.float32)  # arg-max and distance share it: a second copy as integers would spill
    nearest = tl.min(position, 0) - (BN - 1)
    for n in tl.range(first, last, STEP):
        if BLOCK > 0:
            j0 = tl.load(TILES + n) * BN
        else:
            j0 = n
        j = j0 + column
        tile = tl.cast(j0, tl.int64)  # offsets in a tile fit 32 bits, which halves the registers they take
        k_at = K + (k_base + tile * stride_kt) + (d[:, None] + column[None, :] * stride_kt)
        v_at = V + (v_base + tile * stride_vt) + (column[:, None] * stride_vt + dv[None, :])
        if MASKED:
            in_reach = j < reach
            k_t = tl.load(k_at, mask=in_reach[None, :] & (d < D)[:, None], other=0.0)
        elif D < DP:
            k_t = tl.load(k_at, mask=(d < D)[:, None], other=0.0)
        else:
            k_t = tl.load(k_at)
        s = capped(tl.dot(q, k_t, input_precision=PRECISION), scale, softcap, HAS_CAP)
        if MASKED:
            seen = (j[None, :] >= low[:, None]) & (j[None, :] < high[:, None])
            if BLOCK > 0:
                seen = seen & selects(words, j0, j, BN, BLOCK)
            s = tl.where(seen, s, -1.0e30)
        tile_max = tl.max(s, 1)
        m_new = tl.maximum(m, tile_max)
        if TOP:
            at = tl.min(tl.where(s == tile_max[:, None], number[None, :], 1.0e9), 1)
            top = tl.where(tile_max > m, j0 + at.to(tl.int32), top)
        s = s - m_new[:, None]
        p = tl.math.exp2(s)
        if MASKED:
            p = tl.where(seen, p, 0.0)
        alpha = tl.math.exp2(m - m_new)
        mass = tl.sum(p, 1)
        if ENTROPY:  # Σ p (s − m): relative to the running maximum, or large scores would cancel against the lse
            plogp = alpha * (plogp + (m - m_new) * l) + tl.sum(p * s, 1)
        l = l * alpha + mass
        if DISTANCE:  # relative to the tile: i·Σp − Σp·j would lose 1e-7·T tokens
            ahead = (position - j0).to(tl.float32)
            distance = distance * alpha + mass * ahead - tl.sum(p * number[None, :], 1)
        if N_EDGES > 0:
            whole = nearest - j0 >= edges
            beyond = beyond * alpha[:, None] + tl.where(whole[None, :], mass[:, None], 0.0)
        if HAS_TAGS:
            if MASKED:
                key_tag = tl.load(KEY_TAG + j, mask=in_reach, other=0)
            else:
                key_tag = tl.load(KEY_TAG + j)
            tagged = tagged * alpha + tl.sum(tl.where(query_tag[:, None] == key_tag[None, :], p, 0.0), 1)
        if HAS_OUT:
            if MASKED:
                v = tl.load(v_at, mask=in_reach[:, None] & (dv < DV)[None, :], other=0.0)
            elif DV < DVP:
                v = tl.load(v_at, mask=(dv < DV)[None, :], other=0.0)
            else:
                v = tl.load(v_at)
            acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
        m = m_new
    return acc, m, l, plogp, distance, top, beyond, tagged


@jit
@no_type_check
def _over_runs(
    q, K, V, k_base, v_base, stride_kt, stride_vt, position, low, high, query_tag, KEY_TAG, edges,
    acc, m, l, plogp, distance, top, beyond, tagged, scale, softcap, NO_TILES,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, BN: tl.constexpr, HAS_LOW: tl.constexpr,
    HAS_CAP: tl.constexpr, N_EDGES: tl.constexpr, HAS_TAGS: tl.constexpr, ENTROPY: tl.constexpr, TOP: tl.constexpr,
    DISTANCE: tl.constexpr, HAS_OUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All keys from low to high: the tiles at both ends with a mask, those between without."""
    end = tl.max(high, 0)
    last_tile = (tl.maximum(end, 0) + BN - 1) // BN * BN
    start = 0
    full_start = 0
    if HAS_LOW:
        start = tl.maximum(tl.min(low, 0), 0) // BN * BN
        full_start = (tl.maximum(tl.max(low, 0), 0) + BN - 1) // BN * BN
        full_start = tl.maximum(start, tl.minimum(full_start, last_tile))
    full_end = tl.maximum(tl.maximum(tl.min(high, 0), 0) // BN * BN, full_start)
    if HAS_LOW:
        first_end = tl.minimum(full_start, end)
        acc, m, l, plogp, distance, top, beyond, tagged = _over_keys(
            q, K, V, k_base, v_base, stride_kt, stride_vt, position, low, high, query_tag, KEY_TAG, edges,
            acc, m, l, plogp, distance, top, beyond, tagged, scale, softcap, start, first_end, first_end, low, NO_TILES,
            D, DV, DP, DVP, BN, BN, True, 0, HAS_CAP, N_EDGES, HAS_TAGS, ENTROPY, TOP, DISTANCE, HAS_OUT, PRECISION,
        )  # fmt: skip
    acc, m, l, plogp, distance, top, beyond, tagged = _over_keys(
        q, K, V, k_base, v_base, stride_kt, stride_vt, position, low, high, query_tag, KEY_TAG, edges,
        acc, m, l, plogp, distance, top, beyond, tagged, scale, softcap, full_start, full_end, full_end, low, NO_TILES,
        D, DV, DP, DVP, BN, BN, False, 0, HAS_CAP, N_EDGES, HAS_TAGS, ENTROPY, TOP, DISTANCE, HAS_OUT, PRECISION,
    )  # fmt: skip
    acc, m, l, plogp, distance, top, beyond, tagged = _over_keys(
        q, K, V, k_base, v_base, stride_kt, stride_vt, position, low, high, query_tag, KEY_TAG, edges,
        acc, m, l, plogp, distance, top, beyond, tagged, scale, softcap, full_end, end, end, low, NO_TILES,
        D, DV, DP, DVP, BN, BN, True, 0, HAS_CAP, N_EDGES, HAS_TAGS, ENTROPY, TOP, DISTANCE, HAS_OUT, PRECISION,
    )  # fmt: skip
    return acc, m, l, plogp, distance, top, beyond, tagged


@jit
@no_type_check
def profile_forward(
    Q, K, V, POSITION, LOW, HIGH, WORDS, TILES, N_TILES, SINKS, EDGES, QUERY_TAG, KEY_TAG,
    OUT, LSE, ENTROPY_OUT, TOP_KEY, TOP_MASS, DISTANCE_OUT, BEYOND, TAG_MASS,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_low, stride_query_tag, stride_key_tag, n_words, n_listed, n_queries, scale, softcap,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, HAS_LOW: tl.constexpr, HAS_SINK: tl.constexpr, HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr, N_EDGES: tl.constexpr, HAS_TAGS: tl.constexpr, ENTROPY: tl.constexpr, TOP: tl.constexpr,
    DISTANCE: tl.constexpr, HAS_OUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output and statistics of BM rows of one head. Grid: row blocks (longest rows first), sequences · heads.

    BLOCK: keys in a block of those that rows select; 0 without a selection.
    """
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    b = (tl.program_id(1) // HEADS).to(tl.int64)
    h = (tl.program_id(1) % HEADS).to(tl.int64)
    row = block * BM + tl.arange(0, BM)
    is_row = row < n_queries
    at = tl.minimum(row, n_queries - 1)
    position = tl.load(POSITION + at)
    low = tl.load(LOW + b * stride_low + at)
    high = tl.load(HIGH + b * stride_low + at)
    d = tl.arange(0, DP)
    dv = tl.arange(0, DVP)
    q_at = Q + b * stride_qb + h * stride_qh + row[:, None].to(tl.int64) * stride_qt + d[None, :]
    q = tl.load(q_at, mask=is_row[:, None] & (d < D)[None, :], other=0.0)
    k_base = b * stride_kb + (h // GROUP) * stride_kh
    v_base = b * stride_vb + (h // GROUP) * stride_vh
    PAD: tl.constexpr = N_EDGES if N_EDGES > 0 else 1
    edges = tl.load(EDGES + tl.arange(0, PAD)) if N_EDGES > 0 else tl.arange(0, PAD)
    query_tag = tl.load(QUERY_TAG + b * stride_query_tag + at) if HAS_TAGS else at
    tags = KEY_TAG + b * stride_key_tag
    m = tl.full([BM], -1.0e30, tl.float32)
    l = tl.zeros([BM], tl.float32)
    plogp = tl.zeros([BM], tl.float32)
    distance = tl.zeros([BM], tl.float32)
    tagged = tl.zeros([BM], tl.float32)
    top = tl.full([BM], -1, tl.int32)
    beyond = tl.zeros([BM, PAD], tl.float32)
    acc = tl.zeros([BM, DVP], tl.float32)

    if BLOCK > 0:
        words = WORDS + (b * n_queries + at) * n_words
        of_rows = b * tl.num_programs(0) + block
        acc, m, l, plogp, distance, top, beyond, tagged = _over_keys(
            q, K, V, k_base, v_base, stride_kt, stride_vt, position, low, high, query_tag, tags, edges,
            acc, m, l, plogp, distance, top, beyond, tagged, scale, softcap,
            0, tl.load(N_TILES + of_rows), tl.max(high, 0), words, TILES + of_rows * n_listed,
            D, DV, DP, DVP, BN, 1, True, BLOCK, HAS_CAP, N_EDGES, HAS_TAGS, ENTROPY, TOP, DISTANCE, HAS_OUT, PRECISION,
        )  # fmt: skip
    else:
        acc, m, l, plogp, distance, top, beyond, tagged = _over_runs(
            q, K, V, k_base, v_base, stride_kt, stride_vt, position, low, high, query_tag, tags, edges,
            acc, m, l, plogp, distance, top, beyond, tagged, scale, softcap, TILES,
            D, DV, DP, DVP, BN, HAS_LOW, HAS_CAP, N_EDGES, HAS_TAGS, ENTROPY, TOP, DISTANCE, HAS_OUT, PRECISION,
        )  # fmt: skip

    top_p = tl.where(l > 0, 1.0, 0.0)
    if HAS_SINK:  # one more outcome of the softmax, without a key
        sink = tl.load(SINKS + h).to(tl.float32) * 1.4426950408889634
        m_new = tl.maximum(m, sink)
        alpha = tl.math.exp2(m - m_new)
        sink_p = tl.math.exp2(sink - m_new)
        plogp = alpha * (plogp + (m - m_new) * l) + sink_p * (sink - m_new)
        l = l * alpha + sink_p
        top_p = top_p * alpha
        distance = distance * alpha
        tagged = tagged * alpha
        beyond = beyond * alpha[:, None]
        acc = acc * alpha[:, None]
        m = m_new
    share = 1.0 / tl.where(l > 0, l, 1.0)
    log_l = tl.math.log2(tl.where(l > 0, l, 1.0))
    out_row = tl.program_id(1).to(tl.int64) * n_queries + row
    lse = tl.where(l > 0, (m + log_l) * 0.6931471805599453, -float("inf"))
    tl.store(LSE + out_row, lse, mask=is_row)
    if ENTROPY:
        tl.store(ENTROPY_OUT + out_row, (log_l - plogp * share) * 0.6931471805599453, mask=is_row)
    if TOP:
        tl.store(TOP_KEY + out_row, top, mask=is_row)
        tl.store(TOP_MASS + out_row, top_p * share, mask=is_row)
    if DISTANCE:
        tl.store(DISTANCE_OUT + out_row, distance * share, mask=is_row)
    if HAS_TAGS:
        tl.store(TAG_MASS + out_row, tagged * share, mask=is_row)
    if N_EDGES > 0:
        beyond_at = BEYOND + out_row[:, None] * N_EDGES + tl.arange(0, PAD)[None, :]
        tl.store(beyond_at, beyond * share[:, None], mask=is_row[:, None])
    if HAS_OUT:
        out_at = OUT + out_row[:, None] * DV + dv[None, :]
        out = acc * share[:, None]
        tl.store(out_at, out.to(OUT.dtype.element_ty), mask=is_row[:, None] & (dv < DV)[None, :])


@jit
@no_type_check
def window_edges(
    Q, K, POSITION, LOW, HIGH, WORDS, EDGES, LSE, BEYOND,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_low, n_words, n_queries, scale, softcap,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BLOCK: tl.constexpr, HAS_CAP: tl.constexpr, N_EDGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to the far mass of BM rows the tiles that one window's edge cuts. Grid: row blocks, windows, b · heads.

    BM and BN are those of `profile_forward`, which has counted the tiles that lie beyond the window as a whole.
    """
    window = tl.load(EDGES + tl.program_id(1))
    b = (tl.program_id(2) // HEADS).to(tl.int64)
    h = (tl.program_id(2) % HEADS).to(tl.int64)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    is_row = row < n_queries
    at = tl.minimum(row, n_queries - 1)
    position = tl.load(POSITION + at)
    low = tl.load(LOW + b * stride_low + at)
    high = tl.load(HIGH + b * stride_low + at)
    out_row = tl.program_id(2).to(tl.int64) * n_queries + row
    lse = tl.load(LSE + out_row, mask=is_row, other=0.0) * 1.4426950408889634
    d = tl.arange(0, DP)
    q_at = Q + b * stride_qb + h * stride_qh + row[:, None].to(tl.int64) * stride_qt + d[None, :]
    q = tl.load(q_at, mask=is_row[:, None] & (d < D)[None, :], other=0.0)
    k_base = b * stride_kb + (h // GROUP) * stride_kh
    last_whole = tl.min(position, 0) - window - (BN - 1)
    start = tl.where(last_whole >= 0, last_whole // BN * BN + BN, 0)
    start = tl.maximum(start, tl.maximum(tl.min(low, 0), 0) // BN * BN)
    end = tl.minimum(tl.max(high, 0), tl.max(position, 0) - window + 1)
    mass = tl.zeros([BM], tl.float32)
    for j0 in tl.range(start, end, BN):
        j = j0 + tl.arange(0, BN)
        k_at = K + k_base + d[:, None] + j[None, :].to(tl.int64) * stride_kt
        k_t = tl.load(k_at, mask=(j < end)[None, :] & (d < D)[:, None], other=0.0)
        s = capped(tl.dot(q, k_t, input_precision=PRECISION), scale, softcap, HAS_CAP)
        counts = (j[None, :] >= low[:, None]) & (j[None, :] < high[:, None]) & (j < end)[None, :]
        counts = counts & (position[:, None] - j[None, :] >= window)
        if BLOCK > 0:
            counts = counts & selects(WORDS + (b * n_queries + at) * n_words, j0, j, BN, BLOCK)
        mass += tl.sum(tl.where(counts, tl.math.exp2(s - lse[:, None]), 0.0), 1)
    beyond_at = BEYOND + out_row * N_EDGES + tl.program_id(1)
    tl.store(beyond_at, tl.load(beyond_at, mask=is_row, other=0.0) + mass, mask=is_row)


@jit
@no_type_check
def column_sums(
    Q, K, LOW, HIGH, FIRST_ROW, LAST_ROW, LSE, SUMS,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_low, n_queries, n_keys, scale, softcap,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Σ_i p_ij of BN keys of one head, over the rows FIRST_ROW..LAST_ROW that see any. Grid: key blocks, b · heads."""
    block = tl.program_id(0)
    b = (tl.program_id(1) // HEADS).to(tl.int64)
    h = (tl.program_id(1) % HEADS).to(tl.int64)
    j = block * BN + tl.arange(0, BN)
    is_key = j < n_keys
    d = tl.arange(0, DP)
    k_at = K + b * stride_kb + (h // GROUP) * stride_kh + j[:, None].to(tl.int64) * stride_kt + d[None, :]
    k = tl.load(k_at, mask=is_key[:, None] & (d < D)[None, :], other=0.0)
    first = tl.load(FIRST_ROW + b * tl.num_programs(0) + block) // BM * BM
    last = tl.load(LAST_ROW + b * tl.num_programs(0) + block)
    q_base = Q + b * stride_qb + h * stride_qh
    lse_base = LSE + tl.program_id(1).to(tl.int64) * n_queries
    sums = tl.zeros([BN], tl.float32)
    for i0 in tl.range(first, last, BM):
        i = i0 + tl.arange(0, BM)
        is_row = i < last
        q_at = q_base + i[None, :].to(tl.int64) * stride_qt + d[:, None]
        q_t = tl.load(q_at, mask=is_row[None, :] & (d < D)[:, None], other=0.0)
        low = tl.load(LOW + b * stride_low + i, mask=is_row, other=0)
        high = tl.load(HIGH + b * stride_low + i, mask=is_row, other=0)
        lse = tl.load(lse_base + i, mask=is_row, other=0.0) * 1.4426950408889634
        s = capped(tl.dot(k, q_t, input_precision=PRECISION), scale, softcap, HAS_CAP)
        seen = (j[:, None] >= low[None, :]) & (j[:, None] < high[None, :])
        sums += tl.sum(tl.where(seen, tl.math.exp2(s - lse[None, :]), 0.0), 1)
    tl.store(SUMS + tl.program_id(1).to(tl.int64) * n_keys + j, sums, mask=is_key)
