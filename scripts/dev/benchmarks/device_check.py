"""One case on one device: against its float64 definition, or timed against PyTorch's own kernels; with the path that
ran."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, and_masks, create_block_mask
from torch.nn.attention.varlen import varlen_attn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModel, BertConfig

from hf_longattn import families
from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.engines.batch import for_one_pass
from hf_longattn.engines.cuda.flex_kernel import Kernel
from hf_longattn.engines.dispatch import PathChoice, observe
from hf_longattn.errors import LongAttentionError
from hf_longattn.functional import attend, prepare, reference_attend, run_batch
from hf_longattn.mechanisms import Mechanism, build_mechanism, check_options
from hf_longattn.mechanisms.common.masked import SparseMechanism

from .attention import GRADIENT_TOLERANCE, TOLERANCE, difference
from .case import DTYPES
from .device_cases import GRIDS, DeviceCase
from .memory import MiB
from .run import in_turn, synchronise

CAP, DECODING_TOLERANCE = 5.0, 1e-3
TARGET_SECONDS = 0.3
"""Each implementation is timed for about so long."""
DECODED_AFTER, VOCAB = 300, 1000
"""Tokens after which decoding is compared with a pass, and the vocabulary of its model."""
LAYERS = 12
"""Of the models that are timed."""
Run = Callable[[Tensor, Tensor, Tensor], Tensor]
Measure = Callable[[], dict[str, Any]]


class Failed(Exception):
    """A result that is wrong; the text says how."""


def run_case(case: DeviceCase, device: str) -> dict[str, Any]:
    """What was found, as JSON: ``passed``, the ``paths`` that ran, ``seconds``, and the task's own values.

    A task runs under an observer, and returns what it measures without one, since an observer takes the host's time.
    Errors are part of the result, except for those that spoil the device for this process, which are raised.
    """
    paths: dict[str, None] = {}
    refused: dict[str, str] = {}

    def note(_: Any, choice: PathChoice) -> None:
        paths[choice.path] = None
        refused.update(choice.refused)

    start = time.perf_counter()
    record: dict[str, Any] = case.record() | {"passed": False}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="flex_attention called without torch.compile")
            with observe(note):
                measure = TASKS[case.task](case, device)
            record |= measure()
        if device.startswith("cuda") and (missed := missed_path(case, list(paths), refused)):
            raise Failed(record | {"failure": missed})
        record["passed"] = True
    except Failed as error:
        record |= error.args[0]
    except torch.AcceleratorError:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError, Warning, LongAttentionError) as error:
        record["failure"] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    return record | {"paths": list(paths), "seconds": round(time.perf_counter() - start, 2)}


def missed_path(case: DeviceCase, paths: list[str], refused: dict[str, str]) -> str | None:
    """That a right result is not that of the path to check, and why."""
    if not case.path or case.path in paths:
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
        q, k, v = (
            random(case.batch, h, length, case.head_dim).requires_grad_(case.mode == "gradients") for h in heads
        )
        self.qkv = (q[:, :, -queries:], k, v) if case.queries else (q, k, v)
        self.leaves = (q, k, v)
        self.arguments: dict[str, Any] = {"causal": case.causal}
        self.real = torch.ones(case.batch, length, dtype=torch.bool, device=device)
        places, padding = torch.arange(length, device=device), length // 3
        if case.padding == "documents":
            self.arguments["documents"] = (places > padding).long().expand(case.batch, -1)
        elif case.padding != "none" and length > 2:
            rows = {
                "right": places < length - padding,
                "left": places >= padding,
                "holes": places % padding > padding // 5,
            }
            self.real[-1] = rows[case.padding]
            self.arguments["padding_mask"] = self.real
        if case.tokens:
            leading = self.real.cumsum(1) <= case.tokens
            self.arguments["global_mask"] = self.real & (
                leading if case.tokens > 0 else places % -(length // case.tokens) == 9
            )
        if case.term != "none":
            self.arguments["score_mod"] = TERMS[case.term](random(case.heads, 1, length).float())
        self.upstream = random(case.batch, case.heads, queries, case.head_dim) * self.real[:, None, -queries:, None]
        longest = max(length, check_options(case.mechanism, case.options).sample_length())
        settings = {"num_heads": case.heads, "head_dim": case.head_dim, "max_length": longest}
        self.mechanism = build_mechanism(case.mechanism, **settings, **case.options).to(device).eval()
        if case.grid:
            self.arguments["grid"] = GRIDS[length]
        if self.mechanism.capabilities.takes_hidden_states:
            self.arguments["hidden_states"] = random(case.batch, length, self.mechanism.sizes.hidden_size)
        if case.dropout:
            self.arguments["dropout_p"] = case.dropout

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Ours, as the first layer of a pass."""
        return attended(self.mechanism, q, k, v, **self.arguments)

    def later(self) -> Run:
        """Ours, as every other layer of a pass: what depends on the masks alone is known."""
        module, call = prepare(*self.qkv, self.mechanism, **self.arguments)
        call = call.replace(global_mask=for_one_pass(call.global_mask))
        return lambda q, k, v: run_batch(module, q, k, v, call)


def softcap(_: Tensor) -> Callable[..., Tensor]:
    return lambda score, b, h, q_idx, kv_idx: CAP * torch.tanh(score / CAP)


def bias(table: Tensor) -> Callable[..., Tensor]:
    return lambda score, b, h, q_idx, kv_idx: score + table[h, 0, kv_idx]


TERMS = {"softcap": softcap, "bias": bias}
MODES: dict[str, Callable[[], Any]] = {
    "gradients": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


def attended(mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor:
    """What is checked and timed: the mechanism's fast path."""
    return attend(q, k, v, mechanism, **arguments)


def check(case: DeviceCase, device: str) -> Measure:
    """Output and gradients against the definition; with dropout, against the definition of the weights that were
    kept."""
    inputs, paths = Inputs(case, device), []
    with MODES[case.mode](), observe(lambda _, choice: paths.append(choice.path)):
        torch.manual_seed(0)
        out = inputs.run(*inputs.qkv)
        gradients = gradients_of(out, inputs.leaves, inputs.upstream) if case.mode == "gradients" else ()
    doubles = tuple(x.detach().double().requires_grad_(case.mode == "gradients") for x in inputs.leaves)
    expected = defined(case, inputs, *doubles)
    wanted = gradients_of(expected, doubles, inputs.upstream.double()) if gradients else ()
    rows = inputs.real[:, None, -out.shape[2] :, None]
    errors = {"output_error": difference(out.detach() * rows, expected.detach() * rows)}
    if gradients:
        errors["gradient_error"] = max(difference(one, other) for one, other in zip(gradients, wanted, strict=True))
    return partial(judged, errors, TOLERANCE[case.dtype], GRADIENT_TOLERANCE[case.dtype])


def defined(case: DeviceCase, inputs: Inputs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The output in float64. With dropout, a weight counts if it was kept by the same seed, at which one-hot values
    show it."""
    settings = {name: value for name, value in inputs.arguments.items() if name != "dropout_p"}

    def definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reference_attend(q, k, v, inputs.mechanism, **settings)

    if not case.dropout:
        return definition(q[:, :, -(case.queries or case.length) :], k, v)

    def kept(*tensors: Tensor) -> Tensor:
        torch.manual_seed(0)
        return inputs.run(*tensors)

    with torch.no_grad():
        seen = weights_of(kept, *inputs.qkv) > 0
    weights = weights_of(definition, q, k, v) * seen / (1 - case.dropout)
    return weights @ v.repeat_interleave(case.heads // case.kv_heads, 1)


def weights_of(attention: Run, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The weights ``(B, H, Nq, Nk)`` of attention, in as many calls as one-hot values of the heads' width need."""
    width, length = v.shape[2:][::-1]
    one_hot = F.pad(torch.eye(length, dtype=v.dtype, device=v.device), (0, -length % width)).split(width, 1)
    return torch.cat([attention(q, k, values.expand(*v.shape[:2], -1, -1).contiguous()) for values in one_hot], -1)[
        ..., :length
    ]


def gradients_of(out: Tensor, leaves: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, ...]:
    """With respect to q, k and v; zeros for those that a mechanism does not use."""
    return torch.autograd.grad(out, leaves, upstream, materialize_grads=True)


def judged(errors: dict[str, float], tolerance: float, of_gradients: float) -> dict[str, Any]:
    """The errors, if they are within the tolerances; otherwise raises Failed with them."""
    if errors["output_error"] <= tolerance and errors.get("gradient_error", 0.0) <= of_gradients:
        return errors
    raise Failed(
        errors
        | {"failure": f"the largest errors are {', '.join(f'{name} {error:.1e}' for name, error in errors.items())}"}
    )


def timed(case: DeviceCase, device: str) -> Measure:
    """Times of a layer of ours, of the first one where it differs, and of PyTorch's kernels."""
    inputs = Inputs(case, device)
    runs = dict(implementations(case, device, inputs))
    one_pass(runs["longattn"], inputs, case)

    def measure() -> dict[str, Any]:
        results: dict[str, Any] = {}
        for name, run in runs.items():
            try:
                results[name] = measured(partial(one_pass, run, inputs, case), device, in_parts=name == "longattn")
            except (RuntimeError, TypeError) as error:
                if name == "longattn" or isinstance(error, torch.AcceleratorError):
                    raise
                results[name] = {"left_out": " ".join(str(error).split())[:200]}
        return {"timings": results}

    return measure


def prepared(case: DeviceCase, device: str) -> Measure:
    """Passes whose kernels PyTorch and Triton keep in their caches on the disk."""
    inputs = Inputs(case, device)
    for name, run in implementations(case, device, inputs):
        if name in ("longattn", "flex"):
            one_pass(run, inputs, case)
    return dict


def one_pass(run: Run, inputs: Inputs, case: DeviceCase) -> None:
    """Forward, and backward where the case has gradients."""
    with MODES[case.mode]():
        out = run(*inputs.qkv)
    if case.mode == "gradients":
        gradients_of(out, inputs.leaves, inputs.upstream)


def implementations(case: DeviceCase, device: str, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """A later layer of ours, and the first one if masks come with the call; the same pairs by flex_attention, windows
    by PyTorch's flash kernel, and full attention by each fused kernel of the device."""
    grouped: dict[str, Any] = {"enable_gqa": True} if case.heads != case.kv_heads else {}
    whole = case.batch, None, case.length, case.length, inputs.real.device

    def full(q: Tensor, k: Tensor, v: Tensor, backends: Sequence[SDPBackend] = ()) -> Tensor:
        with sdpa_kernel([*backends]) if backends else nullcontext():
            return F.scaled_dot_product_attention(q, k, v, dropout_p=case.dropout, is_causal=case.causal, **grouped)

    def by_flex(q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask | None = None) -> Tensor:
        return flex(q, k, v, block_mask=block_mask or create_block_mask(visible(case, inputs), *whole), **grouped)

    yield "longattn", inputs.later()
    if case.tokens or case.padding != "none":
        yield "first layer", inputs.run
    if not device.startswith("cuda"):
        yield "sdpa", full
        return
    banded = case.mechanism == "window" or (case.mechanism == "longformer" and case.tokens)
    if banded and not case.dropout and case.term == "none":
        flex = Kernel()  # compiled for all lengths, as ours is
        yield "flex", partial(by_flex, block_mask=create_block_mask(visible(case, inputs), *whole))
        yield "flex, first", by_flex
    if case.mechanism == "window" and case.dtype != "fp32" and not (grouped or case.dropout):
        yield "varlen_attn", windows_by_varlen(case, inputs)
    yield "sdpa flash", partial(full, backends=[SDPBackend.FLASH_ATTENTION])
    yield "sdpa cudnn", partial(full, backends=[SDPBackend.CUDNN_ATTENTION])


def visible(case: DeviceCase, inputs: Inputs) -> Any:
    """The pairs of a band with global tokens as a ``mask_mod``."""
    documents, real, mechanism = (
        inputs.arguments.get("documents"),
        inputs.real,
        cast(SparseMechanism, inputs.mechanism),
    )
    mask = mechanism.pattern(case.causal).visible_mod(inputs.arguments.get("global_mask"))
    if documents is not None:
        return and_masks(mask, lambda b, h, i, j: documents[b, i] == documents[b, j])
    return mask if case.padding == "none" else and_masks(mask, lambda b, h, i, j: real[b, j])


def windows_by_varlen(case: DeviceCase, inputs: Inputs) -> Run:
    """Windows by PyTorch's flash kernel; padding is a sequence of its own."""
    pattern = cast(SparseMechanism, inputs.mechanism).pattern(case.causal)
    numbers = inputs.arguments.get("documents", inputs.real)
    flash: Any = varlen_attn
    begins = F.pad(numbers[:, 1:] != numbers[:, :-1], (1, 0), value=True).flatten().nonzero()[:, 0]
    offsets = F.pad(begins, (0, 1), value=numbers.numel()).int()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flat = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
        out = flash(*flat, offsets, offsets, case.length, case.length, window_size=(pattern.left, pattern.right))
        return out.unflatten(0, (case.batch, -1)).transpose(1, 2)

    return run


def measured(run: Callable[[], None], device: str, in_parts: bool = True) -> dict[str, Any]:
    """Median milliseconds of a pass. On CUDA also the peak of what it allocates in MiB and, ``in_parts``, the
    milliseconds in which the host launches it, with nothing in the queue before, and those of its kernels."""
    run()
    start = time.perf_counter()
    run()
    synchronise(device)
    repeats = max(3, min(50, int(TARGET_SECONDS / max(time.perf_counter() - start, 1e-6))))
    if not device.startswith("cuda"):
        return {"ms": round(statistics.median(in_turn({"run": run}, repeats)["run"]), 4)}
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for begin, end in events:
        begin.record()
        run()
        end.record()
    synchronise(device)
    found = {"ms": statistics.median(begin.elapsed_time(end) for begin, end in events)}
    found["mib"] = (torch.cuda.max_memory_allocated() - held) / MiB
    if in_parts:
        taken = []
        for _ in range(min(repeats, 10)):
            start = time.perf_counter()
            run()
            taken.append((time.perf_counter() - start) * 1e3)
            synchronise(device)
        found["host_ms"] = statistics.median(taken)
        with suppress(RuntimeError, AssertionError):  # some machines forbid it
            with profile(activities=[ProfilerActivity.CUDA]) as kernels:
                run()
                synchronise(device)
            found["device_ms"] = sum(event.self_device_time_total for event in kernels.key_averages()) / 1e3
    return {name: round(value, 4) for name, value in found.items()}


def model(case: DeviceCase, device: str) -> Measure:
    """Times of a training step of LongBert, and of BERT by SDPA: forward, backward, and a step of AdamW."""
    width, plan = case.heads * case.head_dim, {"mechanism": case.mechanism, **case.options}
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": case.heads}
    sizes |= {"num_hidden_layers": LAYERS, "max_position_embeddings": case.length}
    sizes |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), case.dropout)
    ids = torch.randint(1000, 30000, (case.batch, case.length), generator=torch.Generator().manual_seed(0)).to(device)

    def training_of(config: Any) -> Callable[[], None]:
        bert = AutoModel.from_config(config).to(device, DTYPES[case.dtype]).train()
        optimizer = torch.optim.AdamW(bert.parameters(), fused=True)
        run = torch.compile(bert, fullgraph=True) if case.mode == "compiled" else bert

        def step() -> None:
            run(
                input_ids=ids, attention_mask=torch.ones_like(ids)
            ).last_hidden_state.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    ours, stock = map(training_of, (families.LongBertConfig(**sizes, long_attention=plan), BertConfig(**sizes)))
    ours()
    return lambda: {"timings": {"longattn": measured(ours, device), "stock": measured(stock, device)}}


def decoding_model(attention: LongAttentionConfig, longest: int) -> Any:
    """A LongLlama of two layers with 8 heads of 64."""
    torch.manual_seed(0)
    config = families.LongLlamaConfig(
        vocab_size=VOCAB,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=longest + 17,
        long_attention=attention,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return families.LongLlamaForCausalLM(config).eval()


@torch.no_grad()
def decoding_difference(model: Any, seed: int, cache: str | None = None) -> float:
    """Largest difference between the scores of decoded tokens and those of one forward pass over the whole text.

    Args:
        cache: transformers' ``cache_implementation``; the growing cache by default.
    """
    ids = torch.randint(1, VOCAB, (1, DECODED_AFTER), generator=torch.Generator().manual_seed(seed)).to(model.device)
    done = model.generate(
        ids,
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
        cache_implementation=cache,
    )
    full_pass = model(done.sequences, use_cache=False).logits[:, DECODED_AFTER - 1 : -1]
    return (torch.stack(done.logits, 1) - full_pass).abs().max().item()


def decode(case: DeviceCase, device: str) -> Measure:
    """The scores of decoded tokens against a pass over the whole text."""
    model = decoding_model(LongAttentionConfig(mechanism=case.mechanism, **case.options), max(case.length, 512))
    error = decoding_difference(
        model.to(device, DTYPES[case.dtype]), 0, None if case.cache == "dynamic" else case.cache
    )
    return partial(judged, {"output_error": error}, DECODING_TOLERANCE, 0.0)


def compiled(case: DeviceCase, device: str) -> Measure:
    """The scores and the gradients of a training step of a model in one graph against those without
    ``torch.compile``."""
    model = decoding_model(LongAttentionConfig(mechanism=case.mechanism, **case.options), max(case.length, 512)).to(
        device
    )
    ids = torch.randint(3, VOCAB, (case.batch, case.length), generator=torch.Generator().manual_seed(0)).to(device)
    upstream = torch.randn(case.batch, case.length, VOCAB, generator=torch.Generator().manual_seed(1)).to(device)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    torch.compiler.reset()
    # flex_attention's backward pass has no kernel for a CPU
    backend = "inductor" if device.startswith("cuda") else "aot_eager"
    found, expected = (
        (out.detach(), torch.autograd.grad(out, weights, upstream, materialize_grads=True))
        for out in (
            run(input_ids=ids, use_cache=False).logits
            for run in (torch.compile(model, backend=backend, fullgraph=True), model)
        )
    )
    gradients = max(difference(one, other) for one, other in zip(found[1], expected[1], strict=True))
    errors = {"output_error": difference(found[0], expected[0]), "gradient_error": gradients}
    return partial(judged, errors, DECODING_TOLERANCE, DECODING_TOLERANCE)


TASKS: dict[str, Callable[[DeviceCase, str], Measure]] = {
    "check": check,
    "compiled": compiled,
    "prepare": prepared,
    "time": timed,
    "model": model,
    "decode": decode,
}
