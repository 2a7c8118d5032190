"""What users hand in as tokens, probes and positions, read in one place: tensors, arrays, lists, text, encodings.

Accepted is what can only mean one thing. Everything else is refused with what it is and what to pass.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.probes.known_answers import Probe
from workbench.probes.registry import PROBES, build
from workbench.probes.token_ids import HasVocabulary

# Token ids of one sequence or several, text, or what a tokenizer returns.
TokensLike = Tensor | np.ndarray | str | Sequence[Any] | Mapping[str, Any] | Any
# A probe, or its name and arguments; anything else is refused.
ProbeLike = Probe | str | Any
# One position, several, a slice, or a mask over all.
PositionsLike = slice | int | Tensor | np.ndarray | Sequence[Any] | Any

_EXPECTED = "token ids of one sequence or of several, as a tensor, an array, lists or a tokenizer's output"
# What tokenizers return beside ids and mask, and the models here do not take.
_BESIDE = frozenset(
    {
        *("token_type_ids", "special_tokens_mask", "offset_mapping", "length", "labels", "num_truncated_tokens"),
        *("overflowing_tokens", "overflow_to_sample_mapping"),
    }
)


class TokenBatch(NamedTuple):
    """Token ids, and their mask of padding or documents where they have one."""

    tokens: Int[Tensor, "b t"]
    attention_mask: Shaped[Tensor, "b t"] | None


def token_batch(handed_in: TokensLike, attention_mask: Any = None, *, tokenizer: Any = None) -> TokenBatch:
    """Token ids as a batch, from what a user hands in.

    Text is read by the tokenizer, special tokens as it adds them. Lists and texts of different lengths are padded on
    the right and masked. Of a tokenizer's output, the attention mask counts.

    Raises:
        WorkbenchError: for anything that is no whole numbers in one or two dimensions, no token at all, text without a
            tokenizer or that names a probe, or two attention masks.
    """
    if isinstance(handed_in, Mapping):
        handed_in, attention_mask = _of_tokenizer(cast("Mapping[str, Any]", handed_in), attention_mask)
    elif hasattr(handed_in, "ids") and hasattr(handed_in, "attention_mask"):  # one Encoding of the tokenizers library
        of_encoding: Any = handed_in
        handed_in, attention_mask = of_encoding.ids, _one_mask(of_encoding.attention_mask, attention_mask)
    if isinstance(handed_in, str):
        _refuse_name(handed_in)
        handed_in = encode(tokenizer, handed_in)
    elif isinstance(handed_in, list | tuple) and handed_in and all(isinstance(text, str) for text in handed_in):
        handed_in = [encode(tokenizer, text) for text in cast("Sequence[str]", handed_in)]
    ids, is_valid = _numbers(handed_in)
    if ids.ndim not in (1, 2):
        raise WorkbenchError(
            f"tokens have shape {tuple(ids.shape)}; expected (t,) or (sequences, t): {_reshaping(ids)}"
        )
    if ids.numel() == 0:
        raise WorkbenchError(f"tokens have shape {tuple(ids.shape)}; expected at least one token")
    ids = ids if ids.ndim == 2 else ids[None]
    if attention_mask is None:
        return TokenBatch(ids, is_valid)
    if is_valid is not None:
        raise WorkbenchError(
            "an attention_mask was given for sequences of different lengths, which have one of their own; leave it out"
        )
    return TokenBatch(ids, _mask(attention_mask))


def encode(tokenizer: Any, text: object) -> list[int]:
    """The token ids of a text, special tokens as the tokenizer adds them.

    Raises:
        WorkbenchError: without a tokenizer, or for what is no text or cannot be encoded.
    """
    if not isinstance(text, str):
        raise WorkbenchError(f"the text is a {type(text).__name__}; expected one str: pass several texts one by one")
    if tokenizer is None:
        raise WorkbenchError("text cannot be read without a tokenizer; pass token ids, or open the model with one")
    try:
        return list(tokenizer(text, verbose=False)["input_ids"])
    except (TypeError, UnicodeError) as error:
        raise WorkbenchError(
            f"the tokenizer cannot read the text ({str(error)[:80]}); expected characters that UTF-8 can write: decode "
            "it with errors='replace'"
        ) from error
    except Exception as error:  # the tokenizers library raises plain Exceptions
        raise WorkbenchError(
            f"the tokenizer cannot read the text ({str(error)[:80]}); expected one whose vocabulary has the text's "
            "words or a token for unknown ones: name it with tokenizer= of open_model (--tokenizer), or pass token ids"
        ) from error


def read_probe(source: HasVocabulary, handed_in: ProbeLike) -> Probe:
    """A probe as it is, or made from its name and arguments, as in `needle:length=1024`.

    Raises:
        WorkbenchError: for text and tokens, which may be meant as they are or with every next token as an answer.
    """
    if isinstance(handed_in, Probe):
        return handed_in
    if isinstance(handed_in, str):
        if handed_in.partition(":")[0] not in PROBES.all() and any(c.isspace() for c in handed_in.strip()):
            raise WorkbenchError(f"{handed_in[:40]!r} is a text, not the name of a probe; pass wb.probes.text(m, TEXT)")
        return build(source, handed_in)
    raise WorkbenchError(
        f"a {type(handed_in).__name__} is no probe; expected a Probe or a probe's name. Token ids become one by "
        "wb.probes.token_sequences(tokens); a text by wb.probes.text(m, TEXT)"
    )


def read_probes(source: HasVocabulary, handed_in: Any) -> list[Probe]:
    """One probe or several; each as in `read_probe`.

    Raises:
        WorkbenchError: if one is none.
    """
    is_one = isinstance(handed_in, Probe | str | Mapping | Tensor | np.ndarray) or not isinstance(handed_in, Iterable)
    listed: list[Any] = [handed_in] if is_one else list(cast("Iterable[Any]", handed_in))
    if not is_one and not listed:
        raise WorkbenchError("no probe was given; expected at least one, or None for the standard ones")
    if not is_one and all(_is_whole(entry) for entry in listed):
        listed = [handed_in]  # the ids of one sequence
    return [read_probe(source, entry) for entry in listed]


def positions(handed_in: PositionsLike, n: int, *, name: str) -> Int[Tensor, " p"]:
    """Positions 0 … n − 1 in the order in which they are handed in, as Python reads indices: −1 is the last.

    A mask of n booleans stands for the positions where it is true.

    Raises:
        WorkbenchError: naming `name`, for positions outside, for none at all, or for anything else.
    """
    expected = f"expected positions from 0 to {n - 1}, a slice of them, or a mask of {n} booleans"
    if isinstance(handed_in, slice):
        try:
            picked = list(range(n)[handed_in])
        except TypeError as error:
            raise WorkbenchError(f"{name} is {handed_in}; {expected}") from error
    else:
        picked = _picked(handed_in, n, name=name, expected=expected)
    if not picked:
        raise WorkbenchError(f"{name}={_shown(handed_in)} holds none of the {n} positions; {expected}")
    return torch.tensor(picked)


def _refuse_name(text: str) -> None:
    if text.partition(":")[0] in PROBES.all():
        raise WorkbenchError(
            f"{text!r} is the name of a probe, not a text; pass it as probes=, or make it with probes.build(m, …)"
        )


def _picked(handed_in: Any, n: int, *, name: str, expected: str) -> list[int]:
    array = _array(handed_in)
    if array is None or array.ndim > 1 or array.dtype.kind not in "iub" or (array.ndim == 0 and array.dtype == bool):
        is_empty = array is not None and array.size == 0 and array.ndim == 1
        if is_empty:
            return []
        raise WorkbenchError(f"{name}={_shown(handed_in)}; {expected}")
    if array.dtype == bool:
        if len(array) != n:
            raise WorkbenchError(f"{name} is a mask of {len(array)}; {expected}")
        return np.flatnonzero(array).tolist()
    indices: list[int] = np.atleast_1d(array).tolist()
    outside = [i for i in indices if not -n <= i < n]
    if outside:
        raise WorkbenchError(f"{name} holds {outside[0]}, and there are {n} positions; {expected}")
    return [i % n for i in indices]


def _of_tokenizer(encoding: Mapping[str, Any], attention_mask: Any) -> tuple[Any, Any]:
    """Ids and mask of a tokenizer's output."""
    if "input_ids" not in encoding:
        raise WorkbenchError(f"a mapping of {', '.join(map(str, list(encoding)[:4]))} was given; expected {_EXPECTED}")
    others = [key for key in encoding if key not in _BESIDE | {"input_ids", "attention_mask"}]
    if others:
        raise WorkbenchError(
            f"the tokenizer's output has {', '.join(others)}, which would not be used; pass its input_ids and its "
            "attention_mask"
        )
    return encoding["input_ids"], _one_mask(encoding.get("attention_mask"), attention_mask)


def _one_mask(own: Any, other: Any) -> Any:
    if own is not None and other is not None:
        raise WorkbenchError(
            "two attention masks were given, one with the tokens and one as attention_mask=; pass input_ids and the "
            "one that counts"
        )
    return own if other is None else other


def _mask(handed_in: Any) -> Shaped[Tensor, "b t"]:
    """A mask as a tensor of two dimensions, whose numbers are whole and not negative."""
    array = _array(handed_in)
    if array is None or array.ndim not in (1, 2) or array.dtype.kind not in "iubf":
        shape = "" if array is None else f" of shape {array.shape}"
        raise WorkbenchError(
            f"attention_mask is a {type(handed_in).__name__}{shape}; expected a number per token: 0 on padding, else 1"
        )
    if array.dtype.kind in "if" and not bool(((array >= 0) & (array == np.floor(array))).all()):
        raise WorkbenchError(
            "attention_mask has numbers below 0 or between whole ones, as masks that are added to scores; expected 0 "
            "on padding, and 1 or a document's number elsewhere"
        )
    mask = torch.from_numpy(np.ascontiguousarray(array if array.dtype == bool else array.astype(np.int64)))
    return mask if mask.ndim == 2 else mask[None]


def _numbers(handed_in: Any) -> tuple[Int[Tensor, "..."], Shaped[Tensor, "b t"] | None]:
    """Whole numbers as a tensor, and the mask of rows of different lengths."""
    if isinstance(handed_in, Tensor):
        if handed_in.is_meta or handed_in.layout != torch.strided:
            raise WorkbenchError(
                f"tokens are a tensor without numbers to read ({handed_in.device}, {handed_in.layout}); expected a "
                "dense one in memory: pass tokens.to_dense(), or make them on a device that holds numbers"
            )
        _refuse_dtype(str(handed_in.dtype).removeprefix("torch."), is_whole=_is_whole_dtype(handed_in))
        return handed_in.long(), None
    array = _array(handed_in)
    if array is not None and array.dtype != object:
        _refuse_dtype(str(array.dtype), is_whole=array.dtype.kind in "iu" or array.size == 0)
        return torch.from_numpy(array.astype(np.int64, order="C")), None
    if not isinstance(handed_in, list | tuple | np.ndarray):
        raise WorkbenchError(f"tokens are a {type(handed_in).__name__}; expected {_EXPECTED}")
    rows = [_array(row) for row in cast("Iterable[Any]", handed_in)]
    if any(row is None or row.ndim != 1 or row.dtype.kind not in "iu" or not row.size for row in rows):
        raise WorkbenchError(f"tokens are a list of other things than token ids or lists of them; expected {_EXPECTED}")
    return _padded([row for row in rows if row is not None])


def _padded(rows: list[np.ndarray]) -> tuple[Int[Tensor, "b t"], Shaped[Tensor, "b t"]]:
    """Rows of different lengths, padded on the right with each one's first token, and their mask."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.empty(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i] = int(row[0])
        tokens[i, : len(row)] = torch.from_numpy(row.astype(np.int64))
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]


def _array(handed_in: Any) -> np.ndarray | None:
    """An array of what is one already, or numbers in lists; of objects where lengths differ; None for all else."""
    if isinstance(handed_in, Tensor):
        return (
            handed_in.detach().cpu().numpy() if handed_in.dtype != torch.bfloat16 else handed_in.float().cpu().numpy()
        )
    if isinstance(handed_in, str | bytes | Mapping | set | frozenset) or handed_in is None:
        return None
    if isinstance(handed_in, list | tuple) and any(isinstance(entry, Tensor) for entry in cast("list[Any]", handed_in)):
        handed_in = [_array(entry) for entry in cast("list[Any]", handed_in)]
    try:
        return np.asarray(handed_in)
    except ValueError:  # rows of different lengths
        try:
            return np.asarray(handed_in, dtype=object)
        except ValueError:
            return None


def _is_whole_dtype(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _refuse_dtype(dtype: str, *, is_whole: bool) -> None:
    if not is_whole:
        raise WorkbenchError(f"tokens are of dtype {dtype}; expected whole numbers, {_EXPECTED}")


def _is_whole(entry: object) -> bool:
    try:
        operator.index(cast("Any", entry))
    except TypeError:
        return False
    return True


def _reshaping(ids: Tensor) -> str:
    return "pass a list of the one token" if ids.ndim == 0 else "reshape them"


def _shown(handed_in: object) -> str:
    text = " ".join(repr(handed_in).split())
    return text if len(text) <= 60 else f"{text[:57]}…"
