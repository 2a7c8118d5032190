"""A probe of your own: a list of random tokens, then the same list backwards.

An induction head attends to the token after an earlier occurrence of the current token. Here the answer is the token
before it, so `retrieval` on this probe finds other heads than `induction` does.

The script makes a small model and scores it: `python examples/extensions/own_probe.py`. In a package, the decorated
function is enough. Name its module in an entry point, and `workbench scan --probe reversal:n=64` finds it:

    [project.entry-points."workbench.probes"]
    my_package = "my_package.probes"
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb
from workbench.probes import HasVocabulary, Probe, Vocabulary, make_probe, probe, vocabulary


@probe("reversal")
def reversal(
    source: HasVocabulary | Vocabulary | int,
    *,
    n: int = 32,
    n_sequences: int = 20,
    seed: int = 0,
    name: str = "reversal",
) -> Probe:
    """A list of `n` different random tokens, then the same list backwards.

    Answers: the tokens of the second list but its first. Target cells: the same token in the first list. Classes: the
    distance from the row to that cell.
    """
    words = vocabulary(source)
    if not 2 <= n <= len(words.ids):
        raise wb.WorkbenchError(f"n is {n}; expected 2 to the {len(words.ids)} ordinary tokens")
    generator = torch.Generator().manual_seed(seed)
    first = torch.stack(
        [words.ids[torch.randperm(len(words.ids), generator=generator)[:n]] for _ in range(n_sequences)]
    )
    bos = torch.full((n_sequences, int(words.bos is not None)), words.bos or 0)
    tokens = torch.cat([bos, first, first.flip(1)], 1)

    sequence = torch.arange(n_sequences).repeat_interleave(n - 1)
    row = (bos.shape[1] + n + torch.arange(n - 1)).repeat(n_sequences)
    key = (bos.shape[1] + n - 2 - torch.arange(n - 1)).repeat(n_sequences)
    return make_probe(
        name,
        tokens,
        answer_rows=torch.stack([sequence, row], -1),
        target_cells=torch.stack([sequence, row, key], -1),
        classes=row - key,
        metric="copy_accuracy",
    )


def main() -> None:
    """Score a small random model on the probe, by its name."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    table = wb.score(LlamaForCausalLM(config).eval(), ["retrieval", "induction"], probes=["reversal:n=16"])
    print(table.pivot(index=["layer", "head"], columns="detector", values="score").round(4))


if __name__ == "__main__":
    main()
