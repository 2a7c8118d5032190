"""The detectors that come with the workbench; importing this package registers them."""

from workbench.detectors.builtin import (
    contribution,
    indexers,
    local_band,
    locos,
    qr_head,
    razor_attention,
    retrieval,
    retrieval_decoded,
    row_shape,
    sinks,
    token_matching,
    transformerlens,
    value_norms,
    weight_circuits,
)

__all__ = [
    "contribution",
    "indexers",
    "local_band",
    "locos",
    "qr_head",
    "razor_attention",
    "retrieval",
    "retrieval_decoded",
    "row_shape",
    "sinks",
    "token_matching",
    "transformerlens",
    "value_norms",
    "weight_circuits",
]
