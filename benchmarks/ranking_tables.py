"""What the benchmark of rankings found, told: a section for each kind of model, and a file that keeps the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ranking_areas import Difference, Found, Losses, all_alike, difference, of_kind

MODEL, GATES, GREEDY = "model", "window_gates", "greedy"
PRIORS = ("output_error", "far_mass", "retrieval", "induction", "duo_gates", "random", "random_in_layer")
_MARGIN = 0.02
_ENOUGH = 0.9
_SHOWN = (1, 2, 4, 8, 12, 16, 24, 32)


def section(name: str, found: list[dict[str, Found]], made: str) -> list[str]:
    """A kind of model: what its seeds are, rankings best first, differences to window gates, and what follows."""
    sizes = found[0][MODEL]["sizes"]
    once = all_alike(sum(sizes.values()))
    ways = [way for way in found[0] if way != MODEL and all(way in one for one in found)]
    losses = {way: [Losses.of(one[way]) for one in found] for way in ways}
    against = {way: difference(losses[way], losses[GATES], sizes) for way in ways}
    areas = {way: np.array([x.areas(once)[0] for x in losses[way]]) for way in ways}
    kinds = [*sizes] if len(sizes) > 1 else []
    columns = ["ranking", "area ± sd", "− window_gates [95 %]", "each seed", "first quarter", "heads for 90 %"]
    lines = [f"## {name}", "", made, "", *(f"- seed {i}: {_model(one)}" for i, one in enumerate(found)), ""]
    lines += [f"| {' | '.join([*columns, *kinds])} |", "|" + "---|" * (len(columns) + len(kinds))]
    for way in sorted(ways, key=lambda way: -areas[way].mean()):
        quarter = np.array([x.areas(once, x.counts[-1] / 4)[0] for x in losses[way]])
        each = ", ".join(f"{x:+.3f}" for x in against[way].each)
        enough = np.mean([_enough(x) for x in losses[way]])
        cells = [_spread(areas[way]), str(against[way]), each, _spread(quarter), f"{enough:.1f}"]
        cells += [f"{np.mean([x.areas(of_kind(sizes, kind))[0] for x in losses[way]]):.3f}" for kind in kinds]
        lines.append(f"| {' | '.join([f'`{way}`', *cells])} |")
    return [*lines, "", *_verdicts(against), "", *_by_count(losses), "", *_by_kind(losses, sizes)]


def write(path: Path, title: str, about: str, sections: dict[str, list[str]]) -> None:
    """Put the sections in place of those of the same name; all others, also those written by hand, stay."""
    old = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.exists() else []
    kept = {text.partition("\n")[0]: f"## {text}".rstrip() for text in old}
    texts = {**kept, **{name: "\n".join(lines).rstrip() for name, lines in sections.items()}}
    path.write_text("\n\n".join([f"# {title}", about, *texts.values()]) + "\n", encoding="utf-8")


def _model(one: dict[str, Found]) -> str:
    model, gates = one[MODEL], Losses.of(one[GATES]).nats.mean(1)
    right = ", ".join(f"{kind} {full:.2f} → {windowed:.2f}" for kind, (full, windowed) in model["accuracy"].items())
    error = one[GATES]["evidence"]["completeness_error"]
    return (
        f"loss {gates[-1]:.3f} full, {gates[0]:.3f} windowed; right, full → windowed: {right}; completeness error "
        f"{100 * error:.2f} %"
    )


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else "")


def _enough(losses: Losses) -> float:
    """The fewest heads from which on 90 % are back."""
    short = np.flatnonzero(losses.recovered(all_alike(losses.nats.shape[1]))[:, 0] < _ENOUGH)
    return float(losses.counts[short[-1] + 1])


def _verdicts(against: dict[str, Difference]) -> list[str]:
    """Is the area at least that of greedy − 0.02, and above each prior beyond the error bars?"""
    greedy = against[GREEDY]
    holds = all(x <= _MARGIN for x in greedy.each)
    priors = {prior: against[prior] for prior in PRIORS if prior in against}
    clear = [f"`{prior}`" for prior, d in priors.items() if d.high < 0]
    unclear = [f"`{prior}` {d}" for prior, d in priors.items() if d.high >= 0]
    lines = [
        f"- greedy − window gates: {greedy}; at most {_MARGIN} in every seed: {'yes' if holds else 'no'}.",
        f"- Below window gates, the interval over sequences beyond 0: {', '.join(clear) or 'none'}. "
        f"Not: {', '.join(unclear) or 'none'}.",
    ]
    if len(greedy.each) > 1:
        by_seed = [f"`{prior}`" for prior, d in priors.items() if -d.mean > d.sd]
        rest = [f"`{prior}` ({d.mean:+.4f} ± {d.sd:.4f})" for prior, d in priors.items() if -d.mean <= d.sd]
        lines.append(
            f"- Below by more than the standard deviation of the difference over seeds: "
            f"{', '.join(by_seed) or 'none'}. Not: {', '.join(rest) or 'none'}."
        )
    return lines


def _by_count(losses: dict[str, list[Losses]]) -> list[str]:
    """How much is back with the first k heads: where rankings differ."""
    counts = [k for k in _SHOWN if k in losses[GATES][0].counts and k < losses[GATES][0].counts[-1]]
    lines = ["Share of the gap that is back, by heads kept:", "", f"| ranking | {' | '.join(map(str, counts))} |"]
    lines.append("|" + "---|" * (1 + len(counts)))
    for way, of_seeds in losses.items():
        once = all_alike(of_seeds[0].nats.shape[1])
        back = np.mean([x.recovered(once)[:, 0] for x in of_seeds], 0)
        shown = [f"{back[of_seeds[0].counts == k][0]:.3f}" for k in counts]
        lines.append(f"| `{way}` | {' | '.join(shown)} |")
    return lines


def _by_kind(losses: dict[str, list[Losses]], sizes: dict[str, int]) -> list[str]:
    """Greedy and the priors against window gates on each kind of question."""
    if len(sizes) == 1:
        return []
    lines = ["Area − that of window gates [95 %], on each kind of question:", "", f"| ranking | {' | '.join(sizes)} |"]
    lines.append("|" + "---|" * (1 + len(sizes)))
    for way in (GREEDY, *PRIORS):
        if way in losses:
            found = [str(difference(losses[way], losses[GATES], sizes, kind)) for kind in sizes]
            lines.append(f"| `{way}` | {' | '.join(found)} |")
    return lines
