"""A detector of one's own: how much a head looks at the token that opened the sentence.

Run it as it stands, on a model that it makes: `python examples/own_detector.py`. In a package of your own the decorated
function alone is enough; name its module in an entry point, and `workbench scan --detector sentence_start` knows it:

    [project.entry-points."workbench.detectors"]
    mine = "my_package.my_detectors"
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb
from workbench.detectors import detector
from workbench.hooks import CellSum, PerSequence, Recording, Sequences

FULL_STOP = 7  # the id of "." in your tokenizer


def sentence_starts(batch: Sequences) -> torch.Tensor:
    """(sequence, row, key): for each row, the token after the last full stop before it."""
    b, i = batch.valid.nonzero(as_tuple=True)
    place = torch.arange(batch.tokens.shape[1], device=i.device).expand_as(batch.tokens)
    after_stop = torch.where(batch.tokens == FULL_STOP, place + 1, 0).cummax(-1).values
    start = after_stop.roll(1, dims=-1)[b, i]
    return torch.stack([b, i, start], -1)[start > 0]


@detector("sentence_start", needs={CellSum("sentence_starts", sentence_starts)})
def sentence_start(recording: Recording) -> PerSequence:
    """Attention on the token that opened the sentence."""
    return recording["sentence_starts"]


def main() -> None:
    """Score a small random model on sentences of random tokens, beside a detector that comes with the workbench."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    tokens = torch.randint(8, 64, (8, 80))
    tokens[:, 12::13] = FULL_STOP
    table = wb.score(LlamaForCausalLM(config).eval(), ["sentence_start", "sink"], tokens)
    print(table.pivot(index=["layer", "head"], columns="detector", values="score").round(4))


if __name__ == "__main__":
    main()
