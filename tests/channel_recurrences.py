"""Layers whose channels each forget at their own rate, in float64: every channel's pattern as its response to impulses.

Nothing here is shared with the code under test: projections are products with the weights, convolutions are loops, and
column j of a channel's pattern is what the recurrence gives for the value 1 at token j and 0 elsewhere.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
import torch.nn.functional as F

HIDDEN = ("hidden_states", "input_states", "hidden")


@contextmanager
def inputs_by_layer(model):
    """Fill a dict with layer → (module, hidden states) of every layer by channel that runs inside the block."""
    seen, handles = {}, []
    for path, module in model.named_modules():
        if type(module).__name__ in _READERS:
            layer = next(int(part) for part in path.split(".") if part.isdecimal())

            def note(module, args, kwargs, layer=layer):
                hidden = args[0] if args else next(kwargs[name] for name in HIDDEN if name in kwargs)
                seen[layer] = (module, hidden.detach())

            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    yield seen
    for handle in handles:
        handle.remove()


@torch.no_grad()
def channel_patterns(module, hidden, mask):
    """The pattern [b, c, t, t] of every channel, its values [b, c, t], and how many channels a head has."""
    return _READERS[type(module).__name__](module, hidden.double(), mask.double()[:, :, None])


def head_patterns(module, hidden, mask):
    """The pattern [b, h, t, t] of every head: the mean over its channels."""
    patterns, _, width = channel_patterns(module, hidden, mask)
    return patterns.unflatten(1, (-1, width)).mean(2)


def _linear(x, weight, bias=None):
    out = x @ weight.double().T
    return out if bias is None else out + bias.double()


def _convolved(convolution, x):
    weight = convolution.weight.double()[:, 0]
    width = weight.shape[-1]
    out = torch.zeros_like(x)
    for t in range(x.shape[1]):
        for lag in range(min(width, t + 1)):
            out[:, t] += x[:, t - lag] * weight[:, width - 1 - lag]
    return out if convolution.bias is None else out + convolution.bias.double()


def _over_root_mean_square(x, weight, eps):
    return weight.double() * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def _impulses(mask, i):
    """The values [b, j] at token i of the inputs that are 1 at token j and 0 elsewhere; 0 on padding."""
    return mask[:, i] * (torch.arange(mask.shape[1]) == i)


def _mamba1(module, x, mask):
    x, _ = _linear(x * mask, module.in_proj.weight, module.in_proj.bias).chunk(2, -1)
    x = _convolved(module.conv1d, x)
    x = x * torch.sigmoid(x) * mask
    n = module.ssm_state_size
    dt, b, c = _linear(x, module.x_proj.weight).split([module.x_proj.weight.shape[0] - 2 * n, n, n], -1)
    if type(module).__name__ == "FalconMambaMixer":
        dt, b, c = (_over_root_mean_square(y, torch.ones(1), module.config.mixer_rms_eps) for y in (dt, b, c))
    if type(module).__name__ == "JambaMambaMixer":
        norms = (module.dt_layernorm, module.b_layernorm, module.c_layernorm)
        eps = module.config.rms_norm_eps
        dt, b, c = (_over_root_mean_square(y, m.weight, eps) for y, m in zip((dt, b, c), norms, strict=True))
    dt = F.softplus(_linear(dt, module.dt_proj.weight, module.dt_proj.bias))
    rates = torch.exp(module.A_log.double())
    n_sequences, n_tokens, n_channels = x.shape
    patterns = torch.zeros(n_sequences, n_channels, n_tokens, n_tokens, dtype=torch.float64)
    state = torch.zeros(n_sequences, n_channels, n, n_tokens, dtype=torch.float64)  # one for every impulse
    for i in range(n_tokens):
        impulse = _impulses(mask, i)
        state = torch.exp(-rates * dt[:, i, :, None])[..., None] * state
        state = state + torch.einsum("bc,bn,bj->bcnj", dt[:, i], b[:, i], impulse)
        patterns[:, :, i] = torch.einsum("bcnj,bn->bcj", state, c[:, i])
        patterns[:, :, i] += module.D.double()[:, None] * impulse[:, None]
    return patterns, x.transpose(1, 2), n_channels


def _rg_lru(module, x, mask):
    unit = module.rg_lru
    x = _convolved(module.conv_1d, _linear(x, module.linear_x.weight, module.linear_x.bias))
    width = unit.block_width

    def gate(weight, bias):
        blocks = [
            x[..., h * width : (h + 1) * width] @ weight[h].double() + bias[h].double() for h in range(len(weight))
        ]
        return torch.sigmoid(torch.cat(blocks, -1))

    taken = gate(unit.input_gate_weight, unit.input_gate_bias)
    recurrence = gate(unit.recurrent_gate_weight, unit.recurrent_gate_bias)
    a = torch.exp(-8 * recurrence * F.softplus(unit.recurrent_param.double()))
    n_sequences, n_tokens, n_channels = x.shape
    patterns = torch.zeros(n_sequences, n_channels, n_tokens, n_tokens, dtype=torch.float64)
    state = torch.zeros(n_sequences, n_channels, n_tokens, dtype=torch.float64)  # one for every impulse
    for i in range(n_tokens):
        root = torch.sqrt(1 - a[:, i] ** 2) if i else torch.ones_like(a[:, i])
        state = a[:, i, :, None] * state + (root * taken[:, i])[..., None] * _impulses(mask, i)[:, None]
        patterns[:, :, i] = state
    return patterns, x.transpose(1, 2), width


def _rwkv4(module, x, mask):
    """The two sums as they are defined, without the running maximum: float64 holds the exponents of a short text."""
    shifted = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)

    def mixed(name):
        share = getattr(module, f"time_mix_{name}").double()
        return _linear(x * share + shifted * (1 - share), getattr(module, name).weight)

    k, v = mixed("key"), mixed("value")
    kept, first = torch.exp(-torch.exp(module.time_decay.double())), module.time_first.double()
    n_sequences, n_tokens, n_channels = k.shape
    patterns = torch.zeros(n_sequences, n_channels, n_tokens, n_tokens, dtype=torch.float64)
    above = torch.zeros(n_sequences, n_channels, n_tokens, dtype=torch.float64)  # one for every impulse
    below = torch.zeros(n_sequences, n_channels, 1, dtype=torch.float64)
    for i in range(n_tokens):
        now, later = torch.exp(first + k[:, i])[..., None], torch.exp(k[:, i])[..., None]
        impulse = _impulses(mask, i)[:, None]
        patterns[:, :, i] = (above + now * impulse) / (below + now)
        above = kept[:, None] * above + later * impulse
        below = kept[:, None] * below + later
    return patterns, v.transpose(1, 2), n_channels


_READERS = {
    "MambaMixer": _mamba1,
    "FalconMambaMixer": _mamba1,
    "JambaMambaMixer": _mamba1,
    "RecurrentGemmaRecurrentBlock": _rg_lru,
    "RwkvSelfAttention": _rwkv4,
}
