"""Ways to call a whole model, each as what it changes: the config, the model, the batch, the arguments, or the call
itself.

A cell of the table is two ways at once on one family. It holds when every sequence gives what the plain model gives
for it alone, or when the call is refused by a sentence of this package; ``python -m tests.modes`` writes all of them
to ``scripts/dev/results/modes.md``, and the tests hold every cell to what is written there. A new way is one entry of
:data:`WAYS`, a new family needs nothing."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import hf_longattn
from hf_longattn.errors import InputError
from hf_longattn.families import FAMILIES
from scripts.dev.tools.small_models import TEXT_FAMILIES, language_model, predicts_tokens
from tests.reference.small_models import checkpoint_activations

Fields = dict[str, Tensor]
"""Outputs by name, those with a value for each layer as ``hidden_states.0``: ``(B, N, …)``, attentions
``(B, H, N, N)``, or a number."""
Call = Callable[[Any, dict[str, Any]], Fields]
"""From a model and its arguments to its outputs."""
WINDOW = {"mechanism": "window", "window": 16}
EXACT_LENGTH = 30
"""Tokens of the longest sequence that the way of this name attends in full: some sequences of every cell are
longer."""
COMPILED = ("bert", "llama", "bart")
ALONG_THE_TEXT = (
    *("input_ids", "attention_mask", "position_ids", "documents", "labels", "global_attention_mask"),
    *sorted({name for family in TEXT_FAMILIES.values() for name in family.spec.further}),
)


def as_built(model: Any) -> Any:
    return model


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to call a model.

    name: in the table.
    values: changes of the config.
    prepare: changes the model; runs after it was built.
    in_baseline: whether the sequences alone are run by the prepared model, too: a precision.
    layout: what :func:`tests.modes.crossings.lay_out` does with the sequences.
    arguments: added to the call.
    call: wraps the call.
    baseline: wraps the call of the sequences alone, where that is another.
    dtype, tolerance: of the model, and of the comparison relative to the largest value.
    lacks: row -> why it has no such way; ``None`` where it has.
    apart: other ways -> why the two together mean nothing.
    in_pieces: whether a text is run in pieces, each with a loss of its own.
    slow: whether a cell takes seconds.
    """

    name: str
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prepare: Callable[[Any], Any] = as_built
    in_baseline: bool = False
    layout: str | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    call: Callable[[Call], Call] = lambda call: call
    baseline: Callable[[Call], Call] = lambda call: call
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-8
    lacks: Callable[[str], str | None] = lambda row: None
    apart: Mapping[str, str] = dataclasses.field(default_factory=dict)
    in_pieces: bool = False
    slow: bool = False


# ---- families


def head_of(row: str) -> str:
    """The class that a row of the table calls: ``base`` stands for the one that predicts tokens, or labels of tokens
    where none does, ``base:class`` for that class."""
    base, _, head = row.partition(":")
    labels = (head for head in FAMILIES[base].model_classes if head.endswith("ForTokenClassification"))
    return head or (language_model(base) if predicts_tokens(base) else next(labels, language_model(base)))


def decodes(row: str) -> bool:
    """Whether the class of a row is a decoder alone."""
    return head_of(row).endswith(("ForCausalLM", "LMHeadModel"))


def looks_back(row: str) -> str | None:
    return "a decoder sees what came before, whatever the length" if decodes(row) else None


def not_compiled(row: str) -> str | None:
    return (
        None if row in COMPILED else "compiled models of one encoder, one decoder and one pair of stacks stand for all"
    )


def no_router(row: str) -> str | None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return (
        None if hasattr(CONFIG_MAPPING[row.partition(":")[0]](), "output_router_logits") else "no mixture of experts"
    )


# ---- calls


def in_reused_buffers(call: Call) -> Call:
    """Another input first, in the same tensors, as a server does that keeps its buffers."""

    def run(model: Any, arguments: dict[str, Any]) -> Fields:
        with torch.inference_mode():
            buffers = {
                name: value.clone() if isinstance(value, Tensor) else value for name, value in arguments.items()
            }
            for name, value in buffers.items():
                if isinstance(value, Tensor):
                    value.copy_(_another(name, value))
            call(model, dict(buffers))
            for name, value in arguments.items():
                if isinstance(value, Tensor):
                    buffers[name].copy_(value)
            return call(model, dict(buffers))

    return run


def _another(name: str, value: Tensor) -> Tensor:
    """Another valid content of an input."""
    if name in ("attention_mask", "position_ids"):
        return value
    if name == "cu_seq_lens_q":
        return torch.cat([value[:1], value[1:-1] - 1, value[-1:]])
    if name == "documents":
        middle = value.shape[1] // 3
        return torch.cat([torch.zeros_like(value[:, :middle]), torch.ones_like(value[:, middle:])], 1)
    return value.flip(0)


def as_tuples(call: Call) -> Call:
    """``return_dict=False`` gives the outputs of ``return_dict=True`` in their order."""

    def run(model: Any, arguments: dict[str, Any]) -> Fields:
        by_name: list[Any] = []
        with model.register_forward_hook(lambda module, args, outputs: by_name.append(outputs)):
            fields = call(model, dict(arguments))
            first = by_name[-1].to_tuple()
            plain = model(**{**arguments, "return_dict": False})
        assert isinstance(plain, tuple)
        for one, other in zip(plain, first, strict=True):
            _same(one, other)
        return fields

    return run


def _same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        torch.testing.assert_close(one, other)
    elif isinstance(one, tuple | list):
        for a, b in zip(one, other, strict=True):
            _same(a, b)


def with_memory(call: Call) -> Call:
    """Thirteen tokens at a time, with the memory of those before."""

    def run(model: Any, arguments: dict[str, Any]) -> Fields:
        memory, parts = model.new_memory("continue"), []
        length = arguments["input_ids"].shape[1]
        for begin in range(0, length, 13):
            piece = {
                name: value[:, begin : begin + 13] if name in ALONG_THE_TEXT and isinstance(value, Tensor) else value
                for name, value in arguments.items()
            }
            outputs: list[Any] = []
            with model.register_forward_hook(lambda module, args, out, outputs=outputs: outputs.append(out)):
                parts.append(call(model, {**piece, "memory": memory}))
            memory = outputs[-1].memory
        return along_the_text(parts)

    return run


def decoding(call: Call) -> Call:
    """Half of the text at once, then tokens one by one."""

    def run(model: Any, arguments: dict[str, Any]) -> Fields:
        length = arguments["input_ids"].shape[1]
        mask = arguments.get("attention_mask")
        mask = torch.ones_like(arguments["input_ids"]) if mask is None else mask
        cache: list[Any] = [None]

        def step(begin: int, end: int) -> Fields:
            piece = {
                name: value[:, begin:end] if name in ALONG_THE_TEXT and isinstance(value, Tensor) else value
                for name, value in arguments.items()
            }
            for name in ("attention_mask", "global_attention_mask"):
                if name in arguments or name == "attention_mask":
                    piece[name] = (mask if name == "attention_mask" else arguments[name])[:, :end]
            outputs: list[Any] = []
            with model.register_forward_hook(lambda module, args, out: outputs.append(out)):
                fields = call(model, {**piece, "past_key_values": cache[0], "use_cache": True})
            cache[0] = outputs[-1].past_key_values
            return fields

        half = length // 2
        with torch.no_grad():
            parts = [step(0, half)]
            parts += [step(at, at + 1) for at in range(half, length)]
        return along_the_text(parts)

    return run


def along_the_text(parts: list[Fields]) -> Fields:
    return {name: torch.cat([part[name] for part in parts], 1) for name, value in parts[0].items() if value.dim()}


def differentiated(call: Call) -> Call:
    """With the gradients of a sum over the logits of real tokens, which adds up over sequences."""

    def run(model: Any, arguments: dict[str, Any]) -> Fields:
        fields = call(model, arguments)
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(
            objective(fields["logits"], arguments), list(parameters.values()), allow_unused=True
        )
        gradients = tuple(
            torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters.values(), strict=True)
        )
        return {**fields, "gradient": torch.cat([gradient.flatten() for gradient in gradients]).detach()}

    return run


def objective(logits: Tensor, arguments: dict[str, Any]) -> Tensor:
    """A sum of the logits with fixed factors that depend on a token and a class alone."""
    ids, mask = arguments["input_ids"], arguments.get("attention_mask")
    factors = torch.sin(ids.to(logits.dtype)) * (1 if mask is None else mask)
    classes = torch.cos(torch.arange(logits.shape[-1], dtype=logits.dtype))
    if "decoder_input_ids" in arguments:
        return (logits * classes).sum()
    return (logits * factors[..., None] * classes).sum()


def compiled(call: Call) -> Call:
    """Traced by Dynamo and AOTAutograd; Inductor, which takes many times as long, has tests of its own."""

    def run(model: Any, arguments: dict[str, Any]) -> Fields:
        torch.compiler.reset()
        try:
            return call(torch.compile(model, dynamic=True, backend="aot_eager"), arguments)
        except RuntimeError as error:
            # an assertion of the graph has PyTorch's type
            if str(error).startswith("Several documents are packed into one row"):
                raise InputError(str(error)) from error
            raise

    return run


def under_autocast(call: Call) -> Call:
    def run(model: Any, arguments: dict[str, Any]) -> Fields:
        with torch.autocast("cpu", torch.bfloat16):
            return call(model, arguments)

    return run


# ---- models


def optimised(precision: str) -> Callable[[Any], Any]:
    return lambda model: hf_longattn.optimize_for_inference(model, precision)


def reloaded(model: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = type(model).from_pretrained(folder, dtype=model.dtype).train(model.training)
    if hasattr(model.config, "num_experts_per_tok"):
        again.set_experts_implementation("eager")  # PyTorch's grouped product takes no float64
    if getattr(model, "is_gradient_checkpointing", False):
        checkpoint_activations(again)
    return again


def checkpointed(model: Any) -> Any:
    checkpoint_activations(model.train())
    return model


OWN_LOSS = "every call has a loss of its own"
ONE_FUNCTION = "both replace the call"
COARSE = 0.1

WAYS: dict[str, Way] = {
    way.name: way
    for way in (
        Way("right padded", layout="right"),
        Way("left padded", layout="left"),
        Way("documents", layout="documents"),
        Way("restarting positions", layout="restarts"),
        Way("offsets", layout="offsets"),
        Way(
            "memory",
            call=with_memory,
            in_pieces=True,
            apart={"attentions": "a call has the weights of the keys in the memory, too"},
        ),
        Way(
            "segments",
            values={"long_attention": {"mechanism": "recurrent_memory", "segment_length": 24, "num_memory_tokens": 4}},
        ),
        Way("global tokens", values={"long_attention": {"mechanism": "longformer", "window": 16}}, layout="globals"),
        Way("exact length", values={"long_attention": {"exact_length": EXACT_LENGTH}}, lacks=looks_back),
        Way("optimised fp32", prepare=optimised("fp32"), dtype=torch.float32, tolerance=2e-4),
        Way("optimised int8", prepare=optimised("int8"), in_baseline=True, dtype=torch.float32, tolerance=COARSE),
        Way("hidden states", arguments={"output_hidden_states": True}),
        Way("attentions", arguments={"output_attentions": True}),
        Way("router logits", values={"output_router_logits": True, "router_aux_loss_coef": 0.5}, lacks=no_router),
        Way("labels", layout="labels", tolerance=1e-5, apart={"memory": OWN_LOSS, "cache": OWN_LOSS}),
        Way(
            "inference mode",
            call=in_reused_buffers,
            apart={"gradient checkpointing": "inference mode has no gradients"},
        ),
        Way(
            "gradient checkpointing",
            prepare=checkpointed,
            call=differentiated,
            baseline=differentiated,
            apart={"cache": "decoded without gradients", "optimised fp32": "an optimised model has nothing to train"},
        ),
        Way("autocast", call=under_autocast, baseline=under_autocast, dtype=torch.float32, tolerance=COARSE),
        Way("tuples", call=as_tuples, apart=dict.fromkeys(("memory", "cache"), ONE_FUNCTION)),
        Way("save and reload", prepare=reloaded, tolerance=1e-8),
        Way(
            "cache",
            call=decoding,
            in_pieces=True,
            lacks=lambda row: None if decodes(row) else "no decoder",
            apart={"attentions": "a step has the weights of the keys that the cache holds"},
        ),
        Way(
            "compiled",
            call=compiled,
            lacks=not_compiled,
            slow=True,
            apart={"memory": ONE_FUNCTION, "cache": ONE_FUNCTION},
        ),
    )
}
