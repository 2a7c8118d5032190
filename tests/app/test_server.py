"""The server: this machine only, known names only, no torch, and errors before it starts."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from tests.children import child, first_line, output_of, run_child
from tests.preloaded import PreloadedReading
from workbench.app import build_app, serve, show
from workbench.app.server.serving import Server
from workbench.app.state.live_runs import live_runs
from workbench.heads import WorkbenchError
from workbench.runs import open_run
from workbench.store import Store


@pytest.fixture(scope="module")
def client(synthetic_runs):
    return build_app(synthetic_runs[:1]).server.test_client()


@pytest.mark.parametrize("host", ["127.0.0.1:8050", "localhost:8050", "localhost", "[::1]:8050"])
def test_this_machine_is_answered(client, host):
    assert client.get("/overview", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8050", "127.0.0.1.evil.example", "localhost.evil.example", ""]
)
def test_another_host_name_is_refused(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 421
    assert client.post("/_dash-update-component", headers={"Host": host}, json={}).status_code == 421
    assert client.get("/assets/workbench.js", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1.evil.example", "http://[broken"])
def test_another_origin_is_refused(client, origin):
    headers = {"Host": "127.0.0.1:8050", "Origin": origin}
    assert client.post("/_dash-update-component", headers=headers, json={}).status_code == 403


def test_its_own_origin_is_answered(client):
    headers = {"Host": "127.0.0.1:8050", "Origin": "http://127.0.0.1:8050"}
    assert client.get("/_dash-layout", headers=headers).status_code == 200


def test_answers_say_how_they_may_be_used(client):
    headers = client.get("/", headers={"Host": "127.0.0.1"}).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert "frame-ancestors 'self'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "path", ["/assets/../server.py", "/assets/%2e%2e/server.py", "/assets/..%2fserver.py", "/assets//etc/passwd"]
)
def test_no_file_outside_the_assets_is_served(client, path):
    answer = client.get(path, headers={"Host": "127.0.0.1"})
    assert answer.status_code == 404 or b"import" not in answer.data
    assert b"root:" not in answer.data


def test_everything_is_served_from_here(client):
    page = client.get("/", headers={"Host": "127.0.0.1"}).get_data(as_text=True)
    assert "workbench.js" in page
    assert "workbench.css" in page
    assert "https://" not in page.replace("https://dash.plotly.com", "")
    assert "cdn" not in page


def test_no_debugger_and_no_protocol_for_models_is_open(synthetic_runs):
    app = build_app(synthetic_runs[:1])
    assert not app.server.debug
    assert not [rule.rule for rule in app.server.url_map.iter_rules() if "mcp" in rule.rule]


def test_a_host_that_others_can_reach_is_served_with_a_token_that_was_made_up(synthetic_runs, capsys, monkeypatch):
    monkeypatch.setattr(Server, "serve_forever", lambda server: None)
    serve(synthetic_runs[:1], host="0.0.0.0", port=0)
    first = re.search(r"token=(\S+)", capsys.readouterr().err)[1]
    serve(synthetic_runs[:1], host="0.0.0.0", port=0)
    second = re.search(r"token=(\S+)", capsys.readouterr().err)[1]
    assert len(first) >= 20
    assert first != second


def test_a_port_that_is_taken_is_said_to_be(synthetic_runs):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(WorkbenchError, match=r"taken.*--port"):
            serve(synthetic_runs[:1], port=holder.getsockname()[1])


def test_what_is_no_run_is_refused_before_anything_is_served(tmp_path):
    with pytest.raises(WorkbenchError, match="workbench scan DIR --out"):
        build_app([tmp_path])
    with pytest.raises(WorkbenchError, match="no run to show"):
        build_app([])


def test_a_torn_part_does_not_keep_the_app_from_opening_and_is_named_when_the_run_is_read(tmp_path):
    store = Store.create(tmp_path / "run", job={}, versions={})
    folder = store.path / "scores" / "s0000000001-abababab"
    folder.mkdir(parents=True)
    (folder / f"{'0' * 32}.parquet").write_bytes(b"half")
    build_app([tmp_path / "run"])
    with pytest.raises(WorkbenchError, match="workbench check"):
        live_runs([tmp_path / "run"])["run"].status()


def test_only_an_error_of_our_own_is_printed_not_a_browser_that_hung_up_or_an_answer_cut_off_by_the_end(capsys):
    def said_of(error: Exception) -> str:
        try:
            raise error
        except Exception:
            server.handle_error(None, ("127.0.0.1", 1))
        return capsys.readouterr().err

    server = Server("127.0.0.1", 0, lambda environ, start: [])
    assert said_of(ConnectionResetError("hung up")) == ""
    assert said_of(TimeoutError("gone")) == ""
    assert "ValueError: our own" in said_of(ValueError("our own"))
    server.server_close()
    assert said_of(ValueError("cut off")) == ""


def test_the_process_that_serves_imports_no_torch(synthetic_runs):
    code = f"""
import sys
from workbench.app import build_app, serve, show
build_app([{str(synthetic_runs[0])!r}]).server.test_client().get("/_dash-layout", headers={{"Host": "localhost"}})
print(sorted({{"torch", "transformers", "transformer_lens"}} & set(sys.modules)))
"""
    ended = run_child([sys.executable, "-c", code], start=PreloadedReading, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_an_app_that_nohup_started_ends_by_sigterm_as_by_ctrl_c(synthetic_runs):
    command = [sys.executable, "-m", "workbench.cli", "app", synthetic_runs[0], "--port", "0", "--no-browser"]
    with child(command, start=PreloadedReading, ignores_interrupts=True, stderr=subprocess.PIPE, text=True) as server:
        assert "workbench app at http://" in first_line(server, server.stderr)
        server.send_signal(signal.SIGTERM)
        assert output_of(server, 60)[1] == ""
    assert server.returncode == 0


def test_a_server_outside_the_main_thread_leaves_signals_alone(synthetic_runs, monkeypatch):
    during = []
    monkeypatch.setattr(Server, "serve_forever", lambda server: during.append(signal.getsignal(signal.SIGTERM)))
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: serve(synthetic_runs[:1], port=0))
    thread.start()
    thread.join(60)
    assert during == [before]
    serve(synthetic_runs[:1], port=0)
    assert during[1] != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_notebook_shows_the_app_of_a_run_on_this_machine(synthetic_runs, monkeypatch):
    asked = {}
    monkeypatch.setattr("dash.Dash.run", lambda app, **options: asked.update(options))
    show(open_run(synthetic_runs[0]))
    assert asked["host"] == "127.0.0.1"
    assert asked["jupyter_mode"] == "inline"
    assert asked["debug"] is False
    show([synthetic_runs[0], open_run(synthetic_runs[1])], height=500)
    assert asked["jupyter_height"] == 500
