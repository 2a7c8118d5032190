"""Dictionaries of tensors that print what is in them and how large it is, not the numbers."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

Key = TypeVar("Key")
_MOST_KEYS = 3


class TensorTable(dict[Key, Tensor]):
    """A dictionary of tensors, printed in one line: its first keys with their sizes."""

    def __repr__(self) -> str:
        named = [f"{key}: {' × '.join(map(str, tensor.shape))}" for key, tensor in self.items()]
        more = f", … {len(named)} in all" if len(named) > _MOST_KEYS else ""
        return f"{{{', '.join(named[:_MOST_KEYS])}{more}}}"
