"""Export a decoder as one graph with a cache: every layer's state is among the inputs and the outputs.

The same graph reads a prompt and generates: ``input_ids`` hold any number of new tokens, and the state represents all earlier tokens. Keys
and values are called ``past_key_values.{layer}.key`` and ``.value``, as in optimum; other state tensors have their names in
:meth:`hf_longattn.Mechanism.advance`. Before the first token the state is all zeros.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig

from ..cache_argument import CACHE
from ..checks import FAILED, PASSED, TOLERANCE, Check, Difference, equality
from ..errors import ExportError
from ..inputs.text import VerificationText
from ..memory.graph_cache import POSITION, StateTensor, graph_layer, graph_state
from ..modeling.attach.attention_sites import attention_sites
from .graphs import PAST, ExportedGraph, Runner, Traced

TASK = "text-generation-with-past"
PRESENT = "present"
BATCH, TOKENS, TOTAL, HELD = "batch_size", "sequence_length", "total_sequence_length", "past_sequence_length"
"""Names of the dynamic axes, as optimum writes and transformers.js reads them."""
NOTE = (
    "Before the first token every state tensor is zeros of this shape, with 0 for 'past_sequence_length'; afterwards each input is the "
    "output of the step before. position_ids count from each row's first real token."
)
EXAMPLE = (3, 6, 9)
"""Batch size, number of new tokens and number of cached entries of the traced example."""


class DecoderGraph(ExportedGraph):
    """A decoder as a function: from new tokens and the state before them to logits and the state after them.

    Raises:
        ExportError: the model is not decoder-only, or a mechanism's state cannot be expressed as tensors.
    """

    advised = "window"

    def __init__(self, model: Any, words: VerificationText) -> None:
        super().__init__()
        self.model, self.words = model, words
        config = model.config
        sites = attention_sites(model)
        if config.is_encoder_decoder or not all(site.causal and not site.cross for site in sites):
            raise ExportError(
                f"{type(model).__name__} is not a decoder alone, and only such a model has a cache here; leave the task {TASK!r} out."
            )
        cache = DynamicCache(config=config)
        with torch.no_grad():
            token = torch.ones(1, 1, dtype=torch.long)
            model(input_ids=token, attention_mask=token, **{CACHE: cache}, use_cache=True)
        self.mechanisms: list[Any] = [site.module.get_submodule("long_attention") for site in sorted(sites, key=lambda site: site.layer)]
        plain = config.score_cap is None or getattr(config, config.score_cap) is None
        self.states = [graph_state(mechanism, held, plain) for mechanism, held in zip(self.mechanisms, cache.layers, strict=True)]
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self.first_position_id = getattr(model, "first_position_id", 0)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None, past: list[Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """The logits ``(B, n, vocabulary)`` of the new tokens, and the state after them in the order of :attr:`outputs`.

        Args:
            input_ids: ``(B, n)``.
            attention_mask: ``(B, tokens so far)``, the new ones included.
            position_ids: ``(B, n)`` counted from 0, if the model takes position ids.
            past: the state before the new tokens.
        """
        before = attention_mask.shape[1] - input_ids.shape[1]
        held = iter(past or ())
        layers = [
            graph_layer(tensors, mechanism, {tensor.name: next(held) for tensor in tensors}, before)
            for tensors, mechanism in zip(self.states, self.mechanisms, strict=True)
        ]
        positions = {} if position_ids is None else {"position_ids": position_ids + self.first_position_id}
        returned = self.model(
            input_ids=input_ids, attention_mask=attention_mask, **positions, **{CACHE: Cache(layers=layers)}, use_cache=True,
            return_dict=True,
        )  # fmt: skip
        after = [layer.state[tensor.name] for tensors, layer in zip(self.states, layers, strict=True) for tensor in tensors]
        return returned.logits, *after

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("input_ids", "attention_mask", *(["position_ids"] if self.takes_positions else []), *self._named(PAST))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all outputs, in order."""
        return ("logits", *self._named(PRESENT))

    def _named(self, prefix: str) -> list[str]:
        return [f"{prefix}.{layer}.{tensor.name}" for layer, tensor in self.tensors()]

    def tensors(self) -> Iterable[tuple[int, StateTensor]]:
        """(layer, tensor) for every tensor of the state, in order."""
        return ((layer, tensor) for layer, tensors in enumerate(self.states) for tensor in tensors)

    @property
    def mask_columns(self) -> int | None:
        """How many columns of the attention mask directly before the new tokens are read; ``None``: all columns."""
        needed = [0]
        for tensors in self.states:
            if tensors[0].grows and all(tensor.name != POSITION for tensor in tensors):
                if tensors[0].most is None:
                    return None
                needed.append(tensors[0].most)
        return max(needed) if self.takes_positions else None

    def zeros(self, batch: int, held: int = 0) -> list[Tensor]:
        """A state of zeros: the state before the first token, or an example with up to ``held`` entries along each axis that grows."""
        return [tensor.zeros(batch, min(held, tensor.most or held)) for _, tensor in self.tensors()]

    def describe(self) -> dict[str, Any]:
        """Description of the state in export_report.json, for programs that run the graph."""
        tensors = [
            {
                "input": f"{PAST}.{layer}.{tensor.name}",
                "output": f"{PRESENT}.{layer}.{tensor.name}",
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": [BATCH, *(size or HELD for size in tensor.shape)],
                "longest_past": tensor.most,
            }
            for layer, tensor in self.tensors()
        ]
        return {"note": NOTE, "mask_columns": self.mask_columns, "state": tensors}

    def named(self, inputs: dict[str, Tensor], past: list[Tensor]) -> dict[str, Tensor]:
        """All inputs by name."""
        return {**inputs, **dict(zip(self._named(PAST), past, strict=True))}

    def axes(self) -> dict[str, dict[int, str]]:
        """Input -> dynamic axis -> its name. Layers with equally long caches share a name; a layer that chooses its keys has its own."""
        named_axes = {"input_ids": {0: BATCH, 1: TOKENS}, "attention_mask": {0: BATCH, 1: TOTAL}, "position_ids": {0: BATCH, 1: TOKENS}}
        for layer, tensor in self.tensors():
            axes = {0: BATCH}
            if tensor.grows:
                chosen = any(state.name == POSITION for state in self.states[layer])
                end = f"_{layer}" if chosen else "" if tensor.most is None else f"_up_to_{tensor.most}"
                axes[1 + tensor.shape.index(0)] = ("kept_length" if chosen else HELD) + end
            named_axes[f"{PAST}.{layer}.{tensor.name}"] = axes
        return named_axes

    def name_axes(self, onnx: Any) -> None:
        """Rename PyTorch's symbols for dynamic axes to the names in :meth:`axes`, which programs look for."""
        named, names = self.axes(), dict[str, str]()
        for value in onnx.graph.inputs:
            for axis, name in named[value.name].items():
                names.setdefault(str(value.shape[axis]), name)
        symbol = re.compile(r"[A-Za-z_]\w*")
        values = [*onnx.graph.inputs, *(value for node in onnx.graph.all_nodes() for value in node.outputs)]
        for value in values:
            if value.shape is not None:
                sizes = [
                    size if isinstance(size, int) else symbol.sub(lambda match: names.get(match[0], match[0]), str(size))
                    for size in value.shape
                ]
                value.shape = type(value.shape)(sizes)

    def traced(self, max_length: int) -> Traced:
        """Trace the model for any batch size, up to ``max_length`` new tokens, and a state of any length."""
        rows, new, held = EXAMPLE
        ids = torch.ones(rows, new, dtype=torch.long)
        example: dict[str, Any] = {"input_ids": ids, "attention_mask": ids.new_ones(rows, new + held)}
        named = self.axes()
        dims = {BATCH: torch.export.Dim(BATCH, min=1), TOKENS: torch.export.Dim(TOKENS, min=1, max=max_length)}
        for layer, tensor in self.tensors():
            for name in named[f"{PAST}.{layer}.{tensor.name}"].values():
                limit = {} if tensor.most is None else {"max": tensor.most}
                dims[name] = dims.get(name) or torch.export.Dim(name, min=0, **limit)
        dims[TOTAL] = torch.export.Dim(TOTAL, min=1)
        if self.takes_positions:
            example["position_ids"] = torch.arange(held, held + new).repeat(rows, 1)
        sizes: dict[str, Any] = {name: {axis: dims[size] for axis, size in named[name].items()} for name in example}
        example["past"] = self.zeros(rows, held)
        sizes["past"] = [{axis: dims[size] for axis, size in named[name].items()} for name in self._named(PAST)]
        program = torch.export.export(self, (), kwargs=example, dynamic_shapes=sizes)
        return Traced(program, example, self.inputs, self.outputs, shortest=1)

    def check(self, load: Callable[[], Runner], limits: tuple[int, int]) -> list[Check]:
        """Compare graph and model from an empty state, after a prompt longer than every window if possible, and in greedy generation."""
        max_length = limits[1]
        bounds = [tensor.most for _, tensor in self.tensors() if tensor.most is not None]
        prompt = max(1, min(max(bounds) + PAST_WINDOW if bounds else PROMPT, max_length - STEPS))
        with torch.no_grad():
            try:
                run = load()
                return [
                    _from_empty(self, run, max_length),
                    _after_prompt(self, run, prompt),
                    _greedy(self, run, prompt),
                ]
            except Exception as error:  # runtimes raise any type of error
                if isinstance(error, OSError | MemoryError):
                    raise
                return [Check("equal to the model", FAILED, f"the runtime cannot run it ({type(error).__name__}: {str(error)[:160]})")]


class _Decoding:
    """Runs a graph and the model with its cache side by side, and compares every step."""

    def __init__(self, graph: DecoderGraph, run: Runner, mask: Tensor) -> None:
        self.graph, self.run, self.mask = graph, run, mask
        self.positions = (mask.cumsum(1) - 1).clamp(min=0)
        self.past, self.cache, self.at = graph.zeros(len(mask)), DynamicCache(config=graph.model.config), 0
        self.steps: list[Difference] = []

    def step(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Feed the next tokens ``(B, n)`` to both. Returns the logits ``(B, n, vocabulary)`` of the graph and of the model."""
        here = slice(self.at, self.at + ids.shape[1])
        inputs = {"input_ids": ids, "attention_mask": self.mask[:, : here.stop]}
        if self.graph.takes_positions:
            inputs["position_ids"] = self.positions[:, here].contiguous()
        outputs = self.run(self.graph.named(inputs, self.past))
        if self.graph.takes_positions:
            inputs["position_ids"] = inputs["position_ids"] + self.graph.first_position_id
        want = self.graph.model(**inputs, **{CACHE: self.cache}, use_cache=True).logits
        self.past, self.at = [outputs[name] for name in self.graph.outputs[1:]], here.stop
        real = self.mask[:, here] != 0  # outputs at padding are undefined
        if real.any():
            self.steps.append(Difference.of({"logits": want[real]}, {"logits": outputs["logits"][real]}))
        return outputs["logits"], want

    @property
    def difference(self) -> Difference:
        """The largest difference of all steps."""
        return Difference.worst(self.steps)


STEPS = 12
"""Number of tokens that each check generates, or reads one by one."""
PAST_WINDOW = 37
"""By how many tokens the prompt is longer than the longest bounded cache of a layer. Untuned."""
PROMPT = 333
"""Number of prompt tokens if no layer's cache is bounded. Untuned."""


def _from_empty(graph: DecoderGraph, run: Runner, max_length: int) -> Check:
    count = min(STEPS, max_length)
    decoding = _Decoding(graph, run, torch.ones(1, count, dtype=torch.long))
    for token in graph.words.tokens(count).split(1, 1):
        decoding.step(token)
    return _check("equal from an empty state", f"{count} tokens one by one", decoding)


def _after_prompt(graph: DecoderGraph, run: Runner, prompt: int) -> Check:
    """Compare a batch of three texts with different left padding; the prompt is fed in two parts."""
    total = prompt + STEPS
    ids = graph.words.tokens(total).repeat(3, 1)
    mask = (torch.arange(total) >= torch.tensor([[0], [prompt // 3], [prompt // 7]])).long()
    if not graph.takes_positions:  # positions are column numbers, so padding would shift them
        mask = torch.ones_like(mask)
    decoding = _Decoding(graph, run, mask)
    cut = max(1, prompt * 2 // 5)
    for part in (ids[:, :cut], ids[:, cut:prompt], *ids[:, prompt:].split(1, 1)):
        if part.shape[1]:
            decoding.step(part)
    check = _check(
        "equal after a prompt", f"{prompt:,} tokens in two parts, then {STEPS} one by one, three rows with left padding", decoding
    )
    for (layer, tensor), held in zip(graph.tensors(), decoding.past, strict=True):
        size = held.shape[1 + tensor.shape.index(0)] if tensor.grows else 0
        if tensor.most is not None and size != min(tensor.most, total):
            return Check(check.name, FAILED, f"{PAST}.{layer}.{tensor.name} holds {size} entries, and not {tensor.most}", check.values)
    return check


def _greedy(graph: DecoderGraph, run: Runner, prompt: int) -> Check:
    """Compare the tokens that the graph generates greedily with those of ``model.generate``."""
    ids = graph.words.tokens(prompt)
    graph.model.generation_config = GenerationConfig(pad_token_id=graph.model.config.pad_token_id or 0)  # nothing but greedy choices
    cache = DynamicCache(config=graph.model.config)
    wanted = graph.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=STEPS, **{CACHE: cache}
    )[:, prompt:]
    decoding, chosen, next_ids = _Decoding(graph, run, torch.ones(1, prompt + STEPS, dtype=torch.long)), [], ids
    for want in wanted[0].tolist():
        logits_of_graph, _ = decoding.step(next_ids)
        logits = logits_of_graph[0, -1]
        token = int(logits.argmax())
        tied = (logits[token] - logits[want]).item() <= 2 * TOLERANCE * decoding.steps[-1].scale
        chosen.append(want if tied else token)
        if chosen[-1] != want:
            break
        next_ids = torch.tensor([[want]])
    same = chosen == wanted[0].tolist()
    detail = f"{len(chosen)} tokens after {prompt:,}, chosen greedily, are {'those' if same else 'not those'} of model.generate"
    values = {"prompt": prompt, "tokens": len(chosen), "difference": decoding.difference.relative}
    return Check("generates the same", PASSED if same and decoding.difference.equal else FAILED, detail, values)


def _check(name: str, what: str, decoding: _Decoding) -> Check:
    values = {"batch": len(decoding.mask), "length": decoding.at, "difference": decoding.difference.relative}
    return equality(name, f"{what}: largest difference", decoding.difference, values)
