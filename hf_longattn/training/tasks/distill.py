"""Distil a teacher into a smaller student, or a longer one.

TinyBERT (Jiao et al. 2020) compares embeddings, hidden states, attention scores and logits of the two models. Both
read the same texts, of at most the teacher's maximum length. The student keeps its own mechanisms, so that it can read
longer texts after the training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hf_longattn.data.batching import RepeatableMasks
from hf_longattn.data.rows import read_texts
from hf_longattn.data.tokenization import input_length, longest_input, to_inputs
from hf_longattn.errors import OptionError
from hf_longattn.evaluation.token_loss import kl_divergence
from hf_longattn.loading import call_tokenizer
from hf_longattn.modeling.attach.attention_sites import attention_projections, self_attention
from hf_longattn.modeling.mixin import LongAttentionMixin
from hf_longattn.training.arguments import ModelArguments, argument
from hf_longattn.training.lm import TextDataArguments, TextTrainingArguments, load_lm
from hf_longattn.training.run import BESIDE_UPDATES, begin, finish
from hf_longattn.training.trainer import LongTrainer

PARTS = ("embeddings", "hidden", "attention", "logits")
METHODS = {"tinybert": PARTS, "hidden": PARTS[:2], "logits": PARTS[3:]}
"""Name of a method -> names of the compared parts."""
PROJECTION = "distillation_projection"
"""Name of the student's module that projects its hidden states to the teacher's width."""
QUERIES_AT_A_TIME = 256
"""Number of queries whose attention scores are compared at a time."""
QueryAndKey = tuple[Tensor, Tensor]


@dataclass
class DistillModelArguments(ModelArguments):
    """A student and its teacher."""

    teacher: str = argument(
        "", "The model to learn from, with the student's (--model's) vocabulary; it is not changed."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.teacher:
            raise OptionError("No teacher given; add --teacher with a checkpoint folder or a Hub name.")


@dataclass
class DistillTrainingArguments(TextTrainingArguments):
    """``TrainingArguments`` with the method of distillation."""

    method: Literal["logits", "tinybert", "hidden"] = argument(
        "logits",
        "logits (Hinton et al. 2015), tinybert (embeddings, hidden states, attention scores and logits), or "
        "hidden (embeddings and hidden states of single texts, without masks and dropout, also of models without a "
        "head such as sentence encoders).",
    )
    temperature: float = argument(1.0, "Temperature of the logits (TinyBERT: 1).")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise OptionError(f"--temperature must be above 0, not {self.temperature:g}.")


ARGUMENTS = (DistillModelArguments, TextDataArguments, DistillTrainingArguments)


def main(
    model_args: DistillModelArguments, data_args: TextDataArguments, training_args: DistillTrainingArguments
) -> dict[str, Any]:
    """Train a student to imitate its teacher, evaluate and save it. Returns the log."""
    begin(model_args, data_args, training_args)

    # Student and teacher
    method = training_args.method
    hidden = method == "hidden"
    student, tokenizer, objective = load_lm(
        model_args.model, "hidden" if hidden else "auto", complete=not training_args.do_train
    )
    teacher, teacher_tokenizer, _ = load_lm(model_args.teacher, objective, complete=True)
    config, teacher_config = student.config, teacher.config
    if config.vocab_size != teacher_config.vocab_size:
        raise OptionError(
            f"The student has {config.vocab_size} tokens, the teacher {teacher_config.vocab_size}; give models of one "
            "vocabulary."
        )
    if config.is_encoder_decoder and method != "logits":
        raise OptionError(
            f"--method {method} compares models of one stack, and a {type(student).__name__} has an encoder and a "
            "decoder; add --method logits."
        )
    if "attention" in METHODS[method] and config.num_attention_heads != teacher_config.num_attention_heads:
        heads = f"The student has {config.num_attention_heads} heads, the teacher {teacher_config.num_attention_heads}"
        raise OptionError(f"{heads}, so their attention cannot be compared; add --method logits.")

    # Texts
    length = min(input_length(student, tokenizer, data_args.max_length), longest_input(teacher, teacher_tokenizer))

    def encode(data: Dataset) -> Dataset:
        if not hidden:
            return to_inputs(data, tokenizer, length)
        return data.map(
            lambda rows: call_tokenizer(tokenizer, rows["text"], truncation=True, max_length=length),
            batched=True,
            remove_columns="text",
        )

    rows, held_out = map(encode, read_texts(data_args, training_args.seed))
    for module in student.modules():
        if hidden and isinstance(module, nn.Dropout):
            module.p = 0.0
    masks = RepeatableMasks(tokenizer, mlm=objective == "mlm", seed=training_args.seed)
    trainer = DistillTrainer(student, training_args, masks, rows, held_out, tokenizer, teacher=teacher)
    return finish(trainer, model_args, data_args, input_length=length, unit="" if hidden else "nats")


class DistillTrainer(LongTrainer):
    """Trains a student on its distance from a teacher.

    Evaluations measure the student's own loss. With the methods tinybert and logits, that is its language-model loss.
    With the method hidden, which has no such loss, it is the distance.
    """

    shards = False

    def __init__(
        self, model: PreTrainedModel, training_args: DistillTrainingArguments, *args: Any, teacher: PreTrainedModel
    ) -> None:
        self.compared = METHODS[training_args.method]
        # The teacher's layer, counted from 1, for each layer of the student. Evenly spaced (TinyBERT, section 3.1).
        count, teacher_count = model.config.num_hidden_layers, teacher.config.num_hidden_layers
        self.layers = [max(1, round((layer + 1) * teacher_count / count)) for layer in range(count)]
        width, teacher_width = model.config.hidden_size, teacher.config.hidden_size
        if "hidden" in self.compared and width != teacher_width:
            projection = nn.Linear(width, teacher_width, bias=False)
            setattr(projection, BESIDE_UPDATES, True)
            model.add_module(PROJECTION, projection)
        super().__init__(model, training_args, *args)
        self.label_names = ["labels"]  # evaluations need it, even if the model takes no labels
        if isinstance(teacher, LongAttentionMixin):
            teacher.use_base_attention()
        if getattr(teacher.config, "use_cache", None):
            teacher.config.use_cache = False
        self.teacher: Any = teacher.requires_grad_(False).eval().to(training_args.device)
        self.causal = any(site.causal for site in self_attention(teacher))

    def items_of(self, inputs: Mapping[str, Any]) -> Tensor:
        """The number of items over which each of :data:`PARTS` averages, ``(4,)``.

        For attention, they are the compared pairs of query and key; for the other parts, the real tokens of the batch.
        """
        tokens = inputs["attention_mask"].sum(1)
        pairs = tokens * (tokens + 1) // 2 if self.causal else tokens.square()
        return torch.stack([(pairs if part == "attention" else tokens).sum() for part in PARTS])

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The distances of :data:`PARTS`, ``(4,)``, with 0 for parts that the method does not compare.

        In evaluations, it is the student's own loss if the method compares logits.
        """
        if "logits" not in self.compared:
            inputs = {name: value for name, value in inputs.items() if name != "labels"}
        elif not model.training:
            return super().mean_loss(model, inputs)
        student: Any = self.accelerator.unwrap_model(model)
        compares_attention = "attention" in self.compared
        with torch.no_grad(), noted_projections(self.teacher, compares_attention) as teacher_noted:
            target = self.teacher(**inputs, output_hidden_states=True)
        with noted_projections(student, compares_attention) as student_noted:
            outputs = model(**inputs, output_hidden_states=True)
        real = inputs["attention_mask"].bool()
        distances = {}
        if "logits" in self.compared:
            distances["logits"] = kl_divergence(outputs.logits[real], target.logits[real], self.args.temperature)
        if "hidden" in self.compared:
            project = getattr(student, PROJECTION, nn.Identity())
            # hidden_states[0] are the embeddings
            target_states = (target.hidden_states[layer] for layer in (0, *self.layers))
            errors = [
                F.mse_loss(project(states)[real], others[real])
                for states, others in zip(outputs.hidden_states, target_states, strict=False)
            ]
            distances |= {"embeddings": errors[0], "hidden": torch.stack(errors[1:]).mean()}
        if compares_attention:
            heads = student.config.num_attention_heads
            errors = []
            for noted, layer, site in zip(student_noted, self.layers, self_attention(student), strict=True):
                scores = queries_and_keys(noted, heads)
                target_scores = queries_and_keys(teacher_noted[layer - 1], heads)
                errors.append(score_error(scores, target_scores, real, site.causal))
            distances["attention"] = torch.stack(errors).mean()
        zero = torch.zeros((), device=real.device)
        return torch.stack([distances.get(part, zero) for part in PARTS]), outputs

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as in Trainer, but the final model without the projection. Checkpoints need it to resume."""
        student = self.accelerator.unwrap_model(self.model)
        if output_dir == str(self.args.folder) and hasattr(student, PROJECTION):
            delattr(student, PROJECTION)
        super().save_model(output_dir, _internal_call)


@contextmanager
def noted_projections(model: nn.Module, enabled: bool) -> Iterator[list[dict[str, Tensor]]]:
    """Within the context, record the outputs of the query ("q") and key ("k") projections of all layers.

    They are recorded before a rotary embedding. The list has a dictionary for each layer, which each forward pass
    fills. It is empty if ``enabled`` is False.
    """
    noted, handles = list[dict[str, Tensor]](), list[Any]()

    def note(outputs: dict[str, Tensor], role: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs[role] = output

    for site in self_attention(model) if enabled else ():
        names = attention_projections(model, site.name)
        if len(names) < 4:  # query, key, value and output projections, unless some are fused
            raise OptionError(
                f"{type(site.module).__name__} has no separate query and key projections; add --method logits."
            )
        noted.append({})
        for role, name in zip("qk", names, strict=False):
            handles.append(model.get_submodule(name).register_forward_hook(partial(note, noted[-1], role)))
    try:
        yield noted
    finally:
        for handle in handles:
            handle.remove()


def queries_and_keys(noted: Mapping[str, Tensor], heads: int) -> QueryAndKey:
    """Queries, divided by √D, and keys of a layer, both ``(B, H, N, D)`` in float32.

    A key that several query heads share is repeated for each of them. ``noted``: from :func:`noted_projections`.
    """
    query = noted["q"].unflatten(-1, (heads, -1)).transpose(1, 2).float()
    key = noted["k"].unflatten(-1, (-1, query.shape[-1])).transpose(1, 2).float()
    return query / query.shape[-1] ** 0.5, key.repeat_interleave(heads // key.shape[1], dim=1)


def score_error(student: QueryAndKey, teacher: QueryAndKey, real: Tensor, causal: bool) -> Tensor:
    """Mean squared difference of two models' attention scores q·k/√D (TinyBERT, equation 7).

    The mean is over heads and over pairs of real tokens. In a causal model, a pair has a key up to its query.

    Memory is linear in N, because :data:`QUERIES_AT_A_TIME` queries are compared at a time. Their scores are computed
    again in the backward pass.

    Args:
        student: scaled queries and keys ``(B, H, N, D)`` of :func:`queries_and_keys`.
        teacher: likewise. They get no gradient.
        real: True for tokens that are not padding, ``(B, N)``.
    """
    q, k = student
    teacher_q, teacher_k = (states.detach() for states in teacher)
    positions = torch.arange(q.shape[2], device=q.device)

    def squared_error(q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """The sum over some queries and all keys, and the number of pairs in it."""
        rows = slice(start, start + QUERIES_AT_A_TIME)
        counted = real[:, rows, None] & real[:, None, :]
        if causal:
            counted = counted & (positions[rows, None] >= positions)
        with torch.autocast(q.device.type, enabled=False):
            difference = (q[:, :, rows] @ k.mT - teacher_q[:, :, rows] @ teacher_k.mT) * counted[:, None]
        return difference.square().sum(), counted.sum()

    sums = [
        checkpoint(squared_error, q, k, start, use_reentrant=False, preserve_rng_state=False)
        for start in range(0, q.shape[2], QUERIES_AT_A_TIME)
    ]
    errors, pairs = zip(*sums, strict=True)
    return sum(errors) / (sum(pairs) * q.shape[1]).clamp(min=1)
