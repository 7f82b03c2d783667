"""Fine-tune for extractive question answering.

The data are in the schema of SQuAD, MRQA or HotpotQA. Documents longer than the model are read in overlapping windows; in a window without
an answer the target is the first token, "no answer", as in BERT's SQuAD 2 fine-tuning. With several correct spans, the loss is over all of
them together (Clark & Gardner 2018).
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForDocumentQuestionAnswering,
    AutoModelForQuestionAnswering,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_DOCUMENT_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
)

from hf_longattn.data.batching import chosen_packing
from hf_longattn.data.lengths import PositionRange, input_length
from hf_longattn.data.qa_features import TARGETS, QACollator, QAEncodingConfig, training_features
from hf_longattn.data.qa_schemas import load_qa
from hf_longattn.data.sources import train_test_split
from hf_longattn.errors import CheckpointError, OptionError, sentence_case
from hf_longattn.evaluation.qa_reader import Answer, QAReader, qa_loss
from hf_longattn.evaluation.qa_scores import score_answers, write_predictions
from hf_longattn.evaluation.summaries import mean_and_error
from hf_longattn.files import public_name
from hf_longattn.loading import load_config, load_model
from hf_longattn.modeling.attach.token_globals import carry_question, takes_globals
from hf_longattn.modeling.family.config import attention_implementation
from hf_longattn.training.args import LabelledDataArguments, ModelArguments, argument, batch_size_argument, check_choices, check_least
from hf_longattn.training.loading import SPAN_LABELS, check_reads_text, load_start
from hf_longattn.training.old_trainer import LongTrainer
from hf_longattn.training.results import (
    HELD_OUT,
    compared_losses,
    end_of_training,
    loss_in_words,
    loss_name,
    plain_scores,
    rows_in_words,
    score_in_words,
    scored_part,
    sources_in_words,
    steps_of,
)
from hf_longattn.training.task import Task
from hf_longattn.training.training_args import LongTrainingArguments
from hf_longattn.training.training_loop import prepare_run, save_run, train

LONG_DOCUMENTS = ("windows", "truncate", "refuse")


@dataclass
class QAModelArguments(ModelArguments):
    """The checkpoint to start from, and its global tokens."""

    global_question: bool | None = argument(
        None, "Make the question's tokens global; default: yes where the mechanism takes global tokens and the tokenizer separates "
        "question and document, so that the saved model marks them itself. Without such a separator, inference needs global_attention_mask."
    )  # fmt: skip


@dataclass
class QADataArguments(LabelledDataArguments):
    """Questions about documents, and their encoding."""

    shape: ClassVar[str] = "a SQuAD-shaped file"
    training_only: ClassVar[tuple[str, ...]] = ("packing",)

    data: list[str] = argument(
        [], "Files, folders or names on the Hub, one or several: "
        "a .json, .jsonl, .csv, .tsv or .parquet file, a folder written by datasets, a name on the Hub "
        "(NAME:SUBSET); in the schema of SQuAD, MRQA or HotpotQA, or with question, context and answer."
    )  # fmt: skip
    validation: str = argument(
        "", "Questions to answer before, during (--eval-strategy) and after training; they also tune the no-answer threshold; "
        "default: a tenth of the questions of every source of --data, chosen by --seed; their documents may have others in training."
    )  # fmt: skip
    skip_bad_rows: bool = argument(False, "Leave out rows that cannot be used, such as answers that are not in their document.")
    max_length: int | None = argument(None, "Tokens of the longest input; default: the model's maximum.")
    long_documents: str = argument(
        "windows", "What to do with documents longer than max_length: windows (overlapping, see stride), truncate (questions whose answer "
        "is cut off are left out of the training), or refuse."
    )  # fmt: skip
    stride: int | None = argument(
        None, "Tokens shared by consecutive windows of a document that is longer than --max-length; default: 128 (BERT, run_qa), a quarter "
        "of --max-length at most."
    )  # fmt: skip
    packing: bool | None = argument(
        None, "Pack the documents of a batch into one row without padding; default: yes where the model keeps them apart (Long models)."
    )
    max_question_tokens: int = argument(64, "Tokens at which a question is cut, with a warning.")

    def check(self) -> None:
        super().check()
        check_choices(self, long_documents=LONG_DOCUMENTS)
        check_least(self, max_question_tokens=1)
        if self.long_documents == "truncate" and "stride" in self.explicit:
            raise OptionError("--stride has no effect with --long-documents truncate; leave one of the two out.")

    def shared_tokens(self, length: int) -> int:
        """The tokens that windows of ``length`` share: --stride or its default."""
        return min(128, length // 4) if self.stride is None else self.stride


@dataclass
class QATrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` of extractive question answering."""

    without_effect: ClassVar[tuple[str, ...]] = ("label_smoothing_factor",)

    random_positions: bool = argument(False, "Place question and document at random rows of the position table, so that all are trained.")
    windows: list[int] = argument(
        [], "For short models: train under the attention of their later conversion. In every step document tokens see the question and "
        "this many tokens on either side, drawn from these numbers; 0 = full attention."
    )  # fmt: skip
    per_device_train_batch_size: int = batch_size_argument(2)
    per_device_eval_batch_size: int = argument(2, "Inputs per forward pass and process in evaluation.")
    gradient_accumulation_steps: int = argument(8, "Forward passes per optimiser step.")
    learning_rate: float = argument(3e-5, "Peak learning rate (BERT fine-tuning: 2e-5 to 5e-5).")
    train_sampling_strategy: str = argument("group_by_length", "Order of the training data; group_by_length pads least.")


QA = (QAModelArguments, QADataArguments, QATrainingArguments)


def finetune_qa(model_args: QAModelArguments, data_args: QADataArguments, training_args: QATrainingArguments) -> dict[str, Any]:
    """Train, and write the model and its predictions on the validation data to ``training_args.output_dir``.

    Returns:
        The log, as written to ``training_log.json``: arguments, versions, scores and loss on the validation data before and after,
        Trainer's history.
    """
    run = prepare_run(model_args, data_args, training_args)
    examples, validation = read_questions(data_args, training_args.seed)
    model, tokenizer = load_qa_model(model_args.model, complete=training_args.only_scores)
    encoding = encoding_for(model, tokenizer, model_args, data_args)
    if data_args.long_documents != "truncate":
        encoding = dataclasses.replace(encoding, stride=data_args.shared_tokens(encoding.max_length))
    varied = training_args.random_positions or bool(training_args.windows)
    features = training_features(examples, tokenizer, encoding, data_args.long_documents, document_start=varied)
    pack = chosen_packing(model, data_args.packing, training_args, "--windows and --random-positions vary padded rows." if varied else None)
    if training_args.only_scores:
        threshold = getattr(model.config, "no_answer_threshold", None)
    else:  # an earlier threshold belongs to other weights; a new one is found on the validation data if some questions have no answer
        threshold = 0.0 if "none" in {*examples["kind"], *validation["kind"]} else None
        vars(model.config).pop("no_answer_threshold", None)
        if threshold is not None:
            model.config.no_answer_threshold = threshold
    dtype = torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else None
    reader = QAReader("", model, tokenizer, encoding, batch_size=training_args.per_device_eval_batch_size, dtype=dtype)
    reader.null_threshold = threshold
    trainer = QATrainer(
        model,
        training_args,
        train_dataset=features,
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=QACollator(tokenizer, pack=pack),
        positions=PositionRange.of(model) if training_args.random_positions else None,
        windows=training_args.windows,
        reader=reader,
    )
    log: dict[str, Any] = {"input_length": encoding.max_length, "questions": len(examples), "features": len(features), "packed": pack}
    before = train(trainer, run, lambda: (trainer.losses(), trainer.scores))
    after = trainer.losses(), trainer.scores
    log["held_out_loss"] = compared_losses(None if before is None else before[0], after[0])
    log["held_out"] = {"before": None if before is None else before[1], "after": after[1]}
    if trainer.threshold is not None:
        trainer.accelerator.unwrap_model(trainer.model).config.no_answer_threshold = trainer.threshold
    if trainer.is_world_process_zero():
        training_args.folder.mkdir(parents=True, exist_ok=True)
        write_predictions(training_args.folder, validation, trainer.given_answers)
    trainer.accelerator.wait_for_everyone()
    return save_run(trainer, run, log, describe_qa_training, hub_task="question-answering")


def read_questions(args: QADataArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Training and evaluation questions with all their documents; see :func:`train_test_split`.

    Raises:
        DataError: as :func:`load_qa`.
        OptionError: too few questions to hold some back.
    """
    read = partial(load_qa, skip_bad_rows=args.skip_bad_rows)
    return train_test_split(args, read, seed, unit="id", classes="kind")


class QATrainer(LongTrainer):
    """A Trainer with the loss over all correct spans, that scores answers, and can vary positions and windows in every step.

    Args:
        positions: put question and document at random rows of this range, so that the whole position table is trained; ``None`` = the
            model's own positions.
        windows: see :func:`window_mask`; for short models only. Empty = full attention.
        reader: answers the questions of ``eval_dataset``, which has the columns of ``load_qa``; ``None`` = they are inputs, and only their
            loss is measured.

    Training batches need ``document_start (B,)`` for the first two.
    """

    def __init__(
        self, *args: Any, positions: PositionRange | None = None, windows: Sequence[int] = (), reader: QAReader | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.label_names = self.args.label_names or ["starts", "ends"]
        self.positions, self.windows, self.reader = positions, tuple(windows), reader
        self.scores: dict[str, Any] = {}
        self.threshold = None if reader is None else reader.null_threshold
        self.given_answers: list[Answer] = []
        self.batches = (0, 0)  # the current step, and its batches so far

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The mean loss of the batch over all correct spans, or the model's own loss for a batch with ``start_positions``."""
        if "starts" not in inputs:
            return super().mean_loss(model, inputs)
        model_inputs = {name: value for name, value in inputs.items() if name not in TARGETS}
        outputs = model(**model_inputs)
        loss = qa_loss(outputs, inputs).mean()
        return loss, {"loss": loss, "start_logits": outputs.start_logits, "end_logits": outputs.end_logits}

    def answers(self, examples: Dataset) -> list[Answer]:
        """The reader's answers in the order of the examples. Each process reads its share."""
        assert self.reader is not None
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        self.reader.model = self.model_wrapped if sharded else self.model
        if sharded or self.args.world_size == 1:  # sharded weights are gathered by all processes together
            return self.reader.read(examples)
        mine = range(self.args.process_index, len(examples), self.args.world_size)
        numbered_answers = gather_object(list(zip(mine, self.reader.read(examples.select(mine)), strict=True)))
        return [answer for _, answer in sorted(numbered_answers, key=lambda pair: pair[0])]

    def losses(self) -> dict[str, Any]:
        """The scores of an evaluation, with ``n``, the number of inputs in the mean loss."""
        scores = plain_scores(self.evaluate())
        return {**scores, "n": sum(len(answer.losses) for answer in self.given_answers)}

    def evaluate(self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """With a reader: its loss and scores, which :attr:`scores` has by length and position as well. If some questions have no answer,
        :attr:`threshold` decides. It has the best F1 on the trainer's evaluation data; a model that is only scored keeps its own."""
        if self.reader is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        examples = self.eval_dataset if eval_dataset is None else eval_dataset
        answers = self.answers(examples)
        self.scores = score_answers(examples, answers)
        if "best_f1_threshold" in self.scores and eval_dataset is None and not self.args.only_scores:
            self.threshold = self.scores["best_f1_threshold"]
        if self.threshold != self.reader.null_threshold:
            answers = [dataclasses.replace(answer, text=answer.above(self.threshold)) for answer in answers]
            self.scores = score_answers(examples, answers)
        self.given_answers = answers
        loss, error = mean_and_error([loss for answer in answers for loss in answer.losses])
        return self.log_scores({"loss": loss, "loss_se": error, **self.scores}, metric_key_prefix)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As Trainer's. Positions and windows are drawn here by the step's seed, so that a resumed run draws the same. A collator works
        ahead and does not know the step."""
        step = self.state.global_step
        self.batches = (step, self.batches[1] + 1 if self.batches[0] == step else 1)
        first = inputs.pop("document_start", None)
        if first is not None:
            seed = random.Random(f"{self.args.seed}:{self.args.process_index}:{self.batches}").getrandbits(63)
            inputs = {**inputs, **self.varied(first.cpu(), inputs["attention_mask"], torch.Generator().manual_seed(seed))}
        return super().training_step(model, inputs, *args, **kwargs)

    def varied(self, first: Tensor, real: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """``position_ids`` and ``attention_mask``, if they vary; ``first (B,)`` is where documents start."""
        changes: dict[str, Tensor] = {}
        if self.positions is not None:
            changes["position_ids"] = random_positions(first, real.shape[1], self.positions, generator).to(real.device)
        mask = window_mask(first, real.cpu(), self.windows, generator) if self.windows else None
        if mask is not None:
            if attention_implementation(self.accelerator.unwrap_model(self.model).config) == "eager":
                mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)  # added to the scores; transformers does not change 4-D masks
            changes["attention_mask"], changes["real"] = mask.to(real.device), real
        return changes


def random_positions(first: Tensor, length: int, positions: PositionRange, generator: torch.Generator) -> Tensor:
    """Position ids ``(B, length)`` with question and document placed independently; a document wraps around the end of the table.

    A tiled table looks the same: any row at any place, with a seam between copies.
    """
    places = torch.arange(length)
    starts = torch.randint(0, positions.count, (len(first), 2), generator=generator)
    start = torch.where(places < first[:, None], starts[:, :1], starts[:, 1:])
    return positions.first + (start + places) % positions.count


def window_mask(first: Tensor, real: Tensor, windows: Sequence[int], generator: torch.Generator) -> Tensor | None:
    """Draw one w of ``windows``: document tokens see the question and w tokens on either side, as after a conversion.

    Returns:
        A boolean mask ``(B, 1, L, L)``; ``None`` if 0, full attention, was drawn.
    """
    half = windows[int(torch.randint(0, len(windows), (1,), generator=generator))]
    if not half:
        return None
    places = torch.arange(real.shape[1])
    near = (places[:, None] - places).abs() <= half
    question = places < first[:, None]
    seen = near | question[:, None, :] | question[:, :, None]
    return (seen & real[:, None, :].bool())[:, None]


def describe_qa_training(log: dict[str, Any]) -> str:
    """A run's paragraph of the model card: duration, arguments, held-out loss and scores."""
    settings = log["settings"]
    unsaid = ("model", "output_dir", "data", "threads", "disable_tqdm", "resume", "overwrite")
    changed = {k: public_name(v) if isinstance(v, str) else v for k, v in settings.items() if k not in unsaid}
    minutes = end_of_training(log).get("minutes", 0.0)
    lines = [f"{steps_of(log)} in {minutes:.1f} minutes with `longattn train qa`, on {sources_in_words(settings)}:", ""]
    lines += [f"- `{key}`: {value}" for key, value in changed.items()]
    if "held_out" in log:
        lines += [
            "",
            f"{sentence_case(loss_name(log))}: {loss_in_words(log['held_out_loss'])}.",
            "",
            *(f"- {line}" for line in qa_table(log).splitlines()),
        ]
    return "\n".join(lines)


def qa_table(log: dict[str, Any]) -> str:
    """The result on the terminal: scores on the validation data before and after, a line each."""
    lines = []
    part, compared = scored_part(log), bool(log["held_out"]["before"])
    for when, scores in log["held_out"].items():
        if scores:
            names = [name for name in ("exact_match", "f1", "HasAns_f1", "NoAns_f1") if name in scores]
            shown = ", ".join(score_in_words(scores, name, name) for name in names)
            title = f"{part}, {when}" if compared and part != HELD_OUT else when if compared else part
            lines.append(f"{title}: {shown}{rows_in_words(scores['n'], 'question')}")
    after = log["held_out"]["after"]
    if "best_f1_threshold" in after and end_of_training(log):
        lines.append(
            f'each with the threshold of "no answer" that is best on these very questions (now {after["best_f1_threshold"]:.2f}), so '
            "somewhat higher than on others"
        )
    for kind in ("by_length", "by_position"):
        cells = [f"{bucket} {part['f1']:.1f} (n={part['n']})" for bucket, part in after[kind].items()]
        if cells:
            lines.append(f"F1 {kind.replace('_', ' ')} in tokens: " + ", ".join(cells))
    return "\n".join(lines)


def load_qa_model(name: str, *, complete: bool = True) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model with a question-answering head in float32, and its fast tokenizer.

    The tokenizer pads on the right, so that answers keep their positions.

    Args:
        complete: refuse a checkpoint without the head; otherwise it is new, and must be trained.
    """
    config = load_config(name)
    check_reads_text(config, name)
    kind = config.model_type
    of_texts, of_pages_too = MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES, MODEL_FOR_DOCUMENT_QUESTION_ANSWERING_MAPPING_NAMES
    _, tokenizer = load_start(name, "question answering", {*of_texts, *of_pages_too})
    of_pages = kind in of_pages_too and kind not in of_texts
    loader = AutoModelForDocumentQuestionAnswering if of_pages else AutoModelForQuestionAnswering
    model: PreTrainedModel = load_model(loader, name, complete=complete, **SPAN_LABELS)
    if not tokenizer.is_fast:
        raise CheckpointError(f"The tokenizer of {name!r} gives no character offsets; question answering needs a fast tokenizer.")
    tokenizer.padding_side = "right"
    return model, tokenizer


def encoding_for(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_args: QAModelArguments, data_args: QADataArguments
) -> QAEncodingConfig:
    """Return the encoding of documents for this model. Its config then marks global tokens, so that inference matches training.

    Raises:
        OptionError: a global question is requested for a model without global tokens.
    """
    length, question = input_length(model, tokenizer, data_args.max_length), data_args.max_question_tokens
    if model_args.global_question is False and getattr(model.config, "question_separator_id", None) is not None:
        model.config.question_separator_id = None
    if not model_args.global_question and (model_args.global_question is False or model_args.only_scores):  # as its config says
        return QAEncodingConfig(length, max_question_tokens=question)
    chosen_by_model = carry_question(model, tokenizer)
    if model_args.global_question and not takes_globals(model):
        raise OptionError(f"--global-question requires a mechanism with global tokens, and {model_args.model!r} has none; leave it out.")
    return QAEncodingConfig(length, None, bool(model_args.global_question) and not chosen_by_model, question)


TASK = Task(arguments=QA, train=finetune_qa, result=qa_table, evaluation="Score answers to questions about long documents.")
