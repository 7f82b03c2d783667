"""Distil a teacher into a smaller student, or a longer one.

TinyBERT (Jiao et al. 2020) compares embeddings, hidden states, attention scores and logits. Both models read the same text, no longer than
the teacher's length. The student keeps its own mechanisms, so that afterwards it reads longer text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hf_longattn.data.lengths import input_length, longest_input
from hf_longattn.data.masking import RepeatableMasks
from hf_longattn.data.tokenization import to_inputs, to_single_inputs
from hf_longattn.errors import OptionError, in_one_line, nearest
from hf_longattn.evaluation.divergence import kl_divergence
from hf_longattn.files import public_name
from hf_longattn.modeling.attach.attention_sites import attention_projections, attention_sites
from hf_longattn.training.adapters import BESIDE_UPDATES
from hf_longattn.training.args import ModelArguments, argument, check_positive
from hf_longattn.training.loading import frozen_teacher
from hf_longattn.training.old_lm import TextDataArguments, TextTrainingArguments, load_lm, read_documents
from hf_longattn.training.old_trainer import LongTrainer
from hf_longattn.training.results import compared_losses, loss_in_words, loss_name, plain_scores, steps_of
from hf_longattn.training.task import Task
from hf_longattn.training.training_loop import prepare_run, save_run, train

PARTS = ("embeddings", "hidden", "attention", "logits")
METHODS = {"tinybert": PARTS, "hidden": PARTS[:2], "logits": PARTS[3:]}
"""What each method compares."""
PROJECTION = "distillation_projection"
ATTENTION_DISTILLATION = "to train a converted model's mechanisms to reproduce softmax attention, type longattn train linearise"
QUERIES_AT_A_TIME = 256
"""Queries per step of comparing attention scores."""


@dataclass
class DistillModelArguments(ModelArguments):
    """A student and its teacher."""

    required: ClassVar[tuple[str, ...]] = ("teacher",)

    teacher: str = argument("", "The model to learn from, with the student's (--model's) vocabulary; it is not changed.")


@dataclass
class DistillTrainingArguments(TextTrainingArguments):
    """``TrainingArguments`` of distillation from a teacher."""

    shards: ClassVar[bool] = False
    without_effect: ClassVar[tuple[str, ...]] = ("label_smoothing_factor",)
    required: ClassVar[tuple[str, ...]] = ("method",)

    method: str = argument(
        "", "tinybert (embeddings, hidden states, attention scores and logits), logits (Hinton et al. 2015), or hidden (embeddings and "
        "hidden states of single texts, without masks and dropout, also of models without a head such as sentence encoders)."
    )  # fmt: skip
    temperature: float = argument(1.0, "Temperature of the logits (TinyBERT: 1).")
    learning_rate: float = argument(5e-5, "Peak learning rate (TinyBERT: 5e-5 for its intermediate layers).")

    def check(self) -> None:
        super().check()
        if self.method not in METHODS:
            problem = f"--method must be one of {', '.join(METHODS)}, not {self.method!r}" if self.method else "No method given"
            raise OptionError(
                f"{problem}; add --method tinybert, hidden or logits; {ATTENTION_DISTILLATION}.{nearest(self.method, METHODS)}"
            )
        check_positive(self, "temperature")


DISTILL = (DistillModelArguments, TextDataArguments, DistillTrainingArguments)


def distill_student(
    model_args: DistillModelArguments, data_args: TextDataArguments, training_args: DistillTrainingArguments
) -> dict[str, Any]:
    """Train the student ``model_args.model``, and write it to ``training_args.output_dir``.

    Returns:
        The log, as written to ``training_log.json``: arguments, versions, the student's held-out loss before and after, Trainer's history.

    Raises:
        OptionError: the teacher is missing or does not fit the student.
    """
    if not model_args.teacher:
        raise OptionError("No teacher given; add --teacher with a checkpoint folder or a Hub name.")
    compared = METHODS[training_args.method]
    run = prepare_run(model_args, data_args, training_args)
    hidden = training_args.method == "hidden"
    if hidden and data_args.mask_probability != TextDataArguments.mask_probability:
        raise OptionError("--method hidden predicts no tokens; leave --mask-probability out.")
    student, tokenizer, objective = load_lm(model_args.model, "hidden" if hidden else "auto")
    teacher, teachers_tokenizer, _ = load_lm(model_args.teacher, objective, complete=True)
    if student.config.vocab_size != teacher.config.vocab_size:
        raise OptionError(
            f"The student has {student.config.vocab_size} tokens, the teacher {teacher.config.vocab_size}; give models of one vocabulary."
        )
    if student.config.is_encoder_decoder and training_args.method != "logits":
        raise OptionError(
            f"--method {training_args.method} compares the hidden states of one stack, and a {type(student).__name__} has two; "
            "add --method logits."
        )
    length = min(input_length(student, tokenizer, data_args.max_length), longest_input(teacher, teachers_tokenizer))
    layers = layer_map(student, teacher)
    if "attention" in compared and student.config.num_attention_heads != teacher.config.num_attention_heads:
        heads = [model.config.num_attention_heads for model in (student, teacher)]
        raise OptionError(
            f"The student has {heads[0]} heads, the teacher {heads[1]}, so their attention cannot be compared; add --method logits."
        )
    if "hidden" in compared:
        width, wide = student.config.hidden_size, teacher.config.hidden_size
        projection = nn.Linear(width, wide, bias=False) if width != wide else nn.Identity()
        setattr(projection, BESIDE_UPDATES, True)
        student.add_module(PROJECTION, projection)
    encode = to_single_inputs if hidden else to_inputs
    rows, held_out = (encode(data, tokenizer, length) for data in read_documents(data_args, training_args.seed))
    for module in student.modules():
        if hidden and isinstance(module, nn.Dropout):
            module.p = 0.0
    collator = RepeatableMasks(tokenizer, mlm=objective == "mlm", mlm_probability=data_args.mask_probability, seed=training_args.seed)
    trainer = DistillTrainer(
        student, training_args, train_dataset=rows, eval_dataset=held_out, processing_class=tokenizer, data_collator=collator,
        teacher=teacher, layers=layers,
    )  # fmt: skip
    before, after = train(trainer, run, lambda: plain_scores(trainer.evaluate())), plain_scores(trainer.evaluate())
    inner: Any = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(inner, PROJECTION):
        delattr(inner, PROJECTION)
    losses = {"held_out_distance" if hidden else "held_out_loss": compared_losses(before, after)}
    log = {"objective": objective, "input_length": length, "layers": layers, **losses}
    return save_run(trainer, run, log, describe_distillation_run)


def layer_map(student: PreTrainedModel, teacher: PreTrainedModel) -> list[int]:
    """The teacher's layer, from 1, that each of the student's imitates: at equal distances (TinyBERT, section 3.1)."""
    student_layers, teacher_layers = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    return [max(1, round((layer + 1) * teacher_layers / student_layers)) for layer in range(student_layers)]


class DistillTrainer(LongTrainer):
    """Trains on the distance from a teacher; evaluates on the student's own loss."""

    def __init__(self, *args: Any, teacher: PreTrainedModel, layers: list[int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.label_names = ["labels"]  # which a model without a head does not take, but an evaluation asks for
        self.teacher, self.layers = frozen_teacher(teacher).to(self.args.device), layers
        self.causal = any(site.causal for site in attention_sites(self.teacher) if not site.cross)

    def items_of(self, inputs: Mapping[str, Any]) -> Tensor:
        """The real tokens of a batch for each of :data:`PARTS`; for attention, the pairs of tokens that are compared."""
        tokens = inputs["attention_mask"].sum(1)
        pairs = tokens * (tokens + 1) // 2 if self.causal else tokens.square()
        return torch.stack([(pairs if part == "attention" else tokens).sum() for part in PARTS])

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The distance of each of :data:`PARTS`; in evaluations the student's own loss, if it has one."""
        if self.args.method == "hidden":
            inputs = {name: value for name, value in inputs.items() if name != "labels"}
        elif not model.training:
            return super().mean_loss(model, inputs)
        student: Any = self.accelerator.unwrap_model(model)
        compared = METHODS[self.args.method]
        compares_attention = "attention" in compared
        with torch.no_grad(), AttentionScores(self.teacher, compares_attention) as teacher_scores:
            target = self.teacher(**inputs, output_hidden_states=True)
        with AttentionScores(student, compares_attention) as student_scores:
            outputs = model(**inputs, output_hidden_states=True)
        real = inputs["attention_mask"].bool()
        project = getattr(student, PROJECTION, None)
        parts = {"logits": kl_divergence(outputs.logits[real], target.logits[real], self.args.temperature)} if "logits" in compared else {}
        if project is not None:
            errors = [F.mse_loss(project(outputs.hidden_states[0])[real], target.hidden_states[0][real])]
            for layer, teacher_layer in enumerate(self.layers, start=1):
                errors.append(F.mse_loss(project(outputs.hidden_states[layer])[real], target.hidden_states[teacher_layer][real]))
            parts |= {"embeddings": errors[0], "hidden": torch.stack(errors[1:]).mean()}
        if compares_attention:
            errors = [
                score_error(student_scores.projections(layer), teacher_scores.projections(teacher_layer - 1), real, causal)
                for layer, (teacher_layer, causal) in enumerate(zip(self.layers, student_scores.causal, strict=True))
            ]
            parts["attention"] = torch.stack(errors).mean()
        absent = torch.zeros((), device=real.device)
        return torch.stack([parts.get(part, absent) for part in PARTS]), outputs


class AttentionScores:
    """Queries and keys of every layer in one forward pass, from the outputs of the projections, before rotation."""

    def __init__(self, model: nn.Module, enabled: bool) -> None:
        self.model, self.seen, self.handles = model, {}, []  # type: ignore[var-annotated]
        self.sites = [site for site in attention_sites(model) if not site.cross] if enabled else []

    def __enter__(self) -> AttentionScores:
        for layer, site in enumerate(self.sites):
            names = attention_projections(self.model, site.name)
            if len(names) < 4:
                raise OptionError(f"{type(site.module).__name__} has no separate query and key projections; add --method logits.")
            for role, name in zip("qk", names, strict=False):
                self.handles.append(self.model.get_submodule(name).register_forward_hook(self._note(layer, role)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _note(self, layer: int, role: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            self.seen[layer, role] = output

        return hook

    @property
    def causal(self) -> list[bool]:
        """For each layer, whether its attention is causal."""
        return [site.causal for site in self.sites]

    def projections(self, layer: int) -> tuple[Tensor, Tensor]:
        """Queries, divided by √d, and keys ``(B, H, N, D)`` of a layer, from 0; grouped keys are repeated."""
        heads = self.model.config.num_attention_heads  # type: ignore[union-attr]
        query = self.seen[layer, "q"].unflatten(-1, (heads, -1)).transpose(1, 2).float()
        key = self.seen[layer, "k"].unflatten(-1, (-1, query.shape[-1])).transpose(1, 2).float()
        return query / query.shape[-1] ** 0.5, key.repeat_interleave(heads // key.shape[1], dim=1)


def score_error(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], real: Tensor, causal: bool) -> Tensor:
    """Mean squared difference of two models' attention scores (TinyBERT, equation 7). The mean is over heads and pairs of real tokens; in a
    causal model, over keys up to the query.

    Memory is linear in N: :data:`QUERIES_AT_A_TIME` queries are compared at a time, again in the backward pass.

    Args:
        student, teacher: queries and keys ``(B, H, N, D)``, scaled; the teacher's get no gradient.
        real: ``(B, N)`` bool, the tokens that are not padding.
        causal: whether the student is.
    """
    (q, k), (other_q, other_k) = student, (states.detach() for states in teacher)
    places = torch.arange(q.shape[2], device=q.device)

    def of_queries(q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
        rows = slice(start, start + QUERIES_AT_A_TIME)
        counted = real[:, rows, None] & real[:, None, :]
        if causal:
            counted = counted & (places[rows, None] >= places)
        with torch.autocast(q.device.type, enabled=False):
            difference = (q[:, :, rows] @ k.mT - other_q[:, :, rows] @ other_k.mT) * counted[:, None]
        return difference.square().sum(), counted.sum()

    starts = range(0, q.shape[2], QUERIES_AT_A_TIME)
    errors, pairs = zip(
        *(checkpoint(of_queries, q, k, start, use_reentrant=False, preserve_rng_state=False) for start in starts), strict=True
    )
    return sum(errors) / (sum(pairs) * q.shape[1]).clamp(min=1)


def describe_distillation_run(log: dict[str, Any]) -> str:
    """The text of the model card about a run."""
    settings = log["settings"]
    command = f"longattn train distill --method {settings['method']}"
    return f"{steps_of(log)} with `{command}` from `{in_one_line(public_name(settings['teacher']))}`. {distillation_result(log)}."


def distillation_result(log: dict[str, Any]) -> str:
    """The result of a run for the terminal."""
    what = "distance" if "held_out_distance" in log else "loss"
    return f"{loss_name(log, f'{what} of the student')} {loss_in_words(log[f'held_out_{what}'])}"


TASK = Task(arguments=DISTILL, train=distill_student, result=distillation_result)
