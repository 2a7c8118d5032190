"""The tasks that a plan is made and judged on: answers that stand beyond the window, at a length of choice.

With a tokenizer: RULER's needles, chains of assignments asked about in turn, words to count, and natural text where a
rare n-gram stands again from afar. Without one: needles of bare tokens, chains, tokens to count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel
from workbench.planning.efforts import Effort
from workbench.probes import Probe, build, only_far
from workbench.probes.far_rows import widest_window
from workbench.store.conversions import Window
from workbench.store.length_verdict import Measure

# The class of probes whose answer is counted over the whole text, so that no cell alone holds it.
_COUNTED = "rank"


@dataclass(frozen=True, slots=True)
class FarTask:
    """A task at any length.

    `written`: its probe as `probes.build` reads it, without length, number of texts and seed. `measure`: whether the
    share of right answers says if the model can do it, or the loss alone. `distances`: the shares of the length at
    which a copy's source stands, for a probe that takes distances. `smaller`: the same with less to ask, where a length
    does not hold it.
    """

    name: str
    written: str
    measure: Measure = "right"
    distances: tuple[float, ...] = ()
    smaller: str = ""

    def at(self, length: int, *, n_texts: int, seed: int) -> str:
        """The probe's notation at a length in tokens."""
        name, _, arguments = self.written.partition(":")
        distance = "+".join(str(round(share * length)) for share in self.distances)
        n_each = -(-n_texts // max(1, len(self.distances)))
        settings = [
            *([arguments] if arguments else []),
            *([f"distance={distance}"] if distance else []),
            f"length={length},n_sequences={n_each},seed={seed}",
        ]
        return f"{name}:{','.join(settings)}"


NEEDLES = FarTask("needles", "niah_multiquery")
CHAINS = FarTask(
    "variable tracking",
    "variable_tracking:hops=1+2,n_chains=6,n_asked=6",
    smaller="variable_tracking:hops=1+2,n_chains=4,n_asked=2",
)
FAR_TEXT = FarTask("far text", "repeated_ngrams", measure="nats")
COMMON_WORDS = FarTask("common words", "common_words")
COPIES = FarTask("copied needles", "copy_needle", distances=(0.4, 0.6))
CHAINS_OF_TOKENS = FarTask("variable tracking", "variable_tracking:hops=1+2,n_chains=3,n_asked=3")

TEXT_TASKS = (NEEDLES, CHAINS, FAR_TEXT, COMMON_WORDS)
# The shortest text in tokens that holds an instruction, a haystack with needles, and questions.
SHORTEST_TEXT = 512
TOKEN_TASKS = (COPIES, CHAINS_OF_TOKENS, COMMON_WORDS)


def chosen_tasks(m: HookedModel, tasks: Sequence[str] | str | None, effort: Effort) -> list[FarTask]:
    """Tasks by name, or probes as `probes.build` reads them, without length, n_sequences and seed.

    None: with a tokenizer chains alone for `quick`, whose questions of one hop are retrieval; else all.

    Raises:
        WorkbenchError: for no task, an unknown one, or a notation that sets a length, n_sequences or seed.
    """
    known = TOKEN_TASKS if m.tokenizer is None else TEXT_TASKS
    if tasks is None:
        return [CHAINS] if effort == "quick" and m.tokenizer is not None else list(known)
    written = [tasks] if isinstance(tasks, str) else list(tasks)
    if not written:
        raise WorkbenchError(f"no task was given; expected some of {', '.join(task.name for task in known)}")
    by_name = {task.name: task for task in known}
    return [by_name[text] if text in by_name else _of_notation(text) for text in written]


def far_probe(m: HookedModel, task: FarTask, window: Window, *, length: int, n_texts: int, seed: int) -> Probe:
    """A task's probe with the answers that a windowed head sees nowhere; of a hybrid, no layer with a window either.

    Where the answer is counted over the whole text, every answer stays.

    Raises:
        WorkbenchError: if the length does not hold the task, or nothing in it is far.
    """
    widest = max(window.window, widest_window(m.layers))
    if widest >= length:
        widest = window.window
    # About half of the texts may have their answer within the window.
    try:
        built = build(m, task.at(length, n_texts=2 * n_texts, seed=seed))
    except WorkbenchError:
        if not task.smaller:
            raise
        task = replace(task, written=task.smaller)
        built = build(m, task.at(length, n_texts=2 * n_texts, seed=seed))
    if built.class_name == _COUNTED:
        return build(m, task.at(length, n_texts=n_texts, seed=seed))
    far = only_far(built, widest, sink=window.sink)
    return far if len(far.tokens) <= n_texts else only_far(far, widest, sink=window.sink, n_sequences=n_texts)


def _of_notation(written: str) -> FarTask:
    arguments = written.partition(":")[2]
    names = {argument.partition("=")[0].strip() for argument in arguments.split(",")}
    if taken := sorted(names & {"length", "n_sequences", "seed"}):
        raise WorkbenchError(f"task {written!r} sets {', '.join(taken)}; leave it out: lengths= and effort= set it")
    return FarTask(written, written)
