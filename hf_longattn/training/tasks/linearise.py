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
"""A layer's attention module, its mechanism, and the module that replaces the mechanism during a step."""


@dataclass
class LineariseModelArguments(ModelArguments):
    """A converted model, whose mechanisms alone are trained."""

    lora_rank: int = field(default=0, init=False)


@dataclass
class LineariseTrainingArguments(TextTrainingArguments):
    learning_rate: float = argument(
        1e-2, "Peak learning rate. The best rates of two mechanisms may differ by more than ten times."
    )


ARGUMENTS = (LineariseModelArguments, TextDataArguments, LineariseTrainingArguments)


def main(
    model_args: LineariseModelArguments, data_args: TextDataArguments, training_args: LineariseTrainingArguments
) -> dict[str, Any]:
    begin(model_args, data_args, training_args)
    name, config = model_args.model, load_config(model_args.model)
    family = known_family(config) if config.model_type.startswith("long_") else None
    if family is None:
        raise CheckpointError(
            f"{name!r} is not a converted text model; type longattn convert {name} DST --mechanism hedgehog."
        )
    if config.is_encoder_decoder:
        raise CheckpointError(
            f"{name!r} has two stacks, and attention is transferred in one; type longattn train seq2seq."
        )
    model = load_model(family.model_class((config.architectures or [family.base_model_name])[0]), name)
    check_class(name, folder := fetch_model(name), read_config(folder))
    tokenizer = load_padding_tokenizer(name, config)
    layers = prepared_layers(model)
    length = input_length(model, tokenizer, data_args.max_length)
    rows, held_out = (to_inputs(data, tokenizer, length) for data in read_texts(data_args, training_args.seed))
    if model.base_model is not model:
        model.forward = partial(model.base_model)  # predictions are not used
    masked = type(model).__name__.endswith("ForMaskedLM")  # this encoder was trained on masked texts
    masks = RepeatableMasks(tokenizer, mlm=masked, seed=training_args.seed)
    trainer = TransferTrainer(model, training_args, masks, rows, held_out, tokenizer, layers=layers)
    return finish(trainer, model_args, data_args, input_length=length)


class TransferTrainer(LongTrainer):
    """Trains and evaluates on the distance from softmax attention, summed over layers. ``layers``: from
    :func:`prepared_layers`."""

    shards = False

    def __init__(self, *args: Any, layers: list[Layer], **kwargs: Any) -> None:
        super().__init__(*args, compute_metrics=errors_in_percent, **kwargs)
        self.label_names = ["labels"]  # evaluations need it, even if the model takes no labels
        self.layers = layers

    def items_of(self, inputs: Mapping[str, Any]) -> int:
        return batch_rows(inputs)

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        training = model.training
        model.eval()  # the original runs without dropout
        for _, mechanism, _ in self.layers:
            mechanism.train(training)
        with transferring(self.accelerator.unwrap_model(model), self.layers):
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        return outputs["loss"], outputs


def errors_in_percent(prediction: EvalPrediction) -> dict[str, float]:
    """The errors of attention over all layers and of each layer, with standard errors over inputs."""
    errors = np.asarray(prediction.predictions)  # (inputs, layers)
    columns = {
        "attention_error": errors.mean(1),
        **{f"layer_{number}": errors[:, number] for number in range(errors.shape[1])},
    }
    return in_percent({name: mean_and_error(values.tolist()) for name, values in columns.items()}, len(errors))


def prepared_layers(model: PreTrainedModel) -> list[Layer]:
    """Freeze a base model except its mechanisms, and make the modules that replace the mechanisms during a step."""
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
    base, layers = base_attention(own_windows(model.config)), []
    for site, mechanism in zip(sites, mechanisms, strict=True):
        name, options = base.for_layer(site.layer)
        softmax = mechanism_from(
            name,
            options,
            num_heads=mechanism.num_heads,
            head_dim=mechanism.head_dim,
            max_length=mechanism.sizes.max_length,
        )
        learns = not learning.isdisjoint(mechanism.parameters())
        layers.append((site, mechanism, AttentionTransfer(mechanism, softmax) if learns else softmax))
    return layers


@contextmanager
def transferring(model: PreTrainedModel, layers: list[Layer]) -> Iterator[None]:
    """Within the context, the base model computes softmax attention.

    It returns the ``loss`` of its mechanisms and their ``distances (B, L)``.
    """
    transfers = [replacement for _, _, replacement in layers if isinstance(replacement, AttentionTransfer)]

    def distances(*_: Any) -> dict[str, Tensor]:
        losses, shares = zip(*((transfer.loss, transfer.distances) for transfer in transfers), strict=True)
        return {"loss": torch.stack(losses).sum(), "distances": torch.stack(shares, dim=1)}

    # in the outputs, DistributedDataParallel sees which parameters took part
    handle = model.register_forward_hook(distances)
    try:
        for site, _, replacement in layers:
            site.put(replacement)
        yield
    finally:
        handle.remove()
        for site, mechanism, _ in layers:
            site.put(mechanism)


class AttentionTransfer(Mechanism, NeedsWholeBatch):
    """Runs softmax attention, and measures how far the layer's mechanism is from it.

    Later layers therefore get the original's states, and a layer's loss trains only its own mechanism. After a forward
    pass, ``distances (B,)`` is the mean squared error of the output before the output projection, divided by the mean
    square of softmax attention, both over the real tokens of an input. ``loss`` is their mean plus the mechanism's
    auxiliary loss.
    """

    name = "attention_transfer"

    def __init__(self, student: Mechanism, softmax: Mechanism) -> None:
        super().__init__(student.sizes, student.options)
        self.student, self.softmax = student, softmax
        self.causal, self.layer = student.causal, student.layer
        same = ("ignores_padding", "takes_hidden_states", "takes_globals", "takes_score_mod")
        self.capabilities = self.capabilities.but(**{name: getattr(student.capabilities, name) for name in same})

    def needs_one_call(self) -> bool:
        return True  # distances are for one call

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        target = self.softmax(q, k, v, call)
        output = self.student(q, k, v, call)
        squared = mean_square(output.float() - target.float(), call.key_mask)
        self.distances = squared / mean_square(target.float(), call.key_mask).clamp(min=1e-12)
        self.loss = self.distances.mean()
        if (added := auxiliary_loss(self.student)) is not None:
            self.loss = self.loss + added.to(self.loss)
        return target

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        return self.softmax.dense_weights(q, k, call)

    def covers(self, length: int, causal: bool = False) -> bool:
        return True


def mean_square(x: Tensor, padding: Tensor | None) -> Tensor:
    """Mean square ``(B,)`` of each row of ``x (B, H, N, D)`` over real tokens, by ``padding (B, Nk)`` with True =
    real."""
    squares = x.square().mean(-1)
    if padding is None:
        return squares.mean((1, 2))
    real = padding[:, None, -squares.shape[2] :]
    return squares.masked_fill(~real, 0.0).sum((1, 2)) / (real.sum((1, 2)) * squares.shape[1]).clamp(min=1)
