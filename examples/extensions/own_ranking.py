"""A ranking of one's own: each key/value head's Shapley value, estimated from random orders of restoring heads.

A head's score is the mean loss that restoring it removes, over random orders in which all heads are restored one by
one. The scores sum to the loss of converting every head, as those of `window_gates` do, and need no gradient. They
take n + 1 evaluations of the probe for each order of n heads.

Run it as it stands, on a model that it makes: `python examples/extensions/own_ranking.py`. In a package of your own the
decorated function alone is enough; name its module in an entry point, and `wb.plan(m, method="shapley")` and
`workbench plan --method shapley` know it:

    [project.entry-points."workbench.rankings"]
    my_package = "my_package.my_rankings"

Reference:
    Shapley 1953, A Value for n-Person Games; Castro et al. 2009, Polynomial calculation of the Shapley value based on
    sampling.
"""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb
from workbench.heads import KVHead
from workbench.planning import Evaluation, Game, Ranking, ranking
from workbench.probes import copy_needle

N_ORDERS = 8


@ranking("shapley")
def shapley(game: Game) -> Ranking:
    """Mean loss that restoring the head removes, over random orders of restoring all heads."""
    rng = np.random.default_rng(game.seed)
    scores = np.zeros((len(game.nats()), len(game.heads)))  # sequence, head
    for _ in range(N_ORDERS):
        restored: list[KVHead] = []
        before = game.without(restored)  # nats of each sequence with every head converted
        for i in rng.permutation(len(game.heads)):
            restored.append(game.heads[i])
            after = game.without(restored)
            scores[:, i] += (before - after) / N_ORDERS
            before = after
    return Ranking("shapley", "nats", game.heads, scores.mean(0), per_sequence=scores)


def main() -> None:
    """Plan a small random model with it, and with window gates to compare."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    m = wb.open_model(LlamaForCausalLM(config).eval())
    ranked_on, held_out = (
        copy_needle(64, 20, length=36, n_sequences=6, seed=seed, name=f"needles_{seed}") for seed in (0, 1)
    )
    evaluation = Evaluation(ranked_on, (held_out,), context=64, baselines=("window_gates",))
    plan = wb.plan(m, window=6, keep=0.25, method="shapley", evaluation=evaluation)
    print("keeps", *plan.keep)
    print(plan.curves().pivot(index="n_kept", columns="method", values="recovered").round(3))


if __name__ == "__main__":
    main()
