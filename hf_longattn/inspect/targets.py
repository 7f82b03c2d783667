"""Targets of an audit (PyTorch model, ONNX file), and how their outputs change when tokens are replaced."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..constants import GRAPHS
from ..errors import LongAttentionError, OptionError, in_a_line, needs_extra
from ..export.onnx import has_experts
from ..modeling.attach.attention_sites import attention_sites
from ..modeling.inference.optimize import evaluating
from .declared import base_of, encoder_of
from .numbered_inputs import AuditInputs

REPLACEMENT_SCALE = 3.0
"""Factor on the state that replaces a token's state. A large one makes weak dependence visible."""
ROUNDING = 1e-5
"""Tolerance for models with experts, relative to the largest change. An expert's rounding depends on its number of tokens."""
MIN_WIDTH = 8
"""Width of an embedding up to which nothing follows from :meth:`TokenChanges.interaction`."""
SPECIAL = ("pad", "bos", "eos", "sep", "cls", "mask", "unk", "decoder_start")
OUTPUT, EMBEDDING = "output", "embedding"


class AuditTarget(ABC):
    """A target of an audit, as a function of token ids.

    name: name in messages.
    rounding: largest change that rounding may cause, relative to the largest change.
    leading, trailing: number of special tokens that the target adds before and after the ids.
    refusal: what the target answers to longer texts; "" if it takes them.
    """

    name: str
    rounding = 0.0
    leading = trailing = 0
    refusal = ""

    @abstractmethod
    def outputs(self, ids: Tensor) -> tuple[str, Tensor]:
        """:data:`OUTPUT` and a vector for each of ``ids (N,)``: ``(N, width)``. Or :data:`EMBEDDING` and one vector: ``(1, width)``."""


class Changes(ABC):
    """Changes in the stages of a target (its layers, or its output) when tokens of one text are replaced.

    noise: for every stage, the largest difference between two equal runs.
    rounding: for every stage, the largest change that rounding may cause, relative to the largest change; 0 to compare bits.
    """

    stages: list[str]
    noise: list[float]
    rounding: list[float]

    @abstractmethod
    def of(self, sets: Sequence[Tensor | None]) -> list[Tensor]:
        """For every stage, the largest change of each output, ``(N,)`` or ``(1,)``, after replacing its tokens ``(N,)`` bool."""

    def dependence(self, rows: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        """Whether outputs depend on each token, even weakly.

        Args:
            rows: number of a stage -> outputs to check.
        Returns:
            Number of a stage -> ``(rows, N)`` bool. Stages without gradients are left out.
        """
        return {}


class TokenChanges(Changes):
    """Changes of the output when input tokens are replaced by ``words``."""

    def __init__(self, target: AuditTarget, ids: Tensor, words: Tensor, generator: torch.Generator) -> None:
        self.target, self.ids, self.words, self.generator = target, ids, words, generator
        stage, self.original = self._run(ids)
        self.stages = [stage]
        self.noise = [float((self._run(ids)[1] - self.original).abs().max())]
        self.rounding = [target.rounding]

    def _run(self, ids: Tensor) -> tuple[str, Tensor]:
        stage, states = self.target.outputs(ids)
        check_finite(self.target.name, stage, states)
        known = getattr(self, "original", states).shape[-1]
        if states.shape[-1] != known:
            raise OptionError(f"{self.target.name} returns {known:,} numbers for one input and {states.shape[-1]:,} for another ({stage}).")
        return stage, states

    def others(self) -> Tensor:
        """For every token another one, ``(N,)``."""
        drawn = self.words[torch.randint(len(self.words), self.ids.shape, generator=self.generator)]
        return torch.where(drawn == self.ids, torch.where(self.ids == self.words[0], self.words[1], self.words[0]), drawn)

    def of(self, sets: Sequence[Tensor | None]) -> list[Tensor]:
        (tokens,) = sets
        assert tokens is not None
        return [(self._run(torch.where(tokens, self.others(), self.ids))[1] - self.original).abs().amax(-1)]

    def interaction(self, first: Tensor, second: Tensor) -> float:
        """The part of an embedding's change that two sets of tokens ``(N,)`` bool cause only together, relative to the smaller change.

        If an embedding is a mean of parts, normalised or not, and no part has tokens of both sets, then with both replaced it is a linear
        combination of those with one, the other and none replaced.
        """
        others = self.others()
        one, other, both = (self._run(torch.where(tokens, others, self.ids))[1][0] for tokens in (first, second, first | second))
        parts = torch.stack([self.original[0], one, other], 1)
        smaller = min((states - self.original[0]).norm() for states in (one, other))
        if len(both) <= MIN_WIDTH:  # so few numbers are a combination of any others
            return float("inf")
        return float((both - parts @ torch.linalg.lstsq(parts, both[:, None]).solution[:, 0]).norm() / smaller)


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a layer: its number among all calls, its module and its arguments.

    flows: number of arguments that are states. LiLT has two, for text and boxes; other models have one.
    """

    number: int
    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    flows: int = 1

    @property
    def numbers(self) -> list[Tensor]:
        """The floating-point arguments. The first of them are states."""
        values = (*self.args, self.kwargs.get("hidden_states"))
        return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]

    @property
    def states(self) -> Tensor | None:
        """The input states, concatenated to ``(B, N, width)``."""
        return _side_by_side(self.numbers[: self.flows])

    def with_states(self, states: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with ``states`` instead of the input states."""
        before = self.numbers[: self.flows]
        pairs = list(zip(before, self.split(states), strict=True))

        def changed(value: Any) -> Any:
            return next((new for old, new in pairs if old is value), value)

        return tuple(map(changed, self.args)), {name: changed(value) for name, value in self.kwargs.items()}

    def split(self, states: Tensor) -> Sequence[Tensor]:
        """Split concatenated states, or outputs, into their tensors."""
        return [states] if self.flows == 1 else states.split([flow.shape[-1] for flow in self.numbers[: self.flows]], -1)

    def flows_of(self, output: Any) -> int:
        """Number of arguments that are states: they share the first argument's token axis and have the shape of an output."""
        given = list(itertools.takewhile(lambda flow: flow.ndim == 3 and flow.shape[:2] == self.numbers[0].shape[:2], self.numbers))
        pairs = zip(given, _tensors(output), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0].shape == pair[1].shape, pairs))


class LayerChanges(Changes):
    """Changes of every layer's output in a PyTorch model when its input states are replaced.

    The next layer gets the original states. One forward pass therefore tests every layer separately.

    names: names of the layers' modules, in the order of their calls.
    """

    def __init__(self, target: ModelTarget, ids: Tensor, generator: torch.Generator) -> None:
        self.target, self.ids, self.generator = target, ids, generator
        self._layers = _layers(target.stack)
        if target.inputs is not None and target.inputs.mixes:  # layers of an audio model also contain convolutions
            self._layers = {site.module: site.name for site in attention_sites(target.stack) if not site.cross}
        unfit: list[nn.Module] = [target.stack]
        while unfit:
            self.names: list[str] = []
            self._originals: list[Tensor] = []
            self.rounding: list[float] = []
            self._flows: dict[nn.Module, int] = {}
            unfit.clear()
            self._pass(lambda call: None, partial(self._keep, unfit))
            for module in unfit:
                del self._layers[module]
        self.stages = [f"layer {number}" for number in range(len(self.names))]
        self.noise = [float(change.max()) for change in self.of([None] * len(self.names))] if self.names else []

    def _keep(self, unfit: list[nn.Module], call: LayerCall, output: Any) -> None:
        """Store the output states of a layer. A module without them is added to ``unfit``."""
        flows = call.flows_of(output)
        states = _states(output, flows)
        if states is None:
            unfit.append(call.module)
        else:
            self._flows[call.module] = flows
            self.names.append(call.name)
            self._originals.append(states.clone())  # the next layer may write into it
            self.rounding.append(ROUNDING if has_experts(call.module) else 0.0)

    def _pass(self, change: Callable[[LayerCall], Tensor | None], see: Callable[[LayerCall, Any], Tensor | None]) -> None:
        """Run the model. States returned by ``change`` replace a layer's input, and those returned by ``see`` its output."""
        running: list[LayerCall] = []
        finished: list[LayerCall] = []

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            call = LayerCall(len(finished), self._layers[module], module, args, kwargs, self._flows.get(module, 1))
            states = call.states
            if running or states is None or states.ndim != 3 or len(states) != 1 or states.shape[1] < len(self.ids):
                return None
            running.append(call)
            replaced = change(call)
            return None if replaced is None else call.with_states(replaced)

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if not running or running[0].module is not module:
                return None
            call = running.pop()
            finished.append(call)
            states = see(call, output)
            return None if states is None else states if isinstance(output, Tensor) else (*call.split(states), *output[call.flows :])

        with ExitStack() as hooks:
            for module in self._layers:
                hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(after, with_kwargs=True).remove)
            self.target.forward(self.ids)

    def of(self, sets: Sequence[Tensor | None]) -> list[Tensor]:
        changes: list[Tensor] = []
        length = len(self.ids)

        def replace(call: LayerCall) -> Tensor | None:
            tokens = sets[call.number]
            if tokens is None or call.states is None:
                return None
            places = tokens.nonzero()[:, 0].to(call.states.device)
            distance = 1 + int(torch.randint(length - 1, (1,), generator=self.generator))
            signs = torch.randint(2, (len(places), 1), generator=self.generator).to(call.states) * 2 - 1
            states = call.states.clone()
            states[0, places] = REPLACEMENT_SCALE * signs * call.states[0, (places + distance) % length]
            return states

        def compare(call: LayerCall, output: Any) -> Tensor:
            original, states = self._originals[call.number], _states(output, call.flows)
            assert states is not None
            check_finite(self.target.name, self.stages[call.number], states[0, :length])
            changes.append((states[0, :length] - original[0, :length]).abs().amax(-1).float().cpu())
            return original.clone()

        self._pass(replace, compare)
        return changes

    def dependence(self, rows: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        calls: list[LayerCall] = []

        def keep(call: LayerCall) -> None:
            if call.number in rows and call.states is not None:
                args, kwargs = call.with_states(call.states.clone())  # the layer may write into it
                calls.append(dataclasses.replace(call, args=args, kwargs=kwargs))

        self._pass(keep, lambda call, output: None)
        dependent = {}
        for call in calls:
            with suppress(RuntimeError, NotImplementedError):  # quantised layers have no gradients
                dependent[call.number] = self._gradients(call, rows[call.number])
        return dependent

    def _gradients(self, call: LayerCall, rows: Sequence[int]) -> Tensor:
        """Whether the gradient of each output with respect to each token's input state is nonzero, ``(rows, N)`` bool."""
        assert call.states is not None
        states = call.states.requires_grad_(True)
        gradients = []
        with evaluating(call.module), torch.enable_grad():
            args, kwargs = call.with_states(states)
            output = _states(call.module(*args, **kwargs), call.flows)
            assert output is not None
            for row in rows:
                direction = torch.randn(output.shape[-1], generator=self.generator).to(output)
                (gradient,) = torch.autograd.grad((output[0, row] * direction).sum(), states, retain_graph=True)
                gradients.append(gradient[0, : len(self.ids)].ne(0).any(-1).cpu())
        return torch.stack(gradients)


def _layers(stack: nn.Module) -> dict[nn.Module, str]:
    """The modules that may be layers, with their names."""
    return {
        element: f"{name}.{number}"
        for name, module in stack.named_modules()
        if isinstance(module, nn.ModuleList)
        for number, element in enumerate(module)
        if any(True for _ in element.children())
    }


def _tensors(output: Any) -> list[Tensor]:
    """The leading tensors of a layer's return value."""
    values = output if type(output) is tuple else (output,)  # a plain tuple, unlike the outputs of reversible layers
    return list(itertools.takewhile(lambda value: isinstance(value, Tensor), values))


def _states(output: Any, flows: int = 1) -> Tensor | None:
    """The first ``flows`` tensors of a layer's return value, concatenated; ``None`` if it has no tensors."""
    return _side_by_side(_tensors(output)[:flows])


def _side_by_side(flows: Sequence[Tensor]) -> Tensor | None:
    return torch.cat(list(flows), -1) if len(flows) > 1 else flows[0] if flows else None


def check_finite(name: str, stage: str, states: Tensor) -> None:
    """Raise :class:`OptionError` for NaN or infinite outputs, in which changes cannot be measured."""
    if not states.isfinite().all():
        raise OptionError(f"{name} returns NaN or infinite values ({stage}), in which no change can be seen; fix the model first.")


class ModelTarget(AuditTarget):
    """A PyTorch model, or its encoder if it has one.

    inputs: for images or sound, the inputs whose patches or frames the ids stand for.
    """

    def __init__(self, model: nn.Module, inputs: AuditInputs | None = None) -> None:
        self.name, self.inputs = type(model).__name__, inputs
        self.stack: Any = encoder_of(base_of(model))
        self.rounding = ROUNDING if has_experts(self.stack) else 0.0

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Any:
        """The model's output for ``ids (N,)``."""
        device = next(self.stack.parameters()).device
        row = ids[None].to(device)
        inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
        if self.inputs is not None:
            inputs = {name: value.to(device) for name, value in self.inputs.inputs(ids).items()}
        cache = {"use_cache": False} if "use_cache" in inspect.signature(self.stack.forward).parameters else {}
        try:
            with evaluating(self.stack):
                return self.stack(**inputs, **cache)
        except LongAttentionError:
            raise
        except Exception as error:  # the model may be anybody's
            raise OptionError(
                f"{self.name} does not run with {len(ids):,} tokens as {next(iter(inputs))} ({in_a_line(error)}); give another --length "
                "if it takes others only."
            ) from error

    def outputs(self, ids: Tensor) -> tuple[str, Tensor]:
        returned = self.forward(ids)
        values = returned.values() if isinstance(returned, Mapping) else returned if isinstance(returned, tuple) else (returned,)
        for value in values:
            if isinstance(value, Tensor) and value.is_floating_point() and value.shape[:2] == (1, len(ids)) and value.ndim == 3:
                return OUTPUT, value[0].float().cpu()
        raise OptionError(
            f"{self.name} does not return a row of numbers for each of its {len(ids):,} tokens, so there is nothing to compare; audit an "
            "export of it instead: --onnx FILE."
        )


class GraphTarget(AuditTarget):
    """An ONNX file: its first output with a row for each token, or else its first pooled output.

    inputs: for images or sound, the inputs whose patches or frames the ids stand for.
    """

    def __init__(self, file: Path, inputs: AuditInputs | None = None) -> None:
        self.read = None if inputs is None else inputs.with_mask()
        with needs_extra("onnx"):
            import onnxruntime
        file = file / GRAPHS["onnx"] if file.is_dir() else file
        if not file.is_file():
            raise OptionError(f"{str(file)!r} does not exist; give an ONNX file, or a folder with model.onnx.")
        self.name = str(file)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no public class of errors
            raise OptionError(f"onnxruntime cannot load {str(file)!r}: {in_a_line(error)}.") from error
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        first, more = "input_ids", ["attention_mask", "token_type_ids", "position_ids"]
        if inputs is not None:
            first, more = inputs.argument, [*inputs.masks]
        unknown = sorted(set(self.inputs) - {first, *more})
        if unknown or first not in self.inputs:
            if_asked = f", and {' or '.join(filter(None, [', '.join(more[:-1]), *more[-1:]]))} where asked for" if more else ""
            raise OptionError(
                f"{str(file)!r} takes {', '.join(self.inputs) or 'nothing'}, but an audit gives {first}{if_asked}; export the model with "
                "these inputs only."
            )
        shape = self.inputs[first].shape
        self.length = shape[1] if inputs is None and len(shape) == 2 and isinstance(shape[1], int) else None

    def outputs(self, ids: Tensor) -> tuple[str, Tensor]:
        if self.length not in (None, len(ids)):
            raise OptionError(f"{self.name!r} takes inputs of exactly {self.length:,} tokens; give --length {self.length}.")
        row = ids[None]
        values = {"input_ids": row, "attention_mask": torch.ones_like(row), "token_type_ids": torch.zeros_like(row)}
        values["position_ids"] = torch.arange(len(ids))[None]
        if self.read is not None:
            values = self.read.inputs(ids)
        types = {"tensor(int32)": torch.int32, "tensor(float)": torch.float32, "tensor(bool)": torch.bool}
        inputs = {name: values[name].to(types.get(value.type, torch.int64)).numpy() for name, value in self.inputs.items()}
        try:
            outputs = self.session.run(None, inputs)
        except Exception as error:
            raise OptionError(
                f"{self.name!r} does not run with {len(ids):,} tokens of the model's vocabulary; is it a graph of this model? "
                f"onnxruntime says: {in_a_line(error)}."
            ) from error
        tensors = [torch.from_numpy(output).float() for output in outputs if output.ndim in (2, 3)]
        by_token = next((tensor[0] for tensor in tensors if tensor.ndim == 3 and tensor.shape[1] == len(ids)), None)
        if by_token is not None:
            return OUTPUT, by_token
        numbers = next((tensor.t() for tensor in tensors if tensor.ndim == 2 and tensor.shape == (1, len(ids)) != (1, 1)), None)
        if numbers is not None:
            return OUTPUT, numbers
        pooled = next((tensor for tensor in tensors if tensor.ndim == 2), None)
        if pooled is None:
            raise OptionError(f"{self.name!r} has no output (batch, tokens, width) or (batch, width) to audit.")
        return EMBEDDING, pooled


def ordinary_ids(config: Any, tokenizer: Any | None) -> Tensor:
    """All token ids except special ids and ids that the config makes global.

    Raises:
        OptionError: the model takes no token ids, or has fewer than two such ids.
    """
    text = config.get_text_config()
    size = getattr(text, "vocab_size", None) or getattr(config, "vocab_size", None)
    if not isinstance(size, int):
        raise OptionError(
            f"The config of a {config.model_type!r} model has no vocab_size, and only models that take token ids are audited."
        )
    special = {getattr(config, f"{name}_token_id", None) for name in SPECIAL} | set(getattr(tokenizer, "all_special_ids", None) or ())
    special |= {getattr(config, "question_separator_id", None), *(getattr(config, "global_token_ids", None) or ())}
    ids = torch.tensor([token for token in range(size) if token not in special])
    if len(ids) < 2:
        raise OptionError(f"The vocabulary of {size:,} tokens has no two ordinary tokens that could replace each other.")
    return ids
