"""Count what attention asks of a GPU, without one: ``python -m scripts.dev.tools.launches [--write] [WORDS ...]``.

For every mode the table says how many operations launch a kernel, how many Python functions are called, and how often
the host waits for the device: in the first layer of a pass, and in a later one. Tensors are on the CPU, paths are
chosen as on CUDA, and every fused kernel is a stub that counts as one operation. A pass has run before, so caches of
the process are filled. WORDS choose modes by name.

``--write`` stores the rows. The quick tests take them as ceilings, and ``make docs`` makes a table of them.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel, DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from hf_longattn import build_mechanism, families, list_mechanisms
from hf_longattn.engines import accelerator, batch, dense
from hf_longattn.engines.call import DispatchContext
from hf_longattn.engines.cuda import flash_band, flex_kernel
from hf_longattn.functional import prepare, run_batch
from hf_longattn.mechanisms import mechanism_class
from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import machine, markdown_table, store_study, stored_study

STORED = RESULTS / "launches.json"
LENGTH, HEADS, HEAD_DIM = 2048, 2, 16
SHORT = 256
"""Tokens of stock models, whose attention runs as it is."""
NAMES = ("forward", "backward", "python_forward", "python_backward", "waits")
LAUNCH_NOTHING = {
    "alias",
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "is_pinned",
    "new_empty",
    "new_empty_strided",
    "promote_types",
    "_reshape_alias",
    "resize_",
    "scalar_tensor",
    "set_",
    "_unsafe_view",
    "view",
    "_local_scalar_dense",
}
"""Operations that allocate, or only describe a tensor anew. Views are left out besides."""
WAIT = {
    "bincount",
    "equal",
    "is_nonzero",
    "_linalg_check_errors",
    "_local_scalar_dense",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
    "_unique",
    "_unique2",
}
"""Operations whose result, or its shape, the host needs."""
READS = ("tolist", "numpy", "cpu", "to")
"""Methods that may copy a tensor to the host. For a tensor on the CPU they dispatch no operation."""
ON_HOST = "on_host"
"""Attribute of copies on the host. What is computed from them alone is no operation of the GPU, and no wait."""


class Counting(TorchDispatchMode):
    """Counts the operations that would launch a kernel, and the waits of the host by what it waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.waits, self.paused = 0, Counter[str](), False

    def __enter__(self) -> Counting:
        ONE_OPERATION.counting, self.patches = self, contextlib.ExitStack()
        for name in READS:
            self.patches.enter_context(mock.patch.object(Tensor, name, self.reading(name, getattr(Tensor, name))))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        ONE_OPERATION.counting = None
        self.patches.close()
        super().__exit__(*error)

    def reading(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method of :data:`READS` that counts a copy between the GPU and the host."""

        def read(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            places, on_host = (
                [value for value in (*args, *kwargs.values()) if isinstance(value, str | torch.device)],
                hasattr(x, ON_HOST),
            )
            if on_host and name == "to" and places:  # such as `index.to(q.device)`, whose device is the CPU here
                with ONE_OPERATION:
                    x = x.clone()
            elif not on_host and (name != "to" or "cpu" in places):
                self.waits[name] += 1
                self.paused = True
                x = x.clone()
                self.paused = False
                setattr(x, ON_HOST, True)
            return method(x, *args, **kwargs)

        return read

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operator(*args, **(kwargs or {}))
        if self.paused:
            return out
        lists = [x if isinstance(x, tuple | list) else [x] for x in (*args, *(kwargs or {}).values())]
        tensors = [x for x in itertools.chain(*lists) if isinstance(x, Tensor)]
        if tensors and all(hasattr(x, ON_HOST) for x in tensors):
            for result in out if isinstance(out, tuple | list) else [out]:
                if isinstance(result, Tensor):
                    setattr(result, ON_HOST, True)
            return out
        name = operator.overloadpacket.__name__
        from_host = name == "lift_fresh"  # torch.tensor of a list, which the host then copies
        self.operations += from_host or (not operator.is_view and name not in LAUNCH_NOTHING)
        by_mask = name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if name in WAIT or by_mask:
            self.waits[name] += 1
        return out


class OneOperation:
    """``with ONE_OPERATION:`` what runs inside is one operation of a GPU."""

    counting: Counting | None = None

    def __enter__(self) -> None:
        if self.counting is not None:
            self.counting.operations, self.counting.paused = self.counting.operations + 1, True

    def __exit__(self, *error: Any) -> None:
        if self.counting is not None:
            self.counting.paused = False


ONE_OPERATION = OneOperation()


class Fused(torch.autograd.Function):
    """A stub of a fused kernel: zeros as output and log-sum-exp, zeros as gradients."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k, v)
        ctx.set_materialize_grads(False)  # that of an unused log-sum-exp would be one more operation
        with ONE_OPERATION:
            return q.new_zeros(*q.shape[:3], v.shape[-1]), q.new_zeros(q.shape[:3], dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        with ONE_OPERATION:
            return tuple(torch.zeros_like(x) for x in ctx.saved_tensors)


def fused_flex(kind: Any, q: Tensor, k: Tensor, v: Tensor, *, return_aux: Any = None, **settings: Any) -> Any:
    """In place of flex_attention's kernel."""
    out, lse = Fused.apply(q, k, v)
    return out if return_aux is None else (out, AuxOutput(lse=lse))


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *args: Any, **settings: Any
) -> Tensor:
    """In place of PyTorch's."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        with ONE_OPERATION:  # the kernels of a GPU take a mask of numbers
            pass
    return Fused.apply(q, k, v)[0]


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None, *args: Any, **settings: Any
) -> tuple[Tensor, ...]:
    """In place of PyTorch's flash-attention operator: ``(B, N, H, D)``, or ``(tokens, H, D)`` with offsets."""
    with ONE_OPERATION:
        shape = (q.shape[0], q.shape[2], q.shape[1]) if offsets is None else (q.shape[1], q.shape[0])
        state = torch.zeros(2, dtype=torch.int64), torch.zeros((), dtype=torch.int64)
        return torch.zeros_like(q), torch.zeros(shape), *state, q.new_empty(0)


def flash_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any, **settings: Any) -> tuple[Tensor, ...]:
    with ONE_OPERATION:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)


@contextlib.contextmanager
def as_on_cuda() -> Iterator[None]:
    """The choices of CUDA for tensors on the CPU, with stubs in place of fused kernels."""
    make = DispatchContext.__init__

    def on_cuda(self: DispatchContext, device: str, *args: Any, **more: Any) -> None:
        make(self, "cuda", *args, **more)

    replaced: list[tuple[Any, str, Any]] = [
        (DispatchContext, "__init__", on_cuda),  # chooses the paths of CUDA
        # several operations on a CPU
        (torch.nn.functional, "scaled_dot_product_attention", scaled_dot_product_attention),
    ]
    everywhere: list[tuple[Any, Callable[..., Any]]] = [  # also in modules that import the name
        (accelerator.accelerated, lambda x: True),  # chooses large steps and few reads
        (dense.groups_are_fused, lambda k, v, attn_mask: attn_mask is None),  # True for any mask on the CPU
        (flex_kernel.fused_flex, fused_flex),  # compiles a kernel
        (flash_band.flash_forward, flash_forward),  # has no CPU kernel
        (flash_band.flash_backward, flash_backward),
        (flash_band.refused, lambda *kind: None),  # tries the operator
        (batch.all_moderate, lambda tensors: False),  # would leave padding as it is, which only the CPU does
    ]
    for name in list_mechanisms():
        mechanism_class(name)  # imports its module
    for module in [module for name, module in sys.modules.items() if name.startswith("hf_longattn.")]:
        replaced += [
            (module, name, stub)
            for name, value in vars(module).items()
            for function, stub in everywhere
            if value is function
        ]
    with contextlib.ExitStack() as patches:
        for owner, name, stub in replaced:
            patches.enter_context(mock.patch.object(owner, name, stub))
        yield


def launches(run: Callable[[], Any]) -> tuple[Counting, Any]:
    """What ``run`` launches and waits for, and its result."""
    with Counting() as counting:
        result = run()
    return counting, result


def python_calls(run: Callable[[], Any]) -> tuple[int, Any]:
    """How many Python functions ``run`` calls, and its result."""
    calls = -1  # run itself

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    gc.disable()  # it would call finalizers
    try:
        sys.setprofile(profile)
        result = run()
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls, result


Counts = tuple[float, ...]
"""The numbers of a row, named by :data:`NAMES`."""


def measured(start: Callable[[], Sequence[Callable[[], Any]]], backward: Callable[[Any], Any]) -> list[Counts]:
    """The counts of each function of ``start()``, one after the other, and of ``backward`` for its result.

    Everything runs twice, since a dispatch mode calls functions itself. The first function runs once before.
    """

    def numbers(meter: Callable[[Callable[[], Any]], tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        for run in start():
            forward, out = meter(run)
            yield forward, meter(functools.partial(backward, out))[0]

    backward(start()[0]())
    return [
        (forward.operations, back.operations, calls, calls_back, forward.waits.total() + back.waits.total())
        for (forward, back), (calls, calls_back) in zip([*numbers(launches)], numbers(python_calls), strict=True)
    ]


# ---- single layers

CHANGES: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "no gradients": {"gradients": False},
    "fp32": {"dtype": torch.float32},
    "grouped": {"groups": 1},
    "packed": {"documents": 3},
    "dropout": {"dropout": 0.1},
    "padding": {"padding": "right"},
    **{f"padding {side}": {"padding": side} for side in ("right", "left", "holes")},
    **{name: {"global_tokens": 3} for name in ("mask", "globals")},
    "40 tokens": {"global_tokens": 40},
    "elsewhere": {"scattered": True},
    "sinks": {"num_sinks": 4},
    "separate globals": {"separate_global": True},
}
"""A part of a mode's name after the mechanism -> arguments of :func:`layer_counts`."""
PLAIN = ("", "causal", "no gradients", "fp32", "grouped", "packed", "dropout")
PADDED = ("padding right", "padding left", "padding holes")
LAYERS: dict[str, tuple[str, ...]] = {
    "window": (*PLAIN, *PADDED, "sinks"),
    "longformer": (
        *PLAIN,
        *PADDED,
        "mask",
        *(f"mask, {padding}" for padding in PADDED),
        "40 tokens",
        "elsewhere",
        "separate globals",
        "dropout, padding right",
        "dropout, padding left",
        "dropout, elsewhere",
    ),
    "bigbird": (*PLAIN, "padding", "padding left", "padding holes", "globals", "globals, padding"),
    **dict.fromkeys(("strided", "block_top_k", "linear", "lsh"), ("", "causal", "padding")),
    "top_k": ("", "causal"),
    "nystrom": ("", "padding"),
}
"""Mechanism -> the rest of the modes' names."""
WINDOW: dict[str, Any] = {"window": 128}


def layer_counts(
    mechanism: str,
    *,
    causal: bool = False,
    padding: str = "",
    documents: int = 0,
    global_tokens: int = 0,
    scattered: bool = False,
    dropout: float = 0.0,
    groups: int = HEADS,
    dtype: torch.dtype = torch.bfloat16,
    gradients: bool = True,
    **options: Any,
) -> list[Counts]:
    """The counts of the first layer of a pass, and of a later one.

    Args:
        padding: where the second row has some: "right", "left" or "holes".
        global_tokens: leading global tokens of a mask; ``scattered``: a mask with one in each 250 tokens. Without
            either the mechanism's options say which tokens are global.
        groups: heads of keys and values.
    """
    rows, places = 2 if padding else 1, torch.arange(LENGTH)
    options |= WINDOW if mechanism in ("window", "longformer") else {}
    sizes = {"num_heads": HEADS, "head_dim": HEAD_DIM, "hidden_size": HEADS * HEAD_DIM, "max_length": LENGTH}
    module = build_mechanism(mechanism, **sizes, **options).to(dtype).eval()
    q, k, v = (
        torch.randn(rows, heads, LENGTH, HEAD_DIM, dtype=dtype, requires_grad=gradients)
        for heads in (HEADS, groups, groups)
    )
    upstream, real = torch.ones_like(q), torch.ones(rows, LENGTH, dtype=torch.bool)
    real[1:] = {"right": places < LENGTH * 2 // 3, "left": places >= LENGTH // 3}.get(padding, places % 300 > 50)

    def layers() -> list[Callable[[], Tensor]]:
        """The first and the second layer of a new pass, whose masks are new tensors."""
        arguments: dict[str, Any] = {"causal": causal, "dropout_p": dropout}
        if padding:
            arguments["padding_mask"] = real.clone()
        if documents:
            arguments["documents"] = (places * documents // LENGTH)[None]
        if global_tokens or scattered:
            arguments["global_mask"] = real & (places % 250 == 100 if scattered else real.cumsum(1) <= global_tokens)
        if module.capabilities.takes_hidden_states:
            arguments["hidden_states"] = upstream.transpose(1, 2).flatten(2)
        prepared, call = prepare(q, k, v, module, **arguments)
        call = call.replace(global_mask=batch.for_one_pass(call.global_mask))  # as a model does
        return [functools.partial(run_batch, prepared, q, k, v, call)] * 2

    def backward(out: Tensor) -> None:
        if gradients:
            torch.autograd.grad(out, (q, k, v), upstream, materialize_grads=True)

    with as_on_cuda(), torch.set_grad_enabled(gradients):
        return measured(layers, backward)


# ---- models: their layers, and what they do once a pass

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 100}
PLANS: dict[str, dict[str, Any] | None] = {
    "stock": None,
    "window": {"mechanism": "window", **WINDOW},
    "longformer": {"mechanism": "longformer", **WINDOW},
    "bigbird": {"mechanism": "bigbird", "block_size": 16},
    "top_k": {"mechanism": "top_k"},
    "linear": {"mechanism": "linear"},
}
ENCODERS = (
    "stock",
    "stock, padding",
    "window",
    "window, padding",
    "window, dropout",
    "longformer",
    "longformer, padding",
    "longformer, mask, padding",
    "longformer, dropout",
    "bigbird, padding",
)
DECODERS = (*PLANS, "stock, static cache", "window, static cache", "bigbird, static cache")


def encoder_pass(words: Sequence[str], layers: int) -> Counts:
    """A training step of BERT, with the mask that a tokenizer gives."""
    plan = PLANS[words[0]]
    settings = {**SIZES, "num_hidden_layers": layers, "max_position_embeddings": LENGTH, "hidden_dropout_prob": 0.0}
    settings["attention_probs_dropout_prob"] = 0.1 if "dropout" in words else 0.0
    if plan is None:
        model = BertModel(BertConfig(**settings))
    else:
        model = families.LongBertModel(families.LongBertConfig(**settings, long_attention=plan))
    model.bfloat16().train()

    def inputs() -> dict[str, Tensor]:
        length = SHORT if plan is None else LENGTH
        places = torch.arange(length).expand(2, -1)
        real = places < torch.tensor([[length], [length * 2 // 3 if "padding" in words else length]])
        given = {"input_ids": places % 100, "attention_mask": real.long()}
        return given | {"global_attention_mask": (places < 4).long()} if "mask" in words else given

    def backward(out: Any) -> None:
        out.last_hidden_state.sum().backward()

    return measured(lambda: [functools.partial(model, **inputs())], backward)[0]


def decoding_step(words: Sequence[str], layers: int) -> Counts:
    """A decoded token of Llama with grouped heads."""
    plan, settings = (
        PLANS[words[0]],
        {**SIZES, "num_key_value_heads": 2, "num_hidden_layers": layers, "max_position_embeddings": 1024},
    )
    if plan is None:
        model = LlamaForCausalLM(LlamaConfig(**settings)).eval()
    else:
        model = families.LongLlamaForCausalLM(families.LongLlamaConfig(**settings, long_attention=plan)).eval()
    lengths = itertools.count(600, 3)

    def step() -> list[Callable[[], Any]]:
        text = torch.arange(next(lengths)).expand(2, -1) % 100  # each step is as long as none before
        cache = StaticCache(model.config, 1024) if "static cache" in words else DynamicCache(config=model.config)
        model(text, past_key_values=cache)
        model(text[:, :1], past_key_values=cache)
        return [functools.partial(model, text[:, :1], past_key_values=cache)]

    with torch.no_grad():
        return measured(step, lambda out: None)[0]


def per_layer(run: Callable[[Sequence[str], int], Counts], words: Sequence[str]) -> tuple[Counts, Counts]:
    """The counts of a layer, and those of the pass without its layers, from models of two and of six layers."""
    with contextlib.nullcontext() if PLANS[words[0]] is None else as_on_cuda():
        two, six = run(words, 2), run(words, 6)
    layer = [(more - less) / 4 for more, less in zip(six, two, strict=True)]
    return tuple(layer), tuple(less - 2 * part for less, part in zip(two, layer, strict=True))


def list_modes() -> list[str]:
    """The names of all modes."""
    layers = [
        ", ".join(filter(None, (mechanism, change))) for mechanism, changes in LAYERS.items() for change in changes
    ]
    return [*layers, *(f"LongBert, {words}" for words in ENCODERS), *(f"decode, {words}" for words in DECODERS)]


def rows_of(mode: str) -> list[dict[str, Any]]:
    """The rows of a mode. "first" of a model is what it does once a pass besides its layers."""
    kind, *words = mode.split(", ")
    torch.manual_seed(0)
    if kind == "decode":
        found = {"later": per_layer(decoding_step, words)[0]}
    elif kind == "LongBert":
        later, once = per_layer(encoder_pass, words)
        found = {"first": once, "later": later}
    else:
        first, later = layer_counts(kind, **{name: value for word in words for name, value in CHANGES[word].items()})
        found = {"first": first, "later": later}
    return [
        {"mode": mode, "layer": layer, **{name: math.ceil(count) for name, count in zip(NAMES, counts, strict=True)}}
        for layer, counts in found.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each mode: operations, Python calls and waits, of the first layer and of a later one."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        cells = [
            f"{row['forward']} + {row['backward']}",
            f"{row['python_forward']} + {row['python_backward']}",
            str(row["waits"]),
        ]
        before = ["–"] * 3 if row["layer"] == "later" and row["mode"] not in lines else []
        lines.setdefault(row["mode"], []).extend([*before, *cells])
    names = ["operations", "Python calls", "waits"]
    return markdown_table(
        ["mode", *(f"first: {name}" for name in names), *names], [[mode, *cells] for mode, cells in lines.items()]
    )


def table_of_inputs(rows: Sequence[dict[str, Any]]) -> str:
    """Operations of a later layer, forward + backward, of the patterns that one kernel computes, by input."""
    counts = {row["mode"]: f"{row['forward']} + {row['backward']}" for row in rows if row["layer"] == "later"}
    inputs = {
        "whole rows": "",
        "packed": ", packed",
        "padding right": ", padding right",
        "padding left": ", padding left",
        "holes": ", padding holes",
        "dropout": ", dropout",
    }
    of_right = {", padding right": ", padding"}  # the name for bigbird
    cells = [
        [name, *(counts.get(name + mode) or counts[name + of_right[mode]] for mode in inputs.values())]
        for name in ("window", "longformer", "bigbird")
    ]
    return markdown_table(["a later layer", *inputs], cells)


def main(
    words: Annotated[list[str] | None, typer.Argument(help="Only modes with one of these in their names.")] = None,
    write: Annotated[bool, typer.Option("--write", help=f"Store the rows in {STORED.name}.")] = False,
) -> None:
    """Operations, Python calls and waits of every mode, counted on a CPU."""
    chosen = [mode for mode in list_modes() if not words or any(word in mode for word in words)]
    rows = [row for mode in chosen for row in rows_of(mode)]
    typer.echo(table(rows))
    if write:
        by_mode = {(row["mode"], row["layer"]): row for row in [*stored_study(STORED)["rows"], *rows]}
        store_study(
            STORED,
            {
                "machine": machine(),
                "rows": [by_mode[key] for key in sorted(by_mode, key=lambda key: list_modes().index(key[0]))],
            },
        )


if __name__ == "__main__":
    typer.run(main)
