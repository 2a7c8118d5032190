"""A Probe: token sequences whose answers are known, with the cells of the attention matrix that hold them."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.probes.token_ids import HasVocabulary, Vocabulary, vocabulary


@dataclass(frozen=True, slots=True)
class Probe:
    """Sequences of tokens, the rows that predict an answer, and the cells that hold the answers.

    `attention_mask`: 0 or False on padding; elsewhere 1 or True, or the number of a packed document.
    `answer_rows`: (sequence, row), sorted; row r predicts the token at r + 1. None: no answers.
    `target_cells`: (sequence, row, key), sorted, each once; the key holds a copy of the token that the row predicts.
    None: none known.
    `classes`: of each answer row, the number that `class_name` names: `distance` in tokens between the row and its
    source, `position` of the row, or another, such as `depth` or `hops`. `metric` is the name under which the share of
    right answers is stored; None: only the loss is stored.
    `digest` identifies tokens and answers; two probes with equal digests measure the same.
    `needles`: of each answer row, the first token of its needle and one past the last. None: not known.
    `is_paired`: sequences 2i and 2i + 1 are one text with its question and with an empty one.
    `documents`: (sequence, first token, one past the last) of the documents of a sequence. None: not known.
    `is_control`: the answers are gone from the context. The model is measured on it, and no head is scored.
    """

    tokens: Int[Tensor, "b t"]
    attention_mask: Bool[Tensor, "b t"] | Int[Tensor, "b t"] | None
    answer_rows: Int[Tensor, "n_rows 2"] | None
    target_cells: Int[Tensor, "n_cells 3"] | None
    classes: Int[Tensor, " n_rows"] | None
    class_name: str
    metric: str | None
    name: str
    digest: str
    needles: Int[Tensor, "n_rows 2"] | None = None
    is_paired: bool = False
    documents: Int[Tensor, "n_documents 3"] | None = None
    is_control: bool = False

    def __repr__(self) -> str:
        n_sequences, n_tokens = self.tokens.shape
        parts = [f"{n_sequences} × {n_tokens} tokens"]
        if self.answer_rows is not None:
            classes = "" if self.classes is None else f" in {len(self.classes.unique())} classes by {self.class_name}"
            parts.append(f"{len(self.answer_rows)} answers{classes}")
        parts += [] if self.target_cells is None else [f"{len(self.target_cells)} target cells"]
        flags = {"with a mask": self.attention_mask is not None, "paired": self.is_paired, "control": self.is_control}
        parts += [flag for flag, holds in flags.items() if holds]
        return f"Probe({self.name!r}: {', '.join(parts)})"


def make_probe(  # noqa: PLR0913  (one keyword per field of Probe)
    name: str,
    tokens: Int[Tensor, "b t"],
    *,
    attention_mask: Bool[Tensor, "b t"] | Int[Tensor, "b t"] | None = None,
    answer_rows: Int[Tensor, "n_rows 2"] | None = None,
    target_cells: Int[Tensor, "n_cells 3"] | None = None,
    classes: Int[Tensor, " n_rows"] | None = None,
    class_name: str = "distance",
    metric: str | None = None,
    needles: Int[Tensor, "n_rows 2"] | None = None,
    is_paired: bool = False,
    documents: Int[Tensor, "n_documents 3"] | None = None,
    is_control: bool = False,
) -> Probe:
    """Check the fields of a Probe against each other, sort the answers, take each of them once, add the digest.

    Raises:
        WorkbenchError: if an answer row has no next token, or is given twice with other classes or needles; if a target
            cell lies outside of the tokens, in the future, or holds another token than the row's answer; if
            `class_name` is not a word of small letters.
    """
    if not re.fullmatch(r"[a-z]+", class_name):
        raise WorkbenchError(f"class_name is {class_name!r}; expected small letters, as in 'distance' or 'hops'")
    if answer_rows is not None:
        order = torch.argsort(answer_rows[:, 0] * tokens.shape[1] + answer_rows[:, 1], stable=True)
        answer_rows = answer_rows[order]
        classes = None if classes is None else classes[order]
        needles = None if needles is None else needles[order]
        is_new = _is_new(name, answer_rows, classes=classes, needles=needles)
        answer_rows = answer_rows[is_new]
        classes = None if classes is None else classes[is_new]
        needles = None if needles is None else needles[is_new]
        if len(answer_rows) and int(answer_rows[:, 1].max()) > tokens.shape[1] - 2:
            raise WorkbenchError(f"probe {name!r} has an answer row at the last token, which predicts nothing")
    if target_cells is not None:
        cells = torch.unique(target_cells, dim=0)
        sequence, row, key = cells.unbind(-1)
        sizes = cells.new_tensor([len(tokens), tokens.shape[1] - 1, tokens.shape[1]])
        is_outside = ((cells < 0) | (cells >= sizes)).any(-1)
        if bool(is_outside.any()):
            raise WorkbenchError(
                f"probe {name!r} has the target cell {tuple(cells[is_outside][0].tolist())}; expected (sequence, row, "
                f"key) inside of {tuple(tokens.shape)} tokens, with a token after the row: leave the others out"
            )
        target_cells = cells
        if bool((key > row).any()):
            raise WorkbenchError(f"probe {name!r} has a target cell in the future of its row")
        if bool((tokens[sequence, key] != tokens[sequence, row + 1]).any()):
            raise WorkbenchError(f"probe {name!r} has a target cell that does not hold the answer of its row")
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([name, list(tokens.shape), class_name, metric]).encode())
    for field in (tokens, attention_mask, answer_rows, target_cells, classes):
        digest.update(b"-" if field is None else _bytes(field))
    if needles is not None:
        digest.update(b"paired" if is_paired else b"needles")
        digest.update(_bytes(needles))
    if documents is not None:
        digest.update(b"documents" + _bytes(documents))
    if is_control:
        digest.update(b"control")
    return Probe(
        tokens=tokens,
        attention_mask=attention_mask,
        answer_rows=answer_rows,
        target_cells=target_cells,
        classes=classes,
        class_name=class_name,
        metric=metric,
        name=name,
        digest=digest.hexdigest(),
        needles=needles,
        is_paired=is_paired,
        documents=documents,
        is_control=is_control,
    )


def octave(distance: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Distances of at least 1 rounded down to a power of two: few enough classes to compare, at any length."""
    return 2 ** (torch.frexp(distance.double()).exponent.long() - 1)


def looked_up(name: str, tokens: Int[Tensor, "b t"], cells: Int[Tensor, "n_rows 3"], *, metric: str) -> Probe:
    """A probe whose every answer stands in one cell; classes are the octaves of the distance to it."""
    return make_probe(
        name,
        tokens,
        answer_rows=cells[:, :2],
        target_cells=cells,
        classes=octave(cells[:, 1] - cells[:, 2]),
        metric=metric,
    )


def part(probe: Probe, start: int, stop: int) -> Probe:
    """Sequences start … stop − 1 of a probe, as a probe of the same name and digest: for passes over batches."""

    def renumbered(x: Int[Tensor, "n w"] | None) -> Int[Tensor, "m w"] | None:
        """Of entries that begin with a sequence, those inside, numbered from 0."""
        if x is None:
            return None
        inside = x[(x[:, 0] >= start) & (x[:, 0] < stop)].clone()
        inside[:, 0] -= start
        return inside

    def of_rows(x: Tensor | None) -> Tensor | None:
        if x is None or probe.answer_rows is None:
            return None
        return x[(probe.answer_rows[:, 0] >= start) & (probe.answer_rows[:, 0] < stop)]

    return Probe(
        tokens=probe.tokens[start:stop],
        attention_mask=None if probe.attention_mask is None else probe.attention_mask[start:stop],
        answer_rows=renumbered(probe.answer_rows),
        target_cells=renumbered(probe.target_cells),
        classes=of_rows(probe.classes),
        class_name=probe.class_name,
        metric=probe.metric,
        name=probe.name,
        digest=probe.digest,
        needles=of_rows(probe.needles),
        is_paired=probe.is_paired,
        documents=renumbered(probe.documents),
        is_control=probe.is_control,
    )


def split(probe: Probe, n: int) -> list[Probe]:
    """The probe in batches of `n` sequences; the last may have fewer."""
    n_sequences = len(probe.tokens)
    return [part(probe, start, min(n_sequences, start + n)) for start in range(0, n_sequences, n)]


def corrupted(source: HasVocabulary | Vocabulary | int, probe: Probe, *, seed: int = 0) -> Int[Tensor, "b t"]:
    """The probe's tokens with every token at a target cell's key replaced by another ordinary token at random.

    The answer can then no longer be read off the context. The result is the source of a patch, not a probe.

    Raises:
        WorkbenchError: if the probe has no target cells, or there are fewer than two ordinary tokens.
    """
    if probe.target_cells is None or len(probe.target_cells) == 0:
        raise WorkbenchError(f"probe {probe.name!r} has no target cells; expected a probe that knows where answers are")
    ids = vocabulary(source).ids
    if len(ids) < 2:
        raise WorkbenchError(f"{len(ids)} ordinary tokens leave none to put in an answer's place; expected 2 or more")
    generator = torch.Generator().manual_seed(seed)
    sequence, _, key = probe.target_cells.unbind(-1)
    sequence, key = torch.unique(torch.stack([sequence, key], -1), dim=0).unbind(-1)
    tokens = probe.tokens.clone()
    drawn = torch.randint(len(ids), (len(key),), generator=generator)
    is_same = ids[drawn] == tokens[sequence, key]
    tokens[sequence, key] = ids[torch.where(is_same, (drawn + 1) % len(ids), drawn)]
    return tokens


def _is_new(name: str, rows: Int[Tensor, "n_rows 2"], **of_rows: Tensor | None) -> Bool[Tensor, " n_rows"]:
    """False for sorted rows that repeat the one before: a row that is listed twice would weigh twice in the loss."""
    is_new = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    is_new[1:] = (rows[1:] != rows[:-1]).any(-1)
    for field, values in of_rows.items():
        if values is None:
            continue
        is_other = values[1:] != values[:-1]
        is_other = is_other if is_other.ndim == 1 else is_other.any(-1)
        if bool((is_other & ~is_new[1:]).any()):
            raise WorkbenchError(
                f"probe {name!r} has an answer row twice, with other {field}; expected each row once: leave one out"
            )
    return is_new


def _bytes(x: Tensor) -> bytes:
    return x.to(torch.int64).contiguous().numpy().tobytes()
