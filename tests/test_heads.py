"""Records print one line, however large what they hold."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from workbench.heads import brief


@dataclass(frozen=True)
class Record:
    values: object
    hidden: int = field(default=0, repr=False)

    def __repr__(self) -> str:
        return brief(self)


def test_arrays_and_tables_are_named_by_their_sizes_and_long_collections_by_their_length():
    cases = {
        "<3 × 4 float32>": torch.zeros(3, 4),
        "<one number float64>": np.float64(3),
        "<5 int64>": np.arange(5),
        "<table of 2 × 1>": pd.DataFrame({"a": [1, 2]}),
        "<9 entries>": list(range(9)),
        "(1, 2)": (1, 2),
        "'text'": "text",
    }
    for shown, values in cases.items():
        assert repr(Record(values)) == f"Record(values={shown})"
    assert len(repr(Record("long " * 100))) < 90
