"""Fine-tune for extractive question answering.

A document that is longer than the model's maximum is read in overlapping windows. In a window without an answer, the
target is the first token, which means "no answer", as in BERT's fine-tuning on SQuAD 2. If several spans are correct,
the loss sums their probabilities (Clark & Gardner 2018).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import Tensor
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.data.batching import chosen_packing
from hf_longattn.data.qa_features import QACollator, answerable, qa_rows
from hf_longattn.data.qa_schemas import load_qa
from hf_longattn.data.rows import read_rows
from hf_longattn.data.tokenization import input_length
from hf_longattn.errors import CheckpointError
from hf_longattn.evaluation.qa_reader import Answer, best_answers, score_answers, write_predictions
from hf_longattn.loading import load_config, load_model, load_padding_tokenizer
from hf_longattn.modeling.attach.global_mask import carry_question
from hf_longattn.modeling.family.registration import auto_mapping, mapped_names
from hf_longattn.training.arguments import (
    DataArguments,
    LongTrainingArguments,
    ModelArguments,
    argument,
    batch_size_argument,
)
from hf_longattn.training.run import begin, finish
from hf_longattn.training.trainer import LongTrainer


@dataclass
class QADataArguments(DataArguments):
    """Questions about documents, in the schema of SQuAD or MRQA, or in columns question, context and answers."""

    roles = {name: (name,) for name in ("id", "question", "context", "answers")}

    stride: int = argument(
        128, "Tokens shared by windows of a document that is longer than --max-length, a quarter of that at most."
    )
    packing: bool | None = argument(
        None, "Pack the documents of a batch into one row without padding; default: yes where the model can."
    )
    skip_bad_rows: bool = argument(
        False, "Leave out rows that cannot be used, such as answers that are not in their document."
    )


@dataclass
class QATrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` with the defaults of this task."""

    per_device_train_batch_size: int = batch_size_argument(2)
    gradient_accumulation_steps: int = argument(8, "Forward passes per optimiser step.")
    learning_rate: float = argument(3e-5, "Peak learning rate (BERT fine-tuning: 2e-5 to 5e-5).")
    train_sampling_strategy: str = argument(
        "group_by_length", "Order of the training data; group_by_length pads least."
    )


ARGUMENTS = (ModelArguments, QADataArguments, QATrainingArguments)


def main(model_args: ModelArguments, data_args: QADataArguments, training_args: QATrainingArguments) -> dict[str, Any]:
    """Train, and write the model and its predictions on the held-out questions to the output folder.

    Returns the log, which also has scores by document length and by answer position.
    """
    begin(model_args, data_args, training_args)
    parts = read_questions(data_args, training_args.seed)
    model, tokenizer = load_qa_model(model_args.model, complete=not training_args.do_train)
    inputs = question_inputs(model, parts, (), data_args, training_args, tokenizer)
    answers, facts = inputs.pop("answers"), inputs.pop("facts")
    trained_kinds, held_out_kinds = ({*part["kind"]} for part in parts)
    if training_args.do_train and "none" in trained_kinds | held_out_kinds:
        model.config.no_answer_threshold = 0.0
    training_args.label_names = ["labels"]
    trainer = LongTrainer(model, training_args, **inputs)
    if training_args.do_train and {"none"} < held_out_kinds:  # questions with an answer, and without
        facts["note"] = '; with the threshold of "no answer" that is best on these questions'
    log = finish(trainer, model_args, data_args, hub_task="question-answering", **facts)
    if trainer.is_world_process_zero():
        write_predictions(training_args.folder, parts[1], answers)
    return log


def read_questions(args: QADataArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Training and evaluation questions, as :func:`~hf_longattn.data.qa_schemas.load_qa` returns them."""
    return read_rows(
        args,
        seed,
        read=partial(load_qa, named=args.named, skip_bad_rows=args.skip_bad_rows),
        unit="id",
        classes="kind",
    )


def question_inputs(
    model: Any,
    parts: tuple[Dataset, Dataset],
    names: Any,
    data_args: QADataArguments,
    args: LongTrainingArguments,
    tokenizer: Any,
) -> dict[str, Any]:
    """Trainer's arguments for question answering, plus ``answers`` and ``facts``, which each evaluation updates.

    ``answers`` is a list of the answers of the last evaluation, and ``facts`` a dictionary of entries for the log. In
    training, each evaluation also sets the model's "no answer" threshold to the best one for the held-out questions.

    Args:
        parts: training questions and held-out questions.
        names: not used, because spans have no labels.
    """
    train_questions, questions = parts
    if args.do_train:
        # the saved model then makes questions global by itself
        carry_question(getattr(model.base_model, "text_model", model), tokenizer)
        vars(model.config).pop("no_answer_threshold", None)  # it was for other weights
    length = input_length(model, tokenizer, data_args.max_length)
    pack = chosen_packing(model, data_args.packing, args)
    encode = partial(
        qa_rows,
        tokenizer=tokenizer,
        length=length,
        stride=min(data_args.stride, length // 4),
        processes=args.dataloader_num_workers,
    )
    rows = encode(questions)
    train_rows = encode(answerable(train_questions)) if args.do_train else rows
    answers: list[Answer] = []
    facts: dict[str, Any] = {
        "packed": pack,
        "input_length": length,
        "questions": len(train_questions),
        "features": len(train_rows),
        "by_length": {},  # of the last evaluation
        "by_position": {},
    }

    def compute_metrics(prediction: EvalPrediction) -> dict[str, Any]:
        """Scores of the answers. Updates the threshold, ``answers`` and ``facts``."""
        spans = best_answers(questions, rows, *prediction.predictions)
        best_threshold = score_answers(questions, spans).get("best_f1_threshold")
        if best_threshold is not None and args.do_train:
            model.config.no_answer_threshold = best_threshold
        threshold = getattr(model.config, "no_answer_threshold", None)
        answers[:] = [replace(answer, text=answer.above(threshold)) for answer in spans]
        scores = score_answers(questions, answers)
        for name in ("by_length", "by_position"):
            facts[name].update(scores.pop(name))
        scores.pop("best_f1", None)
        return scores

    return {
        "train_dataset": train_rows,
        "eval_dataset": rows,
        "processing_class": tokenizer,
        "data_collator": QACollator(tokenizer, pack),
        "eval_collator": QACollator(tokenizer),
        "compute_metrics": compute_metrics,
        "preprocess_logits_for_metrics": lambda logits, labels: logits[:2],  # of starts and of ends
        "compute_loss_func": span_loss,
        "answers": answers,
        "facts": facts,
    }


def span_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """The mean over inputs of −½ (log Σ p(start) + log Σ p(end)). The sums are over all correct starts and ends.

    This is equation 2 of Clark & Gardner (2018), as in Longformer's training on TriviaQA. With a single answer, it is
    BERT's loss.

    Args:
        outputs: ``start_logits`` and ``end_logits``, both ``(B, L)``, or ``(1, T)`` for packed inputs.
        labels: ``(B, L, 2)``, see :class:`QACollator`. The probability of padding is 0.
    """
    real = labels[..., 0] >= 0
    losses = []
    for column, logits in enumerate((outputs.start_logits, outputs.end_logits)):
        # logits of the real tokens in order; a packed row has no other tokens
        tokens = logits.float()[real] if logits.shape == real.shape else logits.float().flatten()
        scores = tokens.new_full(real.shape, -torch.inf).masked_scatter(real, tokens)
        correct = torch.log_softmax(scores, -1).masked_fill(labels[..., column] != 1, -torch.inf)
        losses.append(-correct.logsumexp(-1))
    return (losses[0] + losses[1]).mean() / 2


def load_qa_model(name: str, *, complete: bool = True) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model for question answering in float32, and its fast tokenizer, which pads on the right.

    Args:
        complete: refuse a checkpoint without the head. If false, a missing head is new and must be trained.

    Raises:
        CheckpointError: it cannot be loaded, or its tokenizer is slow.
    """
    model_type = load_config(name).model_type
    loaders = transformers.AutoModelForQuestionAnswering, transformers.AutoModelForDocumentQuestionAnswering
    fitting = [loader for loader in loaders if model_type in mapped_names(auto_mapping(loader))]
    loader = fitting[0] if fitting else loaders[0]
    model: PreTrainedModel = load_model(loader, name, complete=complete, num_labels=2)
    tokenizer: PreTrainedTokenizerBase = load_padding_tokenizer(name, model.config)
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"The tokenizer of {name!r} gives no character offsets; question answering needs a fast tokenizer."
        )
    tokenizer.padding_side = "right"
    return model, tokenizer
