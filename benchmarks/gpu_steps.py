"""The steps of `gpu.py` that are no tests, one to a process: what is there, recording against torch, and times.

python benchmarks/gpu_steps.py NAME [--dry]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from machine import device_milliseconds

# What must be there for the steps; others are named if they are.
_NEEDED = ("torch", "triton", "numpy", "einops", "jaxtyping")
_OF_MODELS = (
    *("transformers", "huggingface_hub", "tokenizers", "safetensors"),
    *("pandas", "pyarrow", "pydantic", "filelock", "cachetools"),
)
_OPTIONAL = ("flash-linear-attention", "pytest", "pytest-xdist")


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a step runs, and how large: that of a GPU, or of a dry run."""

    device: str
    dtype: torch.dtype
    lengths: tuple[int, ...]
    rounds: int


GPU = Scale("cuda", torch.bfloat16, (8192, 32768, 131072), 20)
DRY = Scale("cpu", torch.float32, (32,), 1)


def environment(scale: Scale) -> Iterator[str]:
    """Versions, the device, and which backend would run."""
    missing: list[str] = []
    for name in (*_NEEDED, *_OF_MODELS, *_OPTIONAL):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} is not installed"
            missing += [name] if name in _NEEDED else []
    yield f"Python {sys.version.split()[0]}"
    if scale.device == "cuda":
        yield f"{torch.cuda.get_device_name()}, capability {torch.cuda.get_device_capability()}"
    from workbench.kernels import dispatch

    for name, choice in dispatch.explain(scale.device).items():
        yield f"{name}: {choice}"
    if missing:
        raise SystemExit(f"missing: {', '.join(missing)}")


def exact_recording(scale: Scale) -> Iterator[str]:
    """Every default detector on a random model, through the kernels and through row-blocked torch."""
    from workbench import probes
    from workbench.detectors import score
    from workbench.hooks import open_model

    length = 64 if scale is DRY else 1000
    model = _llama(scale, width=64 if scale is DRY else 512, layers=2, vocabulary=256, dtype=torch.float32)
    probe = probes.copy_needle(256, length // 2, length=length, n_sequences=1)
    tables: dict[str, Any] = {}
    for backend in ("torch", "triton"):
        os.environ["WORKBENCH_KERNELS"] = backend
        tables[backend] = score(open_model(model), None, probes=probe, progress=False)
        yield f"{backend}: {len(tables[backend])} scores"
    keys = ["detector", "layer", "head"]
    both = tables["torch"].merge(tables["triton"], on=keys, suffixes=("_torch", "_triton"))
    if len(both) != len(tables["torch"]):
        raise SystemExit(f"{len(both)} of {len(tables['torch'])} scores are in both tables")
    # Distances and entropies are as large as their unit; shares are at most 1.
    difference = (both.score_torch - both.score_triton).abs() / both.score_torch.abs().clip(lower=1)
    by_detector = difference.groupby(both.detector).max().sort_values(ascending=False)
    for name, largest in by_detector.items():
        yield f"{name}: {largest:.2e}"
    if not by_detector.max() <= 1e-5:
        raise SystemExit(f"{by_detector.index[0]} differs by {by_detector.max():.2e}; expected at most 1e-5")


def attention_stats(scale: Scale) -> Iterator[str]:
    """Statistics and column sums against sdpa, own output and lse, and the floor."""
    from bench_attention_stats import GPU_SHAPE, on_device

    with torch.no_grad():
        yield from on_device([*scale.lengths], scale.rounds, scale.device, scale.dtype, _small(scale, GPU_SHAPE))


def linear_attention(scale: Scale) -> Iterator[str]:
    """Lightning attention forward and backward against the floor, and flash-linear-attention where it is installed."""
    from bench_linear_attention import GPU_SHAPE, on_device

    yield from on_device([*scale.lengths], scale.rounds, scale.device, scale.dtype, _small(scale, GPU_SHAPE))


def record(scale: Scale) -> Iterator[str]:
    """All default detectors on a random llama of a billion weights, against its plain forward pass."""
    from workbench import probes
    from workbench.detectors import Detector, find_detectors, measure
    from workbench.hooks import open_model
    from workbench.kernels import Far

    detectors = [d for d in find_detectors(None) if isinstance(d, Detector) and d.decoding is None]
    model = _llama(scale, **_BILLION if scale is GPU else _TINY, dtype=scale.dtype)
    m = open_model(model)
    n_weights = sum(p.numel() for p in model.parameters())
    yield f"{n_weights / 1e6:,.1f} M weights, {scale.dtype}, {len(detectors)} detectors"
    yield ""
    for length in scale.lengths[1:] or (64,):
        probe = probes.copy_needle(m, length // 2, length=length, n_sequences=1)
        tokens, rows = probe.tokens.to(scale.device), torch.unique(probe.answer_rows[:, 1]).to(scale.device)

        def plain(tokens: Any = tokens, rows: Any = rows) -> None:
            with torch.no_grad():
                model(input_ids=tokens, use_cache=False, logits_to_keep=rows)

        def recorded(probe: Any = probe, window: int = length // 8) -> None:
            measure(m, probe, detectors, far=Far(window))

        yield _against_plain(length, {"plain": plain, "record": recorded}, scale, rounds=3)


def window_gates(scale: Scale) -> Iterator[str]:
    """One forward and backward pass of the gated model against the plain model's with recomputed layers."""
    from workbench.hooks import open_model
    from workbench.planning import Game
    from workbench.planning.rankings.window_gates import gate_gradients
    from workbench.probes import copy_needle

    model = _llama(scale, **_BILLION if scale is GPU else _TINY, dtype=scale.dtype)
    for p in model.parameters():
        p.requires_grad_(False)
    m = open_model(model)
    for length in scale.lengths[:2] if scale is GPU else (64,):
        probe = copy_needle(m, length // 2, length=length, n_sequences=1)
        game = Game(m, probe, length // 8, sink=4)
        tokens, rows = probe.tokens.to(scale.device), torch.unique(probe.answer_rows[:, 1]).to(scale.device)

        def plain(tokens: Any = tokens, rows: Any = rows) -> None:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()  # or nothing is recomputed; Llama has no dropout
            x = model.get_input_embeddings()(tokens).detach().requires_grad_()
            torch.autograd.grad(
                model(inputs_embeds=x, use_cache=False, logits_to_keep=rows).logits.logsumexp(-1).sum(), x
            )
            model.eval()
            model.gradient_checkpointing_disable()

        def gated(game: Any = game) -> None:
            gate_gradients(game, game.batches[0], 0.5)

        yield _against_plain(length, {"plain": plain, "gated": gated}, scale, rounds=3)


_BILLION: dict[str, Any] = {"width": 2048, "layers": 16, "vocabulary": 32000}
_TINY: dict[str, Any] = {"width": 64, "layers": 2, "vocabulary": 256}


def _llama(scale: Scale, *, width: int, layers: int, vocabulary: int, dtype: torch.dtype) -> Any:
    """A random llama with heads of 64 channels (32 in a dry run), four queries to a key/value head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    d_head = 64 if scale is GPU else 32
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // d_head,
        num_key_value_heads=max(1, width // d_head // 4),
        head_dim=d_head,
        max_position_embeddings=2 * scale.lengths[-1] + 1024,
    )
    with torch.device(scale.device):
        return LlamaForCausalLM(config).to(dtype).eval()


def _small(scale: Scale, shape: tuple[int, ...]) -> Any:
    """The shape itself on a GPU; in a dry run few and narrow heads."""
    return shape if scale is GPU else {3: (2, 1, 32), 2: (2, 32)}[len(shape)]


def _against_plain(length: int, ways: dict[str, Callable[[], object]], scale: Scale, *, rounds: int) -> str:
    started = time.monotonic()
    times = device_milliseconds(ways, rounds if scale is GPU else 1, scale.device)
    values = ", ".join(f"{name} {ms:.1f} ms ({ms / times['plain']:.2f}x)" for name, ms in times.items())
    peaks = _peaks(ways) if scale.device == "cuda" else {}
    memory = "".join(f"; {name} {mb:.0f} MB beside the model" for name, mb in peaks.items())
    return f"- T {length}: {values}{memory}; {time.monotonic() - started:.0f} s in all"


def _peaks(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    peaks: dict[str, float] = {}
    for name, function in ways.items():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        peaks[name] = (torch.cuda.max_memory_allocated() - before) / 1e6
    return peaks


STEPS = {
    step.__name__: step
    for step in (environment, exact_recording, attention_stats, linear_attention, record, window_gates)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    for line in STEPS[options.step](DRY if options.dry else GPU):
        print(line, flush=True)


if __name__ == "__main__":
    main()
