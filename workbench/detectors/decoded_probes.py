"""Probes of what the model itself says: greedy decoding from a probe's prompt, then the same recording as ever.

The prompt of a sequence is its text up to its first answer, and its needle the place that answer is copied from. What
the model says is written behind the prompt; every row that says a token is an answer row, and its target cells are the
places in the needle that hold that token. An instance may have to be told right to count.

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

from workbench.heads import WorkbenchError
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
    """Which of the decoded instances count, and where their needle is.

    `gate`: those where the share of the needle's words that were said (`recall`), or the F1 of the words said, exceeds
    one half; or all. `locate`: where the probe put the needle, or at the first window whose tokens overlap with it.
    """

    gate: Literal["recall", "f1", "none"] = "recall"
    locate: Literal["offsets", "overlap"] = "offsets"


@dataclass(frozen=True, slots=True)
class Said:
    """One instance: a prompt, what the model said after it, and where the probe put the needle in the prompt."""

    prompt: Int[Tensor, " t"]
    said: Int[Tensor, " n"]
    needle: tuple[int, int]


def decode(m: HookedModel, probe: Probe, *, steps: int = STEPS) -> list[Said]:
    """What the model says after the prompt of each sequence, at most `steps` tokens, until a newline.

    Raises:
        WorkbenchError: if the probe does not say where its answers can be read.
    """
    prompts = _prompts(probe)
    stop = frozenset(_newlines(m.tokenizer))
    found: dict[int, Said] = {}
    for length in sorted({len(prompt) for prompt, _ in prompts.values()}):
        mine = [b for b, (prompt, _) in prompts.items() if len(prompt) == length]
        together = max(1, _BATCH_TOKENS // length)
        for batch in (mine[i : i + together] for i in range(0, len(mine), together)):
            said = greedy(m, torch.stack([prompts[b][0] for b in batch]), steps, stop=stop)
            found |= {b: Said(prompts[b][0], one, prompts[b][1]) for b, one in zip(batch, said, strict=True)}
    return [found[b] for b in sorted(found)]


def decoded(
    m: HookedModel, probe: Probe, decoding: Decoding | None = None, *, said: Sequence[Said] | None = None
) -> Probe | None:
    """The instances that count, as a probe; None if none does. `said`: what `decode` gave; it is asked where absent.

    Raises:
        WorkbenchError: if the probe does not say where its answers can be read.
    """
    decoding = decoding or Decoding()
    instances = [one for one in said or decode(m, probe) if _counts(one, decoding, m.tokenizer)]
    longest = max((len(one.prompt) + len(one.said) for one in instances), default=0)
    if not instances:
        return None
    tokens = torch.zeros(len(instances), longest, dtype=torch.long)
    is_valid = torch.zeros(len(instances), longest, dtype=torch.bool)
    rows: list[tuple[int, int]] = []
    needles: list[tuple[int, int]] = []
    cells: list[tuple[int, int, int]] = []
    for b, one in enumerate(instances):
        whole, n_prompt = torch.cat([one.prompt, one.said]), len(one.prompt)
        tokens[b, : len(whole)], tokens[b, len(whole) :] = whole, whole[0]
        is_valid[b, : len(whole)] = True
        start, stop = one.needle if decoding.locate == "offsets" else overlapping(one.prompt, one.needle)
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
    """The first window as long as the needle that holds more than 90 % of its distinct tokens; it may sit early."""
    n = needle[1] - needle[0]
    wanted = set(prompt[slice(*needle)].tolist())
    ids = prompt.tolist()
    for i in range(len(ids)):
        if len(wanted.intersection(ids[i : i + n])) / len(wanted) > _OVERLAP:
            return i, min(i + n, len(ids))
    raise AssertionError("the needle is in the prompt")


def said_right(needle: Sequence[str], said: Sequence[str]) -> tuple[float, float]:
    """ROUGE-1 recall and F1 of words: the share of the needle's words that were said, each as often as it stands."""
    common = (Counter(needle) & Counter(said)).total()
    if common == 0:
        return 0.0, 0.0
    return common / len(needle), 2 * common / (len(needle) + len(said))


def _counts(one: Said, decoding: Decoding, tokenizer: Any) -> bool:
    if decoding.gate == "none":
        return True
    wanted = one.prompt[slice(*one.needle)]
    recall, f1 = said_right(_words(wanted, tokenizer), _words(one.said, tokenizer))
    return (recall if decoding.gate == "recall" else f1) > _ENOUGH


def _words(ids: Int[Tensor, " n"], tokenizer: Any) -> list[str]:
    """Words of letters and digits; without a tokenizer every token is one."""
    if tokenizer is None:
        return [str(i) for i in ids.tolist()]
    return re.findall(r"[a-z0-9]+", tokenizer.decode(ids.tolist(), skip_special_tokens=True).lower())


def _newlines(tokenizer: Any) -> list[int]:
    known: dict[str, int] = {} if tokenizer is None else tokenizer.get_vocab()
    return [known[token] for token in _NEWLINES if token in known]


def _prompts(probe: Probe) -> dict[int, tuple[Int[Tensor, " t"], tuple[int, int]]]:
    """By sequence: the tokens up to the first answer, without padding, and the place that the answer is copied from."""
    if probe.target_cells is None or len(probe.target_cells) == 0:
        raise WorkbenchError(f"probe {probe.name!r} does not say where answers can be read; expected target cells")
    found: dict[int, tuple[Tensor, tuple[int, int]]] = {}
    for b in torch.unique(probe.target_cells[:, 0]).tolist():
        mine = probe.target_cells[probe.target_cells[:, 0] == b][:, 1:]
        cells = {(row, key) for row, key in mine.tolist()}
        row, start = min(cells)
        n = 1
        while (row + n, start + n) in cells and start + n <= row:
            n += 1
        pad = 0 if probe.attention_mask is None else int(probe.attention_mask[b].int().argmax())
        found[b] = probe.tokens[b, pad : row + 1], (start - pad, start + n - pad)
    return found
