"""huggingface_hub turned to the tests' own hub, with a cache of the test's own and short waits."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import close_session, constants, hf_api
from huggingface_hub.utils import _http  # no public name sets how long it waits

from tests.hub.hub_server import HubServer

SILENCE = 0.1  # seconds without a byte after which a download counts as stalled
_LONGEST_WAIT = 0.01  # between two tries, whatever the client would wait


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Generator[HubServer]:
    """A hub without repositories, which this process and its children use; the cache is `user_cache(tmp_path)`."""
    with HubServer() as server:
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment(server, tmp_path).items():
            monkeypatch.setenv(name, value)
        values: Mapping[str, object] = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(user_cache(tmp_path)),
            "HF_TOKEN_PATH": str(tmp_path / "home" / "token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DOWNLOAD_TIMEOUT": SILENCE,
        }
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)
        without_waiting(monkeypatch)
        close_session()
        yield server
        close_session()


def environment(server: HubServer, folder: Path) -> dict[str, str]:
    """The environment of a process that uses the hub, with its cache and settings in a folder."""
    return {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_CACHE": str(user_cache(folder)),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1"))),
    }


def user_cache(folder: Path) -> Path:
    """The Hugging Face cache of the user, in the folder of a test."""
    return folder / "hub"


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits a hundredth of a second between tries; how often it tries stays."""
    hurried = SimpleNamespace(**vars(time))
    hurried.sleep = lambda seconds: time.sleep(min(seconds, _LONGEST_WAIT))
    for module in (_http, __import__("huggingface_hub.file_download", fromlist=["time"])):
        monkeypatch.setattr(module, "time", hurried)
