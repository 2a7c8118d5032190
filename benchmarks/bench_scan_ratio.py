"""CPU time of a model's default scan against plain passes of the same tokens, in one interleaved run on one thread.

`plain`: the model's own sdpa passes, with the logits of the rows that hold answers, in the batches that are fastest for
them. `plain + losses`: and the answers' cross-entropy and arg-max, as a user would compute them. `scan`: the same
tokens through `measure` with every default detector. `describe`: the whole, with making the probes, tables and summary.
`answers alone`: without detectors, so that what is left is what they cost.

    python benchmarks/bench_scan_ratio.py MODEL [--rounds 5] [--short] [--json] [--write]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe as describe_machine
from machine import keep
from torch.nn.functional import cross_entropy

import workbench as wb
from workbench.detectors import Detector, find_detectors, measure, series_far
from workbench.probes import split

# Tokens at once that plain passes of a model of 135 million parameters are fastest with.
PLAIN_TOKENS = 512


def cpu(function: Callable[[], Any]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def plain(m: Any, probe: Any, *, losses: bool) -> None:
    """The model's own passes over a probe."""
    rows = torch.unique(probe.answer_rows[:, 1])
    step = max(1, PLAIN_TOKENS // probe.tokens.shape[1])
    with torch.no_grad():
        for first in range(0, len(probe.tokens), step):
            tokens = probe.tokens[first : first + step]
            logits = m.model(input_ids=tokens, use_cache=False, logits_to_keep=rows).logits
            if losses:
                sequence, row = probe.answer_rows.unbind(-1)
                is_here = (sequence >= first) & (sequence < first + step)
                sequence, row = sequence[is_here] - first, row[is_here]
                scores, answer = logits[sequence, torch.searchsorted(rows, row)], tokens[sequence, row + 1]
                cross_entropy(scores, answer, reduction="none")
                scores.argmax(-1)


def ways_of(m: Any, probe: Any, detectors: list[Detector]) -> dict[str, Callable[[], Any]]:
    """The ways to run a probe."""
    fitting = [] if probe.is_control else [d for d in detectors if d.fits(probe)]
    far = series_far(m, probe)
    return {
        "plain": lambda: plain(m, probe, losses=False),
        "plain + losses": lambda: plain(m, probe, losses=True),
        "answers": lambda: measure(m, probe, [], far=far),
        "scan": lambda: measure(m, probe, fitting, far=far),
    }


def measured(folder: str, rounds: int, *, is_short: bool) -> dict[str, Any]:
    """By probe and for the whole: seconds of every way in every round.

    `is_short`: of one batch of each probe, times their number; without the whole of describe.
    """
    m = wb.open_model(folder)
    probes = list(wb.probes.one_model(m).values())
    batches = {p.name: split(p, max(1, PLAIN_TOKENS // p.tokens.shape[1])) for p in probes} if is_short else {}
    probes = [batches[p.name][0] for p in probes] if is_short else probes
    detectors = [d for d in find_detectors(None) if isinstance(d, Detector)]
    times: dict[str, dict[str, list[float]]] = {}

    def note(name: str, way: str, seconds: float) -> None:
        times.setdefault(name, {}).setdefault(way, []).append(seconds)

    for probe in probes:
        plain(m, probe, losses=True)
    for _ in range(rounds):
        for probe in probes:
            for way, function in ways_of(m, probe, detectors).items():
                note(probe.name, way, cpu(function) * len(batches.get(probe.name, [probe])))
        for way in ("plain", "plain + losses", "answers", "scan"):
            note("whole", way, sum(times[probe.name][way][-1] for probe in probes))
        note("whole", "open", cpu(lambda: wb.open_model(folder)))
        note("whole", "make probes", cpu(lambda: wb.probes.one_model(m)))
        if not is_short:
            note("whole", "describe", cpu(lambda: wb.describe(m)))
    return times


def line(name: str, ways: dict[str, list[float]]) -> str:
    def ratio(way: str, to: str) -> str:
        if way not in ways:
            return "–"
        ratios = sorted(x / y for x, y in zip(ways[way], ways[to], strict=True))
        return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"

    seconds = [f"{statistics.median(ways[way]):.2f}" for way in ("plain", "plain + losses", "answers", "scan")]
    return (
        f"| {name} | "
        + " | ".join(
            [*seconds, ratio("scan", "plain"), ratio("scan", "plain + losses"), ratio("describe", "plain + losses")]
        )
        + " |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="one batch of each probe, times their number")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    times = measured(arguments.model, arguments.rounds, is_short=arguments.short)
    if arguments.json:
        print(json.dumps(times))
        return
    whole = times["whole"]
    beside = {way: statistics.median(whole[way]) for way in ("open", "make probes", "describe") if way in whole}
    lines = [
        describe_machine(),
        "",
        f"{Path(arguments.model).name}, float32, 1 thread; CPU s, medians of {arguments.rounds} interleaved rounds"
        f"{' of one batch of each probe, times their number, tables and all' if arguments.short else ''}; "
        "ratios: median (least–most) over rounds",
        "",
        "| probe | plain | plain + losses | answers alone | scan | scan / plain | scan / plain + losses | "
        "describe / plain + losses |",
        "|---|---|---|---|---|---|---|---|",
        *(line(name, ways) for name, ways in times.items()),
        "",
        "Beside the passes: " + ", ".join(f"{way} {seconds:.2f}" for way, seconds in beside.items()) + " CPU s.",
    ]
    if arguments.write:
        keep(Path(__file__), "Cost of a model's default scan", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
