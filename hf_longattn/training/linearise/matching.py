"""Stage 1: one forward pass of the frozen original in which every layer's mechanism is compared with softmax attention.

A :class:`Matching` mechanism is put into each self-attention module. It runs softmax attention and the mechanism on the original's q, k and
v, records the difference, and returns the output of softmax attention. Later layers thus see the original's states, and the loss of a layer
trains only this layer's mechanism.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.data.tokenization import IGNORED
from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.errors import OptionError
from hf_longattn.evaluation.summaries import ratio_and_error
from hf_longattn.mechanisms import Mechanism
from hf_longattn.mechanisms.common.registry import mechanism_from
from hf_longattn.modeling.attach.attention_sites import attention_sites, mechanisms_restored
from hf_longattn.modeling.family.sliding_window import base_attention, own_windows
from hf_longattn.modeling.inference.optimize import evaluating
from hf_longattn.modeling.run.losses import auxiliary_loss

TINY = 1e-12
Batch = Mapping[str, Tensor]


class Matching(Mechanism):
    """Runs ``teacher`` (softmax attention) and compares ``student``. It replaces the student in an attention module.

    After a forward pass ``errors`` holds the mean squared error of the outputs before the output projection, and that error as a share
    of the teacher's mean square, both over an input's tokens that are not padding, and mean over inputs. ``loss``, which trains the
    student, is that share, and what the student adds of its own.
    """

    name = "matching"

    def __init__(self, student: Mechanism, teacher: Mechanism, learns: bool) -> None:
        super().__init__(student.num_heads, student.head_dim, student.hidden_size, student.max_length, student.options)
        self.student, self.teacher, self.learns = student, teacher, learns
        self.causal, self.layer = student.causal, student.layer
        self.traits = self.traits.but(
            ignores_padding=student.traits.ignores_padding,
            needs_whole_batch="always",
            takes_hidden_states=student.traits.takes_hidden_states,
            takes_globals=student.traits.takes_globals,
            takes_score_mod=student.traits.takes_score_mod,
            token_rule=student.traits.token_rule,
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The teacher's output; sets ``loss`` and ``errors``."""
        call, padding = call.replace(dropout=0.0), call.key_mask
        with torch.no_grad():
            target = self.teacher(q, k, v, call)
        q, k, v = q.detach(), k.detach(), v.detach()
        with torch.set_grad_enabled(self.learns and torch.is_grad_enabled()):
            output = self.student(q, k, v, call)
            squared = mean_square(output.float() - target.float(), padding)
            share = squared / mean_square(target.float(), padding).clamp(min=TINY)
            self.errors = torch.stack([squared.mean(), share.mean()]).detach()
            self.loss = share.mean()
            if (auxiliary := auxiliary_loss(self.student)) is not None:
                self.loss = self.loss + auxiliary.to(self.loss)
        if self.learns and torch.is_grad_enabled() and not self.loss.requires_grad:
            raise OptionError(
                f"Stage 1 has nothing to train in mechanism {self.student.name!r}: its parameters do not affect a layer's output for given "
                "queries, keys and values; give --stage 2."
            )
        return target

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The teacher's."""
        return self.teacher.dense_weights(q, k, call)

    def covers(self, length: int, causal: bool = False) -> bool:
        return True


def own_attention(config: Any) -> LongAttentionConfig:
    """The softmax attention of every layer of the base: over all keys, or over its sliding window."""
    return base_attention(own_windows(config))


def own_softmax(config: Any, layer: int, like: Mechanism) -> Mechanism:
    """The softmax attention of a layer of the base, with as many heads as ``like``."""
    name, options = own_attention(config).for_layer(layer)
    return mechanism_from(name, options, num_heads=like.num_heads, head_dim=like.head_dim, max_length=like.max_length)


def mean_square(x: Tensor, padding: Tensor | None) -> Tensor:
    """Mean square ``(B,)`` of each input of ``x (B, H, N, D)`` over real tokens (``padding (B, Nk)``, True = real)."""
    squares = x.square().mean(-1)
    if padding is None:
        return squares.mean((1, 2))
    real = padding[:, None, -squares.shape[2] :]
    return squares.masked_fill(~real, 0.0).sum((1, 2)) / (real.sum((1, 2)) * squares.shape[1]).clamp(min=1)


class MatchingModel(nn.Module):
    """A model whose mechanisms are :class:`Matching`, as a trainable module: its loss is the sum over the layers.

    ``state_dict`` holds only the mechanisms' parameters; everything else is the frozen original.
    """

    main_input_name = "input_ids"

    def __init__(self, model: PreTrainedModel, layers: dict[str, Matching]) -> None:
        super().__init__()
        self.model, self.layers = model, layers
        self.students = nn.ModuleList([matching.student for matching in layers.values()])

    def train(self, mode: bool = True) -> MatchingModel:
        """The original is frozen and runs without dropout; only the mechanisms train."""
        super().train(mode)
        self.model.eval()
        self.students.train(mode)
        return self

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> dict[str, Tensor]:
        """``loss``: the sum over the layers that learn; ``layer_losses (L,)``: each of them; ``errors (L, 2)``: see :class:`Matching`."""
        self.model.base_model(input_ids=input_ids, attention_mask=attention_mask)
        losses = torch.stack([matching.loss for matching in self.layers.values()])
        errors = torch.stack([matching.errors for matching in self.layers.values()])
        learns = torch.tensor([matching.learns for matching in self.layers.values()], device=losses.device)
        return {"loss": losses[learns].sum(), "layer_losses": losses.detach(), "errors": errors}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        prefix = kwargs.get("prefix", "")
        return {f"{prefix}{name}": value.detach() for name, value in self.students.named_parameters(prefix="students")}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        parameters = {name.removeprefix("students."): value for name, value in state_dict.items()}
        buffers = dict(self.students.named_buffers())
        return self.students.load_state_dict({**buffers, **parameters}, strict=strict, assign=assign)


@contextmanager
def matching(model: PreTrainedModel) -> Iterator[dict[str, Matching]]:
    """Put a :class:`Matching` into every self-attention module within the context. The model's output is the original's, and only the
    mechanisms' parameters get gradients.

    Yields:
        The mechanisms' names and the :class:`Matching` in their place.
    """
    sites = [site for site in attention_sites(model) if not site.cross]
    students: list[Mechanism] = [site.mechanism for site in sites]  # type: ignore[misc]
    taking = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    learning = [[p for p in student.parameters() if p.requires_grad] for student in students]
    model.requires_grad_(False)
    for parameters in learning:
        for parameter in parameters:
            parameter.requires_grad_(True)
    placed = {
        site.mechanism_name: Matching(student, own_softmax(model.config, site.layer, student), bool(parameters))
        for site, student, parameters in zip(sites, students, learning, strict=True)
    }
    try:
        with mechanisms_restored(sites), without_cache(model):
            for site in sites:
                site.put(placed[site.mechanism_name])
            yield placed
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(taking[name])


@contextmanager
def without_cache(model: PreTrainedModel) -> Iterator[None]:
    """Within the context a decoder makes no cache: every pass is over whole inputs."""
    caching = getattr(model.config, "use_cache", None)
    if caching is None:
        yield
        return
    model.config.use_cache = False
    try:
        yield
    finally:
        model.config.use_cache = caching


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, batches: Sequence[Batch], layers: dict[str, Matching] | None = None) -> dict[str, Any]:
    """Measure ``model`` in its current state.

    Args:
        batches: with labels, ``IGNORED`` = not predicted.
        layers: of :func:`matching`, for the layers' errors.

    Returns:
        ``loss``: nats per predicted token; ``loss_se``: its standard error over inputs, as of a ratio; ``n``: the inputs; ``predictions``:
        the predicted tokens; and with ``layers`` ``errors``: for each layer its name, the mean
        squared error of its mechanism's output, absolute and as a share of the softmax output's mean square.
    """
    parts: list[tuple[float, int, int]] = []  # of each batch: loss, predictions, inputs
    errors: torch.Tensor | None = None
    with evaluating(model):
        for batch in batches:
            batch = {name: value.to(model.device) for name, value in batch.items()}
            labels = batch["labels"][:, 1:] if shifted(model) else batch["labels"]
            parts.append((float(model(**batch).loss), int((labels != IGNORED).sum()), len(labels)))
            if layers is not None:
                batch_errors = torch.stack([layer.errors for layer in layers.values()]) * len(labels)
                errors = batch_errors if errors is None else errors + batch_errors
    predictions, inputs = sum(count for _, count, _ in parts), sum(count for _, _, count in parts)
    loss, error = ratio_and_error([(mean * count, count) for mean, count, _ in parts])
    result: dict[str, Any] = {"loss": loss, "loss_se": error, "n": inputs, "predictions": predictions}
    if layers is not None and errors is not None:
        rows = (errors / inputs).tolist()
        result["errors"] = [{"layer": name, "mean_squared_error": row[0], "share": row[1]} for name, row in zip(layers, rows, strict=True)]
    return result


def measured(model: PreTrainedModel, batches: Sequence[Batch]) -> dict[str, Any]:
    """``original``: the loss with softmax attention in every layer; ``layers``: the mechanisms' errors; ``loss`` with the mechanisms,
    ``loss_se``, and ``n`` inputs."""
    with matching(model) as layers:
        original = held_out_loss(model, batches, layers)
    result = held_out_loss(model, batches)
    return {"original": original["loss"], "layers": original["errors"], **{name: result[name] for name in ("loss", "loss_se", "n")}}


def shifted(model: PreTrainedModel) -> bool:
    """Whether labels are compared with the outputs one position earlier, as in decoders."""
    return any(site.causal for site in attention_sites(model) if not site.cross)
