"""Sequence parallelism: several processes share one long input. Each computes the outputs of its part.

Windows fetch keys and values of nearby tokens from neighbouring processes, global tokens go to all processes, and linear mechanisms send
their states. A process exchanges only what a mechanism sees (:mod:`hf_longattn.sharding`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...attend import run_batch
from ...backend import DOCUMENTS, documents_of
from ...cache_argument import CACHE
from ...errors import BackendError, MaskError, OptionError
from ...mechanisms.common.base import Mechanism
from ...sharding import Shard, even_bounds
from ..attach.token_globals import global_tokens_of, token_rule
from ..family.config import runs_mechanisms
from ..family.definition import CAUSAL_LANGUAGE_MODELS
from ..family.position_table import input_of
from .losses import IGNORED_LABEL, auxiliary_loss, label_count, share_of_step
from .memory import Memory
from .modes import Forward, Mode, RunsInModes, should_run
from .outputs import Kind, by_rows, joined

HEADS_BY_TOKEN = (*CAUSAL_LANGUAGE_MODELS, "ForMaskedLM", "ForTokenClassification")
"""Suffixes of heads whose logits depend on a single token's hidden state. Their outputs stay split."""
HEADS_BY_SEQUENCE = ("ForQuestionAnswering", "ForQuestionAnsweringSimple", "ForSequenceClassification", "ForMultipleChoice")
"""Suffixes of heads that compare tokens or read a single one. They get the last hidden states of the whole sequence."""
TUPLE_REFUSAL = "Sequence parallelism needs outputs by name; leave return_dict=False out."


@contextlib.contextmanager
def sequence_parallel(model: Any, group: Any = None) -> Iterator[None]:
    """Split every input of ``model`` along the sequence across the processes of ``group``.

        with hf_longattn.sequence_parallel(model):
            outputs = model(input_ids=input_ids, labels=labels)    # the same whole batch in every process
            outputs.loss.backward()

    All processes pass the same whole batch. Backbones and heads for each token (language models, token classification) return this
    process's part of hidden states and logits: the tokens from ``length * rank // processes`` up to the next rank's. Heads for the whole
    sequence (question answering, classification) return all logits in every process. The loss is that of the whole batch in every process.
    The *mean* of the gradients over the group is the whole batch's gradient. DistributedDataParallel and FSDP compute this mean; without
    them, average the gradients. If ``num_items_in_batch`` is given, as by Trainer, each process's loss is its share, as Trainer expects.
    Dropout differs from a run in one process. The backward pass must run inside the context.

    Args:
        model: a Long model, also inside DistributedDataParallel.
        group: a ``torch.distributed`` process group, or a one-dimensional ``DeviceMesh`` (accelerate's ``torch_device_mesh["cp"]``);
            ``None`` for all processes.

    Raises:
        BackendError: torch.distributed is not initialised, or the model does not run its mechanisms.
        OptionError: the head, or a mechanism when it is called, cannot be split; or the model is split already.
        MaskError: the input cannot be split.
    """
    unwrapped = getattr(model, "module", model)
    if not dist.is_initialized():
        raise BackendError("Sequence parallelism needs several processes; start the script by `accelerate launch` or `torchrun`.")
    if not isinstance(unwrapped, PreTrainedModel) or not runs_mechanisms(unwrapped):
        raise BackendError(f"Sequence parallelism needs a Long model that runs its mechanisms, not {type(unwrapped).__name__}.")
    if unwrapped.config.is_encoder_decoder:
        raise OptionError("Encoder-decoder models cannot be split along the sequence yet; leave sequence parallelism out.")
    bases = [module for module in unwrapped.modules() if isinstance(module, RunsInModes)]
    if len(bases) != 1:
        raise BackendError(
            f"Sequence parallelism needs a model with one base model of a Long class, but {type(unwrapped).__name__} has {len(bases)}."
        )
    base: Any = bases[0]
    should_run(Sharding.key, base.modes_of({}), unwrapped)
    if base.sharding is not None:
        raise OptionError("This model's sequences are split already; leave the outer hf_longattn.sequence_parallel before the next one.")
    if base.main_input_name != "input_ids":
        raise OptionError(
            f"{type(base).__name__} reads {base.main_input_name}, which cannot be split along a sequence; leave sequence parallelism out."
        )
    if base.position_table is not None and not base.takes_positions:
        raise OptionError(
            f"{type(base).__name__} takes no position_ids, which would say where a process's part begins; leave sequence parallelism out."
        )
    if base.mixes_beside_attention:
        raise OptionError(
            f"{type(base).__name__} has convolutions or recurrent layers, which read across parts; leave sequence parallelism out."
        )
    if getattr(base.config, "token_dropout", False):
        raise OptionError("Embeddings are scaled by each row's share of masked tokens (token_dropout); leave sequence parallelism out.")
    group = group.get_group() if hasattr(group, "get_group") else group
    if (rank := dist.get_rank(group)) < 0:
        raise BackendError(
            "This process is not in the group among which the sequence is to be split; enter the context in its members only."
        )
    head = None if unwrapped in (base, unwrapped.base_model) else unwrapped
    sharding = Sharding(base, group, rank, dist.get_world_size(group), by_token=head is None or _by_token(head), with_head=head is not None)
    handles = []
    for module in base.modules():
        if _follows_length(module):
            handles.append(module.register_forward_pre_hook(sharding.append_last_position, with_kwargs=True))
            handles.append(module.register_forward_hook(sharding.strip_last_position))
    if head is not None:
        handles += [
            head.register_forward_pre_hook(sharding.pop_labels, with_kwargs=True, prepend=True),
            head.register_forward_hook(sharding.add_loss),
        ]
    base.sharding = sharding
    try:
        yield
    finally:
        del base.sharding
        for handle in handles:
            handle.remove()
        sharding.give(None)


def _follows_length(module: nn.Module) -> bool:
    """Whether rotary frequencies of a module depend on the last position. Examples are dynamic NTK scaling and LongRoPE."""
    kinds = getattr(module, "rope_type", None)
    return any("dynamic" in kind or kind == "longrope" for kind in (kinds.values() if isinstance(kinds, dict) else [kinds]) if kind)


def _by_token(model: nn.Module) -> bool:
    """Whether the head of ``model`` reads each token by itself."""
    name = type(model).__name__
    if name.endswith(HEADS_BY_TOKEN):
        return True
    if name.endswith(HEADS_BY_SEQUENCE):
        return False
    raise OptionError(
        f"{name} is not known to sequence parallelism; it takes backbones and heads whose class ends in "
        f"{', '.join((*HEADS_BY_TOKEN, *HEADS_BY_SEQUENCE))}."
    )


@dataclasses.dataclass(eq=False)
class Sharding(Mode[dict[str, Any]]):
    """Splits the calls within one :func:`sequence_parallel` context. The base model's inputs, and the labels of its head."""

    name, key = "sequence parallelism", "sharding"
    base: Any
    group: Any
    rank: int
    processes: int
    by_token: bool = True
    with_head: bool = False
    shard: Shard | None = None
    labels: Tensor | None = None
    items: Any = None
    count: Any = None
    last: Tensor | None = None

    def give(self, shard: Shard | None) -> None:
        """Tell every mechanism its part of the sequence; ``None`` for the whole sequence."""
        for module in self.base.modules():
            if isinstance(module, Mechanism):
                module.shard = shard

    def prepare(self, model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the base model for this process's tokens."""
        parameters = inspect.signature(type(model).forward).parameters
        tokens = input_of(arguments)
        if tokens is None:
            raise MaskError("Sequence parallelism splits input_ids or inputs_embeds, but neither was given.")
        shape = (tokens.shape[0], tokens.shape[1])
        self._check(arguments, shape)
        model.check_inputs(arguments)  # on whole rows; finds documents from positions, and positions from documents
        mask = arguments.get("attention_mask")
        mask = None if mask is None or bool(mask.all()) else mask.bool()
        documents = documents_of(arguments, shape)
        arguments = {name: value for name, value in arguments.items() if name not in DOCUMENTS}
        if documents is not None and bool((documents[:, :1] == documents[:, -1:]).all()):
            documents = None  # each row is a single document
        rule = token_rule(model) if arguments.get("global_attention_mask") is None else None
        if rule is not None:
            arguments["global_attention_mask"] = global_tokens_of(rule, arguments, documents)
        chosen = arguments.get("global_attention_mask")
        if "position_ids" in parameters and arguments.get("position_ids") is None:
            arguments["position_ids"] = model.own_positions(arguments, shape, tokens.device)
        if arguments.get("position_ids") is not None:
            self.last = arguments["position_ids"].max()
        if arguments.get("attention_mask") is None:  # with a mask, transformers finds no packed documents in a part's positions
            arguments["attention_mask"] = torch.ones(shape, dtype=torch.long, device=tokens.device)
        bounds, globals_ = even_bounds(shape[1], self.processes), None if chosen is None else chosen != 0
        shard = Shard(self.group, bounds, self.rank, run_batch, mask, documents, globals_)
        self.shard = shard
        self.give(shard)
        for name, value in arguments.items():
            if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[0] in (1, shape[0]) and value.shape[1] == shape[1]:
                arguments[name] = value[:, shard.start : shard.stop]
        if "use_cache" in parameters or getattr(model.config, "use_cache", False):
            arguments["use_cache"] = False
        return {**arguments, "return_dict": True}

    def run(self, model: Any, forward: Forward, inputs: dict[str, Any]) -> list[Any]:
        return [forward(model, **inputs)]

    def restore(self, model: Any, inputs: dict[str, Any], parts: Sequence[Any]) -> Any:
        """The outputs of this process's tokens. Fields that a head reads as a whole are gathered."""
        shard, outputs = self.shard, parts[0]
        assert shard is not None

        def gathered(values: Sequence[Tensor]) -> Tensor:
            return shard.reach(values[0], [(0, shard.length)] * self.processes, 1)

        def pooled(values: Sequence[Tensor]) -> Tensor:
            if not hasattr(model, "pooler"):  # as CLIP's, which pools at the end of a text
                raise BackendError(
                    f"A {type(model).__name__} pools a token of any process; give it whole texts, without sequence_parallel."
                )
            hidden = outputs.last_hidden_state
            first = torch.zeros(len(hidden), 1, dtype=torch.long, device=hidden.device)
            return model.pooler(shard.tokens(hidden[:, None], first)[:, 0] if self.by_token else hidden)

        def unchanged(values: Sequence[Tensor]) -> Tensor:
            return values[0]

        tokens = unchanged if self.by_token else gathered
        routes = by_rows(gathered if self.with_head else unchanged, len(outputs.last_hidden_state))  # a head's loss needs all tokens
        return joined(parts, {Kind.TOKENS: tokens, Kind.ROUTES: routes, Kind.SEQUENCES: pooled}, self.name)

    def _check(self, kwargs: dict[str, Any], shape: tuple[int, int]) -> None:
        if shape[1] < self.processes:
            raise MaskError(f"{shape[1]} tokens cannot be split across {self.processes} processes; every process needs at least one.")
        _refuse_encoder(kwargs)
        if kwargs.get(CACHE) is not None or kwargs.get("use_cache"):
            raise MaskError("A sequence that is split across processes has no decode cache; pass use_cache=False.")
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() != 2:
            raise MaskError("A sequence that is split across processes takes an attention_mask (batch, tokens) only.")

    def append_last_position(
        self, rotary: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Append the last position of the whole batch, on which frequencies depend. :meth:`strip_last_position` removes it."""
        arguments = {**dict(zip(("x", "position_ids", "layer_type"), args, strict=False)), **kwargs}
        positions = arguments["position_ids"]
        assert self.last is not None
        return (), {**arguments, "position_ids": torch.cat([positions, self.last.expand(len(positions), 1)], 1)}

    def strip_last_position(self, rotary: nn.Module, args: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``(B, n, D)`` of the process's own positions."""
        return outputs[0][:, :-1], outputs[1][:, :-1]

    def pop_labels(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Remove the labels from the call, because the loss needs the parts of all processes."""
        kwargs = arguments_by_name(type(model).forward, args, kwargs)
        if kwargs.get("memory") is not None:  # a head passes it on as a cache
            should_run(self.key, (Memory.key,), model)
        _refuse_encoder(kwargs)
        self.labels = self.items = None
        if self.by_token:
            if isinstance(keep := kwargs.get("logits_to_keep", 0), Tensor) or keep:
                raise OptionError(
                    "logits_to_keep would count in each process's part of a sequence; leave it out, or generate outside of the context."
                )
            self.items, self.count = kwargs.pop("num_items_in_batch", None), label_count(type(model).__name__, kwargs)
            labels, shifted = kwargs.pop("labels", None), kwargs.pop("shift_labels", None)
            looks_ahead = type(model).__name__.endswith(HEADS_BY_TOKEN[:2])
            if looks_ahead and labels is not None and shifted is None:
                shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
            self.labels = shifted if looks_ahead else labels
            tokens = kwargs.get("input_ids")
            if isinstance(tokens, Tensor) and self.labels is not None and self.labels.shape != tokens.shape:
                raise MaskError(f"labels have shape {tuple(self.labels.shape)}, but must be one for each token, {tuple(tokens.shape)}.")
        return (), kwargs

    def add_loss(self, model: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        """Add the loss of the whole batch to the outputs."""
        if self.labels is None:
            return outputs
        assert self.shard is not None
        if isinstance(outputs, tuple):
            raise OptionError(TUPLE_REFUSAL)
        labels = self.labels.to(outputs.logits.device)
        local_labels = labels[:, self.shard.start : self.shard.stop]
        logits = outputs.logits.flatten(0, -2)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(logits, local_labels.flatten(), reduction="sum", ignore_index=IGNORED_LABEL)
        loss = _WholeLoss.apply(loss / (labels != IGNORED_LABEL).sum().clamp(min=1), self.group, self.processes)
        added, routing = auxiliary_loss(model) if model.training else None, _routing_loss(model, outputs)
        loss = sum((term.to(loss) for term in (added, routing) if term is not None), loss)
        if self.items is not None and self.count is not None:  # each process has a part of the batch's share
            loss = share_of_step(loss, self.count.to(loss.device), self.items) / self.processes
        outputs["loss"] = loss
        return outputs


def _refuse_encoder(kwargs: dict[str, Any]) -> None:
    """Raise :class:`MaskError` if a call passes an encoder's hidden states."""
    if kwargs.get("encoder_hidden_states") is not None:
        raise MaskError(
            "A sequence that is split across processes cannot be given encoder_hidden_states; leave that, or sequence parallelism, out."
        )


def _routing_loss(model: Any, outputs: Any) -> Tensor | None:
    """The load-balancing loss that a mixture-of-experts head adds, from the router logits of all tokens.

    Raises:
        OptionError: the head has no factor for this loss.
    """
    if (balance := outputs.get("aux_loss")) is None:
        return None
    factor = getattr(model, "router_aux_loss_coef", getattr(model.config, "router_aux_loss_coef", None))
    if factor is None:
        raise OptionError(f"{type(model).__name__} has a loss of its router, but no router_aux_loss_coef; pass output_router_logits=False.")
    return factor * balance


def arguments_by_name(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call of the method ``forward`` by name."""
    names = [name for name in inspect.signature(forward).parameters if name != "self"]
    return {**dict(zip(names, args, strict=False)), **kwargs}


class _WholeLoss(torch.autograd.Function):
    """Sum of the processes' parts of a loss. The gradients' mean over processes is the gradient of this sum."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, group: Any, processes: int) -> Tensor:
        ctx.processes = processes
        loss = loss.clone()
        dist.all_reduce(loss, group=group)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.processes, None, None
