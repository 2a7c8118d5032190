"""Head scores the slow way: from full patterns that the model itself returns, one row and one cell at a time."""

from __future__ import annotations

import copy
import inspect
import math
from contextlib import contextmanager

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.models.granite_swa import modeling_granite_swa

from workbench import open_model

# Every detector that is scored here, in the default set or not; the last two need answers.
ON_TOKENS = [
    *("previous_token", "current_token", "duplicate_token", "induction", "sink", "learned_sink"),
    *("entropy", "normalized_entropy", "effective_support", "mean_distance", "far_mass", "far_mass_16", "far_mass_64"),
    *("sink_total", "sink_streaming", "sink_gu"),
]
SCORED = [*ON_TOKENS, "retrieval", "retrieval_top1"]


def eager_patterns(model: PreTrainedModel, tokens, attention_mask=None):
    """Per layer of an eager model a float64 pattern [b, h, t, t], sinks in its denominator, linear by recurrence."""
    attended: dict[int, torch.Tensor] = {}
    handles = [
        mixer.register_forward_pre_hook(_recurrent(attended, attention_mask), with_kwargs=True)
        for mixer in model.modules()
        if type(mixer).__name__ == "MiniMaxLightningAttention"
    ]
    with torch.no_grad(), _granite_with_its_sink():
        given = {"attention_mask": attention_mask, **_positions(model, attention_mask)}
        out = model(input_ids=tokens, **given, output_attentions=True, use_cache=False)
    for handle in handles:
        handle.remove()
    patterns = [attended.get(i, a).double() for i, a in enumerate(out.attentions)]
    return patterns, out.logits, sorted(attended)


def _positions(model, attention_mask):
    """Positions counted from the first valid token, for a family that takes them."""
    takes_them = "position_ids" in inspect.signature(model.forward).parameters
    is_left_padded = attention_mask is not None and not bool(attention_mask[:, 0].all())
    return {"position_ids": (attention_mask.cumsum(-1) - 1).clamp_min(0)} if takes_them and is_left_padded else {}


@contextmanager
def _granite_with_its_sink():
    """granite_swa returns patterns whose rows sum to 1; its output is scaled by the learned sink afterwards."""
    plain = modeling_granite_swa.eager_attention_forward

    def attend(module, query, key, value, attention_mask, scaling, **kwargs):
        out, weights = plain(module, query, key, value, attention_mask, scaling, **kwargs)
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        scores = query.double() @ keys.double().transpose(2, 3) * scaling + attention_mask.double()
        share = torch.sigmoid(scores.logsumexp(-1) - module.sinks.double()[None, :, None])
        return out, weights * share[..., None]

    modeling_granite_swa.eager_attention_forward = attend
    try:
        yield
    finally:
        modeling_granite_swa.eager_attention_forward = plain


def _sink_layers(model):
    learned = [m for m in model.modules() if isinstance(getattr(m, "sinks", None), torch.Tensor)]
    return {m.layer_idx for m in [*learned, *(m for m in model.modules() if hasattr(m, "sink_proj"))]}


def _recurrent(attended, attention_mask):
    """The lightning layer token by token: feed one-hot values through its state and read the weights off."""

    def hook(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        b, t, _ = hidden.shape
        h, d = module.num_attention_heads, module.head_dim
        qkv = module.act_fn(module.qkv_proj(hidden))
        if attention_mask is not None:
            qkv = qkv * attention_mask[:, :, None]
        q, k, _ = qkv.reshape(b, t, h, 3 * d).transpose(1, 2).double().split(d, -1)
        ratio = torch.exp(-module.slope_rate.double())
        state = torch.zeros(b, h, d, t, dtype=torch.float64)
        rows = []
        for i in range(t):
            one_hot = torch.zeros(t, dtype=torch.float64)
            one_hot[i] = 1
            state = ratio * state + k[:, :, i, :, None] * one_hot
            rows.append(torch.einsum("bhd,bhdt->bht", q[:, :, i], state))
        attended[module.layer_idx] = torch.stack(rows, 2)

    return hook


def scores(
    model: PreTrainedModel, tokens, *, attention_mask=None, far_window: int, targets=None
) -> dict[tuple[str, int, int], float]:
    """Every score of DESIGN's table by (detector, layer, head), from loops over sequences, rows and cells."""
    patterns, _, linear = eager_patterns(model, tokens, attention_mask)
    # In float32: an eager implementation may round its probabilities, which is refused where they are recorded.
    layers = open_model(copy.deepcopy(model).float()).layers
    with_sinks = _sink_layers(model)
    found: dict[tuple[str, int, int], float] = {}
    for layer, (pattern, info) in enumerate(zip(patterns, layers, strict=True)):
        has_sinks = layer in with_sinks
        for head in range(pattern.shape[1]):
            per_sequence: dict[str, list[float]] = {}
            for b in range(len(tokens)):
                valid = (
                    np.ones(tokens.shape[1], bool) if attention_mask is None else attention_mask[b].numpy().astype(bool)
                )
                keep = np.flatnonzero(valid)
                rows = pattern[b, head].numpy()[np.ix_(keep, keep)]
                values = _sequence(
                    tokens[b].numpy()[keep],
                    rows,
                    is_linear=layer in linear,
                    has_sinks=has_sinks,
                    far_window=far_window,
                    sees_first=info.window or len(tokens[0]),
                    is_sliding=info.kind == "sliding",
                    is_sparse=info.kind == "sparse",
                    targets=None if targets is None else [(r, k) for s, r, k in targets.tolist() if s == b],
                )
                for name, row_values in values.items():
                    if row_values:
                        per_sequence.setdefault(name, []).append(float(np.mean(row_values)))
                    else:
                        per_sequence.setdefault(name, [])
            for name, means in per_sequence.items():
                found[name, layer, head] = float(np.mean(means)) if means else math.nan
    return found


def _sequence(x, pattern, *, is_linear, has_sinks, far_window, sees_first, is_sliding, is_sparse, targets):
    values: dict[str, list[float]] = {name: [] for name in ON_TOKENS}
    x = x.tolist()
    for i in range(len(x)):
        row = pattern[i, : i + 1]
        if is_linear:
            norm = np.abs(row).sum()
            if norm == 0:
                continue
            row = row / norm
        sink_share = max(0.0, 1 - float(np.abs(row).sum())) if has_sinks else 0.0
        squares = float((np.abs(row) ** 2).sum())
        row = row.tolist()  # plain numbers, which loops are quicker over
        weights = [abs(p) for p in row]
        if i >= 1:
            values["previous_token"].append(row[i - 1])
        values["current_token"].append(row[i])
        # A row of a sparse layer sees the first token where its indexer selected it; then it has some weight.
        if i < sees_first and not (is_sparse and row[0] == 0):
            values["sink"].append(row[0])
            values["sink_total"].append(row[0] + sink_share)
        if i < sees_first + (3 if is_sliding else 0) and not (is_sparse and not any(row[:4])):
            values["sink_streaming"].append(sum(row[:4]))
        same = [j for j in range(i) if x[j] == x[i]]
        if same:
            values["duplicate_token"].append(sum(row[j] for j in same))
        after = [j for j in range(1, i + 1) if x[j - 1] == x[i] and j - 1 < i]
        if after:
            values["induction"].append(sum(row[j] for j in after))
        outcomes = [*weights, sink_share]
        values["entropy"].append(-sum(p * math.log(p) for p in outcomes if p > 0))
        if i >= 1:
            values["normalized_entropy"].append(values["entropy"][-1] / math.log(i + 1))
        values["effective_support"].append(1 / (squares + sink_share**2))
        for window in (16, 64):
            if i >= window:
                values[f"far_mass_{window}"].append(sum(weights[j] for j in range(i - window + 1)))
        values["mean_distance"].append(sum(weights[j] * (i - j) for j in range(i + 1)))
        if i >= far_window:
            values["far_mass"].append(sum(weights[j] for j in range(i - far_window + 1)))
        if has_sinks:
            values["learned_sink"].append(sink_share)
    if values["sink"]:
        values["sink_gu"] = [float(np.mean(values["sink"]) > 0.3)]
    if targets is not None:
        by_row: dict[int, list[int]] = {}
        for r, k in targets:
            by_row.setdefault(r, []).append(k)
        values["retrieval"], values["retrieval_top1"] = [], []
        for r, keys in by_row.items():
            row = pattern[r, : r + 1]
            norm = np.abs(row).sum() if is_linear else 1.0
            values["retrieval"].append(sum(row[k] for k in keys) / norm)
            values["retrieval_top1"].append(float(np.abs(row).argmax() in keys))
    return values
