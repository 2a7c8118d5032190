"""An attention-only model whose heads are written by hand, so that every score is known exactly.

The residual stream is [token one-hot | previous-token one-hot | position one-hot]; scores are q · k with no scaling; a
gain of 30 makes the intended key's softmax 1 to within e^-30.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

VOCABULARY, LENGTH, GAIN = 51, 128, 30.0
WIDTH = 2 * VOCABULARY + LENGTH
TOKEN, PREVIOUS, POSITION = (
    slice(0, VOCABULARY),
    slice(VOCABULARY, 2 * VOCABULARY),
    slice(2 * VOCABULARY, WIDTH),
)
BOS = 0


@dataclass(frozen=True)
class PlantedHead:
    """Matrices from the residual to queries, keys and output; `sink` is a learned sink logit."""

    q: torch.Tensor
    k: torch.Tensor
    ov: torch.Tensor
    sink: float | None = None


def _zeros():
    return torch.zeros(WIDTH, WIDTH)


def previous_token_head():
    q, k, ov = _zeros(), _zeros(), _zeros()
    q[POSITION, POSITION] = GAIN * torch.diag(torch.ones(LENGTH - 1), -1)
    k[POSITION, POSITION] = torch.eye(LENGTH)
    ov[TOKEN, PREVIOUS] = torch.eye(VOCABULARY)
    return PlantedHead(q, k, ov)


def current_token_head():
    q, k = _zeros(), _zeros()
    q[POSITION, POSITION], k[POSITION, POSITION] = GAIN * torch.eye(LENGTH), torch.eye(LENGTH)
    return PlantedHead(q, k, _zeros())


def duplicate_token_head():
    q, k = _zeros(), _zeros()
    q[TOKEN, TOKEN], k[TOKEN, TOKEN] = GAIN * torch.eye(VOCABULARY), torch.eye(VOCABULARY)
    q[POSITION, POSITION], k[POSITION, POSITION] = -2 * GAIN * torch.eye(LENGTH), torch.eye(LENGTH)
    return PlantedHead(q, k, _zeros())


def sink_head():
    q, k = _zeros(), _zeros()
    q[POSITION, 0] = GAIN
    k[TOKEN, 0][BOS] = 1
    return PlantedHead(q, k, _zeros())


def uniform_head(sink: float | None = None):
    return PlantedHead(_zeros(), _zeros(), _zeros(), sink)


def induction_head(margin: float = GAIN):
    q, k, ov = _zeros(), _zeros(), _zeros()
    q[TOKEN, PREVIOUS], k[PREVIOUS, PREVIOUS] = margin * torch.eye(VOCABULARY), torch.eye(VOCABULARY)
    return PlantedHead(q, k, ov)


class PlantedConfig(PretrainedConfig):
    model_type = "planted"

    def __init__(self, n_layers: int = 1, **kwargs):
        self.vocab_size, self.num_hidden_layers = VOCABULARY, n_layers
        self.hidden_size, self.max_position_embeddings = WIDTH, LENGTH
        super().__init__(**{"bos_token_id": BOS, **kwargs})


class PlantedAttention(nn.Module):
    def __init__(self, config: PlantedConfig, layer_idx: int, heads: list[PlantedHead]):
        super().__init__()
        self.config, self.layer_idx, self.heads = config, layer_idx, heads

    def forward(self, x, mask):
        q, k, v = (torch.stack([x @ getattr(head, name) for head in self.heads], 1) for name in ("q", "k", "ov"))
        sinks = [head.sink for head in self.heads]
        s_aux = None if sinks[0] is None else torch.tensor(sinks)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, None)
        out, _ = attend(self, q, k, v, mask, scaling=1.0, s_aux=s_aux)
        return x + out.sum(2)


class PlantedModel(PreTrainedModel):
    config_class = PlantedConfig
    _supports_sdpa = True

    def __init__(self, layers: list[list[PlantedHead]]):
        super().__init__(PlantedConfig(len(layers)))
        self.blocks = nn.ModuleList(PlantedAttention(self.config, i, heads) for i, heads in enumerate(layers))
        self.anchor = nn.Parameter(torch.zeros(1))
        self.post_init()

    def forward(self, input_ids, attention_mask=None, use_cache=False, logits_to_keep=None):
        b, t = input_ids.shape
        x = torch.zeros(b, t, WIDTH)
        x[..., TOKEN] = nn.functional.one_hot(input_ids, VOCABULARY).float()
        x[..., POSITION] = nn.functional.one_hot(torch.arange(t), LENGTH).float()
        mask = create_causal_mask(self.config, x, attention_mask, None)
        for block in self.blocks:
            x = block(x, mask)
        kept = slice(None) if logits_to_keep is None else logits_to_keep
        return CausalLMOutput(logits=x[:, kept, TOKEN])
