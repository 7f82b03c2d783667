"""A head's loss: in pieces of the logits, with auxiliary losses of mechanisms, and as a batch's share of a step's
loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.batch import autocasts
from ..errors import InputError
from ..mechanisms.common.capabilities import AddsLoss
from ..mechanisms.common.masked import has_hooks
from .family.definition import CAUSAL_LANGUAGE_MODELS
from .lazy_tensor import LazyTensor

IGNORED_LABEL = -100
"""The label of tokens that do not count in a loss, as in ``torch.nn.functional.cross_entropy``."""
LOSS_BY_ROW = ("ForCTC", "ForRNNT", "ForTDT", "ForQuestionAnswering", "ForQuestionAnsweringSimple")
"""Suffixes of class names with a loss that is a mean over rows, not over labels."""


def label_count(head: str, inputs: Mapping[str, Any]) -> Tensor | None:
    """Number of labels over which a head averages; ``None`` if it averages over rows.

    Args:
        head: the name of the model class.
        inputs: the batch, with ``labels`` (or ``shift_labels``, as Trainer counts them).
    """
    labels = inputs.get("shift_labels")
    if labels is None and isinstance(labels := inputs.get("labels"), Tensor) and head.endswith(CAUSAL_LANGUAGE_MODELS):
        labels = labels[..., 1:]  # the first token is not predicted
    if not isinstance(labels, Tensor) or head.endswith(LOSS_BY_ROW):
        return None
    return ((labels != IGNORED_LABEL) | labels.is_floating_point()).sum()  # every float is a number to predict


def auxiliary_loss(model: nn.Module) -> Tensor | None:
    """The sum of :meth:`AddsLoss.auxiliary_loss` over the mechanisms of ``model`` that have one; ``None`` without
    any."""
    losses = (module.auxiliary_loss() for module in model.modules() if isinstance(module, AddsLoss))
    # Under FSDP, a parameter outside its layer is a DTensor with one process's share. A loss computed from it is a
    # DTensor, too.
    terms = [loss.full_tensor() if hasattr(loss, "full_tensor") else loss for loss in losses]
    return sum(terms[1:], terms[0]) if terms else None


def share_of_step(loss: Tensor, count: Tensor, items: Any) -> Tensor:
    """A batch's part of a step's mean, ``loss`` times ``count / items``. ``loss`` is a mean over ``count`` labels.

    The parts of all batches add up to that mean. A batch without labels has a part of 0; its mean is NaN.
    """
    share = count / torch.where(count > 0, torch.as_tensor(items, device=count.device), 1)
    return torch.where(count > 0, loss, 0.0) * share.to(loss)


LOGITS_AT_ONCE = 2**28
"""Maximum bytes of the logits that a loss holds at a time. Untuned."""


@dataclass(frozen=True, eq=False)
class Logits(LazyTensor):
    """Logits ``(…, vocabulary)`` of a language model that are computed when they are read.

    ``torch.nn.functional.cross_entropy`` of them never holds all logits in memory. Copies are tensors.

    Args:
        head: the projection to the vocabulary. hidden: its input ``(…, width)``.
        steps: linear functions of the logits that the model applies after the projection: scaling, and
            ``Tensor.float``.
    """

    head: nn.Linear
    hidden: Tensor
    steps: tuple[Callable[[Tensor], Tensor], ...] = ()

    def dense(self) -> Tensor:
        """The logits as the model computes them."""
        return _after(self.steps, F.linear(self.hidden, self.head.weight, self.head.bias))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the logits and of their loss."""
        if Tensor.float in self.steps:
            return torch.float32
        return torch.get_autocast_dtype(self.device.type) if autocasts(self.hidden) else self.head.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.hidden.shape[:-1], self.head.out_features))

    def then(self, step: Callable[[Tensor], Tensor]) -> Logits:
        """The logits after a further linear function."""
        return replace(self, steps=(*self.steps, step))

    def float(self) -> Logits:
        return self.then(Tensor.float)

    def contiguous(self) -> Logits:
        return self

    def __mul__(self, factor: Any) -> Any:
        return self.then(lambda value: value * factor) if _is_number(factor) else self.dense() * factor

    def __truediv__(self, divisor: Any) -> Any:
        return self.then(lambda value: value / divisor) if _is_number(divisor) else self.dense() / divisor

    def view(self, *shape: int) -> Any:
        if shape != (-1, self.head.out_features):
            return self.dense().view(*shape)
        return replace(self, hidden=self.hidden.flatten(0, -2))

    def __getattr__(self, name: str) -> Any:
        if name == "retain_grad" or (name.endswith("_") and not name.endswith("__")):
            raise AttributeError(
                f"{name} of logits would change a copy, since they are computed when they are read; use "
                "logits.dense()."
            )
        return super().__getattr__(name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dense().__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            function is F.cross_entropy
            and isinstance(args[0], cls)
            and args[0].hidden.dim() == 2
            and args[1].dtype == torch.long
            and kwargs["label_smoothing"] == 0.0
            and all(kwargs[name] is None for name in ("weight", "size_average", "reduce"))
        ):
            return args[0].cross_entropy(args[1], kwargs["reduction"], kwargs["ignore_index"])
        return super().__torch_function__(function, types, args, kwargs)

    def cross_entropy(self, target: Tensor, reduction: str, ignore_index: int) -> Tensor:
        """The cross-entropy of logits ``(n, vocabulary)`` and ``target (n,)``, as PyTorch's.

        It is computed in float32 or wider. In training on an accelerator, half-precision logits stay in half
        precision, as does each token's loss, and the backward pass computes the logits again.
        """
        weight = self.head.weight
        bias = self.head.bias
        dtype = replace(self, steps=()).dtype
        trains = torch.is_grad_enabled() and (self.hidden.requires_grad or weight.requires_grad)
        if not trains or weight.device.type == "cpu":
            dtype = torch.promote_types(dtype, torch.float32)
        scaling = [step for step in self.steps if step is not Tensor.float]
        losses = F.linear_cross_entropy(
            _after(scaling, self.hidden.to(dtype)),
            weight.to(dtype),
            target,
            linear_bias=None if bias is None else _after(scaling, bias.to(dtype)),
            reduction="none" if reduction == "none" or dtype.itemsize < 4 else "sum",
            ignore_index=ignore_index,
            options=nn.LinearCrossEntropyOptions(
                allow_retain_graph=True, batch_chunk_size=max(1, LOGITS_AT_ONCE // (4 * len(weight)))
            ),
        )
        if losses.requires_grad:
            losses.register_hook(_refuse_second_derivatives)
        if reduction == "none":
            return losses.to(self.dtype)
        total = losses.sum(dtype=torch.promote_types(dtype, torch.float32))
        if reduction == "mean":  # without labels NaN, with gradients of 0
            count = (target != ignore_index).sum()
            total = torch.where(count > 0, total / count.clamp(min=1), torch.nan)
        return total.to(self.dtype)


def _after(steps: Iterable[Callable[[Tensor], Tensor]], value: Tensor) -> Tensor:
    """``value`` after the functions ``steps``."""
    for step in steps:
        value = step(value)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.dim() == 0)


def _refuse_second_derivatives(gradient: Tensor) -> None:
    """Hook of a loss. ``linear_cross_entropy`` computes gradients in its forward pass, so that they seem to be
    constant."""
    if torch.is_grad_enabled():
        raise InputError(
            "create_graph=True was given, but the loss that the model computes from labels has no second derivatives, "
            "because the logits are computed piece by piece; call the model without labels, and pass its logits to "
            "torch.nn.functional.cross_entropy."
        )


@contextmanager
def deferred_logits(model: Any) -> Iterator[None]:
    """Within the context, the logits of a causal language model are :class:`Logits` if its head is a plain
    ``nn.Linear``.

    Weights that are quantised, adapted, or spread over devices give a tensor, as do graphs, and heads with hooks. A
    head that peft trains is plain.
    """
    in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    head: Any = None
    if not in_graph and type(model).__name__.endswith(CAUSAL_LANGUAGE_MODELS):
        head = model.get_output_embeddings()
    layers: list[Any] = [*head.modules()] if type(head).__name__ == "ModulesToSaveWrapper" else [head]
    heads: list[Any] = [
        layer
        for layer in layers
        if type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and "forward" not in vars(layer)
        and not hasattr(layer.weight, "ds_id")  # DeepSpeed's parameters are whole in their layer only
        and not has_hooks(layer)
    ]
    for layer in heads:
        layer.forward = partial(Logits, layer)
    try:
        yield
    finally:
        for layer in heads:
            del layer.forward
