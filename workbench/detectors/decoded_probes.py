"""Probes of a model's own replies: greedy decoding from a probe's prompts, then a probe whose answers are the replies.

1. The prompt of a sequence is its text up to its first answer; its needle is the span that this answer is copied from.
2. The model's reply is written behind the prompt. Every row that predicts a token of the reply is an answer row, and
   its target cells are the positions in the needle that hold this token.
3. Instances count if their reply is right, or all do; see `Decoding`.

Reference:
    Wu et al. 2024, Retrieval Head Mechanistically Explains Long-Context Factuality, `retrieval_head_detection.py`: at
    most 50 steps, ended by a newline; the first window of the prompt with more than 90 % of the needle's distinct
    tokens is taken for the needle; instances of ROUGE-1 recall above .5 count. Its words are stemmed, ours are not.
    Fu et al. 2024, HeadKV, `retrieval_head_detection_r2.py`: instances of an F1 of words above .5 count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.heads import WorkbenchError, brief
from workbench.hooks import HookedModel
from workbench.hooks.recording.greedy_decoding import greedy
from workbench.probes import Probe, make_probe

STEPS = 50
_ENOUGH = 0.5
_OVERLAP = 0.9
_BATCH_TOKENS = 4096
_NEWLINES = ("<0x0A>", "Ċ", "\n")


@dataclass(frozen=True, slots=True)
class Decoding:
    """Which decoded instances count, and where their needle is.

    `gate`: instances where the share of the needle's words in the reply (`recall`), or the F1 of words, exceeds one
    half; or all. `locate`: the probe's own needle, or the first window whose tokens overlap with it.
    """

    gate: Literal["recall", "f1", "none"] = "recall"
    locate: Literal["offsets", "overlap"] = "offsets"


@dataclass(frozen=True, slots=True)
class DecodedInstance:
    """A prompt, the model's reply to it, and the needle's first token in the prompt and one past its last."""

    prompt: Int[Tensor, " t"]
    reply: Int[Tensor, " n"]
    needle: tuple[int, int]

    def __repr__(self) -> str:
        return brief(self)


def decode(m: HookedModel, probe: Probe, *, steps: int = STEPS) -> list[DecodedInstance]:
    """The model's reply to the prompt of each sequence: at most `steps` tokens, until a newline.

    Raises:
        WorkbenchError: if the probe has no target cells.
    """
    prompts = _prompts(probe)
    stop = frozenset(_newlines(m.tokenizer))
    instances: dict[int, DecodedInstance] = {}
    for length in sorted({len(prompt) for prompt, _ in prompts.values()}):
        of_length = [b for b, (prompt, _) in prompts.items() if len(prompt) == length]
        n_together = max(1, _BATCH_TOKENS // length)
        for batch in (of_length[i : i + n_together] for i in range(0, len(of_length), n_together)):
            replies = greedy(m, torch.stack([prompts[b][0] for b in batch]), steps, stop=stop)
            for b, reply in zip(batch, replies, strict=True):
                prompt, needle = prompts[b]
                instances[b] = DecodedInstance(prompt, reply, needle)
    return [instances[b] for b in sorted(instances)]


def decoded(
    m: HookedModel,
    probe: Probe,
    decoding: Decoding | None = None,
    *,
    instances: Sequence[DecodedInstance] | None = None,
) -> Probe | None:
    """The instances that count, as a probe; None if none does. `instances`: those of `decode`, if it has run already.

    Raises:
        WorkbenchError: if the probe has no target cells.
    """
    decoding = decoding or Decoding()
    counted = [instance for instance in instances or decode(m, probe) if _counts(instance, decoding, m.tokenizer)]
    if not counted:
        return None
    longest = max(len(instance.prompt) + len(instance.reply) for instance in counted)
    tokens = torch.zeros(len(counted), longest, dtype=torch.long)
    is_valid = torch.zeros(len(counted), longest, dtype=torch.bool)
    rows: list[tuple[int, int]] = []
    needles: list[tuple[int, int]] = []
    cells: list[tuple[int, int, int]] = []
    for b, instance in enumerate(counted):
        whole, n_prompt = torch.cat([instance.prompt, instance.reply]), len(instance.prompt)
        tokens[b, : len(whole)], tokens[b, len(whole) :] = whole, whole[0]
        is_valid[b, : len(whole)] = True
        start, stop = instance.needle
        if decoding.locate == "overlap":
            start, stop = overlapping(instance.prompt, instance.needle)
        for row in range(n_prompt - 1, len(whole) - 1):
            rows.append((b, row))
            needles.append((start, stop))
            cells += [(b, row, key) for key in range(start, stop) if whole[key] == whole[row + 1]]
    return make_probe(
        probe.name,
        tokens,
        attention_mask=None if bool(is_valid.all()) else is_valid,
        answer_rows=torch.tensor(rows),
        target_cells=torch.tensor(cells, dtype=torch.long).reshape(-1, 3),
        needles=torch.tensor(needles),
    )


def overlapping(prompt: Int[Tensor, " t"], needle: tuple[int, int]) -> tuple[int, int]:
    """The first window as long as the needle with more than 90 % of its distinct tokens; it may start too early."""
    n = needle[1] - needle[0]
    needle_ids = set(prompt[slice(*needle)].tolist())
    ids = prompt.tolist()
    for i in range(len(ids)):
        if len(needle_ids.intersection(ids[i : i + n])) / len(needle_ids) > _OVERLAP:
            return i, min(i + n, len(ids))
    raise AssertionError("the needle is in the prompt")


def recall_and_f1(needle: Sequence[str], reply: Sequence[str]) -> tuple[float, float]:
    """ROUGE-1 recall and F1 of words: the share of the needle's words in the reply, each as often as it occurs."""
    common = (Counter(needle) & Counter(reply)).total()
    if common == 0:
        return 0.0, 0.0
    return common / len(needle), 2 * common / (len(needle) + len(reply))


def _counts(instance: DecodedInstance, decoding: Decoding, tokenizer: Any) -> bool:
    if decoding.gate == "none":
        return True
    needle = instance.prompt[slice(*instance.needle)]
    recall, f1 = recall_and_f1(_words(needle, tokenizer), _words(instance.reply, tokenizer))
    return (recall if decoding.gate == "recall" else f1) > _ENOUGH


def _words(ids: Int[Tensor, " n"], tokenizer: Any) -> list[str]:
    """Words of letters and digits; without a tokenizer every token is a word."""
    if tokenizer is None:
        return [str(i) for i in ids.tolist()]
    return re.findall(r"[a-z0-9]+", tokenizer.decode(ids.tolist(), skip_special_tokens=True).lower())


def _newlines(tokenizer: Any) -> list[int]:
    known: dict[str, int] = {} if tokenizer is None else tokenizer.get_vocab()
    return [known[token] for token in _NEWLINES if token in known]


def _prompts(probe: Probe) -> dict[int, tuple[Int[Tensor, " t"], tuple[int, int]]]:
    """By sequence: the tokens up to the first answer, without padding, and the span that the answer is copied from."""
    if probe.target_cells is None or len(probe.target_cells) == 0:
        raise WorkbenchError(f"probe {probe.name!r} does not say where answers can be read; expected target cells")
    prompts: dict[int, tuple[Tensor, tuple[int, int]]] = {}
    for b in torch.unique(probe.target_cells[:, 0]).tolist():
        of_sequence = probe.target_cells[probe.target_cells[:, 0] == b][:, 1:]
        cells = {(row, key) for row, key in of_sequence.tolist()}
        row, start = min(cells)
        n = 1
        while (row + n, start + n) in cells and start + n <= row:
            n += 1
        pad = 0 if probe.attention_mask is None else int(probe.attention_mask[b].int().argmax())
        prompts[b] = probe.tokens[b, pad : row + 1], (start - pad, start + n - pad)
    return prompts
