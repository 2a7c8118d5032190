"""Patterns for synthetic runs: random causal attention with one planted link, and a token that is HTML."""

from __future__ import annotations

import numpy as np

from workbench.store import MapArrays, Store
from workbench.store.part_files import part_files, read_label

N, FAR = 96, 16
PLANTED = (81, 7)
PLANTED_HEAD = (1, 2)
HTML = "<script>document.title = 'hacked'</script>"


def patterns(n_layers=3, n_heads=4, *, n=N, signed_layer=None):
    """Attention of all heads, rows summing to 1; PLANTED_HEAD looks at the planted key with 0.9."""
    rng = np.random.default_rng(0)
    made = np.tril(rng.gamma(0.3, size=(n_layers * n_heads, n, n))) + 1e-6 * np.tril(np.ones((n, n)))
    made /= made.sum(-1, keepdims=True)
    head = PLANTED_HEAD[0] * n_heads + PLANTED_HEAD[1]
    made[head] *= 0.1
    made[head][np.arange(n), np.arange(n)] += 0.9
    row, key = PLANTED
    made[head, row] = 0
    made[head, row, [key, row]] = 0.95, 0.05
    if signed_layer is not None:
        of_layer = slice(signed_layer * n_heads, (signed_layer + 1) * n_heads)
        made[of_layer] *= rng.choice([-3, 3], size=made[of_layer].shape)
    return made


def arrays(made, n_heads=4, *, signed_layer=None, pieces=True):
    """`made` as a scan would keep it, in blocks of 2 tokens; the planted head finer."""
    n_all, n, _ = made.shape
    layer = np.arange(n_all) // n_heads
    half = made.reshape(n_all, n // 2, 2, n // 2, 2).transpose(0, 1, 3, 2, 4).reshape(n_all, n // 2, n // 2, 4)
    peak = np.take_along_axis(half, np.abs(half).argmax(-1)[..., None], -1)[..., 0]
    distance = np.arange(n)[:, None] - np.arange(n)
    far = np.abs(made) * (distance >= FAR)
    far[..., 0] = 0
    rows = np.argsort(-far.max(-1))[:, :16]
    keys = np.take_along_axis(far.argmax(-1), rows, -1)
    distances = (0, *(1 << i for i in range((n - 1).bit_length())))
    share = np.abs(made) / np.abs(made).sum(-1, keepdims=True)
    planted = PLANTED_HEAD[0] * n_heads + PLANTED_HEAD[1]
    words = [f" w{i}" for i in range(n)]
    words[3] = HTML
    return MapArrays(
        ids=np.arange(n),
        pieces=tuple(words) if pieces else None,
        layers=tuple(
            {"layer": int(i), "kind": "linear" if i == signed_layer else "full", "mixer": "softmax", "window": None,
             "n_heads": n_heads}
            for i in range(layer[-1] + 1)
        ),
        layer=layer,
        head=np.arange(n_all) % n_heads,
        is_signed=layer == (-1 if signed_layer is None else signed_layer),
        block=2,
        far=FAR,
        distances=distances,
        peak=peak,
        beyond=np.stack([(share * (distance >= d))[:, :, 1:].sum(-1).mean(-1) for d in distances], -1),
        sink=share[..., 0].mean(-1),
        links=np.stack([rows, keys], -1),
        link_value=np.take_along_axis(np.take_along_axis(made, rows[..., None], 1), keys[..., None], 2)[..., 0],
        fine={planted: {1: made[planted]}},
        qk={},
    )  # fmt: skip


def add_patterns(run, made, *, probe="repeats", last=1, **options):
    """Put patterns beside the scores of a synthetic run's last checkpoints."""
    store = Store.open(run)
    origins = {}
    for path in part_files(store.path, "scores"):
        label = read_label(store.path, path).label
        origins[label.ckpt] = label.origin
    for i, origin in enumerate(list(origins.values())[-last:]):
        store.commit_maps(origin, f"{i:032x}", arrays(made, **options), probe=probe, probe_digest="d")
    return run
