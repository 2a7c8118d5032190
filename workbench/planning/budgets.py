"""The number of heads, or layers, of an order that a budget allows."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

from workbench.heads import WorkbenchError
from workbench.planning.conversion_objective import Game
from workbench.planning.keep_curves import FEW, Order
from workbench.store.conversions import SparseAttention
from workbench.store.plan_file import Budget, KVBytes, LossTolerance


def check_budget(keep: Budget) -> None:
    """Raises:
    WorkbenchError: if it is no budget, or a share outside of 0 to 1, or a tolerance that is negative.
    """
    if isinstance(keep, KVBytes):
        if not _is_number(keep.n):
            raise WorkbenchError(f"a budget of {keep.n!r} bytes was given; expected a number")
    elif isinstance(keep, LossTolerance):
        if not (_is_number(keep.nats) and keep.nats >= 0):
            raise WorkbenchError(f"a tolerance of {keep.nats!r} nats was given; expected 0 or more")
    elif not (_is_number(keep) and 0 <= keep <= 1):
        raise WorkbenchError(
            f"keep is {keep!r}; expected a share from 0 to 1, workbench.KVBytes(n) or workbench.LossTolerance(nats)"
        )


def n_affordable(keep: Budget, order: Order, held_out: Sequence[Game], *, context: int) -> int:
    """How many groups of the order are kept.

    Of a share, the nearest number. Of bytes, the most that fit. Of a loss tolerance, a number that stays within it on
    every held-out probe while one less does not: with up to a dozen groups the fewest, else one by bisection.

    Raises:
        WorkbenchError: if the bytes do not even hold the conversions.
    """
    return numbers_tried(keep, order, held_out, context=context)[-1]


def numbers_tried(keep: Budget, order: Order, held_out: Sequence[Game], *, context: int) -> list[int]:
    """The numbers of groups whose outcomes `n_affordable` measures, and its answer last."""
    if isinstance(keep, KVBytes):
        return [_most_in(keep.n, order, held_out[0], context)]
    if isinstance(keep, LossTolerance):
        return _fewest_within(keep.nats, order, held_out)
    return [round(keep * len(order))]


def lost_nats(order: Order, n: int, held_out: Sequence[Game]) -> float:
    """Nats per answer lost with the first n groups kept, on the held-out probe where that is most."""
    return max(game.outcome(order.without(n)).nats - game.outcome().nats for game in held_out)


def _is_number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real)


def _most_in(n_bytes: int, order: Order, game: Game, context: int) -> int:
    def size(n: int) -> int:
        return game.cache_bytes(order.first(n), context=context)

    if size(0) > n_bytes:
        is_sparse = any(isinstance(to, SparseAttention) for to in game.conversions().values())
        raise WorkbenchError(
            f"{n_bytes} bytes hold no plan: with every head converted the cache takes {size(0)}; pass as many or "
            f"more, or a smaller window{', or choices without sparse, whose heads keep their cache' * is_sparse}"
        )
    return max(n for n in range(len(order) + 1) if size(n) <= n_bytes)


def _fewest_within(nats: float | int, order: Order, held_out: Sequence[Game]) -> list[int]:
    tried: list[int] = []

    def is_enough(n: int) -> bool:
        tried.append(n)
        return lost_nats(order, n, held_out) <= nats

    # Keeping all groups loses nothing, so that one number always qualifies.
    if len(order) <= FEW:
        return [*tried, next(n for n in range(len(order) + 1) if is_enough(n))]
    too_few, enough = -1, len(order)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if is_enough(middle):
            enough = middle
        else:
            too_few = middle
    return [*tried, enough]
