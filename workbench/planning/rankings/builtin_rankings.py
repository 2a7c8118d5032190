"""Register the built-in rankings, in the order in which messages and tables list them."""

from __future__ import annotations

from workbench.planning.rankings.after_alignment import restore_one_aligned
from workbench.planning.rankings.chance import random, random_in_layer
from workbench.planning.rankings.duo_gates import duo_gates, duo_gates_annealed
from workbench.planning.rankings.joint_gates import joint_gates
from workbench.planning.rankings.one_by_one import ablate_accuracy, ablation, greedy, leave_one_windowed, restore_one
from workbench.planning.rankings.output_error import output_error
from workbench.planning.rankings.priors import far_mass, prior
from workbench.planning.rankings.registry import ranking
from workbench.planning.rankings.window_gates import first_order, gradient_at_zero, integrated

ranking("window_gates")(integrated)
ranking("leave_one_windowed")(leave_one_windowed)
ranking("restore_one")(restore_one)
ranking("greedy")(greedy)
ranking("duo_gates")(duo_gates)
ranking("duo_gates_annealed")(duo_gates_annealed)
ranking("joint_gates")(joint_gates)
ranking("restore_one_aligned")(restore_one_aligned)
ranking("first_order")(first_order)
ranking("gradient_at_zero")(gradient_at_zero)
ranking("output_error")(output_error("answers"))
ranking("output_error_all")(output_error("all"))
ranking("far_mass")(far_mass)
for _detector in ("mean_distance", "retrieval", "induction"):
    ranking(_detector)(prior(_detector))
for _replacement in ("zero", "mean", "uniform"):
    ranking(f"ablate_{_replacement}")(ablation(_replacement))
ranking("ablate_accuracy")(ablate_accuracy)
ranking("random")(random)
ranking("random_in_layer")(random_in_layer)
