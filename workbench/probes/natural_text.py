"""Natural text, or any token sequences, as a probe: every row predicts its next token, no cell is known to hold it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.probes.haystack import read_text
from workbench.probes.known_answers import Probe, make_probe
from workbench.probes.token_ids import HasVocabulary, check_sizes


def text(source: HasVocabulary, content: str, *, name: str = "text") -> Probe:
    """One sequence: the text as the model's own tokenizer reads it, special tokens as the tokenizer adds them.

    Raises:
        WorkbenchError: if the model has no tokenizer, or the text has fewer than two tokens.
    """
    ids = _encode(source, content)
    if len(ids) < 2:
        raise WorkbenchError(f"the text has {len(ids)} tokens; expected at least 2")
    return token_sequences(ids[None], name=name)


def text_file(
    source: HasVocabulary,
    path: str | Path,
    *,
    length: int = 256,
    n_sequences: int = 16,
    seed: int = 0,
    name: str = "text",
) -> Probe:
    """`n_sequences` windows of `length` tokens from a text file, at places drawn without overlap.

    The file is tokenized once; each window starts with the beginning-of-sequence token if the tokenizer adds one.

    Raises:
        WorkbenchError: if the file cannot be read as UTF-8, is too short, the model has no tokenizer, or the length
            exceeds its context.
    """
    check_sizes(source, length=length, n_sequences=n_sequences)
    cut = cut_windows(source, path, length, n_sequences, seed=seed)
    return token_sequences(cut.tokens, name=name)


class Windows(NamedTuple):
    """`tokens`: windows of a text, the first `n_lead` of each special; window i goes on with `body[starts[i]:]`."""

    tokens: Int[Tensor, "b t"]
    n_lead: int
    body: Int[Tensor, " n_body"]
    starts: list[int]


def cut_windows(source: HasVocabulary, path: str | Path | None, length: int, n_sequences: int, *, seed: int) -> Windows:
    """Windows of `length` tokens of a text file, None being Python's documentation, drawn without overlap.

    Raises:
        WorkbenchError: as `text_file`.
    """
    ids = _encode(source, read_text(path))
    lead = _encode(source, "")
    body = ids[len(lead) :] if len(lead) and torch.equal(ids[: len(lead)], lead) else ids
    lead = lead if len(body) < len(ids) else lead[:0]
    n_body = length - len(lead)
    n_places = len(body) // max(1, n_body)
    if n_places < n_sequences:
        what = "Python's documentation" if path is None else path
        raise WorkbenchError(
            f"{what} has {len(body)} tokens: {n_places} windows of {length}; expected {n_sequences}. "
            "Pass a smaller length or n_sequences"
        )
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(n_places, generator=generator)[:n_sequences].sort().values
    starts = (places * n_body).tolist()
    return Windows(torch.stack([torch.cat([lead, body[s : s + n_body]]) for s in starts]), len(lead), body, starts)


def token_sequences(
    tokens: Int[Tensor, "b t"], attention_mask: Bool[Tensor, "b t"] | None = None, *, name: str = "tokens"
) -> Probe:
    """Given sequences as a probe: each valid row with a valid next token predicts it. Classes: the row's position."""
    valid = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask
    sequence, row = (valid[:, :-1] & valid[:, 1:]).nonzero(as_tuple=True)
    return make_probe(
        name,
        tokens,
        attention_mask=attention_mask,
        answer_rows=torch.stack([sequence, row], -1),
        classes=row - valid.int().argmax(-1)[sequence],
        class_name="position",
    )


def _encode(source: HasVocabulary, content: str) -> Int[Tensor, " t"]:
    tokenizer = getattr(source, "tokenizer", None)  # a Vocabulary has none
    if tokenizer is None:
        raise WorkbenchError("this model has no tokenizer; pass token ids to probes.token_sequences(tokens) instead")
    ids = tokenizer(content, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)
