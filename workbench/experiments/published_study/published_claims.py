"""The questions of a study of a published model, each with an answer in numbers, or why there is none.

A share "is back" of the nats per answer that windowing every head loses; brackets are 95 % intervals over the texts of
all seeds. One arm brings back more than another only where the interval of their paired difference lies above 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.console import fixed
from workbench.experiments.published_study.judged_texts import lengths_of_study
from workbench.experiments.published_study.published_results import PublishedResults
from workbench.experiments.published_study.published_settings import GATES
from workbench.experiments.published_study.study_arms import LINEAR, SPARSE, WITHOUT_SINKS, selection_of
from workbench.experiments.published_study.study_rankings import PATTERNS
from workbench.experiments.published_study.study_tables import Answered
from workbench.experiments.published_study.study_work import arms_of
from workbench.experiments.published_study.wider_layers import sliding_layers
from workbench.heads import KVHead

Table = Any  # a pandas DataFrame, whose own types know little of what its methods return
_NOTHING = "It cannot be said: "
# Lock-in within layers, as a share of its ceiling, from which on heads have hardly moved.
_HARDLY = 0.9
_PRIORS = ("induction", "retrieval", "far_mass", "output_error", "first_order")
_AT_CHANCE = ("random", "random_in_layer")


@dataclass(frozen=True, slots=True)
class StudyClaim:
    """`name`: of the question, for programs."""

    name: str
    question: str
    answer: str


def claims_of(results: PublishedResults) -> list[StudyClaim]:
    """Every question with its answer."""
    windows, first = results.study.windows, results.study.windows[0]

    def over_windows(answer: Callable[[PublishedResults, int], str]) -> str:
        answers = [(window, answer(results, window)) for window in windows]
        return answers[0][1] if len(windows) == 1 else " ".join(f"Window {w}: {a}" for w, a in answers)

    return [
        StudyClaim(
            "damage_grows",
            "Does windowing every head do damage, and the more the longer the text?",
            over_windows(_damage),
        ),
        StudyClaim("layers", "Do whole layers that stay full repair it?", over_windows(_layers)),
        StudyClaim("training", "Does continued pretraining repair it?", _training(results, first)),
        StudyClaim("kept_heads", "Does it repair the damage to keep the detected heads full?", over_windows(_repaired)),
        StudyClaim("priors", "Do the priors find these heads?", over_windows(_priors)),
        StudyClaim("chance", "Would any heads do?", over_windows(_chance)),
        StudyClaim("sinks", "Are sinks the cause?", over_windows(_sinks)),
        StudyClaim("moved", "Does continued pretraining move the heads?", _moved(results)),
        StudyClaim("alignment", "Does a short alignment change which heads count?", _alignment(results)),
        StudyClaim(
            "early",
            "Do the heads form early in pretraining?",
            f"{_NOTHING}this is one checkpoint; `workbench emergence` and `workbench experiment early` say it of a "
            "series of them.",
        ),
        StudyClaim("linear", "Are they the heads that linear attention cannot replace?", _linear(results, first)),
        StudyClaim("sparse", "Do a few selected blocks serve the other heads better?", over_windows(_sparse)),
        StudyClaim("wider", "Does any sliding layer want more than its window?", over_windows(_wider)),
        StudyClaim("single_heads", "What does each head do alone?", over_windows(_single)),
    ]


def _damage(results: PublishedResults, window: int) -> str:
    """Of the all-windowed model, part by part, at every length at which it counts."""
    lengths = lengths_of_study(results.study, results.m, window)
    sentences: list[str] = []
    rises: list[bool] = []
    for part in _parts(results, window):
        rows = [_cell(results, window, n, "none", 0, part) for n in lengths]
        counted = [row for row in rows if row is not None and not row["left_out"]]
        if counted:
            sentences.append(f"{part} {_by_length(counted)}")
        if len(counted) > 1:
            rises.append(counted[-1]["lost"] > counted[0]["lost"])
    if not sentences:
        return f"{_NOTHING}no task counts at window {window}."
    grows = f"it is larger at the longest text than at the shortest for {sum(rises)} of {len(rises)} measures"
    grows = grows if rises else "only one length counts, so that nothing is said of its growth"
    return f"Nats lost per answer with every head windowed, without training: {'; '.join(sentences)} tokens; {grows}."


def _repaired(results: PublishedResults, window: int) -> str:
    n, shares = _n_main(results, window), _shares(results, window, GATES)
    if not shares:
        return f"{_NOTHING}no heads are ranked, or no task counts."
    counts = dict.fromkeys(results.study.n_kept(s, len(results.heads[window])) for s in results.study.budgets)
    curves = [
        f"{part} {', '.join(f'{fixed(back, 2)} with {k}' for k, back in rows)}"
        for part in shares
        if (rows := [(k, c["recovered"]) for k in counts if (c := _cell_first(results, window, GATES, k, part))])
    ]
    return (
        f"With the first {n} of {len(results.heads[window])} key/value heads by window gates full and no training, "
        f"back is {_listed_shares(shares)}. By number of heads: {'; '.join(curves)}."
    )


def _priors(results: PublishedResults, window: int) -> str:
    gates = _arm(results, window, GATES)
    if gates is None:
        return f"{_NOTHING}no heads are ranked."
    sentences: list[str] = []
    for method in _PRIORS:
        other = _arm(results, window, method)
        if other is None:
            continue
        differences = [
            f"{part} {_difference(results.answers.difference(gates, other, part))}"
            for part in _shared(results, gates, other)
        ]
        if differences:
            sentences.append(f"`{method}` {', '.join(differences)}")
    if not sentences:
        return f"{_NOTHING}no other ranking is judged."
    return (
        f"What gates bring back more than as many heads by another ranking ({gates.arm.n_kept} full): "
        f"{'; '.join(sentences)}. {_missed(results, window)}"
    )


def _missed(results: PublishedResults, window: int) -> str:
    """How many of the gates' first heads are among the first of no prior, by seed."""
    n = _n_main(results, window)
    missed: list[str] = []
    for seed in range(results.study.seeds):
        if not results.call.files.rankings(window, seed).exists():
            continue
        arms = {a.name: a for a in arms_of(results.call, results.m, window, seed) if a.n_kept == n}
        by_priors: set[KVHead] = {h for m in ("induction", "retrieval") if m in arms for h in arms[m].heads}
        missed.append(str(len(set(arms[GATES].heads) - by_priors)))
    return (
        f"Of the gates' first {n}, {', '.join(missed)} (by seed) are neither among the first {n} by induction nor by "
        "retrieval."
    )


def _chance(results: PublishedResults, window: int) -> str:
    sentences = [
        f"`{method}` {_listed_shares(shares)}" for method in _AT_CHANCE if (shares := _shares(results, window, method))
    ]
    if not sentences:
        return f"{_NOTHING}no random heads are judged."
    return f"With as many heads at random, any ones or in the gates' layers, back is: {'; '.join(sentences)}."


def _layers(results: PublishedResults, window: int) -> str:
    sentences: list[str] = []
    for name in ("layers_even", "layers_odd", "layers_last_of_4"):
        arm = _arm(results, window, name, n_kept=None)
        if arm is None:
            continue
        shares = _shares(results, window, name, n_kept=arm.arm.n_kept)
        sentences.append(f"`{name}` ({arm.arm.n_kept} heads full) {_listed_shares(shares)}")
    if not sentences:
        return f"{_NOTHING}no layers are judged."
    gates = _shares(results, window, GATES)
    return (
        f"Back without training: {'; '.join(sentences)}; the gates' {_n_main(results, window)} heads "
        f"{_listed_shares(gates) if gates else 'are not judged yet'}."
    )


def _training(results: PublishedResults, window: int) -> str:
    cells: Table = results.cells
    trained = cells[cells.steps > 0]
    if trained.empty:
        return f"{_NOTHING}nothing was trained; --train STEPS does it."
    sentences: list[str] = []
    n_main = _n_main(results, window)
    for name, n in (
        ("all", len(results.heads[window])),
        ("none", 0),
        *((a, n_main) for a in (GATES, "induction", "random")),
    ):
        by_steps: list[str] = []
        for steps in (0, *results.study.training.steps):
            shares = _shares(results, window, name, n_kept=n, steps=steps)
            if shares:
                n_seeds = int(cells[(cells.steps == steps) & (cells.arm == name)].n_seeds.max())
                after = f"after {steps} steps ({n_seeds} seeds) " if steps else "untrained "
                by_steps.append(f"{after}{_listed_shares(shares)}")
        if len(by_steps) > 1:
            sentences.append(f"`{name}`: {'; '.join(by_steps)}")
    return (
        "Share of the untrained model's loss by windowing that is back (a negative share: more is lost; above 1: "
        f"better than the published model): {'. '.join(sentences)}. {_furthest(results, window)}"
    )


def _furthest(results: PublishedResults, window: int) -> str:
    """Whether the gap that is left after training grows with length."""
    lengths = lengths_of_study(results.study, results.m, window)
    cells: Table = results.cells
    steps = int(cells.steps.max())
    rows = [
        f"{part} {_by_length(of_part)}"
        for part in _parts(results, window)
        if (
            of_part := [
                row
                for n in lengths
                if (row := _cell(results, window, n, "none", 0, part, steps=steps)) is not None and not row["left_out"]
            ]
        )
    ]
    if not rows:
        return ""
    beyond = [n for n in lengths if n > results.study.training.length]
    longer = f", of which {', '.join(f'{n:,}' for n in beyond)} are longer than it was trained on" if beyond else ""
    return f"Nats lost with every head windowed after {steps} steps, by length in tokens{longer}: {'; '.join(rows)}."


def _sinks(results: PublishedResults, window: int) -> str:
    sentences: list[str] = []
    for name, n in (("none", 0), (GATES, _n_main(results, window)), ("induction", _n_main(results, window))):
        seeing, without = (_arm(results, window, x, n_kept=n) for x in (name, name + WITHOUT_SINKS))
        if seeing is None or without is None:
            continue
        differences = [
            f"{part} {_difference(results.answers.difference(seeing, without, part))}"
            for part in _shared(results, seeing, without)
        ]
        if differences:
            sentences.append(f"`{name}` {', '.join(differences)}")
    of_window: Table = results.sinks
    of_window = of_window[of_window.window == window] if len(of_window) else of_window
    rho = "; ".join(
        f"{_mean_sd(group.rho)} over all heads and {_mean_sd(group.rho_within)} within layers (`{damage}`)"
        for damage, group in (of_window.groupby("damage") if len(of_window) else ())
    )
    correlation = f" Rank correlation of a head's sink score with what windowing it costs: {rho}." if rho else ""
    if not sentences and not rho:
        return f"{_NOTHING}no arm is judged with and without sinks."
    more = (
        f"What more is back where windowed heads also see the first {results.study.sink} tokens: "
        f"{'; '.join(sentences)}."
    )
    return (more if sentences else "No arm is judged without sinks.") + correlation


def _moved(results: PublishedResults) -> str:
    table: Table = results.lock_in
    if table.empty:
        return f"{_NOTHING}nothing was trained; --train STEPS does it."
    steps = int(table.steps.max())
    last = table[table.steps == steps]
    sentences: list[str] = []
    n_hardly = n_clear = 0
    for (arm, detector), group in last.groupby(["arm", "detector"], sort=False):
        if detector not in (*PATTERNS, GATES):
            continue
        value = float(group.lock_in_within.mean())
        if not math.isnan(value):
            n_clear, n_hardly = n_clear + 1, n_hardly + (value >= _HARDLY)
        sentences.append(
            f"`{arm}` {detector} {_mean_sd(group.rho)}, {_mean_sd(group.rho_within)} ({_mean_sd(group.lock_in_within)})"
        )
    if not sentences:
        return f"{_NOTHING}no scores were made of trained models."
    clear = (
        f"{n_hardly} of the {n_clear} that are clear of noise are {_HARDLY:g} or more, which is hardly moved"
        if n_clear
        else "no probe tells the heads of a layer apart beyond its noise, so that nothing is said of single heads"
    )
    return (
        f"After {steps} steps, rank correlation with the published model over all heads, within layers, and in "
        f"brackets within layers over its noise ceiling, by arm and score: {'; '.join(sentences)}. "
        f"{clear[0].upper()}{clear[1:]}."
    )


def _alignment(results: PublishedResults) -> str:
    both = results.alignment
    if both is None:
        return f"{_NOTHING}no alignment was trained; --train STEPS does it."
    return (
        f"Restoring one of {both['n_heads']:.0f} heads at a time before and after an alignment that lowers the "
        f"divergence of the windowed model from {fixed(both['divergence_before'], 2)} to "
        f"{fixed(both['divergence_aligned'], 2)} nats ranks them with a correlation of {fixed(both['rho'], 2)}, "
        f"{fixed(both['rho_within'], 2)} within layers; the first overlap by {fixed(both['jaccard'], 2)} (Jaccard)."
    )


def _sparse(results: PublishedResults, window: int) -> str:
    if not results.study.sparse:
        return f"{_NOTHING}sparse attention was left out."
    sentences: list[str] = []
    for name, n in (("none", 0), (GATES, _n_main(results, window))):
        for to in SPARSE:
            shares = _shares(results, window, f"{name} {to}", n_kept=n)
            if shares:
                sentences.append(f"`{name} {to}` {_listed_shares(shares)}")
    if not sentences:
        return f"{_NOTHING}no arm with selected blocks is judged."
    block = selection_of(SPARSE[0], window)
    return (
        f"With {block.n_blocks} blocks of {block.block} keys for each row in place of a window, selected by the full "
        "head's own attention (oracle) or by the mean of a block's keys, without training, the share of the loss by "
        f"windowing that is back: {'; '.join(sentences)}. A sparse head keeps its whole cache."
    )


def _linear(results: PublishedResults, window: int) -> str:
    if not results.study.linear:
        return f"{_NOTHING}linear attention was left out."
    sentences: list[str] = []
    for name, n in (("none", 0), (GATES, _n_main(results, window)), ("random", _n_main(results, window))):
        shares = _shares(results, window, name + LINEAR, n_kept=n)
        if shares:
            sentences.append(f"`{name}` {_listed_shares(shares)}")
    if not sentences:
        return f"{_NOTHING}no arm with linear attention is judged."
    return (
        "With the nearest linear attention in place of a window, without training, the share of the loss by windowing "
        f"that is back (negative: linear attention loses more than the window): {'; '.join(sentences)}."
    )


def _single(results: PublishedResults, window: int) -> str:
    """Of models with few heads that see far, as hybrids have: each alone, and each query head ablated."""
    length = lengths_of_study(results.study, results.m, window)[0]
    cells: Table = results.cells
    at = cells[(cells.window == window) & (cells.length == length) & (cells.steps == 0)]
    names = [n for n in dict.fromkeys(at.arm) if n.startswith(("only ", "all but ", "without "))]
    if not names:
        return (
            f"{len(results.heads[window])} key/value heads see beyond the window, too many to try each alone; their "
            "gates are in the table of scores."
        )
    sentences: list[str] = []
    for part in results.answers.counted(window, length):
        of_part = at[(at.part == part) & at.arm.isin(names)].sort_values("lost", ascending=False)
        losses = ", ".join(f"{row['arm']} {_lost(row)}" for row in of_part.to_dict("records"))
        sentences.append(f"{part}: {losses}")
    return f"Nats lost per answer at {length:,} tokens, worst first: {'; '.join(sentences)}."


def _wider(results: PublishedResults, window: int) -> str:
    """Of hybrids: what is lost (negative: gained) where a sliding layer sees the whole past, at every length."""
    sliding = sliding_layers(results.m.layers)
    if not sliding:
        return f"{_NOTHING}no layer has a sliding window of its own."
    cells: Table = results.cells
    at = cells[
        (cells.window == window) & (cells.steps == 0) & cells.arm.str.startswith("wider ") & (cells.left_out == "")
    ]
    if at.empty:
        return f"{_NOTHING}no sliding layer is judged without its window."
    sentences: list[str] = []
    for (part, length), of_part in at.groupby(["part", "length"], sort=False):
        rows = of_part.sort_values("lost").to_dict("records")
        every = [row for row in rows if row["arm"] == "wider all"]
        alone = [row for row in rows if row["arm"] != "wider all"]
        together = f"all together {_lost(every[0])}" if every else ""
        gains = [f"{row['arm'].removeprefix('wider ')} {_lost(row)}" for row in alone if row["lost_hi"] < 0]
        worse = sum(row["lost_lo"] > 0 for row in alone)
        gaining = ", ".join(gains) or "none gains"
        counted = f"alone: {gaining}; {worse} of {len(alone)} lose" if alone else ""
        sentences.append(f"{part} at {length:,}: {', '.join(x for x in (together, counted) if x)}")
    return (
        f"Nats lost per answer (negative: gained) where sliding layers see the whole past, at distances that they were "
        f"not trained on; of each layer alone those whose interval lies on one side of 0: {'. '.join(sentences)}."
    )


def _n_main(results: PublishedResults, window: int) -> int:
    return results.study.n_kept(results.study.main, len(results.heads[window]))


def _arm(
    results: PublishedResults, window: int, name: str, *, n_kept: int | None = 0, steps: int = 0
) -> Answered | None:
    """An arm at the first length; of the main budget where no number is named, of any for None."""
    length = lengths_of_study(results.study, results.m, window)[0]
    if n_kept == 0 and not name.startswith("none"):
        n_kept = _n_main(results, window)
    if n_kept is not None:
        return results.answers.of(window, length, name, n_kept, steps=steps)
    for answers in results.answers.every:
        if (answers.window, answers.length, answers.steps, answers.arm.name) == (window, length, steps, name):
            return answers
    return None


def _parts(results: PublishedResults, window: int) -> list[str]:
    """The parts that count at some length."""
    lengths = lengths_of_study(results.study, results.m, window)
    return list(dict.fromkeys(part for n in lengths for part in results.answers.counted(window, n)))


def _shares(
    results: PublishedResults, window: int, name: str, *, n_kept: int = 0, steps: int = 0
) -> dict[str, tuple[float, float, float]]:
    """What is back with an arm at the first length, by part that counts."""
    arm = _arm(results, window, name, n_kept=n_kept, steps=steps)
    if arm is None:
        return {}
    shares = {part: results.answers.recovered(arm, part) for part in results.answers.counted(window, arm.length)}
    return {part: share for part, share in shares.items() if not math.isnan(share[0])}


def _shared(results: PublishedResults, *arms: Answered) -> list[str]:
    """The parts that count at the arms' length, and that all of them have."""
    parts = [{part for questions in arm.by_seed.values() for part in questions} for arm in arms]
    counted = results.answers.counted(arms[0].window, arms[0].length)
    return [part for part in counted if all(part in of_arm for of_arm in parts)]


def _cell_first(results: PublishedResults, window: int, name: str, n_kept: int, part: str) -> dict[str, Any] | None:
    return _cell(results, window, lengths_of_study(results.study, results.m, window)[0], name, n_kept, part)


def _cell(  # noqa: PLR0913, PLR0917  # the keys of a row
    results: PublishedResults, window: int, length: int, name: str, n_kept: int, part: str, *, steps: int = 0
) -> dict[str, Any] | None:
    """The row of an arm; None where it is not there."""
    cells: Table = results.cells
    rows = cells[
        (cells.window == window)
        & (cells.length == length)
        & (cells.arm == name)
        & (cells.n_kept == n_kept)
        & (cells.part == part)
        & (cells.steps == steps)
    ]
    return None if rows.empty else rows.iloc[0].to_dict()


def _by_length(rows: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{_lost(row)} at {row['length']:,}" for row in rows)


def _lost(row: dict[str, Any]) -> str:
    return _interval((row["lost"], row["lost_lo"], row["lost_hi"]))


def _listed_shares(shares: dict[str, tuple[float, float, float]]) -> str:
    return ", ".join(f"{part} {_interval(share)}" for part, share in shares.items()) or "nothing that counts"


def _difference(values: tuple[float, float, float]) -> str:
    value, low, high = values
    return f"{fixed(value, 2, sign='+')}" + ("" if math.isnan(low) else f" [{fixed(low, 2)}, {fixed(high, 2)}]")


def _interval(values: Sequence[float]) -> str:
    value, low, high = values
    return fixed(value, 2) + ("" if math.isnan(low) else f" [{fixed(low, 2)}, {fixed(high, 2)}]")


def _mean_sd(values: Any) -> str:
    """A mean with its deviation over seeds; a dash where nothing varies."""
    if values.isna().all():
        return "–"
    spread = f" ± {fixed(values.std(), 2)}" if len(values) > 1 else ""
    return f"{fixed(values.mean(), 2)}{spread}"
