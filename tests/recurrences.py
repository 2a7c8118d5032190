"""Linear layers token by token in float64, from a module's weights and the hidden states that go in: patterns by force.

Nothing here is shared with the code under test: projections are products with the weights, the convolution is a loop,
and the pattern is read off a state that is fed one-hot values.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F


@contextmanager
def inputs_of(model):
    """Fill a dict with layer → (module, hidden states) of every linear layer that runs inside the block."""
    seen = {}
    mixers = [m for m in model.modules() if type(m).__name__ in {*_READERS, *CONVOLUTIONS, MLSTM}]

    def note(module, args, kwargs):
        layer = getattr(module, "layer_idx", mixers.index(module))  # every layer of an xLSTM is one
        seen[layer] = (module, (args[0] if args else kwargs["hidden_states"]).detach())

    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in mixers]
    yield seen
    for handle in handles:
        handle.remove()


@torch.no_grad()
def pattern_and_values(module, hidden, mask):
    """The pattern [b, h, t, t] and the values [b, h, t, d_v] of a linear layer; `mask` is False on padding."""
    if type(module).__name__ in CONVOLUTIONS:
        patterns, v = channel_patterns_and_values(module, hidden, mask)
        return patterns.mean(1)[:, None], v[:, None]
    if type(module).__name__ == MLSTM:
        return _mlstm(module, hidden.double())
    hidden = hidden.double() * mask[:, :, None]
    q, k, v, decay, strength, erases, skip = _READERS[type(module).__name__](module, hidden, mask)
    strength = strength * mask[:, None]
    return _unrolled(q, k, decay, strength, erases, skip * mask[:, None]), v


@torch.no_grad()
def channel_patterns_and_values(module, hidden, mask):
    """The pattern [b, c, t, t] and the values [b, t, c] of every channel of a gated short convolution."""
    hidden = hidden.double() * mask[:, :, None]
    write, read, v = (hidden @ w.double().T for w in module.in_proj.weight.chunk(3))
    kernel = module.conv.weight.double()[:, 0]
    n_channels, width = kernel.shape
    b, t, _ = v.shape
    patterns = torch.zeros(b, n_channels, t, t, dtype=torch.float64)
    for i in range(t):
        for lag in range(min(width, i + 1)):
            patterns[:, :, i, i - lag] = read[:, i] * kernel[:, width - 1 - lag] * write[:, i - lag]
    return patterns, v


def _mlstm(module, x):
    """The stabilised recurrence: memory, normaliser and scale, from nothing, with one-hot values."""
    n = module.config.num_heads
    q, k, v, i_gate, f_gate = (
        _heads(_linear(getattr(module, name), x), n) for name in ("q", "k", "v", "igate_preact", "fgate_preact")
    )
    i_gate, f_gate = (15 * torch.tanh(gate[..., 0] / 15) for gate in (i_gate, f_gate))
    b, h, t, d = q.shape
    memory = torch.zeros(b, h, d, t, dtype=torch.float64)
    normaliser, scale = torch.zeros(b, h, d, dtype=torch.float64), torch.zeros(b, h, dtype=torch.float64)
    rows = []
    for s in range(t):
        kept = torch.log(torch.sigmoid(f_gate[:, :, s])) + scale
        scale = torch.maximum(kept, i_gate[:, :, s])
        forget, write = torch.exp(kept - scale)[..., None], torch.exp(i_gate[:, :, s] - scale)[..., None]
        memory, normaliser = memory * forget[..., None], normaliser * forget + write * k[:, :, s]
        memory[..., s] += write * k[:, :, s]
        query = q[:, :, s] / d**0.5
        total = (query * normaliser).sum(-1).abs()
        row = torch.einsum("bhd,bhdt->bht", query, memory)
        rows.append(row / (torch.maximum(total, torch.exp(-scale)) + module.config.eps)[..., None])
    return torch.stack(rows, 2), v


def _unrolled(q, k, decay, strength, erases, skip):
    b, h, t, d = q.shape
    state = torch.zeros(b, h, d, t, dtype=torch.float64)
    rows = []
    for i in range(t):
        state = state * decay[:, :, i, :, None]
        value = torch.zeros(b, h, t, dtype=torch.float64)
        value[..., i] = 1
        if erases:
            value = value - torch.einsum("bhd,bhdt->bht", k[:, :, i], state)
        state = state + strength[:, :, i, None, None] * k[:, :, i, :, None] * value[:, :, None]
        row = torch.einsum("bhd,bhdt->bht", q[:, :, i], state)
        row[..., i] += skip[:, :, i]
        rows.append(row)
    return torch.stack(rows, 2)


def _linear(module, x):
    out = x @ module.weight.double().T
    return out if module.bias is None else out + module.bias.double()


def _convolved(module, x):
    """Channel by channel, the last few tokens weighted, then SiLU."""
    weight = module.conv1d.weight.double()[:, 0]
    width = weight.shape[-1]
    out = torch.zeros_like(x)
    for t in range(x.shape[1]):
        for lag in range(width):
            if t - lag >= 0:
                out[:, t] += x[:, t - lag] * weight[:, width - 1 - lag]
    if module.conv1d.bias is not None:
        out = out + module.conv1d.bias.double()
    return out * torch.sigmoid(out)


def _heads(x, n):
    return x.reshape(*x.shape[:2], n, -1).transpose(1, 2)


def _grouped(x, n_heads):
    return x.repeat_interleave(n_heads // x.shape[1], 1)


def _unit(x):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def _lightning(module, x, mask):
    n, d = module.num_attention_heads, module.head_dim
    qkv = _linear(module.qkv_proj, x)
    q, k, v = _heads(qkv * torch.sigmoid(qkv), n).split(d, -1)
    exponent = torch.arange(n, dtype=torch.float64) + 1
    factor = 1 - module.layer_idx / (module.num_hidden_layers - 1 + 1e-5) + 1e-5
    decay = torch.exp(-(2.0 ** (-8 * exponent / n)) * factor)
    everywhere = torch.ones(*q.shape[:3], dtype=torch.float64)
    return q, k, v, decay[None, :, None, None].expand(*q.shape[:3], 1), everywhere, False, 0 * everywhere


def _delta(module, q, k, v, a, b, beta_range=1):
    """From projections [b, t, c] and [b, t, h], before the convolution."""
    n, n_k = module.num_v_heads, module.num_k_heads
    mixed = _convolved(module, torch.cat([q, k, v], -1))
    q, k, v = mixed.split([module.key_dim, module.key_dim, module.value_dim], -1)
    q, k = (_grouped(_unit(_heads(x, n_k)), n) for x in (q, k))
    decay = torch.exp(-torch.exp(module.A_log.double()) * F.softplus(a + module.dt_bias.double()))
    strength = beta_range * torch.sigmoid(b).transpose(1, 2)
    q = q / module.head_k_dim**0.5
    return q, k, _heads(v, n), decay.transpose(1, 2)[..., None], strength, True, 0 * strength


def _qwen3_next(module, x, mask):
    n_k, d_k = module.num_k_heads, module.head_k_dim
    per_key, d_v = module.num_v_heads // n_k, module.head_v_dim
    parts = {name: [] for name in "qkvab"}
    qkvz = _linear(module.in_proj_qkvz, x).reshape(*x.shape[:2], n_k, -1)
    ba = _linear(module.in_proj_ba, x).reshape(*x.shape[:2], n_k, -1)
    for i in range(n_k):
        q, k, v, _ = qkvz[:, :, i].split([d_k, d_k, per_key * d_v, per_key * d_v], -1)
        for name, part in zip("qkvba", (q, k, v, ba[:, :, i, :per_key], ba[:, :, i, per_key:]), strict=True):
            parts[name].append(part)
    return _delta(module, **{name: torch.cat(part, -1) for name, part in parts.items()})


def _qwen3_5(module, x, mask):
    q, k, v = _linear(module.in_proj_qkv, x).split([module.key_dim, module.key_dim, module.value_dim], -1)
    return _delta(module, q, k, v, _linear(module.in_proj_a, x), _linear(module.in_proj_b, x))


def _olmo(module, x, mask):
    q, k, v, a, b = (_linear(getattr(module, f"{name}_proj"), x) for name in "qkvab")
    return _delta(module, q, k, v, a, b, beta_range=2 if module.allow_neg_eigval else 1)


def _kimi(module, x, mask):
    gate, n = module.forget_gate, module.num_heads
    g = _heads(_linear(gate.f_b_proj, _linear(gate.f_a_proj, x)) + gate.dt_bias.double(), n)
    return _kda(module, x, torch.exp(-torch.exp(gate.A_log.double().reshape(1, n, 1, 1)) * F.softplus(g)))


def _ling(module, x, mask):
    gate, n = module.forget_gate, module.num_heads
    g = _heads(_linear(gate.f_proj, x) + gate.dt_bias.double(), n)
    rate = torch.exp(gate.A_log.double().reshape(1, n, 1, 1))
    return _kda(module, x, torch.exp(gate.lower_bound * torch.sigmoid(rate * g)))


def _kda(module, x, decay):
    n = module.num_heads
    mixed = _convolved(module, torch.cat([_linear(getattr(module, f"{name}_proj"), x) for name in "qkv"], -1))
    q, k, v = (_heads(part, n) for part in mixed.chunk(3, -1))
    strength = torch.sigmoid(_linear(module.b_proj, x)).transpose(1, 2)
    return _unit(q) / q.shape[-1] ** 0.5, _unit(k), v, decay, strength, True, 0 * strength


def _mamba2(module, x, mask):
    n, width, state = module.num_heads, module.num_heads * module.head_dim, module.n_groups * module.ssm_state_size
    if hasattr(module, "mup_vector"):
        projected = _linear(module.in_proj, x * module.ssm_in_multiplier) * module.mup_vector.double()
    else:
        projected = _linear(module.in_proj, x)
    _, mixed, dt = projected.split([width, width + 2 * state, n], -1)
    v, k, q = (_convolved(module, mixed) * mask[:, :, None]).split([width, state, state], -1)
    q, k = (_grouped(_heads(part, module.n_groups), n) for part in (q, k))
    low, high = module.time_step_limit
    dt = F.softplus(dt + module.dt_bias.double()).clamp(low, high).transpose(1, 2)
    decay = torch.exp(-torch.exp(module.A_log.double())[None, :, None] * dt)
    skip = module.D.double()[None, :, None].expand(*dt.shape)
    return q, k, _heads(v, n), decay[..., None], dt, False, skip


CONVOLUTIONS = ("Lfm2ShortConv", "Lfm2MoeShortConv", "Lfm3ShortConv")
MLSTM = "xLSTMLayer"
_READERS = {
    "MiniMaxLightningAttention": _lightning,
    "Qwen3NextGatedDeltaNet": _qwen3_next,
    "Qwen3_5GatedDeltaNet": _qwen3_5,
    "Qwen3_5MoeGatedDeltaNet": _qwen3_5,
    "OlmoHybridGatedDeltaNet": _olmo,
    "BailingHybridDeltaAttention": _ling,
    "KimiLinearDeltaAttention": _kimi,
    **dict.fromkeys(
        (
            *("BambaMixer", "FalconH1Mixer", "GraniteMoeHybridMambaLayer", "Mamba2Mixer", "NemotronHMamba2Mixer"),
            "Zamba2MambaMixer",
        ),
        _mamba2,
    ),
}


def row_statistics(pattern, first, *, far_window):
    """Every statistic of every row [b, h, t] from a pattern, one row at a time; rows before `first` stay NaN."""
    b, h, t, _ = pattern.shape
    found = {name: np.full((b, h, t), np.nan) for name in ("lse", "entropy", "mean_distance", "far_mass")}
    for s in range(b):
        for head in range(h):
            for i in range(int(first[s]), t):
                row = pattern[s, head, i, int(first[s]) : i + 1].numpy()
                weights = np.abs(row) / np.abs(row).sum()
                distance = np.arange(len(row))[::-1]
                found["lse"][s, head, i] = np.log(np.abs(row).sum())
                found["entropy"][s, head, i] = -sum(p * np.log(p) for p in weights if p > 0)
                found["mean_distance"][s, head, i] = (weights * distance).sum()
                found["far_mass"][s, head, i] = weights[distance >= far_window].sum()
    return {name: torch.tensor(values) for name, values in found.items()}
