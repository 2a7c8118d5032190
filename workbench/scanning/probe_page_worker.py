"""Run one checkpoint on one text or probe and write its patterns to a file: the process of the app's Probe page.

`python -m workbench.scanning.probe_page_worker FOLDER` reads FOLDER/request.json (checkpoint or reference, text, probe)
and writes FOLDER/result.safetensors. A reference is a model at a hub, which is fetched if the cache lacks it. Progress
is printed on stdout, one line per stage; an error is the last line on stderr. When stdin ends, the app has gone: so
does this process, and removes FOLDER.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import sys
import threading
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.checkpoints.fetched_models import fetch, plan_download
from workbench.checkpoints.hub_references import cached_checkpoint, locate_checkpoint
from workbench.detectors import series_far
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
from workbench.store import Origin
from workbench.store.map_parts import MapSource, write_maps

# All heads are kept in finer blocks if that takes at most this many cells.
_MOST_CELLS = 64 << 20
# Held while the result is written, so that the folder is not made again after it was removed.
_WRITING = threading.Lock()


def main(folder: Path) -> int:
    """Answer the request of a folder; returns the exit code."""
    try:
        request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
        reference = parse_reference(request.get("reference", ""), exists=False)
        checkpoint = Path(request["checkpoint"]) if reference is None else _fetched(reference)
        _print_stage("opening the checkpoint")
        model = open_model(checkpoint, tokenizer=request.get("tokenizer"))
        tokens = _tokens(model, request["text"], request["probe"])
        _print_stage(f"running {len(tokens):,} tokens through {len(model.layers)} layers")
        n_heads = sum(layer.n_heads for layer in model.layers)
        is_small = n_heads * min(len(tokens), 1024) ** 2 <= _MOST_CELLS
        far = series_far(model, token_sequences(tokens[None])).window
        recorded = record_maps(model, tokens, far=far, fine=None if is_small else ())
        _print_stage("writing patterns")
        name = checkpoint.name if reference is None else str(reference)
        origin = Origin("", name, "0" * 32, "0" * 32, None, None, None, None, None)
        with _WRITING:
            write_maps(
                folder / "result.safetensors",
                arrays_of(recorded, model.tokenizer),
                MapSource(origin, "0" * 32, request["probe"] or "text", ""),
                temporaries=folder,
            )
    except WorkbenchError as error:
        print(f"error: {error}".replace("\n", " "), file=sys.stderr)
        return 1
    _print_stage("done")
    return 0


def _fetched(reference: HubReference) -> Path:
    """The folder in the cache of a model at a hub; bytes are counted as they come."""
    if is_offline() or cached_checkpoint(reference) is not None:
        return locate_checkpoint(reference).folder
    _print_stage(f"asking {endpoint()} for {reference}")
    planned = plan_download(reference)
    total, n_bytes, printed = bytes_in_words(planned.n_bytes), 0, ""

    def count(n: int) -> None:
        nonlocal n_bytes, printed
        n_bytes += n
        stage = f"fetching {reference} into the Hugging Face cache: {bytes_in_words(n_bytes)} of {total}"
        if stage != printed:
            printed = stage
            _print_stage(stage)

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


def _print_stage(stage: str) -> None:
    print(stage, flush=True)


def _end_with_the_app(folder: Path) -> None:
    while os.read(0, 1):  # not through sys.stdin, whose lock a waiting thread would hold at the end
        pass
    with _WRITING:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)


def _run_until_the_app_ends(folder: Path) -> int:
    watcher = threading.Thread(target=_end_with_the_app, args=(folder,), daemon=True)
    watcher.start()
    try:
        code = main(folder)
    except BrokenPipeError:  # the app has gone before a line was printed: its end of stdin closes at the same moment
        watcher.join()
        raise
    if select.select([0], [], [], 0)[0]:  # stdin has ended while the model ran: the folder is the watcher's to remove
        watcher.join()
    return code


if __name__ == "__main__":
    sys.exit(_run_until_the_app_ends(Path(sys.argv[1])))
