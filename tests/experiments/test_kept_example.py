"""The kept report of the quick study is of the quick study as it is."""

import json
from dataclasses import asdict
from pathlib import Path

from workbench.console import plain
from workbench.experiments import quick_study

KEPT = Path(__file__).parents[2] / "examples" / "conversion"


def test_the_kept_report_is_of_todays_settings_and_three_seeds():
    document = json.loads((KEPT / "report.json").read_text())
    assert document["study"] == plain(asdict(quick_study()))
    assert document["seeds"] == [0, 1, 2]
    assert document["not_claimed"] in (KEPT / "report.md").read_text()
