"""A model of one layer whose answer depends on two heads in a way written by hand: either, both, or their sum."""

from __future__ import annotations

import torch
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutput

from tests.planted import BOS, PREVIOUS, TOKEN, VOCABULARY, PlantedHead, PlantedModel, sink_head
from workbench.probes import Probe, make_probe

ANSWER, CERTAINTY = 7, 12.0
OR = lambda x, y: 1 - (1 - x) * (1 - y)  # noqa: E731
AND = lambda x, y: x * y  # noqa: E731
SUM = lambda x, y: 0.3 * x + 0.7 * y  # noqa: E731


def reader(place: int) -> PlantedHead:
    """Looks at the first token wherever it is seen, and says 1 at `place` if it is."""
    head = sink_head()
    head.ov[TOKEN, PREVIOUS][BOS, place] = 1
    return head


class JunctionModel(PlantedModel):
    """The logit of the answer is CERTAINTY times what the junction makes of the two heads; all others are 0."""

    def __init__(self, junction):
        super().__init__([[reader(0), reader(1)]])
        self.junction = junction

    def forward(self, input_ids, attention_mask=None, use_cache=False, logits_to_keep=None):
        x = torch.zeros(*input_ids.shape, self.config.hidden_size)
        x[..., TOKEN] = torch.nn.functional.one_hot(input_ids, VOCABULARY).float()
        said = self.blocks[0](x + self._positions(input_ids.shape[1]), create_causal_mask(self.config, x, None, None))
        first, second = said[..., PREVIOUS][..., 0], said[..., PREVIOUS][..., 1]
        logits = torch.zeros(*input_ids.shape, VOCABULARY)
        logits[..., ANSWER] = CERTAINTY * self.junction(first, second)
        return CausalLMOutput(logits=logits if logits_to_keep is None else logits[:, logits_to_keep])

    def _positions(self, n_tokens):
        places = torch.zeros(n_tokens, self.config.hidden_size)
        places[:, 2 * VOCABULARY :] = torch.nn.functional.one_hot(torch.arange(n_tokens), 128).float()
        return places


def far_answer(n_tokens: int = 20, n_sequences: int = 3) -> Probe:
    """Sequences whose last token is the answer, which only the first token tells."""
    torch.manual_seed(0)
    tokens = torch.randint(10, VOCABULARY, (n_sequences, n_tokens))
    tokens[:, 0], tokens[:, -1] = BOS, ANSWER
    rows = torch.stack([torch.arange(n_sequences), torch.full((n_sequences,), n_tokens - 2)], -1)
    return make_probe("far", tokens, answer_rows=rows)
