"""Names of tensors without what wrappers put into them: torch.compile, data parallelism, FSDP, Lightning.

A wrapper adds a part of its own in front of all names (`module.`, Lightning's `model.`) or inside of some
(`layers.0._orig_mod.`). Which parts are a wrapper's cannot be told from a name alone. So these are proposals, and the
loader takes the first with which every tensor has its place in the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Parts that torch.compile, (distributed) data parallelism, FSDP, activation checkpointing and Lightning's strategies
# put into names.
_WRAPPERS = frozenset(
    {
        "_orig_mod",
        "module",
        "_fsdp_wrapped_module",
        "_fpw_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
    }
)
# Parts in front of all names: a wrapper's, and an attribute's of the object that held the model.
_DEEPEST = 3


def proposed_names(names: Iterable[str], expected: Iterable[str]) -> list[Mapping[str, str]]:
    """Renamings, from each name to another, that may take wrappers away; with the first most names are the model's own.

    Only those that lead more names to one of `expected`, the model's own, and never two names to one.
    """
    names, expected = list(names), frozenset(expected)
    bare = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names}
    proposals = [bare]
    for renaming in ({name: name for name in names}, bare):
        shorter = renaming
        for _ in range(_DEEPEST):
            first = {name.partition(".")[0] for name in shorter.values()}
            if len(first) != 1:
                break
            shorter = {name: new.partition(".")[2] for name, new in shorter.items()}
            proposals.append(shorter)
    n_known = len(expected.intersection(names))
    useful: list[Mapping[str, str]] = []
    for renaming in proposals:
        new_names = set(renaming.values())
        is_one_to_one = len(new_names) == len(names) and "" not in new_names
        if is_one_to_one and len(expected & new_names) > n_known and renaming not in useful:
            useful.append(renaming)
    return sorted(useful, key=lambda renaming: -len(expected.intersection(renaming.values())))
