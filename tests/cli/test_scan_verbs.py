"""`workbench status --watch`: from any terminal, with what is slowest, and each failure once as it comes."""

from tests.runs.test_run import FEW, SMALL
from tests.synthetic_run import write_run
from workbench.cli import scan_verbs
from workbench.store import Failure, Store, Timing


def test_watching_tells_the_slowest_so_far_and_each_failure_once(tmp_path, monkeypatch, capsys):
    path = write_run(tmp_path / "run", SMALL, upto=2)
    store = Store.open(path)
    store.begin_timing()
    for ckpt, seconds in ((f"step{FEW[0]}", 3.0), (f"step{FEW[1]}", 5.0)):
        store.add_timing(Timing(ckpt, "repeats", 5, 0.0, 1.0, seconds, 0.0, 0.0))
    steps = iter(FEW[2:])

    def meanwhile(_):
        step = next(steps)
        store.fail(Failure(f"step{step}", None, "bad_checkpoint", f"step {step} is truncated", ""))

    monkeypatch.setattr(scan_verbs.time, "sleep", meanwhile)
    scan_verbs.status(path, watch=True)
    said = capsys.readouterr().err
    assert "10 of 30 units done, 0 failed" in said
    assert f"slowest step{FEW[1]} repeats 6.0 s" in said
    for step in FEW[2:-1]:
        assert said.count(f"failed step{step}: step {step} is truncated") == 2  # as it came, and at the end
    assert "25 of 30" not in said
