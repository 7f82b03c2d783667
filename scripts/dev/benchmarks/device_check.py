"""One case on one device: against its float64 definition, or timed against PyTorch's own kernels; with the path that ran."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.engines.common.paths import PathChoice, observe
from hf_longattn.engines.cuda import flash_band, flex_kernel
from hf_longattn.errors import LongAttentionError
from hf_longattn.functional import attend, reference_attend
from hf_longattn.mechanisms import Mechanism, build_mechanism, check_options

from .case import DTYPES
from .decoding import VOCAB, DecodeShape, decode_after, decoding_model
from .decoding import difference as decoding_difference
from .device_cases import GRIDS, DeviceCase
from .memory import MiB
from .timing import in_turn, synchronise
from .verify import GRADIENT_TOLERANCE, TOLERANCE, difference

CAP, DROPOUT_TOLERANCE, DECODING_TOLERANCE = 5.0, 2e-2, 1e-3
FIRST_LAYERS = DecodeShape(layers=2, heads=8, head_dim=64, steps=16)
FLA_FP32_ERROR = 2e-3
"""Largest error of linear attention by flash-linear-attention for fp32, relative to the largest value; of its gradients five times that."""
TARGET_SECONDS = 0.5
"""Each implementation is timed for about so long."""
Run = Callable[[Tensor, Tensor, Tensor], Tensor]
WITHOUT_FLASH = "longattn without flash"
ATTEMPTED_PATHS = ("flash", "flex", "flex-gathered", "flex-blocks")
"""Paths for which only an attempt shows whether this machine has their kernel."""
ON_FLASH = ("window", "longformer")
"""Mechanisms that are bands and global tokens alone, which PyTorch's flash-attention operator computes."""


class Failed(Exception):
    """A result that is wrong; the text says how."""


def run_case(case: DeviceCase, device: str) -> dict[str, Any]:
    """What was found, as JSON: ``passed``, the ``paths`` that ran, the reasons against a kernel, ``seconds``, and the task's own values.

    Errors are part of it, except for those that spoil the device for this process, which are raised.
    """
    paths: dict[str, None] = {}
    lacking: dict[str, None] = {}
    refused: dict[str, str] = {}

    def note(_: Any, choice: PathChoice) -> None:
        paths[choice.path] = None
        refused.update(choice.refused)
        lacking.update(dict.fromkeys(reason for path, reason in choice.refused if path in ATTEMPTED_PATHS))

    start, known = time.perf_counter(), flex_kernel.count()
    record: dict[str, Any] = case.record() | {"passed": False}
    try:
        with observe(note), warnings.catch_warnings():
            warnings.filterwarnings("error", message="flex_attention called without torch.compile")
            record |= TASKS[case.task](case, device)
        if device.startswith("cuda") and (missed := missed_path(case, list(paths), refused)):
            raise Failed(record | {"failure": missed})
        record["passed"] = True
    except Failed as error:
        record |= error.args[0]
    except torch.AcceleratorError:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError, Warning, LongAttentionError) as error:
        record["failure"] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    made = flex_kernel.count() - known
    return record | {"paths": list(paths), "no_flex": list(lacking), "kernels": made, "seconds": round(time.perf_counter() - start, 2)}


def missed_path(case: DeviceCase, paths: list[str], refused: dict[str, str]) -> str | None:
    """That a right result is not that of the path to check, and why; a kernel of flash-linear-attention may take its place."""
    if not case.path or {case.path, *(path for path in paths if "fla" in path.split("-"))} & {*paths}:
        return None
    why = refused.get(case.path, "it was not asked for")
    return f"the values are right, but they are of {', '.join(paths)} instead of {case.path}: {why}"


class Inputs:
    """The tensors of a case, equal on every device."""

    def __init__(self, case: DeviceCase, device: str) -> None:
        generator = torch.Generator().manual_seed(case.length)
        dtype, length = DTYPES[case.dtype], case.length

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype)

        queries = case.queries or length
        heads = (case.heads, case.kv_heads, case.kv_heads)
        q, k, v = (random(case.batch, h, length, case.head_dim).requires_grad_(case.mode == "gradients") for h in heads)
        self.qkv = (q[:, :, -queries:], k, v) if case.queries else (q, k, v)
        self.leaves = (q, k, v)
        self.arguments: dict[str, Any] = {"causal": case.causal}
        self.real = torch.ones(case.batch, length, dtype=torch.bool, device=device)
        places, padding = torch.arange(length, device=device), length // 3
        if case.padding == "documents":
            self.arguments["documents"] = (places > padding).long().expand(case.batch, -1)
        elif case.padding != "none" and length > 2:
            self.real[-1] = places < length - padding if case.padding == "right" else places >= padding
            self.arguments["padding_mask"] = self.real
        if case.tokens:
            self.arguments["global_mask"] = (self.real.cumsum(1) <= case.tokens) & self.real
        if case.term != "none":
            self.arguments["score_mod"] = TERMS[case.term](random(case.heads, 1, length).float())
        self.upstream = random(case.batch, case.heads, queries, case.head_dim) * self.real[:, None, -queries:, None]
        longest = max(length, check_options(case.mechanism, case.options).sample_length())
        settings = {"num_heads": case.heads, "head_dim": case.head_dim, "max_length": longest}
        self.mechanism = build_mechanism(case.mechanism, **settings, **case.options).to(device).eval()
        if case.grid:
            self.arguments["grid"] = GRIDS[length]
        if self.mechanism.traits.takes_hidden_states:
            self.arguments["hidden_states"] = random(case.batch, length, self.mechanism.hidden_size)

    def run(self, q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
        """Ours."""
        return attended(self.mechanism, q, k, v, **self.arguments, **settings)


def softcap(_: Tensor) -> Callable[..., Tensor]:
    return lambda score, b, h, q_idx, kv_idx: CAP * torch.tanh(score / CAP)


def bias(table: Tensor) -> Callable[..., Tensor]:
    return lambda score, b, h, q_idx, kv_idx: score + table[h, 0, kv_idx]


TERMS = {"softcap": softcap, "bias": bias}
MODES: dict[str, Callable[[], Any]] = {"gradients": nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}


def attended(mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor:
    """What is checked and timed: the mechanism's fast path."""
    return attend(q, k, v, mechanism, **arguments)


def check(case: DeviceCase, device: str) -> dict[str, Any]:
    """Output and gradients against the definition; with dropout, the mean of the weights' sums, which is 1."""
    inputs = Inputs(case, device)
    if case.dropout:
        q, k, v = inputs.qkv
        out = inputs.run(q, k, torch.ones_like(v) + 0 * v, dropout_p=case.dropout)
        torch.autograd.grad(out.sum(), inputs.leaves)
        error = abs(float(out.detach()[inputs.real[:, None].expand(out.shape[:3])].double().mean()) - 1)
        return judged({"output_error": error}, DROPOUT_TOLERANCE, 0.0)
    paths: list[str] = []
    with MODES[case.mode](), observe(lambda _, choice: paths.append(choice.path)):
        out = inputs.run(*inputs.qkv)
        gradients = gradients_of(out, inputs.leaves, inputs.upstream) if case.mode == "gradients" else ()
    doubles = tuple(x.detach().double().requires_grad_(case.mode == "gradients") for x in inputs.leaves)
    q, k, v = doubles
    expected = reference_attend(q[:, :, -out.shape[2] :], k, v, inputs.mechanism, **inputs.arguments)
    wanted = gradients_of(expected, doubles, inputs.upstream.double()) if gradients else ()
    rows = inputs.real[:, None, -out.shape[2] :, None]
    errors = {"output_error": difference(out.detach() * rows, expected.detach() * rows)}
    if gradients:
        errors["gradient_error"] = max(difference(one, other) for one, other in zip(gradients, wanted, strict=True))
    rounded = FLA_FP32_ERROR if "linear-fla" in paths else 0.0
    return judged(errors, max(TOLERANCE[case.dtype], rounded), max(GRADIENT_TOLERANCE[case.dtype], 5 * rounded))


def gradients_of(out: Tensor, leaves: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, ...]:
    """With respect to q, k and v; zeros for those that a mechanism does not use."""
    return torch.autograd.grad(out, leaves, upstream, materialize_grads=True)


def judged(errors: dict[str, float], tolerance: float, of_gradients: float) -> dict[str, Any]:
    """The errors, if they are within the tolerances; otherwise raises Failed with them."""
    if errors["output_error"] <= tolerance and errors.get("gradient_error", 0.0) <= of_gradients:
        return errors
    raise Failed(errors | {"failure": f"the largest errors are {', '.join(f'{name} {error:.1e}' for name, error in errors.items())}"})


def timed(case: DeviceCase, device: str) -> dict[str, Any]:
    """Median milliseconds and peak memory of ours, also without the path ``flash``, and of PyTorch's kernels."""
    inputs = Inputs(case, device)
    results: dict[str, Any] = {}
    for name, run in (ours(case, device, inputs) | dict(rivals(case, device))).items():
        try:
            results[name] = measured(partial(one_pass, run, inputs, case), device)
        except (RuntimeError, TypeError) as error:
            if name == "longattn" or isinstance(error, torch.AcceleratorError):
                raise
            results[name] = {"left_out": " ".join(str(error).split())[:200]}
    return {"timings": results}


def ours(case: DeviceCase, device: str, inputs: Inputs) -> dict[str, Run]:
    """The paths of ours that are timed."""
    runs: dict[str, Run] = {"longattn": partial(inputs.run, dropout_p=case.dropout)}
    if device.startswith("cuda") and case.mechanism in ON_FLASH and DTYPES[case.dtype] in flash_band.DTYPES:
        runs[WITHOUT_FLASH] = partial(without_flash, runs["longattn"])
    return runs


def prepared(case: DeviceCase, device: str) -> dict[str, Any]:
    """Nothing, after a pass whose kernels PyTorch and Triton keep in their caches on the disk."""
    inputs = Inputs(case, device)
    for run in ours(case, device, inputs).values():
        one_pass(run, inputs, case)
    return {}


def without_flash(run: Run, *qkv: Tensor) -> Tensor:
    """Ours by the next path, flex_attention's kernel where it has one."""
    with mock.patch.object(flash_band, "DTYPES", ()):
        return run(*qkv)


def one_pass(run: Run, inputs: Inputs, case: DeviceCase) -> None:
    """Forward, and backward where the case has gradients."""
    with MODES[case.mode]():
        out = run(*inputs.qkv)
    if case.mode == "gradients":
        gradients_of(out, inputs.leaves, inputs.upstream)


def rivals(case: DeviceCase, device: str) -> Iterator[tuple[str, Run]]:
    """Full attention by each fused kernel of the device, and a window by PyTorch's flash kernel."""

    def full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=case.causal, enable_gqa=case.heads != case.kv_heads)

    def by(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return full(q, k, v)

    if not device.startswith("cuda"):
        yield "sdpa", full
        return
    yield "sdpa flash", partial(by, SDPBackend.FLASH_ATTENTION)
    yield "sdpa cudnn", partial(by, SDPBackend.CUDNN_ATTENTION)
    if case.mechanism == "window" and case.dtype != "fp32":
        from torch.nn.attention import varlen

        flash: Any = varlen.varlen_attn
        width = int(case.options.get("window", 512))
        reach = (width - 1, 0) if case.causal else (width // 2, width // 2)
        ends = torch.arange(case.batch + 1, device=device, dtype=torch.int32) * case.length

        def windowed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            flat = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
            out = flash(*flat, ends, ends, case.length, case.length, window_size=reach)
            return out.unflatten(0, (case.batch, -1)).transpose(1, 2)

        if case.heads == case.kv_heads:
            yield "varlen_attn", windowed


def measured(run: Callable[[], None], device: str) -> dict[str, Any]:
    """Median milliseconds, and on CUDA the peak of what a run allocates in MiB."""
    run()
    start = time.perf_counter()
    run()
    synchronise(device)
    repeats = max(3, min(50, int(TARGET_SECONDS / max(time.perf_counter() - start, 1e-6))))
    if not device.startswith("cuda"):
        return {"ms": round(statistics.median(in_turn({"run": run}, (repeats, repeats))["run"]), 4)}
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for begin, end in events:
        begin.record()
        run()
        end.record()
    synchronise(device)
    peak = torch.cuda.max_memory_allocated() - held
    return {"ms": round(statistics.median(begin.elapsed_time(end) for begin, end in events), 4), "mib": round(peak / MiB, 1)}


def decode(case: DeviceCase, device: str) -> dict[str, Any]:
    """In fp32, the scores of decoded tokens against a pass over the whole text; otherwise milliseconds per token after a text."""
    attention = LongAttentionConfig(mechanism=case.mechanism, **case.options)
    model = decoding_model(attention, FIRST_LAYERS, max(case.length, 512)).to(device, DTYPES[case.dtype])
    cache = None if case.cache == "dynamic" else case.cache
    if case.dtype == "fp32":
        return judged({"output_error": decoding_difference(model, 0, cache)}, DECODING_TOLERANCE, 0.0)
    after = decode_after(model, case.mechanism, case.length, FIRST_LAYERS, cache)
    return {"timings": {"longattn": {"ms": round(after.milliseconds, 4), "cache_mib": round(after.mebibytes, 2)}}}


def compiled(case: DeviceCase, device: str) -> dict[str, Any]:
    """The scores and the gradients of a training step of a model in one graph against those without ``torch.compile``."""
    model = decoding_model(LongAttentionConfig(mechanism=case.mechanism, **case.options), FIRST_LAYERS, max(case.length, 512)).to(device)
    ids = torch.randint(3, VOCAB, (case.batch, case.length), generator=torch.Generator().manual_seed(0)).to(device)
    upstream = torch.randn(case.batch, case.length, VOCAB, generator=torch.Generator().manual_seed(1)).to(device)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    torch.compiler.reset()
    backend = "inductor" if device.startswith("cuda") else "aot_eager"  # flex_attention's backward pass has no kernel for a CPU
    found, expected = (
        (out.detach(), torch.autograd.grad(out, weights, upstream, materialize_grads=True))
        for out in (run(input_ids=ids, use_cache=False).logits for run in (torch.compile(model, backend=backend, fullgraph=True), model))
    )
    gradients = max(difference(one, other) for one, other in zip(found[1], expected[1], strict=True))
    return judged({"output_error": difference(found[0], expected[0]), "gradient_error": gradients}, DECODING_TOLERANCE, DECODING_TOLERANCE)


TASKS: dict[str, Callable[[DeviceCase, str], dict[str, Any]]] = {
    "check": check,
    "compiled": compiled,
    "prepare": prepared,
    "time": timed,
    "decode": decode,
}
