"""A wrong annotation fails a test: functions are checked in their first calls and again and again afterwards."""

import os

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from tests.type_checks import EVERY, EVERY_CALL, FIRST, _sampled
from workbench.hooks.taps.scored_call import grouped_scores

pytestmark = pytest.mark.skipif(EVERY_CALL in os.environ, reason="every call is checked")


def length(x: Float[Tensor, " n"]) -> int:
    return x.numel()


def refused(function, n_calls):
    """The numbers of the calls that are refused, of calls with one dimension too many."""
    numbers = []
    for number in range(1, n_calls + 1):
        try:
            function(torch.zeros(2, 2))
        except TypeCheckError:
            numbers.append(number)
    return numbers


def test_the_first_calls_are_checked_and_then_every_so_many():
    n = FIRST + 3 * EVERY
    checked = _sampled(length, typechecker=beartype)
    assert refused(checked, n) == [i for i in range(1, n + 1) if i <= FIRST or i % EVERY == 0]
    assert checked(torch.zeros(3)) == 3


def test_a_function_that_is_defined_anew_with_every_call_counts_as_one():
    def define():
        def inner(x: Float[Tensor, " n"]) -> int:
            return x.numel()

        return _sampled(inner, typechecker=beartype)

    n_refused = sum(refused(define(), 1) == [1] for _ in range(FIRST + 3 * EVERY))
    assert FIRST < n_refused < FIRST + 10


def test_functions_of_one_code_are_each_called_with_what_is_around_them():
    def define(factor):
        def inner(x: Float[Tensor, " n"], by: int = 1) -> Float[Tensor, " n"]:
            return x * factor * by if factor else by

        return _sampled(inner, typechecker=beartype)

    functions = [define(factor) for factor in (2, 3, 0)]
    assert [functions[i](torch.ones(1), by=5).item() for i in (0, 1, 0)] == [10, 15, 10]
    assert refused(functions[1], 1) == [1]
    assert functions[0].__name__ == "inner"
    with pytest.raises(TypeCheckError, match="return value"):
        functions[2](torch.ones(1))
    assert functions[1](torch.ones(1)).item() == 3


def test_modules_of_the_workbench_are_checked():
    numbers = []
    for number in range(EVERY):
        try:
            grouped_scores(torch.zeros(1, 2, 3), torch.zeros(1, 1, 3, 4))
        except TypeCheckError:
            numbers.append(number)
        except Exception:  # einops cannot read three dimensions either
            continue
    assert numbers
