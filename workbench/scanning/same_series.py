"""Whether a directory's checkpoints are those of the training that a run holds; another's are refused.

Rows of two trainings under one name would be read as one course. A directory belongs to a run that has no scores yet;
else its models must have the run's shape, and it must be a directory that the run was scanned from, or share a
checkpoint with it: the same folder moved, copied or grown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.checkpoints import Checkpoint, Series, architecture, fingerprint
from workbench.checkpoints.candidates import Candidates, RemoteCheckpoint
from workbench.checkpoints.configs import VOCABULARY, has_config
from workbench.checkpoints.digests import FINGERPRINTS, fingerprint_at_hub
from workbench.checkpoints.series import order_checkpoints
from workbench.heads import BadCheckpoint, NoCheckpoints, WorkbenchError
from workbench.hub.local_cache import repository_folder
from workbench.scanning.job import Job
from workbench.store import Part, Store, read_requests, read_rows

# Checkpoints whose weights are compared, spread over training.
_MOST_COMPARED = 8


def require_same_series(job: Job, candidates: Candidates) -> None:
    """Compare a job's checkpoints with its run, if that was begun.

    Raises:
        WorkbenchError: if it is another series; it names both.
    """
    if not (job.out / "run.json").is_file():
        return
    try:
        series = order_checkpoints(candidates)
    except NoCheckpoints:  # whoever orders them with those of the run says why, or can
        return
    store = Store.open(job.out)
    shapes_with_run(store, job, series)
    require_same_training(store, job, series)


def shapes_with_run(store: Store, job: Job, series: Series) -> list[dict[str, str]]:
    """Compare a directory's models with those of the run that it is to be scanned into. Weights are not read.

    Returns:
        The shapes of the run's models, those of the directory among them.

    Raises:
        WorkbenchError: if none has the shape of one in the run; it names both.
    """
    refused = {change.checkpoint for change in series.config_changes if change.is_fatal}
    shapes = [shape for c in series.on_disk if c.name not in refused and (shape := architecture(c.path))]
    return _compared(store, job, shapes)


def _compared(store: Store, job: Job, shapes: list[dict[str, str]]) -> list[dict[str, str]]:
    if not any(part.label.rows for part in store.whole_parts()):
        return _each_once(shapes)
    known = store.architectures() or _shapes_of_paths(store)
    if shapes and known and not any(_agree(a, b) for a in shapes for b in known):
        usual = dict(Counter(tuple(shape.items()) for shape in shapes).most_common(1)[0][0])
        raise _another(store, job, _difference(usual, known[0]))
    if shapes and not known and (lacking := _lacking_layer(store, shapes)) is not None:
        raise _another(store, job, lacking)
    return _each_once([*known, *shapes])


def require_same_training(store: Store, job: Job, series: Series) -> None:
    """Compare a directory's weights with those of the run, unless the run was scanned from it in the same vocabulary.

    Weights at a hub are known as far as they were scanned from there before.

    Raises:
        WorkbenchError: if they have nothing in common; it names both.
    """
    checkpoints = series.on_disk
    other_words = _other_vocabulary(store, checkpoints)
    if job.same_series or (_is_known(store, job) and not other_words):
        return
    parts = [part for part in store.whole_parts() if part.label.rows]
    if parts and not _shares_weights(store, parts, checkpoints, series.remote):
        difference = f"{other_words}no checkpoint has the weights of one in the run"
        raise _another(store, job, difference, _IF_THE_SAME)


def _other_vocabulary(store: Store, checkpoints: Sequence[Checkpoint]) -> str:
    """How the vocabulary differs from the run's, where no checkpoint has the size of one there; else ""."""
    known = {shape.get(VOCABULARY, "null") for shape in store.architectures()} - {"null"}
    sizes = {architecture(checkpoint.path).get(VOCABULARY, "null") for checkpoint in checkpoints} - {"null"}
    if not known or not sizes or known & sizes:
        return ""
    return f"{VOCABULARY} {', '.join(sorted(sizes))}, and the run has {', '.join(sorted(known))}; "


def _is_known(store: Store, job: Job) -> bool:
    """Whether the run was scanned from this directory, or from one checkpoint in it, or this is one in such."""
    sources = {request.checkpoints for request in read_requests(store.path)}
    sources |= {store.description().job.checkpoints, store.last_job().checkpoints}
    sources |= {str(Path(str(record["path"])).parent) for record in store.checkpoints() if "path" in record}
    if isinstance(job.checkpoints, str):
        known = {part for source in sources if source for part in source.split(",")}
        folders = {str(repository_folder(reference.repo).resolve()) for reference in job.references}
        return bool(folders & known) or any(str(reference) in known for reference in job.references)
    directories = {Path(source).resolve() for source in sources if source}
    here = job.checkpoints.resolve()
    series = here.parent if has_config(here) else here
    directories |= {each.parent for each in directories if has_config(each)}
    return here in directories or series in directories


def _shares_weights(
    store: Store, parts: Sequence[Part], checkpoints: Sequence[Checkpoint], remote: Mapping[str, RemoteCheckpoint]
) -> bool:
    """Whether a few checkpoints hold weights that the run has scored; those first that it knows by name."""
    scored = {part.label.origin.weights for part in parts}
    names = {part.label.ckpt for part in parts}
    readable = bool(remote)
    for checkpoint in _spread([c for c in checkpoints if c.name in names] or list(checkpoints)):
        try:
            weights = _weights(store, checkpoint, remote.get(checkpoint.name))
        except BadCheckpoint:  # the scan stores it as this checkpoint's failure
            continue
        if weights in scored:
            return True
        readable = True
    return not readable


def _weights(store: Store, checkpoint: Checkpoint, remote: RemoteCheckpoint | None) -> str | None:
    """The digest of a checkpoint's weights; None if they are at a hub and were never here."""
    cache = store.path / FINGERPRINTS
    if remote is None:
        return fingerprint(checkpoint.path, cache).weights
    known = fingerprint_at_hub(checkpoint.path, remote.blobs_by_name, cache)
    return None if known is None else known.weights


def _spread(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    n = len(checkpoints)
    if n <= _MOST_COMPARED:
        return checkpoints
    return [checkpoints[i * (n - 1) // (_MOST_COMPARED - 1)] for i in range(_MOST_COMPARED)]


def _shapes_of_paths(store: Store) -> list[dict[str, str]]:
    """The shapes of the series as it was scanned last, where its files still lie there."""
    paths = [Path(str(record["path"])) for record in store.checkpoints() if "path" in record]
    return _each_once([shape for path in paths if (shape := architecture(path))])


def _each_once(shapes: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    return [dict(items) for items in dict.fromkeys(tuple(shape.items()) for shape in shapes)]


def _lacking_layer(store: Store, shapes: Sequence[dict[str, str]]) -> str | None:
    """Where the run has scores of a layer that no model of the directory has: which. For runs that kept no shapes."""
    layers = [int(shape["n_layers"]) for shape in shapes if shape["n_layers"].isdecimal()]
    part = next((part for part in store.whole_parts() if part.label.table == "scores" and part.label.rows), None)
    if part is None or not layers:
        return None
    last = max(read_rows(store.path, part, ["layer"])["layer"].to_pylist())
    return f"{max(layers)} layers, and the run has scores of layer {last}" if max(layers) <= last else None


def _agree(shape: dict[str, str], known: dict[str, str]) -> bool:
    """Whether no setting contradicts; one that a config.json leaves to the model's default says nothing.

    A vocabulary may grow by a token.
    """
    names = [name for name in shape if name != VOCABULARY]
    return all("null" in {shape[name], known.get(name, "null")} or shape[name] == known[name] for name in names)


def _difference(given_shape: dict[str, str], known: dict[str, str]) -> str:
    names = [name for name in given_shape if "null" not in (known.get(name, "null"), given_shape[name])]
    names = [name for name in names if given_shape[name] != known[name]]
    return ", ".join(f"{name} {given_shape[name]}, and the run has {known.get(name)}" for name in names)


_IF_THE_SAME = ", or pass --same-series (same_series=True) if it continues the same training"


def _another(store: Store, job: Job, difference: str, alternative: str = "") -> WorkbenchError:
    source = store.last_job().checkpoints
    return WorkbenchError(
        f"{job.checkpoints} is another series than {source}, of which {store.path} holds the scores: {difference}; "
        f"pass another --out{alternative}"
    )
