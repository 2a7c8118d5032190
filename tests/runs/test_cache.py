"""The cache of a run: each value is made once, up to a size, for however many threads."""

from __future__ import annotations

import threading
import time

from workbench.runs.cache import SharedCache


def test_a_value_is_made_once_for_all_threads():
    cache, calls = SharedCache(4), []

    def make():
        calls.append(1)
        time.sleep(0.05)
        return object()

    values = []
    threads = [threading.Thread(target=lambda: values.append(cache.once("key", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert len(calls) == 1
    assert len(values) == 4
    assert len(set(map(id, values))) == 1


def test_the_value_used_longest_ago_goes_first():
    cache = SharedCache(2)
    for key in ("a", "b", "a", "c"):
        cache.once(key, lambda key=key: key.upper())
    assert cache.once("a", lambda: "made again") == "A"
    assert cache.once("b", lambda: "made again") == "made again"


def test_a_value_larger_than_the_cache_is_handed_out_and_not_kept():
    cache = SharedCache(10, len)
    cache.once("small", lambda: b"123")
    assert cache.once("large", lambda: bytes(11)) == bytes(11)
    assert cache.size == 3
    assert cache.once("large", lambda: b"other") == b"other"
