"""The place of the slider in an address is the one that is seen, whatever runs are shown together."""

from __future__ import annotations

from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.app.state.slider_stops import checkpoints_at, nearest_stop, places_of, stop_of

# Of each checkpoint the amount of training and the step. Steps may fall, as in branches, and may be unknown.
checkpoints = st.lists(
    st.tuples(st.integers(0, 40), st.none() | st.integers(0, 20)), min_size=1, max_size=6, unique_by=lambda c: c[0]
).map(sorted)
series = st.dictionaries(st.sampled_from(["a", "b", "c"]), checkpoints, min_size=1, max_size=3)


def scores_of(runs):
    stops = sorted({amount for points in runs.values() for amount, _ in points})
    packed = {
        name: {
            "columns": [bisect_right([amount for amount, _ in points], stop) - 1 for stop in stops],
            "steps": [step for _, step in points],
            "names": [f"{name}{i}" for i in range(len(points))],
        }
        for name, points in runs.items()
    }
    places = places_of(packed, len(stops))
    return {
        "runs": packed,
        "stops": [{"x": stop, "place": place} for stop, place in zip(stops, places, strict=True)],
    }


@given(series)
def test_every_stop_has_a_name_of_its_own_that_finds_it(runs):
    scores = scores_of(runs)
    for position, stop in enumerate(scores["stops"]):
        assert stop_of(scores, stop["place"]) == position
        shown = {"place": stop["place"], "names": checkpoints_at(scores, position), "x": stop["x"]}
        assert nearest_stop(scores, shown) == position


@given(series, st.sampled_from(["a", "b", "c"]))
def test_with_another_run_first_the_slider_still_shows_a_checkpoint_that_was_seen(runs, first):
    before = scores_of(runs)
    others = {name: runs[name] for name in sorted(runs, key=lambda name: name != first)}
    after = scores_of(others)
    for position, stop in enumerate(before["stops"]):
        seen = checkpoints_at(before, position)
        found_at = nearest_stop(after, {"place": stop["place"], "names": seen, "x": stop["x"]})
        assert set(seen.items()) & set(checkpoints_at(after, found_at).items())


def test_a_step_alone_names_a_stop_as_older_links_do():
    scores = scores_of({"a": [(0, 0), (10, 5), (20, 10)], "b": [(7, 3), (15, 9)]})
    assert [stop["place"] for stop in scores["stops"]] == [
        {"step": "0"},
        {"by": "b", "at": "b0"},
        {"step": "5"},
        {"by": "b", "at": "b1"},
        {"step": "10"},
    ]
    assert stop_of(scores, {"step": "6"}) == 4
    assert stop_of(scores, {"at": "a1"}) == 2


@pytest.mark.parametrize("place", [{}, {"step": "99"}, {"step": "last"}, {"at": "typo"}, {"by": "nobody", "at": "a0"}])
def test_what_names_no_stop_is_the_last(place):
    assert stop_of(scores_of({"a": [(0, 0), (10, 5)]}), place) == 1


def test_of_runs_that_share_no_checkpoint_the_same_amount_of_training_is_shown():
    scores = scores_of({"a": [(0, 0), (10, 5), (20, 10)]})
    assert nearest_stop(scores, {"place": {"by": "z", "at": "z0"}, "names": {"z": "z0"}, "x": 12}) == 1
