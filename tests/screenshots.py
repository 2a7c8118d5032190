"""Make the pictures of README and docs anew: `python -m tests.screenshots DEMO`.

DEMO is the folder of the runs that `workbench demo` wrote. The Probe page runs SmolLM2, which `workbench get smollm2`
fetches. `--only NAME...` makes some of the pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from playwright.sync_api import Page, sync_playwright

import workbench as wb
from tests.browser import CHROMIUM, FLAGS
from workbench import figures
from workbench.report import write_plan_page

ROOT = Path(__file__).parent.parent
DOCS, PUBLISHED = ROOT / "docs", ROOT / "examples" / "published"
# The address of each picture's page, and the most that is shown of it, in pixels.
DEMO = "run=full&run=hybrid&run=linear&run=sliding&detector=induction&probe=repeats"
PICTURES = {
    "app-overview": (f"overview?{DEMO}", 1900),
    "app-head": (f"head?{DEMO}&of=full", 1500),
    "app-compare": (f"compare?{DEMO}&a=full&b=hybrid", 1700),
    "app-jobs": (f"jobs?{DEMO}", 1200),
    "app-plan": ("plan?run=smollm2&plan=window-128", 1450),
    "app-published": ("head?run=smollm2&of=smollm2&head=L18H6&detector=induction&probe=repeats", 1150),
    "app-probe": ("probe?run=smollm2", 1500),
}

# Whether all that the page shows has arrived.
DRAWN = """() => {
  const shown = selector => [...document.querySelectorAll(`.page ${selector}`)].filter(e => e.offsetParent);
  const isDrawn = graph => {
    const plot = graph.querySelector('.js-plotly-plot');
    return plot?.layout && (plot.data.length || (plot.layout.annotations || []).some(a => a.text));
  };
  const isFilled = e => e.childElementCount || e.textContent;
  return shown('.card').length > 1
    && !document.querySelector('[data-dash-is-loading="true"]') && !shown('.waiting').length
    && shown('.dash-graph').every(isDrawn) && shown('.kpis, #head-title').every(isFilled);
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    names = arguments.only or [*PICTURES, "window-against-linear", "plan-published"]
    runs = [*sorted(arguments.demo.iterdir()), *sorted(p for p in PUBLISHED.iterdir() if p.is_dir())]
    code = f"from workbench.app import serve; serve({[str(run) for run in runs]}, port=0)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    server = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stderr is not None
        address = re.search(r"http://\S+", server.stderr.readline())
        assert address is not None
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(120_000)
            for name in names:
                if name in PICTURES:
                    _picture(page, f"{address[0]}{PICTURES[name][0]}", name, PICTURES[name][1])
            if "window-against-linear" in names:
                _figure(page, figures.window_against_linear(_costs()), "window-against-linear")
            if "plan-published" in names:
                _report(page)
            browser.close()
    finally:
        server.terminate()
        server.wait()


def _picture(page: Page, address: str, name: str, height: int) -> None:
    page.goto(address)
    if name == "app-probe":
        page.wait_for_function("document.querySelector('#probe-checkpoint')?.value")
        page.wait_for_timeout(1000)
        page.click("#probe-start")
        page.wait_for_function("/^done|^failed/.test(document.querySelector('#probe-said').textContent)")
        page.wait_for_selector("canvas.far")
        page.evaluate("[...document.querySelectorAll('.patterns button')].find(b => b.textContent === 'loss').click()")
    for _ in range(2):  # figures that others wait for are drawn last
        page.wait_for_function(DRAWN)
        page.wait_for_timeout(2500)
    page.mouse.move(0, 0)
    _shoot(page, name, height)


def _shoot(page: Page, name: str, height: int) -> None:
    width, whole = page.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, whole)}
    page.screenshot(path=DOCS / f"{name}.png", full_page=True, clip=clip)
    print(name, clip["width"], clip["height"])


def _figure(page: Page, figure, name: str) -> None:
    page.set_viewport_size({"width": 700, "height": 420})
    figure.update_layout(width=700, height=420, paper_bgcolor="white")
    page.goto("about:blank")  # the app allows no script of others
    page.set_content(figure.to_html(full_html=True, include_plotlyjs=True, config={"staticPlot": True}))
    page.wait_for_selector(".js-plotly-plot .main-svg", state="attached")
    page.wait_for_timeout(500)
    page.locator(".js-plotly-plot").screenshot(path=DOCS / f"{name}.png")
    page.set_viewport_size({"width": 1280, "height": 900})


def _costs() -> pd.DataFrame:
    """What either conversion costs the heads of the medium study, on needles."""
    ranked = pd.DataFrame(json.loads((ROOT / "examples" / "conversion" / "medium.json").read_text())["rankings"])
    by_method = {"window_gates": "window_nats", "linear_gates": "linear_nats"}
    of_both = ranked[ranked["method"].isin(by_method)].assign(method=lambda table: table["method"].map(by_method))
    return of_both.pivot(index=["seed", "layer", "kv_head"], columns="method", values="score").reset_index()


def _report(page: Page) -> None:
    plan = wb.Plan.load(PUBLISHED / "smollm2" / "window-128.json")
    with tempfile.TemporaryDirectory() as folder:
        file = write_plan_page(plan, Path(folder) / "plan.html")
        page.set_viewport_size({"width": 1100, "height": 900})
        page.goto(f"file://{file}")
        page.wait_for_timeout(4000)
        _shoot(page, "plan-published", 1290)


if __name__ == "__main__":
    main()
