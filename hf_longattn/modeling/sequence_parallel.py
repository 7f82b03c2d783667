"""Sequence parallelism: one long input over several processes, each of which computes the rows of its own tokens.

Windows take the neighbouring tokens' keys and values from the next processes, global tokens are sent to all, and linear mechanisms send
their states, so a process exchanges what a mechanism sees and not the whole sequence (:mod:`hf_longattn.engines.shards`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import weakref
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..attend import run_batch
from ..backend import BACKEND, DOCUMENTS, documents_of
from ..engines.shards import Shard, cut_evenly
from ..errors import BackendError, MaskError, OptionError
from ..mechanisms.base import Mechanism
from ..private_apis import attention_implementation
from .family import CAUSAL_LANGUAGE_MODELS
from .mixin import LongBaseModelMixin, auxiliary_loss
from .recurrence import arguments_by_name
from .token_globals import global_tokens_of, token_rule

BY_TOKEN = (*CAUSAL_LANGUAGE_MODELS, "ForMaskedLM", "ForTokenClassification")
"""Heads whose logits depend on one token's hidden state each: they stay cut."""
BY_SEQUENCE = ("ForQuestionAnswering", "ForQuestionAnsweringSimple", "ForSequenceClassification", "ForMultipleChoice")
"""Heads that compare tokens or read one of them: the last hidden states of the whole sequence are brought together before them."""
BY_NAME = "Sequence parallelism needs outputs by name; leave return_dict=False out."
IGNORED = -100
CUT: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""The models whose sequences are cut now."""


@contextlib.contextmanager
def sequence_parallel(model: Any, group: Any = None) -> Iterator[None]:
    """Cut every input of ``model`` along the sequence over the processes of ``group``.

        with hf_longattn.sequence_parallel(model):
            outputs = model(input_ids=input_ids, labels=labels)    # the same whole batch in every process
            outputs.loss.backward()

    All processes pass the same batch, whole. Backbones and heads for each token (language models, token classification) return the
    process's own part of hidden states and logits: the tokens ``length * rank // processes`` up to those of the next rank. Heads for the
    whole sequence (question answering, classification) return whole logits in every process. The loss is that of the whole batch in every
    process, and gradients are such that their *mean* over the group is the whole batch's gradient, as DistributedDataParallel and FSDP
    take it; without these, average them. Where ``num_items_in_batch`` is given (Trainer does), each process's loss is its share, as Trainer
    expects it. Dropout differs from that of one process. The backward pass runs inside of the context.

    Args:
        model: a Long model, also inside DistributedDataParallel.
        group: a ``torch.distributed`` process group, or a one-dimensional ``DeviceMesh`` (accelerate's ``torch_device_mesh["cp"]``);
            ``None`` is all processes.

    Raises:
        BackendError: torch.distributed is not initialised, or the model does not run its mechanisms.
        OptionError: the head, or a mechanism when it is called, cannot be cut; or the model is cut already.
        MaskError: for an input that cannot be cut.
    """
    whole = getattr(model, "module", model)
    if not dist.is_initialized():
        raise BackendError("Sequence parallelism needs several processes; start the script by `accelerate launch` or `torchrun`.")
    if not isinstance(whole, PreTrainedModel) or attention_implementation(whole.config) != BACKEND:
        raise BackendError(f"Sequence parallelism needs a Long model that runs its mechanisms, not {type(whole).__name__}.")
    if whole.config.is_encoder_decoder:
        raise OptionError("Encoder-decoder models cannot be cut along the sequence yet; leave sequence parallelism out.")
    base = whole.base_model
    if not isinstance(base, LongBaseModelMixin) or base.recursion is not None:
        raise OptionError(f"{type(whole).__name__} runs over its text in segments, which cannot be cut over processes.")
    if base in CUT:
        raise OptionError("This model's sequences are cut already; leave the outer hf_longattn.sequence_parallel before the next one.")
    if any(isinstance(module, nn.Conv1d) for module in base.modules()):
        raise OptionError(f"{type(base).__name__} convolves neighbouring tokens beside its attention; leave sequence parallelism out.")
    if getattr(base.config, "token_dropout", False):
        raise OptionError("Embeddings are scaled by each row's share of masked tokens (token_dropout); leave sequence parallelism out.")
    group = group.get_group() if hasattr(group, "get_group") else group
    if (rank := dist.get_rank(group)) < 0:
        raise BackendError("This process is not in the group among which the sequence is to be cut; enter the context in its members only.")
    cut = _Cut(base, group, rank, dist.get_world_size(group), by_token=base is whole or _by_token(whole))
    handles = [
        base.register_forward_pre_hook(cut.enter, with_kwargs=True, prepend=True),
        base.register_forward_hook(cut.leave),
    ]
    for module in base.modules():
        if _follows_length(module):
            handles.append(module.register_forward_pre_hook(cut.ask_for_last, with_kwargs=True))
            handles.append(module.register_forward_hook(cut.drop_last))
    if base is not whole:
        handles += [
            whole.register_forward_pre_hook(cut.take_labels, with_kwargs=True, prepend=True),
            whole.register_forward_hook(cut.add_loss),
        ]
    CUT.add(base)
    try:
        yield
    finally:
        CUT.discard(base)
        for handle in handles:
            handle.remove()
        cut.give(None)


def _follows_length(module: nn.Module) -> bool:
    """Whether these are rotary positions whose frequencies depend on the last position (dynamic NTK scaling, LongRoPE)."""
    kinds = getattr(module, "rope_type", None)
    return any("dynamic" in kind or kind == "longrope" for kind in (kinds.values() if isinstance(kinds, dict) else [kinds]) if kind)


def _by_token(model: nn.Module) -> bool:
    """Whether the head of ``model`` reads each token by itself."""
    name = type(model).__name__
    if name.endswith(BY_TOKEN):
        return True
    if name.endswith(BY_SEQUENCE):
        return False
    raise OptionError(
        f"{name} is not known to sequence parallelism; it takes backbones and heads whose class ends in "
        f"{', '.join((*BY_TOKEN, *BY_SEQUENCE))}."
    )


@dataclasses.dataclass(eq=False)
class _Cut:
    """What the hooks of one context share."""

    base: Any
    group: Any
    rank: int
    processes: int
    by_token: bool = True
    shard: Shard | None = None
    labels: Tensor | None = None
    items: Any = None
    counted: Any = None
    last: Tensor | None = None

    def give(self, shard: Shard | None) -> None:
        """Tell every mechanism which part of the sequence it is given; ``None``: all."""
        for module in self.base.modules():
            if isinstance(module, Mechanism):
                module.shard = shard

    def enter(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Cut the arguments of the backbone."""
        signature = inspect.signature(type(base).forward)
        kwargs = arguments_by_name(type(base).forward, args, kwargs)
        tokens = kwargs.get("input_ids")
        tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
        if not isinstance(tokens, Tensor):
            raise MaskError("Sequence parallelism cuts input_ids or inputs_embeds, but neither was given.")
        shape = (tokens.shape[0], tokens.shape[1])
        self._check(kwargs, shape)
        self.base._check_inputs((), kwargs)  # of whole rows; finds the documents of positions that restart, and positions of documents
        mask = kwargs.get("attention_mask")
        mask = None if mask is None or bool(mask.all()) else mask.bool()
        documents = documents_of(kwargs, shape)
        kwargs = {name: value for name, value in kwargs.items() if name not in DOCUMENTS}
        if documents is not None and bool((documents[:, :1] == documents[:, -1:]).all()):
            documents = None  # one in each row
        rule = token_rule(self.base) if kwargs.get("global_attention_mask") is None else None
        if rule is not None:
            kwargs["global_attention_mask"] = global_tokens_of(rule, (), kwargs, documents)
        chosen = kwargs.get("global_attention_mask")
        if "position_ids" in signature.parameters and kwargs.get("position_ids") is None:
            kwargs["position_ids"] = self.base.own_positions(kwargs, shape, tokens.device)
        if kwargs.get("position_ids") is not None:
            self.last = kwargs["position_ids"].max()
        if kwargs.get("attention_mask") is None:  # a part's positions say nothing about documents
            kwargs["attention_mask"] = torch.ones(shape, dtype=torch.long, device=tokens.device)
        bounds, globals_ = cut_evenly(shape[1], self.processes), None if chosen is None else chosen != 0
        shard = Shard(self.group, bounds, self.rank, run_batch, mask, documents, globals_)
        self.shard = shard
        self.give(shard)
        for name, value in kwargs.items():
            if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[0] in (1, shape[0]) and value.shape[1] == shape[1]:
                kwargs[name] = value[:, shard.start : shard.stop]
        if "use_cache" in signature.parameters or getattr(base.config, "use_cache", False):
            kwargs["use_cache"] = False
        return (), kwargs

    def _check(self, kwargs: dict[str, Any], shape: tuple[int, int]) -> None:
        if shape[1] < self.processes:
            raise MaskError(f"{shape[1]} tokens cannot be cut over {self.processes} processes; every process needs at least one.")
        _refuse_second_text(kwargs)
        if kwargs.get("past_key_values") is not None or kwargs.get("use_cache"):
            raise MaskError("A sequence that is cut over processes has no decode cache; pass use_cache=False.")
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() != 2:
            raise MaskError("A sequence that is cut over processes takes an attention_mask (batch, tokens) only.")

    def ask_for_last(self, rotary: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Add the last position of the whole batch, on which the frequencies depend; :meth:`drop_last` takes it away again."""
        given = {**dict(zip(("x", "position_ids", "layer_type"), args, strict=False)), **kwargs}
        positions = given["position_ids"]
        assert self.last is not None
        return (), {**given, "position_ids": torch.cat([positions, self.last.expand(len(positions), 1)], 1)}

    def drop_last(self, rotary: nn.Module, args: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``(B, n, D)`` of the process's own positions."""
        return outputs[0][:, :-1], outputs[1][:, :-1]

    def leave(self, base: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        """Bring the hidden states together for heads that need them, and adapt what reads the first token."""
        assert self.shard is not None
        shard, hidden = self.shard, outputs[0]
        if not self.by_token:
            hidden = shard.reach(hidden, [(0, shard.length)] * self.processes, 1)
            _put(outputs, "last_hidden_state", hidden)
        pooler = getattr(base, "pooler", None)
        if isinstance(pooler, nn.Module) and getattr(outputs, "pooler_output", None) is not None:
            first = torch.zeros(len(hidden), 1, dtype=torch.long, device=hidden.device)
            _put(outputs, "pooler_output", pooler(shard.tokens(hidden[:, None], first)[:, 0] if self.by_token else hidden))
        return outputs

    def take_labels(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The labels of every token are kept back: the loss is made of all processes' parts."""
        kwargs = arguments_by_name(type(model).forward, args, kwargs)
        _refuse_second_text(kwargs)  # a head hands its memory down as a cache
        self.labels = self.items = None
        if self.by_token:
            if isinstance(keep := kwargs.get("logits_to_keep", 0), Tensor) or keep:
                raise OptionError(
                    "logits_to_keep would count in each process's part of a sequence; leave it out, or generate outside of the context."
                )
            labels, shifted = kwargs.pop("labels", None), kwargs.pop("shift_labels", None)
            self.items = kwargs.pop("num_items_in_batch", None)
            self.counted = None if labels is None else (labels != IGNORED).sum()  # as with_auxiliary_loss counts
            looks_ahead = type(model).__name__.endswith(BY_TOKEN[:2])
            if looks_ahead and labels is not None and shifted is None:
                shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
            self.labels = shifted if looks_ahead else labels
            tokens = kwargs.get("input_ids")
            if isinstance(tokens, Tensor) and self.labels is not None and self.labels.shape != tokens.shape:
                raise MaskError(f"labels have shape {tuple(self.labels.shape)}, but must be one for each token, {tuple(tokens.shape)}.")
        return (), kwargs

    def add_loss(self, model: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        """The loss of the whole batch."""
        if self.labels is None:
            return outputs
        assert self.shard is not None
        if isinstance(outputs, tuple):
            raise OptionError(BY_NAME)
        labels = self.labels.to(outputs.logits.device)
        own = labels[:, self.shard.start : self.shard.stop]
        items = (labels != IGNORED).sum().clamp(min=1) if self.items is None else torch.as_tensor(self.items, device=labels.device)
        logits = outputs.logits.flatten(0, -2)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(logits, own.flatten(), reduction="sum", ignore_index=IGNORED) / items
        added = auxiliary_loss(model) if model.training else None
        if self.items is None:
            loss = _WholeLoss.apply(loss, self.group, self.processes)
        elif added is not None and self.counted is not None:  # the batch's share of it, a part of which is each process's
            added = added * self.counted.to(items.device) / items / self.processes
        _put(outputs, "loss", loss if added is None else loss + added.to(loss))
        return outputs


def _refuse_second_text(kwargs: dict[str, Any]) -> None:
    """Refuse tokens beside those that are cut: earlier segments, and an encoder's."""
    given = next((name for name in ("memory", "encoder_hidden_states") if kwargs.get(name) is not None), None)
    if given is not None:
        raise MaskError(f"A sequence that is cut over processes cannot be given {given}; leave that, or sequence parallelism, out.")


def _put(outputs: Any, name: str, value: Tensor) -> None:
    if not hasattr(outputs, name):
        raise OptionError(BY_NAME)
    outputs[name] = value


class _WholeLoss(torch.autograd.Function):
    """The sum of the processes' parts of a loss; the gradients' mean over the processes is the gradient of that sum."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, group: Any, processes: int) -> Tensor:
        ctx.processes = processes
        loss = loss.clone()
        dist.all_reduce(loss, group=group)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.processes, None, None


__all__ = ["sequence_parallel"]
