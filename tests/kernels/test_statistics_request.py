"""Requests for statistics: what the kernels look up by halving must be in order."""

import pytest
import torch

from workbench.heads import WorkbenchError
from workbench.kernels import Cells, Request


def columns(*cells: tuple[int, int, int]) -> Cells:
    return Cells(*torch.tensor(cells).unbind(-1))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"cells": columns((0, 5, 1), (0, 2, 1))}, "cells are not sorted by (sequence, row)"),
        ({"cells": columns((1, 0, 0), (0, 7, 1))}, "cells are not sorted by (sequence, row)"),
        ({"top_rows": torch.tensor([[0, 3], [0, 1]])}, "top_rows are not sorted by (sequence, row)"),
        ({"rows": torch.tensor([4, 2])}, "rows are not sorted by rows"),
    ],
)
def test_a_request_out_of_order_is_refused_by_the_name_of_its_field(fields, name):
    with pytest.raises(WorkbenchError) as refusal:
        Request(**fields)
    assert name in str(refusal.value)


def test_cells_of_a_row_may_have_any_order_and_repeat():
    cells = columns((0, 2, 7), (0, 2, 1), (0, 2, 1), (1, 0, 0))
    assert Request(cells=cells).cells is cells
