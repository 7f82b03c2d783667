"""Losses of heads: computed from a part of the logits at a time, with auxiliary losses of mechanisms, and as a batch's
share of a training step's loss."""

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
    """Number of labels over which a head's loss is a mean. ``None`` if there are no labels, or if the loss is a mean
    over rows.

    Args:
        head: the name of the model class.
        inputs: the batch, with ``labels`` or ``shift_labels``.
    """
    labels = inputs.get("shift_labels")
    if labels is None:
        labels = inputs.get("labels")
        if isinstance(labels, Tensor) and head.endswith(CAUSAL_LANGUAGE_MODELS):
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
    """A batch's share of the mean loss of a training step of several batches, ``loss · count / items``. The shares of
    all batches add up to the step's mean.

    Args:
        loss: the batch's mean loss. It may be NaN if the batch has no labels; the share is 0 then.
        count: number of labels in the batch.
        items: number of labels in the step.
    """
    share = count / torch.where(count > 0, torch.as_tensor(items, device=count.device), 1)
    return torch.where(count > 0, loss, 0.0) * share.to(loss)


LOGITS_AT_ONCE = 2**28
"""Maximum bytes of the logits that are in memory at a time while a loss is computed. Untuned."""


@dataclass(frozen=True, eq=False)
class Logits(LazyTensor):
    """Logits ``(…, vocabulary)`` of a language model that are computed when they are read.

    ``torch.nn.functional.cross_entropy`` computes their loss without holding all logits in memory. A copy or a pickle
    is an ordinary tensor.

    Args:
        head: the projection to the vocabulary.
        hidden: the input of the projection, ``(…, width)``.
        steps: the functions that the model applies to the logits after the projection: scaling by a number, and
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
        """The dtype of the logits and of their loss."""
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
        """The logits after a further function ``step``."""
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
        """Compute the usual cross-entropy from the hidden states, and every other function from the logits."""
        kwargs = kwargs or {}
        # a cross-entropy with only the arguments that the method below supports
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
        """The cross-entropy of logits ``(n, vocabulary)`` and ``target (n,)``, like that of PyTorch.

        It is computed in float32 or wider. In training on an accelerator, half-precision logits and the losses of
        tokens stay in half precision, and the backward pass computes the logits again.
        """
        weight = self.head.weight
        bias = self.head.bias
        dtype = replace(self, steps=()).dtype  # of the projection's output
        trains = torch.is_grad_enabled() and (self.hidden.requires_grad or weight.requires_grad)
        if not trains or weight.device.type == "cpu":
            dtype = torch.promote_types(dtype, torch.float32)
        # scaling the logits is the same as scaling the projection's input and its bias
        scaling = [step for step in self.steps if step is not Tensor.float]
        rows_at_once = max(1, LOGITS_AT_ONCE // (4 * len(weight)))
        losses = F.linear_cross_entropy(
            _after(scaling, self.hidden.to(dtype)),
            weight.to(dtype),
            target,
            linear_bias=None if bias is None else _after(scaling, bias.to(dtype)),
            reduction="none" if reduction == "none" or dtype.itemsize < 4 else "sum",
            ignore_index=ignore_index,
            options=nn.LinearCrossEntropyOptions(allow_retain_graph=True, batch_chunk_size=rows_at_once),
        )
        if losses.requires_grad:
            losses.register_hook(_refuse_second_derivatives)
        if reduction == "none":
            return losses.to(self.dtype)
        total = losses.sum(dtype=torch.promote_types(dtype, torch.float32))
        if reduction == "mean":  # without labels, the mean is NaN with gradients of 0
            count = (target != ignore_index).sum()
            total = torch.where(count > 0, total / count.clamp(min=1), torch.nan)
        return total.to(self.dtype)


def _after(steps: Iterable[Callable[[Tensor], Tensor]], value: Tensor) -> Tensor:
    """``value`` after all functions in ``steps``, in this order."""
    for step in steps:
        value = step(value)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.dim() == 0)


def _refuse_second_derivatives(gradient: Tensor) -> None:
    """Backward hook of a loss that refuses ``create_graph=True``. ``linear_cross_entropy`` computes gradients in its
    forward pass, so second derivatives would be zero instead of missing."""
    if torch.is_grad_enabled():
        raise InputError(
            "create_graph=True was given, but the loss that the model computes from labels has no second derivatives, "
            "because the logits are computed piece by piece; call the model without labels, and pass its logits to "
            "torch.nn.functional.cross_entropy."
        )


@contextmanager
def deferred_logits(model: Any) -> Iterator[None]:
    """Context in which a causal language model returns :class:`Logits`, if its head is a plain ``nn.Linear``.

    A head that peft trains completely counts as plain. The logits stay a tensor in graphs, and if the head has hooks,
    or weights that are quantised, adapted or spread over devices.
    """
    in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    head: Any = None
    if not in_graph and type(model).__name__.endswith(CAUSAL_LANGUAGE_MODELS):
        head = model.get_output_embeddings()
    # peft's wrapper holds the original head and the trained one
    layers: list[Any] = [*head.modules()] if type(head).__name__ == "ModulesToSaveWrapper" else [head]
    heads: list[Any] = [
        layer
        for layer in layers
        if type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and "forward" not in vars(layer)
        and not hasattr(layer.weight, "ds_id")  # DeepSpeed gathers a parameter only while its own layer runs
        and not has_hooks(layer)
    ]
    for layer in heads:
        layer.forward = partial(Logits, layer)
    try:
        yield
    finally:
        for layer in heads:
            del layer.forward
