"""Finished pieces of a long computation: kept one by one, used only for the same settings, by one process at a time."""

import json
import subprocess
import sys

import pytest

from workbench.heads import RunLocked
from workbench.store.finished_pieces import Pieces, kept_pieces, parts_folder, pieces_beside

SETTINGS = {"window": 8, "model": "m"}


def interrupted(out, names, settings=SETTINGS, says=None):
    """Compute pieces of these names, then fail; the names that had to be computed."""
    computed = []

    def compute(name):
        computed.append(name)
        return [name, 0.1 + 0.2]

    def compute_all():
        with pieces_beside(out, settings, announce=says.append) as pieces:
            for name in names:
                assert pieces.get(name, lambda name=name: compute(name)) == [name, 0.1 + 0.2]
            raise KeyboardInterrupt

    says = [] if says is None else says
    with pytest.raises(KeyboardInterrupt):
        compute_all()
    return computed


def test_what_was_finished_is_not_computed_again(tmp_path):
    out = tmp_path / "plan.json"
    assert interrupted(out, "ab") == ["a", "b"]
    assert interrupted(out, "abc") == ["c"]
    assert kept_pieces(out, SETTINGS).n_kept == 3
    assert kept_pieces(out, {**SETTINGS, "window": 9}).n_kept == 0
    with pieces_beside(out, SETTINGS, announce=print) as pieces:
        assert (pieces.n_kept, pieces.count("a", ""), "c" in pieces) == (3, 1, True)
    assert list(tmp_path.iterdir()) == []


def test_a_value_is_the_same_before_and_after_an_interruption():
    pieces = Pieces()
    assert pieces.get("x", lambda: (1, (0.1,))) == [1, [0.1]] == pieces.get("x", lambda: 1 / 0)


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_piece_that_a_crash_cut_off_is_computed_again(tmp_path, cut):
    out = tmp_path / "plan.json"
    interrupted(out, "abc")
    (path,) = parts_folder(out).glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-cut])
    assert interrupted(out, "abc") == ["c"]
    assert interrupted(out, "abc") == []


def test_pieces_of_other_settings_are_not_used_and_it_is_said(tmp_path):
    out, says = tmp_path / "plan.json", []
    interrupted(out, "ab")
    assert interrupted(out, "ab", {**SETTINGS, "window": 16}, says) == ["a", "b"]
    assert len(says) == 1
    assert "other settings (window differ)" in says[0]
    assert interrupted(out, "ab") == []


def test_a_file_that_holds_no_pieces_is_begun_anew_and_it_is_said(tmp_path):
    out, says = tmp_path / "plan.json", []
    interrupted(out, "ab")
    (path,) = parts_folder(out).glob("*.jsonl")
    path.write_text(path.read_text() + "what is this?\n")
    assert interrupted(out, "ab", says=says) == ["a", "b"]
    assert "begun anew" in says[0]


def test_two_processes_do_not_make_the_same_file_at_once(tmp_path):
    out = tmp_path / "plan.json"
    program = (
        "import sys; from pathlib import Path; from workbench.store.finished_pieces import pieces_beside\n"
        f"with pieces_beside(Path(sys.argv[1]), {json.dumps(SETTINGS)}, announce=print):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(RunLocked, match=rf"plan.json is being made by process {other.pid} on .*another --out"),
            pieces_beside(out, SETTINGS, announce=print),
        ):
            pass
        other.stdin.close()
    assert not parts_folder(out).exists()
