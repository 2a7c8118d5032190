"""The command line: exit codes, one JSON document on stdout, messages a user can act on, a quick start."""

import json
import sys

import pytest

from tests.children import run_child
from tests.command_process import workbench
from tests.preloaded import PreloadedReading
from tests.series import STEPS, write_series
from workbench.detectors import all_detectors

FAST = ["--detector", "sink", "--detector", "induction", "--probe", "repeats:n=10,n_sequences=5"]


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return write_series(tmp_path_factory.mktemp("series"))


@pytest.fixture(scope="module")
def run(series, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    done = workbench("scan", series, "--out", out, *FAST)
    assert done.returncode == 0, done.stderr
    return out


def test_series_lists_the_checkpoints_in_order(series):
    table, document = workbench("series", series), workbench("series", series, "--json")
    names = [f"checkpoint-{s}" for s in STEPS]
    assert [line.split()[0] for line in table.stdout.splitlines()[1:]] == names
    assert [c["name"] for c in json.loads(document.stdout)["checkpoints"]] == names


def test_scan_shows_progress_on_stderr_and_its_end_on_stdout(series, tmp_path):
    done = workbench("scan", series, "--out", tmp_path / "run", *FAST, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert (document["planned"], document["done"], document["failed"]) == (16, 16, 0)
    assert "checkpoint-16 repeats: " in done.stderr


def test_a_dry_run_tells_the_job_its_units_and_bytes_and_does_nothing(series, tmp_path):
    arguments = ["scan", series, "--out", tmp_path / "run", *FAST, "--set", "seed=3", "--dry-run"]
    document = json.loads(workbench(*arguments, "--json").stdout)
    size = sum((folder / "model.safetensors").stat().st_size for folder in series.iterdir())
    assert (document["units_to_do"], document["bytes_to_read"], document["job"]["seed"]) == (16, size, 3)
    assert [c["units"] for c in document["checkpoints"]] == [4] * 4
    assert not (tmp_path / "run").exists()


def test_a_scan_of_the_job_that_a_run_keeps_is_the_run_again(run, tmp_path):
    again = workbench("scan", run / "job.toml", "--out", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    names = [sorted(p.name for p in folder.glob("scores/*/*.parquet")) for folder in (run, tmp_path / "again")]
    assert names[0] == names[1]


def test_status_watches_until_the_end_and_tells_the_slowest(run):
    done = workbench("status", run, "--watch", "--json")
    document = json.loads(done.stdout)
    assert (document["done"], document["eta_s"]) == (16, 0)
    slow = document["slowest"]
    assert len(slow) == 3
    assert slow[0]["total_s"] >= slow[1]["total_s"] >= slow[2]["total_s"] > 0
    assert slow[0]["total_s"] >= slow[0]["load_s"] + slow[0]["forward_s"]


def test_top_gives_the_best_heads_with_interval_and_onset(run):
    document = json.loads(workbench("top", run, "--detector", "sink", "-n", 3, "--json").stdout)
    assert len(document) == 3
    assert document[0]["score"] >= document[1]["score"] >= document[2]["score"]
    assert document[0]["ci_lo"] <= document[0]["score"] <= document[0]["ci_hi"]
    assert {"n", "onset_step", "onset_tokens"} <= document[0].keys()
    assert "L0H" in workbench("top", run).stdout


def test_status_and_check_agree_that_a_whole_run_is_whole(run):
    status = workbench("status", run, "--json")
    assert json.loads(status.stdout)["done"] == 16
    check = workbench("check", run, "--json")
    assert (check.returncode, json.loads(check.stdout)) == (0, [])


def test_check_names_a_damaged_part_and_scan_makes_it_anew(series, run):
    part = next(run.glob("scores/*/*.parquet"))
    whole = part.read_bytes()
    part.write_bytes(whole[:-7])
    check = workbench("check", run)
    assert check.returncode == 1
    assert part.name in check.stdout
    reading = workbench("top", run)
    assert reading.returncode != 0
    assert part.name in reading.stderr
    part.unlink()
    assert workbench("scan", series, "--out", run, *FAST).returncode == 0
    assert workbench("check", run).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["scan", "EMPTY", "--out", "NEW"], 3, "no checkpoints"),
        (["scan", "MISSING", "--out", "NEW"], 3, "no such directory"),
        (["series", "EMPTY"], 3, "no checkpoints"),
        (["scan", "SERIES"], 2, "--out"),
        (["scan", "SERIES", "--out", "NEW", "--detector", "inductoin"], 2, "known: "),
        (["scan", "SERIES", "--out", "NEW", "--probe", "repeats:n=9999"], 2, "9999 different tokens"),
        (["scan", "SERIES", "--out", "NEW", "--rows", "0"], 2, "rows"),
        (["scan", "SERIES", "--out", "NEW", "--set", "seeed=3"], 2, "did you mean 'seed'"),
        (["scan", "SERIES", "--out", "NEW", "--workers", "2"], 2, "--engine local"),
        (["scan", "SERIES", "--out", "NEW", "--shard", "4/4"], 2, "0 <= i < n"),
        (["status", "EMPTY"], 2, "no run.json"),
        (["top", "RUN", "--detector", "nothing"], 2, "induction"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_a_mistake_has_its_exit_code_and_a_message_without_a_traceback(series, run, tmp_path, arguments, code, told):
    (tmp_path / "empty").mkdir()
    places = {
        "EMPTY": tmp_path / "empty",
        "MISSING": tmp_path / "missing",
        "NEW": tmp_path / "new",
        "SERIES": series,
        "RUN": run,
    }
    done = workbench(*(places.get(a, a) for a in arguments))
    assert done.returncode == code, done.stderr
    assert told.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_run_of_a_newer_version_is_refused_with_exit_four(run, tmp_path):
    newer = tmp_path / "run"
    newer.mkdir()
    description = json.loads((run / "run.json").read_text())
    (newer / "run.json").write_text(json.dumps({**description, "schema": 99}))
    assert workbench("status", newer).returncode == 4


def test_detectors_lists_every_registered_detector_with_its_units():
    listed = json.loads(workbench("detectors", "--json").stdout)
    units = {d["name"]: d["units"] for d in listed}
    assert units["entropy"] == "nats"
    assert units["mean_distance"] == "tokens"
    assert units.keys() == all_detectors().keys()


def test_doctor_says_which_kernel_each_operation_uses_and_why():
    report = json.loads(workbench("doctor", "--json").stdout)
    assert report["versions"]["torch"].startswith("2.")
    kernels = report["kernels"]
    assert kernels["WORKBENCH_KERNELS"] == "auto"
    for operation in ("attention_profile", "linear_attention", "gated_delta_rule"):
        assert "torch (cpu: exact" in kernels[operation]
    assert kernels["recording: causal, sliding and padded layers"].startswith("row-blocked torch (cpu: exact")
    assert kernels["recording: sparse layers"].endswith("keys that no row of a tile selects are not read")


def test_doctor_tells_what_a_models_states_lose(tmp_path):
    config = {"model_type": "minimax", "num_hidden_layers": 4, "num_attention_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = json.loads(workbench("doctor", "--state-precision", str(tmp_path), "--tokens", "64", "--json").stdout)
    assert {row["precision"]: row["surely_lost"] for row in report["lost"]}["fp32"] == 0
    last = [row for row in report["growth"] if row["tokens"] == 64 and row["precision"] == "bf16"]
    assert {(row["layer"], row["head"]) for row in last} == {(layer, head) for layer in (1, 3) for head in range(8)}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    refused = workbench("doctor", "--state-precision", str(tmp_path))
    assert refused.returncode == 2
    assert "is a llama model" in refused.stderr
    assert "data-independent decay" in refused.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["status", "RUN"], ["top", "RUN"]])
def test_looking_never_imports_torch(run, arguments):
    arguments = [str(run) if a == "RUN" else a for a in arguments]
    code = (
        "import sys\nfrom workbench.cli.main import main\n"
        f"sys.argv = ['workbench', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "bad = [m for m in ('torch', 'transformers', 'transformer_lens') if m in sys.modules]\n"
        "assert not bad, bad\n"
    )
    done = run_child([sys.executable, "-c", code], start=PreloadedReading, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_reading_half_and_the_package_itself_never_import_torch():
    names = ["workbench", "heads", "checkpoints", "store", "emergence", "runs.run", "runs.summary", "figures", "app"]
    names += ["report", "console", "scanning.job", "scanning.engines"]
    modules = ", ".join(n if n == "workbench" else f"workbench.{n}" for n in names)
    code = f"import sys\nimport {modules}\nassert not {{'torch', 'transformers'}} & set(sys.modules)"
    done = run_child([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
