"""How many tokens to run at once: on a CPU as many as its caches hold, elsewhere as many as keep it busy."""

from __future__ import annotations

from transformers import PreTrainedModel

from workbench.hooks.interventions.windows import Interventions

# Enough for any device, few enough to keep the activations in hundreds of MB.
_MOST = 4096
# With fewer rows, matrix products read more weights than they compute.
_LEAST = 512
# Numbers of the widest activation that stay in a core's caches from one layer to the next. Measured on SmolLM2-135M,
# one thread, CPU ms a token: 2,020 tokens at once 1.9, 505 at once 1.7; 2,048 at once 2.2, 512 at once 1.9.
_IN_CACHE = 1 << 20
# The widest activation, that of the MLP, is about as many times as wide as the residual stream.
_WIDENING = 4


def batch_tokens(model: PreTrainedModel, interventions: Interventions) -> int:
    """The number of tokens of a batch that a forward pass is fastest with; a longer sequence is a batch of its own.

    Where a head has its mean over the batch, the same on every machine.
    """
    width = getattr(model.config.get_text_config(), "hidden_size", None)
    if interventions.averages_over_batch or model.device.type != "cpu" or not isinstance(width, int):
        return _MOST
    return max(_LEAST, min(_MOST, _IN_CACHE // (_WIDENING * width)))
