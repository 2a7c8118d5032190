"""Tables of the benchmark of rankings: a section for each kind of model, written into a file without its others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ranking_areas import Difference, Losses, Record, all_alike, difference, of_kind

MODEL, GATES, GREEDY = "model", "window_gates", "greedy"
PRIORS = ("output_error", "far_mass", "retrieval", "induction", "duo_gates", "random", "random_in_layer")
# Beside the priors: what others rank by, in the table of kinds.
_OTHERS = ("first_order", "ablate_accuracy", "joint_gates", "restore_one_aligned")
_MARGIN = 0.02
_ENOUGH = 0.9
_SHOWN = (1, 2, 4, 8, 9, 12, 16, 18, 24, 32)


def section(name: str, records: list[dict[str, Record]], made: str) -> list[str]:
    """A kind of model: its seeds, rankings best first, differences to window gates, and verdicts."""
    sizes = records[0][MODEL]["sizes"]
    once = all_alike(sum(sizes.values()))
    rankings = [r for r in records[0] if r != MODEL and all(r in of_seed for of_seed in records)]
    losses = {r: [Losses.of(of_seed[r]) for of_seed in records] for r in rankings}
    against = {r: difference(losses[r], losses[GATES], sizes) for r in rankings}
    areas = {r: np.array([x.areas(once)[0] for x in losses[r]]) for r in rankings}
    kinds = [*sizes] if len(sizes) > 1 else []
    columns = ["ranking", "area ± sd", "− window_gates [95 %]", "each seed", "first quarter", "heads for 90 %"]
    lines = [f"## {name}", "", made, "", *(f"- seed {i}: {_model(of_seed)}" for i, of_seed in enumerate(records)), ""]
    lines += [f"| {' | '.join([*columns, *kinds])} |", "|" + "---|" * (len(columns) + len(kinds))]
    for ranking in sorted(rankings, key=lambda r: -areas[r].mean()):
        quarter = np.array([x.areas(once, x.counts[-1] / 4)[0] for x in losses[ranking]])
        each = ", ".join(f"{x:+.3f}" for x in against[ranking].each)
        enough = np.mean([_enough(x) for x in losses[ranking]])
        values = [_spread(areas[ranking]), str(against[ranking]), each, _spread(quarter), f"{enough:.1f}"]
        values += [f"{np.mean([x.areas(of_kind(sizes, kind))[0] for x in losses[ranking]]):.3f}" for kind in kinds]
        lines.append(f"| {' | '.join([f'`{ranking}`', *values])} |")
    return [*lines, "", *_verdicts(against), "", *_by_count(losses, sizes), "", *_by_kind(losses, sizes)]


def write(path: Path, title: str, about: str, sections: dict[str, list[str]]) -> None:
    """Replace the sections of the same names; all others, also those written by hand, stay."""
    old = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.exists() else []
    existing = {text.partition("\n")[0]: f"## {text}".rstrip() for text in old}
    texts = {**existing, **{name: "\n".join(lines).rstrip() for name, lines in sections.items()}}
    path.write_text("\n\n".join([f"# {title}", about, *texts.values()]) + "\n", encoding="utf-8")


def _model(of_seed: dict[str, Record]) -> str:
    model, gates = of_seed[MODEL], Losses.of(of_seed[GATES]).nats.mean(1)
    right = ", ".join(f"{kind} {full:.2f} → {windowed:.2f}" for kind, (full, windowed) in model["accuracy"].items())
    error = of_seed[GATES]["evidence"]["completeness_error"]
    return (
        f"loss {gates[-1]:.3f} full, {gates[0]:.3f} windowed; right, full → windowed: {right}; completeness error "
        f"{100 * error:.2f} %"
    )


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else "")


def _enough(losses: Losses) -> float:
    """The fewest heads from which on 90 % are recovered."""
    short = np.flatnonzero(losses.recovered(all_alike(losses.nats.shape[1]))[:, 0] < _ENOUGH)
    return float(losses.counts[short[-1] + 1])


def _verdicts(against: dict[str, Difference]) -> list[str]:
    """Is the area at least that of greedy − 0.02, and above each prior beyond the error bars?"""
    greedy = against.get(GREEDY)
    priors = {prior: against[prior] for prior in PRIORS if prior in against}
    clear = [f"`{prior}`" for prior, d in priors.items() if d.high < 0]
    unclear = [f"`{prior}` {d}" for prior, d in priors.items() if d.high >= 0]
    lines: list[str] = []
    if greedy is not None:
        holds = all(x <= _MARGIN for x in greedy.each)
        lines.append(f"- greedy − window gates: {greedy}; at most {_MARGIN} in every seed: {'yes' if holds else 'no'}.")
    lines.append(
        f"- Below window gates, the interval over sequences beyond 0: {', '.join(clear) or 'none'}. "
        f"Not: {', '.join(unclear) or 'none'}."
    )
    if len(against[GATES].each) > 1:
        by_seed = [f"`{prior}`" for prior, d in priors.items() if -d.mean > d.sd]
        rest = [f"`{prior}` ({d.mean:+.4f} ± {d.sd:.4f})" for prior, d in priors.items() if -d.mean <= d.sd]
        lines.append(
            f"- Below by more than the standard deviation of the difference over seeds: "
            f"{', '.join(by_seed) or 'none'}. Not: {', '.join(rest) or 'none'}."
        )
    return lines


def _by_count(losses: dict[str, list[Losses]], sizes: dict[str, int]) -> list[str]:
    """The share recovered with the first k heads, and its difference to window gates at about a tenth of all heads."""
    n_heads = losses[GATES][0].counts[-1]
    counts = [k for k in _SHOWN if k in losses[GATES][0].counts and k < n_heads]
    tenth = min(counts, key=lambda k: abs(k - n_heads / 10))
    columns = [*map(str, counts), f"{tenth}: − window_gates [95 %]"]
    lines = ["Share of the gap that is back, by heads kept:", "", f"| ranking | {' | '.join(columns)} |"]
    lines.append("|" + "---|" * (1 + len(columns)))
    for ranking, of_seeds in losses.items():
        once = all_alike(of_seeds[0].nats.shape[1])
        back = np.mean([x.recovered(once)[:, 0] for x in of_seeds], 0)
        shown = [f"{back[of_seeds[0].counts == k][0]:.3f}" for k in counts]
        shown.append("" if ranking == GATES else str(difference(of_seeds, losses[GATES], sizes, count=tenth)))
        lines.append(f"| `{ranking}` | {' | '.join(shown)} |")
    return lines


def _by_kind(losses: dict[str, list[Losses]], sizes: dict[str, int]) -> list[str]:
    """Greedy and the priors against window gates on each kind of question."""
    if len(sizes) == 1:
        return []
    lines = ["Area − that of window gates [95 %], on each kind of question:", "", f"| ranking | {' | '.join(sizes)} |"]
    lines.append("|" + "---|" * (1 + len(sizes)))
    for ranking in (GREEDY, *PRIORS, *_OTHERS):
        if ranking in losses:
            differences = [str(difference(losses[ranking], losses[GATES], sizes, kind)) for kind in sizes]
            lines.append(f"| `{ranking}` | {' | '.join(differences)} |")
    return lines
