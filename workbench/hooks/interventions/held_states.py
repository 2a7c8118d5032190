"""The state of heads with linear attention in place of their keys: Σ λ^(i−j) φ(k_j) [v_j, 1] over all that came before.

The keys and values of the newest pass are held beside it until the next one, so that they can be taken back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from workbench.hooks.interventions.held_keys import MOST_TAKEN_BACK
from workbench.hooks.interventions.linear_attention import StateBefore, continued
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.store.conversions import LinearAttention, Window


@dataclass(slots=True)
class HeldStates:
    """Some key/value heads of one form. `k`, `v`, `valid`: of the tokens that are not in the state yet.

    `scale`: the model's own factor of q · k.
    """

    heads: tuple[int, ...]
    form: LinearAttention
    scale: float
    k: Float[Tensor, "b h p d"]
    v: Float[Tensor, "b h p d_v"]
    valid: Bool[Tensor, "b p"] | None
    state: Float[Tensor, "b h features d_v1"] | None = None

    def add(self, k: Float[Tensor, "b n_kv_heads q d"], v: Float[Tensor, "b n_kv_heads q d_v"]) -> None:
        """Take the tokens that are beside the state into it, and new ones in their place."""
        self.absorb(self.k.shape[2])
        self.k, self.v, self.valid = k[:, list(self.heads)], v[:, list(self.heads)], None

    def absorb(self, n: int) -> None:
        """Take the oldest `n` tokens beside the state into it."""
        if n <= 0:
            return
        before = StateBefore(self.scale, self.state, None if self.valid is None else self.valid[:, :n])
        k, v = self.k[:, :, :n], self.v[:, :, :n]
        self.state = continued(k, k, v, self.form, before)[1]
        self.k, self.v = (x[:, :, n:].clone() for x in (self.k, self.v))
        self.valid = None if self.valid is None else self.valid[:, n:]

    def trim(self, n_new: int) -> None:
        """Hold no more than some tokens of the newest pass, which had `n_new`, beside the state."""
        self.absorb(self.k.shape[2] - min(n_new, MOST_TAKEN_BACK))

    def can_take_back(self, n: int) -> bool:
        """Whether the newest `n` tokens are not in the state yet."""
        return n <= self.k.shape[2]

    def take_back(self, n: int) -> None:
        """Forget the newest `n` tokens."""
        n_left = self.k.shape[2] - n
        self.k, self.v = (x[:, :, :n_left] for x in (self.k, self.v))
        self.valid = None if self.valid is None else self.valid[:, :n_left]

    def change(self, sequences: Callable[[Tensor], Tensor]) -> None:
        """Put other sequences in the place of these: reordered, repeated or chosen."""
        self.k, self.v = sequences(self.k), sequences(self.v)
        self.valid = None if self.valid is None else sequences(self.valid)
        self.state = None if self.state is None else sequences(self.state)

    def tensors(self) -> list[Tensor]:
        """What is held."""
        return [x for x in (self.k, self.v, self.state) if x is not None]

    def output(
        self, call: AttentionCall, kv_heads: tuple[int, ...], windows: tuple[Window, ...]
    ) -> Float[Tensor, "b q h d_v"]:
        """Linear attention of the newest queries of these heads; no window goes with it."""
        assert kv_heads == self.heads
        assert not windows
        group = call.q.shape[1] // call.k.shape[1]
        queries = [h * group + i for h in kv_heads for i in range(group)]
        self.valid = None if call.mask.valid is None else call.mask.valid[:, -call.q.shape[2] :].to(call.q.device)
        k, v = self.k.repeat_interleave(group, 1), self.v.repeat_interleave(group, 1)
        before = StateBefore(
            call.scale, None if self.state is None else self.state.repeat_interleave(group, 1), self.valid
        )
        return continued(call.q[:, queries], k, v, self.form, before)[0]
