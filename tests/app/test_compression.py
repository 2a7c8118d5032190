"""Answers are compressed for clients that accept it, and only for those."""

from __future__ import annotations

import gzip

import brotli
import pytest

from workbench.app import build_app

HOST = {"Host": "127.0.0.1"}


@pytest.fixture(scope="module")
def client(synthetic_runs):
    return build_app(synthetic_runs[:1]).server.test_client()


@pytest.mark.parametrize("path", ["/_dash-layout", "/export/scores.csv?detector=induction"])
def test_a_compressed_answer_is_the_plain_one_in_fewer_bytes(client, path):
    plain = client.get(path, headers=HOST)
    packed = client.get(path, headers={**HOST, "Accept-Encoding": "gzip, deflate"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.data) == plain.data
    assert int(packed.headers["Content-Length"]) == len(packed.data) < len(plain.data) / 2
    assert "Accept-Encoding" in packed.headers["Vary"]
    assert "Accept-Encoding" in plain.headers["Vary"]


@pytest.mark.parametrize("path", ["/_dash-layout", "/export/scores.csv?detector=induction"])
def test_a_browser_that_reads_brotli_gets_no_more_bytes_than_with_gzip(client, path):
    plain = client.get(path, headers=HOST)
    zipped = client.get(path, headers={**HOST, "Accept-Encoding": "gzip"})
    packed = client.get(path, headers={**HOST, "Accept-Encoding": "gzip, deflate, br, zstd"})
    assert packed.headers["Content-Encoding"] == "br"
    assert brotli.decompress(packed.data) == plain.data
    assert len(packed.data) <= len(zipped.data)


@pytest.mark.parametrize("path", ["/assets/workbench.js", "/export/nothing.csv"])
def test_scripts_and_refusals_are_sent_as_they_are(client, path):
    with client.get(path, headers={**HOST, "Accept-Encoding": "gzip"}) as answer:
        assert "Content-Encoding" not in answer.headers
