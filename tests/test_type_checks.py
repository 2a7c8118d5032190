"""A wrong annotation fails a test: functions are checked in their first calls and in their first of some tests."""

import os
from inspect import signature

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from tests.type_checks import EVERY, EVERY_CALL, FIRST, TESTS, _sampled, check_again
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


def test_the_first_calls_are_checked_and_then_the_first_of_some_tests():
    checked = _sampled(length, typechecker=beartype)
    assert refused(checked, 3 * FIRST) == list(range(1, FIRST + 1))
    for _ in range(3):
        check_again()
        assert refused(checked, 5) == [1]
        assert checked(torch.zeros(3)) == 3


def test_a_function_is_called_with_its_own_defaults_checked_or_not():
    def call(x: Float[Tensor, " n"], /, y: int = 1, *more: int, z: int = 2, **options: int) -> tuple[int, ...]:
        return (x.numel(), y, *more, z, *options.values())

    call.__qualname__ = "call"
    checked = _sampled(call, typechecker=beartype)
    for _ in range(2 * FIRST):
        assert checked(torch.zeros(3)) == (3, 1, 2)
        assert checked(torch.zeros(3), 4, 5, z=6, a=7) == (3, 4, 5, 6, 7)
    assert signature(checked) == signature(call)
    with pytest.raises(TypeError):
        checked()


def test_functions_with_a_closure_are_checked_in_their_first_calls_and_then_every_so_many():
    def define():
        factor = 1

        def length(x: Float[Tensor, " n"]) -> int:
            return x.numel() * factor

        length.__qualname__ = "length"  # as a method that calls `super`
        return length

    n = FIRST + 3 * EVERY
    checked = _sampled(define(), typechecker=beartype)
    assert refused(checked, n) == [i for i in range(1, n + 1) if i <= FIRST or i % EVERY == 0]


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


def test_modules_of_the_workbench_are_checked_in_one_of_so_many_tests():
    refused_in = []
    for number in range(1, 2 * TESTS + FIRST):
        check_again(number)
        try:
            grouped_scores(torch.zeros(1, 2, 3), torch.zeros(1, 1, 3, 4))
        except TypeCheckError:
            refused_in.append(number)
        except Exception:  # einops cannot read three dimensions either
            continue
    assert {TESTS, 2 * TESTS} <= set(refused_in)
