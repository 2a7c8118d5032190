"""Run one model on texts and probes and write its patterns to files: the process of the app's Probe page.

`python -m workbench.scanning.probe_page_worker BASE` reads the path of a folder in BASE from each line of stdin. The
folder's request.json has the checkpoint or the reference, the tokenizer, and the text or the probe; result.safetensors
and losses.json are written beside it. A reference is a model at a hub, which is fetched if the cache lacks it. The
model stays open for the next request, unless that names another, or a file of it has changed.

On stdout stands one JSON object per line: {"folder", "stage"} while it works, and {"folder", "end", "reason", ...} when
a request is answered. When stdin ends, the app has gone: so does this process, and removes BASE.
"""

from __future__ import annotations

import gc
import json
import math
import os
import queue
import re
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.checkpoints.fetched_models import fetch, plan_download
from workbench.checkpoints.hub_references import cached_checkpoint, locate_checkpoint
from workbench.detectors import series_far
from workbench.files.atomic import replace_file
from workbench.files.file_stamps import Stamp, stamp_of
from workbench.files.plain_json import json_text
from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel, open_model
from workbench.hooks.recording.pattern_maps import record_maps
from workbench.hub.byte_sizes import bytes_in_words
from workbench.hub.downloads import Watch
from workbench.hub.hub_errors import endpoint, is_offline
from workbench.hub.references import HubReference, parse_reference
from workbench.loading.pretrained import load_config
from workbench.probes import build, text, token_sequences
from workbench.probes.token_ids import why_no_tokenizer
from workbench.scanning.kept_patterns import arrays_of, first_document
from workbench.scanning.text_losses import longest_text, loss_passes, token_losses
from workbench.store import Origin
from workbench.store.map_parts import MapSource, write_maps

# All heads are kept in finer blocks if that takes at most this many cells.
_MOST_CELLS = 64 << 20
# Held while a result is written, so that the folder is not made again after it was removed.
_WRITING = threading.Lock()
Say = Callable[[str], None]


@dataclass(slots=True)
class KeptModel:
    """The model that is open, if one is, with what it was opened from: names, and the state of their files."""

    model: HookedModel | None = None
    source: tuple[str, str | None] = ("", None)
    stamp: tuple[Stamp, Stamp] = ((), ())
    # Whether it was open already when it was last asked for.
    was_open: bool = False

    def open(self, checkpoint: Path, tokenizer: str | None, *, say: Say) -> HookedModel:
        """The model of a checkpoint: the one that is open if it is of the same files, unchanged; else opened anew."""
        source = str(checkpoint), tokenizer
        stamp = stamp_of(checkpoint), stamp_of(Path(tokenizer)) if tokenizer else ()
        self.was_open = self.model is not None and (self.source, self.stamp) == (source, stamp)
        if self.model is None or not self.was_open:
            is_changed = self.model is not None and self.source == source
            self.model = None  # two models at once may not fit into memory
            gc.collect()
            say("files of the checkpoint have changed: opening it again" if is_changed else "opening the checkpoint")
            self.model = open_model(checkpoint, tokenizer=tokenizer)
            self.source, self.stamp = source, stamp
        return self.model


def answer(folder: Path, kept_model: KeptModel, *, say: Say = lambda _: None) -> None:
    """Answer the request of a folder, with the model that is open where it is the one.

    Raises:
        WorkbenchError: if the model cannot be opened or fetched, or the text cannot be read or run.
    """
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    reference = parse_reference(request.get("reference", ""), exists=False)
    checkpoint = Path(request["checkpoint"]) if reference is None else _fetched(reference, say)
    model = kept_model.open(checkpoint, request.get("tokenizer"), say=say)
    tokens = _tokens(model, request["text"], request["probe"])
    say(f"running {len(tokens):,} tokens through {len(model.layers)} layers")
    n_heads = sum(layer.n_heads for layer in model.layers)
    is_small = n_heads * min(len(tokens), 1024) ** 2 <= _MOST_CELLS
    far = series_far(model, token_sequences(tokens[None])).window
    recorded = record_maps(model, tokens, far=far, fine=None if is_small else ())
    losses = _losses(model, tokens, say)
    say("writing patterns")
    name = checkpoint.name if reference is None else str(reference)
    origin = Origin("", name, "0" * 32, "0" * 32, None, None, None, None, None)
    with _WRITING:
        replace_file(folder / "losses.json", json_text(losses).encode())
        write_maps(
            folder / "result.safetensors",
            arrays_of(recorded, model.tokenizer),
            MapSource(origin, "0" * 32, request["probe"] or "text", ""),
            temporaries=folder,
        )


def _losses(model: HookedModel, tokens: Int[Tensor, " t"], say: Say) -> dict[str, Any]:
    """The loss of each token, None for the first; or why there are none."""
    if not loss_passes(model, len(tokens)):
        longest = longest_text(model)
        reason = (
            f"losses are measured of texts of up to {longest:,} tokens: the logits of more would take too much memory"
        )
        return {"nats": [], "reason": reason}
    losses = token_losses(model, tokens, on_pass=lambda i, n: say(f"losses of the tokens: pass {i} of {n}"))
    return {"nats": [None if math.isnan(x) else x for x in losses.tolist()], "reason": ""}


def _fetched(reference: HubReference, say: Say) -> Path:
    """The folder in the cache of a model at a hub; bytes are counted as they come."""
    if is_offline() or cached_checkpoint(reference) is not None:
        return locate_checkpoint(reference).folder
    say(f"asking {endpoint()} for {reference}")
    planned = plan_download(reference)
    total, n_bytes, printed = bytes_in_words(planned.n_bytes), 0, ""

    def count(n: int) -> None:
        nonlocal n_bytes, printed
        n_bytes += n
        stage = f"fetching {reference} into the Hugging Face cache: {bytes_in_words(n_bytes)} of {total}"
        if stage != printed:
            printed = stage
            say(stage)

    count(0)
    return fetch(planned, check=load_config, watch=Watch(count))


def _tokens(model: HookedModel, written: str, probe: str) -> Int[Tensor, " t"]:
    """The tokens of a probe's first sequence or of a text; without a tokenizer, the text is a list of token ids."""
    if probe:
        return first_document(build(model, probe))
    if model.tokenizer is not None:
        return _tokenized(model, written)
    pieces = re.split(r"[\s,]+", written.strip())
    if not all(piece.isdigit() for piece in pieces):
        raise WorkbenchError(
            f"this checkpoint has no tokenizer{why_no_tokenizer(model)}, so a text cannot be read; write token ids, as "
            "5 17 4, or pick a standard probe"
        )
    return torch.tensor([int(piece) for piece in pieces])


def _tokenized(model: HookedModel, written: str) -> Int[Tensor, " t"]:
    try:
        return text(model, written).tokens[0]
    except WorkbenchError as error:
        raise WorkbenchError(f"{error}; here, write words that it knows, or pick a standard probe") from error


def _memory() -> int:
    """The bytes that this process holds in memory; where the system does not say, the most that it ever held."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _read_requests(base: Path, requests: queue.Queue[Path]) -> None:
    """Hand on each line of stdin; at its end remove everything and end the process, whatever it is doing."""
    line = b""
    while piece := os.read(0, 65536):  # not through sys.stdin, whose lock a waiting thread would hold at the end
        *lines, line = (line + piece).split(b"\n")
        for name in lines:
            requests.put(Path(os.fsdecode(name)))
    with _WRITING:
        shutil.rmtree(base, ignore_errors=True)
        os._exit(0)


def _print_stage(folder: Path, stage: str) -> None:
    _print(folder, stage=stage)


def _print(folder: Path, **values: Any) -> None:
    print(json.dumps({"folder": folder.name, **values}), flush=True)


def serve(base: Path) -> None:
    """Answer the requests of the app until it ends."""
    requests: queue.Queue[Path] = queue.Queue()
    reader = threading.Thread(target=_read_requests, args=(base, requests), daemon=True)
    reader.start()
    kept_model = KeptModel()
    try:
        while True:
            folder = requests.get()
            start, reason = time.monotonic(), ""
            try:
                answer(folder, kept_model, say=partial(_print_stage, folder))
            except WorkbenchError as error:
                reason = str(error).replace("\n", " ")
            seconds, end = time.monotonic() - start, "failed" if reason else "done"
            _print(folder, end=end, reason=reason, was_open=kept_model.was_open, seconds=seconds, memory=_memory())
    except BrokenPipeError:  # the app has gone before a line was printed: its end of stdin closes at the same moment
        reader.join()
        raise


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
