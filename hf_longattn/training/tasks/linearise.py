"""Train the mechanisms of a converted model to imitate softmax attention.

Attention transfer, the first stage of LoLCATs (Zhang et al. 2024): everything but the mechanisms' parameters is
frozen, and each layer's mechanism learns the output of softmax attention for the same queries, keys and values. In the
second stage, the whole model learns from text (``longattn train clm --lora-rank 8``) or from the original's
predictions (``longattn train distill --method logits``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction, PreTrainedModel

from hf_longattn.data.batching import RepeatableMasks
from hf_longattn.data.rows import read_texts
from hf_longattn.data.tokenization import input_length, to_inputs
from hf_longattn.engines.call import AttentionCall
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.evaluation.summaries import in_percent, mean_and_error
from hf_longattn.loading import fetch_model, load_config, load_model, load_padding_tokenizer, read_config
from hf_longattn.mechanisms import Mechanism
from hf_longattn.mechanisms.common.capabilities import NeedsWholeBatch
from hf_longattn.mechanisms.common.registry import mechanism_from
from hf_longattn.modeling.attach.attention_sites import AttentionSite, mechanisms_on, self_attention
from hf_longattn.modeling.family.definition import known_family
from hf_longattn.modeling.family.sliding_window import base_attention, own_windows
from hf_longattn.modeling.generic import check_class
from hf_longattn.modeling.losses import auxiliary_loss
from hf_longattn.training.arguments import ModelArguments, argument
from hf_longattn.training.lm import TextDataArguments, TextTrainingArguments
from hf_longattn.training.run import begin, finish
from hf_longattn.training.trainer import LongTrainer, batch_rows

Layer = tuple[AttentionSite, Mechanism, Mechanism]
"""Where a layer's attention is, its mechanism, and the module that replaces the mechanism during a training step."""


@dataclass
class LineariseModelArguments(ModelArguments):
    """A converted model. Only its mechanisms are trained, without LoRA updates."""

    lora_rank: int = field(default=0, init=False)


@dataclass
class LineariseTrainingArguments(TextTrainingArguments):
    """``TrainingArguments`` with the learning rate of this task."""

    learning_rate: float = argument(
        1e-2, "Peak learning rate. The best rates of two mechanisms may differ by more than ten times."
    )


ARGUMENTS = (LineariseModelArguments, TextDataArguments, LineariseTrainingArguments)


def main(
    model_args: LineariseModelArguments, data_args: TextDataArguments, training_args: LineariseTrainingArguments
) -> dict[str, Any]:
    """Train the mechanisms of a model to imitate softmax attention, evaluate and save it. Returns the log."""
    begin(model_args, data_args, training_args)
    name = model_args.model
    config = load_config(name)
    family = known_family(config) if config.model_type.startswith("long_") else None
    if family is None:
        raise CheckpointError(
            f"{name!r} is not a converted text model; type longattn convert {name} DST --mechanism hedgehog."
        )
    if config.is_encoder_decoder:
        raise CheckpointError(
            f"{name!r} has an encoder and a decoder, but attention is transferred in models of one stack; type "
            "longattn train seq2seq."
        )
    class_name = (config.architectures or [family.base_model_name])[0]
    model = load_model(family.model_class(class_name), name)
    folder = fetch_model(name)
    check_class(name, folder, read_config(folder))
    tokenizer = load_padding_tokenizer(name, config)
    layers = prepared_layers(model)
    length = input_length(model, tokenizer, data_args.max_length)
    rows, held_out = (to_inputs(data, tokenizer, length) for data in read_texts(data_args, training_args.seed))
    if model.base_model is not model:
        model.forward = partial(model.base_model)  # without the head, whose predictions are not used
    masked = type(model).__name__.endswith("ForMaskedLM")  # such a model was trained on masked texts
    masks = RepeatableMasks(tokenizer, mlm=masked, seed=training_args.seed)
    trainer = TransferTrainer(model, training_args, masks, rows, held_out, tokenizer, layers=layers)
    return finish(trainer, model_args, data_args, input_length=length)


class TransferTrainer(LongTrainer):
    """Trains and evaluates on the distance from softmax attention, summed over layers.

    ``layers`` are the layers of :func:`prepared_layers`.
    """

    shards = False

    def __init__(self, *args: Any, layers: list[Layer], **kwargs: Any) -> None:
        super().__init__(*args, compute_metrics=errors_in_percent, **kwargs)
        self.label_names = ["labels"]  # evaluations need it, even if the model takes no labels
        self.layers = layers

    def items_of(self, inputs: Mapping[str, Any]) -> int:
        return batch_rows(inputs)

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The distance of a batch, and the outputs of the base model. The labels are not used."""
        training = model.training
        model.eval()  # the original runs without dropout
        for _, mechanism, _ in self.layers:
            mechanism.train(training)
        with transferring(self.accelerator.unwrap_model(model), self.layers):
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        return outputs["loss"], outputs


def errors_in_percent(prediction: EvalPrediction) -> dict[str, float]:
    """The errors of attention in per cent, of all layers and of each layer, with standard errors over inputs."""
    errors = np.asarray(prediction.predictions)  # (inputs, layers)
    columns = {
        "attention_error": errors.mean(1),
        **{f"layer_{number}": errors[:, number] for number in range(errors.shape[1])},
    }
    return in_percent({name: mean_and_error(values.tolist()) for name, values in columns.items()}, len(errors))


def prepared_layers(model: PreTrainedModel) -> list[Layer]:
    """Freeze a model except its mechanisms, and make the modules that replace the mechanisms during a step.

    The replacement is an :class:`AttentionTransfer` if the mechanism has parameters, or else softmax attention.

    Raises:
        OptionError: no mechanism has parameters.
    """
    sites = [site for site in self_attention(model) if mechanisms_on(site.module)]
    mechanisms: list[Any] = [site.mechanism for site in sites]
    learning = {
        parameter for mechanism in mechanisms for parameter in mechanism.parameters() if parameter.requires_grad
    }
    if not learning:
        names = ", ".join(dict.fromkeys(mechanism.name for mechanism in mechanisms))
        raise OptionError(
            f"The model has {names}, without parameters that could learn; convert it with a mechanism such as "
            "hedgehog."
        )
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in learning)
    base = base_attention(own_windows(model.config))  # full attention, or windows if the base model has them
    layers: list[Layer] = []
    for site, mechanism in zip(sites, mechanisms, strict=True):
        name, options = base.for_layer(site.layer)
        softmax = mechanism_from(
            name,
            options,
            num_heads=mechanism.num_heads,
            head_dim=mechanism.head_dim,
            max_length=mechanism.sizes.max_length,
        )
        replacement = softmax
        if not learning.isdisjoint(mechanism.parameters()):
            replacement = AttentionTransfer(mechanism, softmax)
        layers.append((site, mechanism, replacement))
    return layers


@contextmanager
def transferring(model: PreTrainedModel, layers: list[Layer]) -> Iterator[None]:
    """Within the context, the model computes softmax attention, and its mechanisms are compared with it.

    The model then returns only ``loss``, the sum over layers, and ``distances (B, layers)``.
    """
    transfers = [replacement for _, _, replacement in layers if isinstance(replacement, AttentionTransfer)]

    def outputs(*_: Any) -> dict[str, Tensor]:
        losses = [transfer.loss for transfer in transfers]
        distances = [transfer.distances for transfer in transfers]
        return {"loss": torch.stack(losses).sum(), "distances": torch.stack(distances, dim=1)}

    # The loss is an output of the model, because DistributedDataParallel looks for unused parameters in the outputs.
    handle = model.register_forward_hook(outputs)
    try:
        for site, _, replacement in layers:
            site.put(replacement)
        yield
    finally:
        handle.remove()
        for site, mechanism, _ in layers:
            site.put(mechanism)


class AttentionTransfer(Mechanism, NeedsWholeBatch):
    """Returns softmax attention, and measures how far the output of the layer's mechanism is from it.

    Later layers therefore get the same hidden states as in the original model, and the loss of a layer trains only the
    layer's own mechanism.

    Attributes:
        student: the layer's mechanism.
        softmax: the attention that it imitates.
        distances: for each input of the last forward pass, ``(B,)``: the mean squared error of the mechanism's output
            over the mean square of the output of softmax attention. Both are means over the real tokens, before the
            output projection.
        loss: the mean of ``distances`` plus the auxiliary loss of the mechanism, if it has one.
    """

    name = "attention_transfer"

    def __init__(self, student: Mechanism, softmax: Mechanism) -> None:
        super().__init__(student.sizes, student.options)
        self.student, self.softmax = student, softmax
        self.causal, self.layer = student.causal, student.layer
        shared = ("ignores_padding", "takes_hidden_states", "takes_globals", "takes_score_mod")
        self.capabilities = self.capabilities.but(**{name: getattr(student.capabilities, name) for name in shared})

    def needs_one_call(self) -> bool:
        return True  # a second call for the same batch would overwrite ``distances``

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """Softmax attention ``(B, H, N, D)``. Sets ``distances`` and ``loss``."""
        target = self.softmax(q, k, v, call)
        output = self.student(q, k, v, call)
        squared = mean_square(output.float() - target.float(), call.key_mask)
        self.distances = squared / mean_square(target.float(), call.key_mask).clamp(min=1e-12)
        self.loss = self.distances.mean()
        auxiliary = auxiliary_loss(self.student)
        if auxiliary is not None:
            self.loss = self.loss + auxiliary.to(self.loss)
        return target

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        return self.softmax.dense_weights(q, k, call)

    def covers(self, length: int, causal: bool = False) -> bool:
        return True


def mean_square(x: Tensor, key_mask: Tensor | None) -> Tensor:
    """Mean square ``(B,)`` of ``x (B, H, N, D)`` over heads, real tokens and channels.

    ``key_mask (B, Nk)`` is True for real keys; ``None`` = all. The N queries of ``x`` are the last of the keys.
    """
    squares = x.square().mean(-1)
    if key_mask is None:
        return squares.mean((1, 2))
    real = key_mask[:, None, -squares.shape[2] :]
    return squares.masked_fill(~real, 0.0).sum((1, 2)) / (real.sum((1, 2)) * squares.shape[1]).clamp(min=1)
