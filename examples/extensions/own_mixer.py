"""A mixer of one's own: record the linear layers of a family that the workbench does not know.

The family here is a small language model of retention layers, in the style of transformers. One function reads a layer;
the decorator `mixer` registers it under the class name of the layer's module. Run the file as it stands, on a model
that it makes: `python examples/extensions/own_mixer.py`. In a package of your own the decorated function alone is
enough; name its module in an entry point, and every command knows the family:

    [project.entry-points."workbench.mixers"]
    my_package = "my_package.mixers"

Reference:
    Sun et al. 2023, Retentive Network, eq. 5 and 6, without rotation of queries and keys.
"""

from collections.abc import Mapping

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

import workbench as wb
from workbench.hooks import LinearCall, LinearLayer, mixer
from workbench.kernels import DecayRows

N_HEADS, D_HEAD = 4, 8


class RetentionConfig(PreTrainedConfig):
    model_type = "tiny_retention"
    vocab_size: int = 64
    hidden_size: int = N_HEADS * D_HEAD
    num_hidden_layers: int = 2


class Retention(nn.Module):
    """Heads with a state that decays by a constant γ per token: o_i = Σ_{j ≤ i} γ^(i − j) (q_i · k_j) v_j."""

    def __init__(self, d_model: int, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.q_proj, self.k_proj, self.v_proj, self.gate, self.o_proj = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(5)
        )
        self.norm = nn.RMSNorm(D_HEAD)
        self.register_buffer("log_decay", torch.log(1 - 2.0 ** (-2 - torch.arange(N_HEADS))))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        q, k, v = (by_head(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        k = k * D_HEAD**-0.5 * rearrange(valid, "b t -> b 1 t 1")
        state, outputs = torch.zeros(*k.shape[:2], D_HEAD, D_HEAD), []
        for t in range(x.shape[1]):
            written = einsum(k[:, :, t], v[:, :, t], "b h d, b h e -> b h d e")
            state = rearrange(self.log_decay.exp(), "h -> h 1 1") * state + written
            outputs.append(einsum(q[:, :, t], state, "b h d, b h d e -> b h e"))
        heads = self.norm(torch.stack(outputs, 1))
        return self.o_proj(rearrange(heads, "b t h e -> b t (h e)") * nn.functional.silu(self.gate(x)))


class RetentionForCausalLM(PreTrainedModel):
    config_class = RetentionConfig

    def __init__(self, config: RetentionConfig):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Retention(config.hidden_size, i) for i in range(config.num_hidden_layers))
        self.unembed = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_):
        x = self.embed(input_ids)
        valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        for layer in self.layers:
            x = x + layer(x, valid)
        return CausalLMOutput(logits=self.unembed(x))


def by_head(x: Tensor) -> Tensor:
    return rearrange(x, "b t (h d) -> b h t d", h=N_HEADS)


def describe(module: Retention) -> LinearLayer:
    """What the layer is; `slopes` because its decay does not depend on the tokens."""
    return LinearLayer(
        index=module.layer_idx,
        mixer="retention",
        n_heads=N_HEADS,
        n_kv_heads=N_HEADS,
        d_head=D_HEAD,
        has_conv=False,
        slopes=-module.log_decay,
    )


@mixer("Retention", describe=describe, taps=("q_proj", "k_proj", "v_proj"), norm="norm", projection="o_proj")
def read_retention(module: Retention, outputs: Mapping[str, Tensor], valid: Tensor) -> LinearCall:
    """Read a retention layer: queries, keys and values from their projections, and one decay per head."""
    q, k, v = (by_head(outputs[name]) for name in ("q_proj", "k_proj", "v_proj"))
    k = k * D_HEAD**-0.5
    log_decay = repeat(module.log_decay, "h -> 1 h t", t=valid.shape[1])
    return LinearCall(
        layer=module.layer_idx,
        q=q,
        k=k,
        v=v,
        log_decay=rearrange(log_decay, "b h t -> b h t 1"),
        rows=DecayRows(q, k, log_decay, valid=valid),
    )


def main() -> None:
    """Open a small random model, which checks the reader, and look at what is recorded of it."""
    torch.manual_seed(0)
    m = wb.open_model(RetentionForCausalLM(RetentionConfig()).eval())
    print(m, [layer.mixer for layer in m.layers])
    print("half-lives in tokens:", m.reach()[0].half_life[:, 0].round(decimals=1).tolist())
    tokens = torch.randint(m.vocab_size, (4, 40))
    print("a crop of L1H2:", m.pattern(tokens[0], 1, 2, slice(0, 3), slice(0, 3)), sep="\n")
    table = wb.score(m, ["previous_token", "mean_distance"], tokens)
    print(table.pivot(index=["layer", "head"], columns="detector", values="score").round(3))


if __name__ == "__main__":
    main()
