"""Train the mechanisms of a converted model to imitate softmax attention.

Attention transfer, the first stage of LoLCATs (Zhang et al. 2024): everything but the mechanisms' parameters is frozen, and each layer's
mechanism learns the output of softmax attention for the same queries, keys and values. In the second stage, the whole model learns from
text (``longattn train clm --lora-rank 8``) or from the original's predictions (``longattn train distill --method logits``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_longattn.data.lengths import input_length
from hf_longattn.data.masking import RepeatableMasks
from hf_longattn.data.tokenization import to_inputs
from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.loading import load_config, load_model, load_padding_tokenizer
from hf_longattn.mechanisms import Mechanism
from hf_longattn.mechanisms.common.registry import mechanism_from
from hf_longattn.modeling.attach.attention_sites import AttentionSite, attention_sites, mechanisms_on
from hf_longattn.modeling.family.definition import known_family
from hf_longattn.modeling.family.sliding_window import base_attention, own_windows
from hf_longattn.modeling.run.losses import auxiliary_loss
from hf_longattn.training.args import ModelArguments, argument
from hf_longattn.training.loading import check_reads_text
from hf_longattn.training.old_lm import TextDataArguments, TextTrainingArguments, read_documents
from hf_longattn.training.old_trainer import LongTrainer, rows_of
from hf_longattn.training.results import compared_losses, loss_in_words, loss_name, plain_scores, steps_of
from hf_longattn.training.task import Task
from hf_longattn.training.training_loop import prepare_run, save_run, train

TINY = 1e-12
Layer = tuple[AttentionSite, Mechanism, Mechanism]
"""A layer's attention, its mechanism, and the module that replaces it in a step."""


@dataclass
class LineariseModelArguments(ModelArguments):
    """A converted model, whose mechanisms alone are trained."""

    use_peft: bool = field(default=False, init=False)
    lora_rank: int = field(default=8, init=False)
    lora_alpha: float = field(default=16.0, init=False)


@dataclass
class LineariseTrainingArguments(TextTrainingArguments):
    """``TrainingArguments`` of attention transfer."""

    shards: ClassVar[bool] = False
    without_effect: ClassVar[tuple[str, ...]] = ("label_smoothing_factor", "neftune_noise_alpha")

    learning_rate: float = argument(1e-2, "Peak learning rate. The best rates of two mechanisms may differ by more than ten times.")


LINEARISE = (LineariseModelArguments, TextDataArguments, LineariseTrainingArguments)


def linearise_attention(
    model_args: LineariseModelArguments, data_args: TextDataArguments, training_args: LineariseTrainingArguments
) -> dict[str, Any]:
    """Train the mechanisms of ``model_args.model``, and write the model to ``training_args.output_dir``.

    Raises:
        OptionError: the model has no mechanism that can learn.
    """
    run = prepare_run(model_args, data_args, training_args)
    config = load_config(model_args.model)
    check_reads_text(config, model_args.model)
    family = known_family(config) if config.model_type.startswith("long_") else None
    if family is None:
        raise CheckpointError(f"{model_args.model!r} has no mechanism; type longattn convert {model_args.model} DST --mechanism hedgehog.")
    if config.is_encoder_decoder:
        raise OptionError(f"{model_args.model!r} has two stacks, and attention is transferred in one; type longattn train seq2seq.")
    tokenizer = load_padding_tokenizer(model_args.model, config)
    model = load_model(family.model_class(config.architectures[0]), model_args.model)
    layers = prepared_layers(model.base_model)
    length = input_length(model, tokenizer, data_args.max_length)
    rows, held_out = (to_inputs(data, tokenizer, length) for data in read_documents(data_args, training_args.seed))
    masked = type(model).__name__.endswith("ForMaskedLM")  # such an encoder knows texts with masks
    collator = RepeatableMasks(tokenizer, mlm=masked, mlm_probability=data_args.mask_probability, seed=training_args.seed)
    trainer = TransferTrainer(
        model.base_model, training_args, train_dataset=rows, eval_dataset=held_out, processing_class=tokenizer, data_collator=collator,
        layers=layers,
    )  # fmt: skip
    before, after = train(trainer, run, lambda: plain_scores(trainer.evaluate())), plain_scores(trainer.evaluate())
    trainer.model = model.requires_grad_(True)
    return save_run(trainer, run, {"input_length": length, "held_out_distance": compared_losses(before, after)}, describe)


class TransferTrainer(LongTrainer):
    """Trains and evaluates on the distances from softmax attention, summed over layers. ``layers`` are those of :func:`prepared_layers`."""

    def __init__(self, *args: Any, layers: list[Layer], **kwargs: Any) -> None:
        super().__init__(*args, compute_metrics=mean_distances, **kwargs)
        self.label_names = ["labels"]  # which the model does not take, but an evaluation asks for
        self.layers = layers

    def items_of(self, inputs: Mapping[str, Any]) -> int:
        return rows_of(inputs)

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        training = model.training
        model.eval()  # the original runs without dropout
        for _, mechanism, _ in self.layers:
            mechanism.train(training)
        inner = self.accelerator.unwrap_model(model)
        with transferring(inner, self.layers):
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        if training and not outputs["loss"].requires_grad:
            raise OptionError(
                "The mechanisms' parameters do not affect a layer's output for given queries, keys and values; train the model with "
                "longattn train clm or mlm."
            )
        return outputs["loss"], outputs


def mean_distances(predictions: Any) -> dict[str, float]:
    """The mean distance over all layers and inputs, and that of every layer."""
    by_layer = predictions.predictions.mean(0)
    return {"distance": float(by_layer.mean()), **{f"layer_{number}": float(mean) for number, mean in enumerate(by_layer)}}


def prepared_layers(model: PreTrainedModel) -> list[Layer]:
    """Freeze all but the mechanisms' parameters of a base model, and make the modules that replace its mechanisms in a step.

    Raises:
        OptionError: no mechanism has a parameter.
    """
    sites = [site for site in attention_sites(model) if mechanisms_on(site.module) and not site.cross]
    mechanisms: list[Any] = [site.mechanism for site in sites]
    learning = {parameter for mechanism in mechanisms for parameter in mechanism.parameters() if parameter.requires_grad}
    if not learning:
        names = ", ".join(dict.fromkeys(mechanism.name for mechanism in mechanisms))
        raise OptionError(f"The model has {names}, without parameters that could learn; convert it with a mechanism such as hedgehog.")
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in learning)
    base, layers = base_attention(own_windows(model.config)), []
    for site, mechanism in zip(sites, mechanisms, strict=True):
        name, options = base.for_layer(site.layer)
        sizes = {"num_heads": mechanism.num_heads, "head_dim": mechanism.head_dim, "max_length": mechanism.max_length}
        softmax = mechanism_from(name, options, **sizes)
        learns = not learning.isdisjoint(mechanism.parameters())
        layers.append((site, mechanism, AttentionTransfer(mechanism, softmax) if learns else softmax))
    return layers


@contextmanager
def transferring(model: PreTrainedModel, layers: list[Layer]) -> Iterator[None]:
    """Within the context, the base model computes softmax attention, and returns its mechanisms' ``loss`` and ``distances (B, L)``."""
    transfers = [replacement for _, _, replacement in layers if isinstance(replacement, AttentionTransfer)]

    def distances(*_: Any) -> dict[str, Tensor]:
        losses, shares = zip(*((transfer.loss, transfer.distances) for transfer in transfers), strict=True)
        return {"loss": torch.stack(losses).sum(), "distances": torch.stack(shares, dim=1)}

    handle = model.register_forward_hook(distances)  # in the outputs, DistributedDataParallel sees which parameters took part
    try:
        for site, _, replacement in layers:
            site.put(replacement)
        yield
    finally:
        handle.remove()
        for site, mechanism, _ in layers:
            site.put(mechanism)


class AttentionTransfer(Mechanism):
    """Runs softmax attention, and measures how far the layer's mechanism is from it.

    Later layers thus get the original's states, and the loss of a layer trains this layer's mechanism alone. After a forward pass,
    ``distances (B,)`` holds the mean squared error of the output before the output projection, as a share of softmax attention's mean
    square, both over an input's tokens that are not padding. ``loss`` is their mean, and what the mechanism adds.
    """

    name = "attention_transfer"

    def __init__(self, student: Mechanism, softmax: Mechanism) -> None:
        super().__init__(student.num_heads, student.head_dim, student.hidden_size, student.max_length, student.options)
        self.student, self.softmax = student, softmax
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
        target = self.softmax(q, k, v, call)
        output = self.student(q, k, v, call)
        squared = mean_square(output.float() - target.float(), call.key_mask)
        self.distances = squared / mean_square(target.float(), call.key_mask).clamp(min=TINY)
        self.loss = self.distances.mean()
        if (added := auxiliary_loss(self.student)) is not None:
            self.loss = self.loss + added.to(self.loss)
        return target

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        return self.softmax.dense_weights(q, k, call)

    def covers(self, length: int, causal: bool = False) -> bool:
        return True


def mean_square(x: Tensor, padding: Tensor | None) -> Tensor:
    """Mean square ``(B,)`` of each input of ``x (B, H, N, D)`` over real tokens (``padding (B, Nk)``, True = real)."""
    squares = x.square().mean(-1)
    if padding is None:
        return squares.mean((1, 2))
    real = padding[:, None, -squares.shape[2] :]
    return squares.masked_fill(~real, 0.0).sum((1, 2)) / (real.sum((1, 2)) * squares.shape[1]).clamp(min=1)


def describe(log: dict[str, Any]) -> str:
    return f"{steps_of(log)}: {result(log)}"


def result(log: dict[str, Any]) -> str:
    return f"{loss_name(log, 'distance')} {loss_in_words(log['held_out_distance'])}"


TASK = Task(arguments=LINEARISE, train=linearise_attention, result=result)
