"""Colours can be told apart, with any colour vision: signs, runs and letters, on light and on dark ground."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import workbench.app
from tests.figures.colour_differences import VISION, ciede2000, contrast, difference, lab
from workbench.figures.style import (
    COLOURS,
    LETTERS,
    PALETTES,
    Scale,
    colour_scale,
    letter,
    line_style,
    paired_colours,
    sign_colours,
)

THEMES = ["light", "dark"]
CARD = {"light": "#ffffff", "dark": "#131a24"}
CSS = (Path(workbench.app.__file__).parent / "assets" / "workbench.css").read_text()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1, 2), (50, 0, 0), 2.3669),
        ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
        ((50, 2.5, 0), (61, -5, 29), 22.8977),
        ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
        ((90.8027, -2.0831, 1.441), (91.1528, -1.6435, 0.0447), 1.4441),
        ((6.7747, -0.2908, -2.4247), (5.8714, -0.0985, -2.2286), 0.6377),
    ],
)
def test_the_differences_are_those_that_sharma_and_others_published(first, second, expected):
    assert ciede2000(first, second) == pytest.approx(expected, abs=1e-4)
    assert ciede2000(second, first) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("vision", VISION)
def test_plus_and_minus_one_are_far_apart_on_dark_ground_as_on_light(vision):
    ends = {theme: [colour_scale(Scale(-1, 1, ""), theme)[i][1] for i in (0, -1)] for theme in THEMES}
    for minus, plus in ends.values():
        assert np.linalg.norm(lab(minus, vision) - lab(plus, vision)) >= 60  # CIE76
    assert difference(*ends["dark"], vision) >= 60
    assert difference(*ends["dark"], vision) >= difference(*ends["light"], vision)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", THEMES)
def test_signs_are_told_apart_at_every_strength(theme, vision):
    stops = [colour for _, colour in colour_scale(Scale(-1, 1, ""), theme)]
    for i, least in ((1, 60 if theme == "dark" else 40), (2, 25), (3, 25)):
        assert difference(stops[i - 1], stops[-i], vision) >= least
    assert stops[4] == colour_scale(Scale(0, 1, ""), theme)[0][1]  # zero is the ground


@pytest.mark.parametrize("theme", THEMES)
def test_bars_above_and_below_zero_have_the_colours_of_the_scale(theme):
    scale = [colour for _, colour in colour_scale(Scale(-1, 1, ""), theme)]
    assert sign_colours(theme) == (scale[-2], scale[1])


@pytest.mark.parametrize("theme", THEMES)
def test_runs_have_colours_that_differ_by_15_and_by_7_without_a_kind_of_cone(theme):
    assert len(COLOURS[theme]) == 16
    for vision, least in (("all cones", 15), ("protan", 7), ("deutan", 7)):
        assert min(difference(a, b, vision) for a, b in itertools.combinations(COLOURS[theme], 2)) >= least
    assert min(contrast(colour, CARD[theme]) for colour in COLOURS[theme]) >= 3
    styles = [tuple(line_style(i, theme).values()) for i in range(48)]
    assert len(set(styles)) == 48


@pytest.mark.parametrize("theme", THEMES)
def test_letters_and_small_text_have_a_contrast_of_text(theme):
    for kind in LETTERS:
        assert contrast(re.search("#[0-9A-Fa-f]{6}", letter(kind, theme))[0], CARD[theme]) >= 4.5
    for colour in PALETTES[theme][:2]:
        assert contrast(colour, CARD[theme]) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
def test_the_page_has_the_colours_of_the_figures(theme):
    blocks = {"dark": CSS.rpartition("html.dark .wb {")[2], "light": CSS.rpartition("html.dark .wb {")[0]}
    for i, colour in enumerate(COLOURS[theme]):
        assert re.search(rf"--run-{i}: (#\w+);", blocks[theme])[1] == colour.lower()
    assert f"--positive: {sign_colours(theme)[0]};" in CSS


def test_a_colour_has_one_counterpart_in_the_other_theme():
    for pairs in paired_colours().values():
        for one, other in ((0, 1), (1, 0)):
            counterparts = {}
            for pair in pairs:
                counterparts.setdefault(pair[one].lower(), set()).add(pair[other].lower())
            assert {colour: len(found) for colour, found in counterparts.items() if len(found) > 1} == {}
    assert paired_colours()["colours"][0] == (PALETTES["light"].text, PALETTES["dark"].text)
