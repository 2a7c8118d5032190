"""How much of what a conversion costs comes back without training, when some heads stay full."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench.experiments.conversion.keep_sets import is_linear
from workbench.experiments.conversion.markdown_tables import cell, markdown, picked
from workbench.experiments.conversion.results import NO_TRAINING, Results, over_seeds, pooled


def recovered_share(results: Results) -> pd.DataFrame:
    """How much of the loss of converting every head is back without training, per seed, keep-set and probe.

    Converting to windows or to linear attention, as the keep-set does with the other heads. `probe`: needles from
    beyond the window, documents, and every task; `share` of the gap in nats.
    """
    measured: Any = results.measured
    table: Any = pooled(results, measured[measured.training == NO_TRAINING])
    who = ["seed", "method", "n_kept", "draw", "probe"]
    nats = table.groupby(who, sort=False).nats.mean().reset_index()
    none = nats.method.map(lambda method: "none_linear" if is_linear(method) else "none")
    ends = nats[nats.n_kept.isin((0, results.study.n_heads * results.study.n_layers))]
    ends = ends.drop_duplicates(["method", "seed", "probe"]).set_index(["method", "seed", "probe"]).nats

    def end(method: Any) -> Any:
        return ends.reindex(pd.MultiIndex.from_arrays([method, nats.seed, nats.probe])).to_numpy()

    full, converted = end(["all"] * len(nats)), end(none)
    return nats.assign(share=(converted - nats.nats) / (converted - full), training=NO_TRAINING)


def recovered_table(results: Results) -> str:
    """Rankings down, probes across: the share that the first `n_kept` heads bring back."""
    table: Any = recovered_share(results)
    n_kept, probes = results.study.n_kept, table.probe.unique().tolist()
    means: Any = over_seeds(table, ["training", "method", "n_kept", "probe"], "share")
    rows = [["first heads by", *(f"`{probe}`" for probe in probes)]]
    for method in means[means.n_kept == n_kept].method.unique():
        cells = [cell(picked(means[means.probe == probe], NO_TRAINING, method, n_kept)) for probe in probes]
        rows.append([f"`{method}`", *cells])
    return markdown(rows)
