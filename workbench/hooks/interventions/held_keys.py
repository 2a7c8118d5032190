"""Keys and values of some heads of a layer, of which those are held that a later query may see: sinks and a window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.explicit_masks import FEW_ROWS, Scores, rows_output
from workbench.store.conversions import Window

# Tokens of the newest pass that can be taken back, as assisted generation does with those that are rejected.
MOST_TAKEN_BACK = 256
# Rows that are computed together where a pass has many.
_BLOCK = 128


@dataclass(slots=True)
class HeldKeys:
    """The keys and values of some key/value heads: `n_sinks` first ones, then a run up to the newest.

    `heads`: their numbers. `windows`: what they were cut to. `band`: how many keys of the run a query may see, its own
    included; None: all. `first`: the position of each sequence's first token that is no padding; `start`: the position
    of the run's first key.
    """

    heads: tuple[int, ...]
    windows: tuple[Window, ...]
    band: int | None
    k: Float[Tensor, "b h slots d"]
    v: Float[Tensor, "b h slots d_v"]
    n_sinks: int
    first: Int[Tensor, " b"]
    start: int

    def add(self, k: Float[Tensor, "b n_kv_heads q d"], v: Float[Tensor, "b n_kv_heads q d_v"]) -> None:
        """Take in new keys, and let those go that no query from here on sees."""
        drop = 0 if self.band is None else max(0, self._n_run - (self.band - 1))
        heads = list(self.heads)
        is_all = len(heads) == k.shape[1]
        new = (k, v) if is_all else (k[:, heads], v[:, heads])
        self.k, self.v = self._joined(self.k, new[0], drop), self._joined(self.v, new[1], drop)
        self.start += drop

    def trim(self, n_new: int) -> None:
        """Let those keys go that the next query does not see, but for some of the `n_new` newest."""
        drop = 0 if self.band is None else self._n_run - (self.band - 1 + min(n_new, MOST_TAKEN_BACK))
        if drop > 0:
            self.k, self.v = (self._joined(x, x[:, :, :0], drop) for x in (self.k, self.v))
            self.start += drop

    def can_take_back(self, n: int) -> bool:
        """Whether the newest `n` keys can be forgotten: no older one that would be needed then is gone."""
        return self.start == 0 or self.band is None or self._n_run - n >= self.band - 1

    def take_back(self, n: int) -> None:
        """Forget the newest `n` keys."""
        self.k, self.v = (x[:, :, : x.shape[2] - n] for x in (self.k, self.v))

    def tensors(self) -> list[Tensor]:
        """What is held."""
        return [self.k, self.v]

    def change(self, sequences: Callable[[Tensor], Tensor]) -> None:
        """Put other sequences in the place of these: reordered, repeated or chosen."""
        self.k, self.v, self.first = sequences(self.k), sequences(self.v), sequences(self.first)

    @property
    def _n_run(self) -> int:
        return self.k.shape[2] - self.n_sinks

    def _joined(self, old: Tensor, new: Tensor, drop: int) -> Tensor:
        if self.n_sinks == 0 or drop == 0:
            return torch.cat([old[:, :, drop:], new], 2)
        return torch.cat([old[:, :, : self.n_sinks], old[:, :, self.n_sinks + drop :], new], 2)

    def output(
        self, call: AttentionCall, kv_heads: tuple[int, ...], windows: tuple[Window, ...]
    ) -> Float[Tensor, "b q h d_v"]:
        """Attention of the queries of some of these heads, under windows."""
        group = call.q.shape[1] // call.k.shape[1]
        heads = [h * group + i for h in kv_heads for i in range(group)]
        q = call.q[:, heads]
        scores = Scores(call.scale, call.softcap, None if call.sinks is None else call.sinks[heads])
        k, v = self.k, self.v
        if kv_heads != self.heads:
            local = [self.heads.index(h) for h in kv_heads]
            k, v = k[:, local], v[:, local]
        n_rows, size = q.shape[2], _BLOCK if scores.is_plain else FEW_ROWS
        outputs: list[Tensor] = []
        for row in range(0, n_rows, size):
            rows = torch.arange(row, min(n_rows, row + size), device=q.device) + call.mask.query_offset
            slots = self._slots_of(rows) if n_rows > FEW_ROWS and self.band is not None else None
            outputs.append(
                rows_output(
                    q[:, :, row : row + size],
                    k if slots is None else k[:, :, slots],
                    v if slots is None else v[:, :, slots],
                    self._visible(call, rows, windows, slots),
                    scores,
                )
            )
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)

    def _slots_of(self, rows: Int[Tensor, " q"]) -> Int[Tensor, " slots"]:
        """The slots of the sinks, and of those keys of the run that some of the rows may see."""
        assert self.band is not None
        lo = max(0, int(rows[0]) - self.band + 1 - self.start)
        hi = min(self._n_run, int(rows[-1]) + 1 - self.start)
        run = torch.arange(self.n_sinks + lo, self.n_sinks + hi, device=rows.device)
        return torch.cat([torch.arange(self.n_sinks, device=rows.device), run])

    def _visible(
        self,
        call: AttentionCall,
        rows: Int[Tensor, " q"],
        windows: tuple[Window, ...],
        slots: Int[Tensor, " slots"] | None,
    ) -> Bool[Tensor, "b q slots"] | None:
        """Which slots the rows see; None where one row sees all."""
        mask = call.mask
        if len(rows) == 1 and mask.valid is None and self._shows_all(windows):
            return None
        run = torch.arange(self.start, self.start + self._n_run, device=rows.device).expand(len(self.k), -1)
        sinks = self.first[:, None] + torch.arange(self.n_sinks, device=rows.device)
        position = torch.cat([sinks, run], 1)
        position = position if slots is None else position[:, slots]
        back = rearrange(rows, "q -> 1 q 1") - rearrange(position, "b k -> b 1 k")
        visible = back >= 0
        for window in windows:
            is_sink = position < self.first[:, None] + window.sink
            visible = visible & ((back < window.window) | rearrange(is_sink, "b k -> b 1 k"))
        if mask.valid is not None:
            column = position - mask.key_offset
            is_valid = mask.valid.to(rows.device).gather(1, column.clamp(0, mask.n_keys - 1)) & (column >= 0)
            visible = visible & rearrange(is_valid, "b k -> b 1 k")
        return visible

    def _shows_all(self, windows: tuple[Window, ...]) -> bool:
        """Whether the newest query sees every slot under these windows."""
        if len(windows) > 1:
            return False
        return not windows or (self._n_run <= windows[0].window and self.n_sinks <= windows[0].sink)
