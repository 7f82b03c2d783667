"""Stage 2's loss against the original's logits (RADLADS, Goldstein et al. 2025, step 2; MOHAWK, Bick et al. 2024, stage 3).

The original is the same checkpoint with softmax attention before its conversion. It sees the same inputs as the student, no longer than
it was trained for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_longattn.data.lengths import longest_input
from hf_longattn.data.tokenization import IGNORED
from hf_longattn.errors import OptionError
from hf_longattn.evaluation.divergence import kl_divergence
from hf_longattn.files import read_json_object
from hf_longattn.loading import fetch_model
from hf_longattn.modeling.family.definition import length_before_conversion
from hf_longattn.modeling.inference.optimize import evaluating
from hf_longattn.training.checkpoints import DISTILLATION_REPORT
from hf_longattn.training.linearise.args import KL_LOSS, LineariseModelArguments, LineariseTrainingArguments
from hf_longattn.training.linearise.matching import Batch, shifted
from hf_longattn.training.loading import frozen_teacher
from hf_longattn.training.old_lm import load_lm


@dataclass(frozen=True)
class Teacher:
    """The original, and the loss of the student against it.

    model: with softmax attention, frozen.
    length: tokens that it was trained to read.
    lm, kl: factors of the student's language-model loss and of KL(original ‖ student).
    temperature: of both models' logits in the KL divergence.
    """

    model: PreTrainedModel
    length: int
    lm: float
    kl: float
    temperature: float

    @classmethod
    def of(cls, model_args: LineariseModelArguments, args: LineariseTrainingArguments, objective: str, device: Any) -> Teacher:
        """The teacher that the arguments name, after :func:`check_original`.

        Raises:
            CheckpointError: the original cannot be loaded.
        """
        name = model_args.teacher or model_args.model
        model, tokenizer, _ = load_lm(name, objective)
        length = length_before_conversion(model.config) or longest_input(model, tokenizer)
        lm = float(args.finetune_loss != KL_LOSS)
        return cls(frozen_teacher(model).to(device), length, lm, args.kl_factor, args.temperature)

    def loss(self, student: nn.Module, inputs: Mapping[str, Tensor], autocast: Any) -> tuple[Tensor, dict[str, Tensor], Any]:
        """The parts of a batch's loss.

        Returns:
            The parts times their factors ``(parts,)``, the parts by name, and the student's outputs.
        """
        at = places_of_predictions(self.model, inputs)
        read = {name: value for name, value in inputs.items() if name != "labels"}
        with torch.no_grad(), autocast, predictions_at(self.model, at):
            target = self.model(**read)
        if self.lm:
            outputs = student(**inputs)
            parts, predictions = {"lm": outputs["loss"]}, outputs["logits"][at]
        else:
            with predictions_at(student, at):
                outputs = student(**read)
            parts, predictions = {}, outputs["logits"]
        parts["kl"] = kl_divergence(predictions, target["logits"], self.temperature)
        losses = torch.stack([getattr(self, name) * part for name, part in parts.items()])
        return losses, {name: part.detach() for name, part in parts.items()}, outputs

    def items_of(self, inputs: Mapping[str, Tensor], labels: Tensor | int) -> Tensor:
        """The number of items in each part of :meth:`loss`: ``labels`` and compared predictions."""
        at = places_of_predictions(self.model, inputs)
        counts = [labels, at.sum()] if self.lm else [at.sum()]
        return torch.stack([torch.as_tensor(count, device=at.device) for count in counts])

    @torch.no_grad()
    def divergence(self, student: nn.Module, batches: Sequence[Batch]) -> float:
        """KL(original ‖ student) in nats, mean over the predictions of held-out inputs, which are cut to the teacher's length."""
        total, count = 0.0, 0
        with evaluating(student):
            for batch in batches:
                inputs = {name: value[:, : self.length].to(self.model.device) for name, value in batch.items()}
                at = places_of_predictions(self.model, inputs)
                inputs.pop("labels")
                with predictions_at(student, at), predictions_at(self.model, at):
                    predictions, target = (model(**inputs)["logits"] for model in (student, self.model))
                total, count = total + float(kl_divergence(predictions, target)) * len(predictions), count + len(predictions)
        return total / max(1, count)


@contextmanager
def predictions_at(model: nn.Module, at: Tensor) -> Iterator[None]:
    """Within the context, ``model`` returns only the logits ``(n, classes)`` of the n tokens where ``at (B, N)`` is True. Its head skips
    the other tokens: with a large vocabulary, it costs more than a layer."""
    inner: Any = getattr(model, "module", model)  # of DistributedDataParallel
    head = inner.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][at], *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


def places_of_predictions(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """``(B, N)`` bool: the masked tokens. For a decoder, all tokens."""
    if not shifted(model):
        return inputs["labels"] != IGNORED
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def check_original(model_args: LineariseModelArguments) -> None:
    """Refuse a model whose original is unknown.

    Raises:
        OptionError: the original is ``--model`` itself, and stage 2 has changed its weights.
        CheckpointError: ``--model`` is neither a folder nor a repository on the Hub that can be read.
    """
    if model_args.teacher or model_args.mechanism:
        return
    report = fetch_model(model_args.model) / DISTILLATION_REPORT
    if report.is_file() and "stage2" in read_json_object(report):
        raise OptionError(
            f"Stage 2 has changed the weights of {model_args.model!r}, so it cannot be its own teacher; add --teacher with the checkpoint "
            "that it was converted from."
        )
