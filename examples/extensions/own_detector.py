"""A detector of your own: attention on the token that opened the sentence.

The script makes a small model and scores it: `python examples/extensions/own_detector.py`. In a package, the decorated
function is enough. Name its module in an entry point, and `workbench scan --detector sentence_start` finds it:

    [project.entry-points."workbench.detectors"]
    my_package = "my_package.detectors"
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
    position = torch.arange(batch.tokens.shape[1], device=i.device).expand_as(batch.tokens)
    after_stop = torch.where(batch.tokens == FULL_STOP, position + 1, 0).cummax(-1).values
    start = after_stop.roll(1, dims=-1)[b, i]
    return torch.stack([b, i, start], -1)[start > 0]


@detector("sentence_start", needs={CellSum("sentence_starts", sentence_starts)})
def sentence_start(recording: Recording) -> PerSequence:
    """Attention on the token that opened the sentence."""
    return recording["sentence_starts"]


def main() -> None:
    """Score a small random model on sentences of random tokens, next to a detector of the workbench."""
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
