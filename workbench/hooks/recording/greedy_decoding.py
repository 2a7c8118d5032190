"""Greedy decoding under the interventions in force: after each token comes the most likely one."""

from __future__ import annotations

import inspect

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from workbench.heads import WorkbenchError
from workbench.hooks.model import HookedModel
from workbench.hooks.recording.cells import sequences
from workbench.hooks.recording.forward_pass import has_convolutions, logits_of, most_tokens
from workbench.hooks.taps.finite_values import watching
from workbench.hooks.taps.rotary_lengths import has_other_rotation, uncontrolled_type
from workbench.probes.token_ids import positions_of


def greedy(
    m: HookedModel, prompts: Int[Tensor, "b t"], steps: int, *, stop: frozenset[int] = frozenset()
) -> list[Int[Tensor, " n"]]:
    """At most `steps` tokens after each prompt, the first of `stop` included; fewer where the model's context ends.

    Uses a key/value cache where all layers are softmax, and a new one at the length from which the model rotates keys
    with other frequencies; otherwise runs the whole sequence again for each token.

    Raises:
        WorkbenchError: if a prompt leaves no room for a token.
    """
    longest = most_tokens(m.model)
    if longest is not None and prompts.shape[1] >= longest and positions_of(m.config.get_text_config()) != "table":
        longest = None  # the prompt itself is beyond what the configuration names, and the model takes it
    room = steps if longest is None else min(steps, longest - prompts.shape[1])
    if room < 1:
        raise WorkbenchError(f"a prompt of {prompts.shape[1]} tokens leaves no room in {longest} positions")
    tokens = prompts.to(m.device)
    cache = DynamicCache() if _has_cache(m) else None
    last_logits = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(m.model.forward).parameters else {}
    is_done = torch.zeros(len(tokens), dtype=torch.bool, device=m.device)
    ends = torch.tensor(sorted(stop), dtype=torch.long, device=m.device)

    with torch.no_grad(), m.in_force():
        for step in range(room):
            if cache is None:
                last = torch.tensor([tokens.shape[1] - 1], device=m.device)
                logits = logits_of(m.model, sequences(tokens), last, announce=lambda _: None)
            else:
                n_tokens = tokens.shape[1]
                # Keys in the cache are rotated already, so that other frequencies need a cache of their own.
                is_new = step == 0 or has_other_rotation(m.model, n_tokens - 1, n_tokens)
                cache = DynamicCache() if is_new else cache
                new_tokens = tokens if is_new else tokens[:, -1:]
                with watching(m.model, torch.ones_like(new_tokens, dtype=torch.bool)) as watch:
                    logits = m.model(input_ids=new_tokens, past_key_values=cache, use_cache=True, **last_logits).logits
                    watch.note("the logits", logits)
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
            is_done |= torch.isin(tokens[:, -1], ends)
            if bool(is_done.all()):
                break
    return [_until(answer, stop) for answer in tokens[:, prompts.shape[1] :].cpu()]


def _has_cache(m: HookedModel) -> bool:
    # transformers continues some linear layers wrongly from a cache, and this cache holds no state of convolutions.
    is_softmax = all(layer.mixer == "softmax" for layer in m.layers) and not has_convolutions(m.model)
    is_softmax = is_softmax and uncontrolled_type(m.model) is None
    return is_softmax and "past_key_values" in inspect.signature(m.model.forward).parameters


def _until(answer: Int[Tensor, " steps"], stop: frozenset[int]) -> Int[Tensor, " n"]:
    ends = [i for i, token in enumerate(answer.tolist()) if token in stop]
    return answer[: ends[0] + 1] if ends else answer
