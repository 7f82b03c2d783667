"""The arguments of every training, as in transformers' examples: model arguments, data arguments and ``TrainingArguments``.

Each task has one dataclass of each kind, which ``HfArgumentParser`` fills from the command line and from a flat recipe in YAML. Every
option of ``TrainingArguments`` is available; only defaults differ where long inputs need others.
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

import argparse
import dataclasses
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar, get_args, get_origin

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import HfArg, string_to_bool

from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.errors import LongAttentionError, OptionError
from hf_longattn.mechanisms.base import DENSE_LIMIT
from hf_longattn.mechanisms.composite import read_choice, read_options
from hf_longattn.recipes import read_recipe, recipe_names

Model = TypeVar("Model", bound="ModelArguments")
Data = TypeVar("Data", bound="DataArguments")
Training = TypeVar("Training", bound="LongTrainingArguments")

EPOCHS = 3.0
"""Passes over the data of a run that is given neither steps nor epochs nor minutes."""
ENDLESS = 1_000_000
"""Optimiser steps of a run that only the clock ends."""
DTYPES = ("float32", "float16", "bfloat16")
OBJECTIVES = ("auto", "mlm", "clm")
LONG_DOCUMENTS = ("windows", "truncate", "refuse")
QA_HEADS = ("auto", "span", "hotpot")
STAGES = ("both", "1", "2")
CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")
"""What recomputes activations, in every supported transformers and since 5.23, where the first name repeats the second."""
LM_LOSS, KL_LOSS, MIXED_LOSS = "lm", "kl", "mixed"
EVERYWHERE, PREDICTED = "all", "predicted"
LORA_RATE, FULL_RATE = 2e-4, 5e-5
"""Learning rates of stage 2: LoLCATs' order of size for LoRA, and fine-tuning of BERT-base (2e-5 to 5e-5) for all parameters."""
KINDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a string", string_to_bool: "true or false"}
"""What the types of options are called in a message."""


def argument(default: Any, help: str, aliases: list[str] | None = None) -> Any:
    """A field with its help text."""
    if isinstance(default, list):
        return HfArg(default_factory=lambda: list(default), help=help, aliases=aliases)
    return HfArg(default=default, help=help, aliases=aliases)


class CheckedArguments:
    """Arguments that remember which of them were given, and refuse values that are missing or contradict one another."""

    given: dict[str, Any]

    def __post_init__(self) -> None:
        self.given = given(self)
        self.check()

    def check(self) -> None:
        """Refuse values before anything is set up."""


@dataclass
class ModelArguments(CheckedArguments):
    """What a training starts from.

    Raises:
        OptionError: a missing or contradictory value.
    """

    _argument_group_name: ClassVar[str] = "model arguments"

    model: str = argument("", "Checkpoint to start from: a folder or a Hub name, converted or short.")
    dtype: str = argument("float32", "Type of the saved weights: float32, float16 or bfloat16.")

    def check(self) -> None:
        if not self.model:
            raise OptionError("no model given; add --model with a checkpoint folder or a Hub name")
        if self.dtype not in DTYPES:
            raise OptionError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")


@dataclass
class DataArguments(CheckedArguments):
    """What every training reads: nothing but the length of its inputs is common to all."""

    _argument_group_name: ClassVar[str] = "data arguments"
    hub_task: ClassVar[str] = "other"
    """The task's name on the Hub, for the card's metadata."""

    max_length: int | None = argument(None, "Tokens of a training input; default: the model's maximum.")

    def check(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise OptionError(f"max_length must be at least 2 tokens, not {self.max_length}")


@dataclass
class LongTrainingArguments(TrainingArguments):
    """All of ``TrainingArguments`` with a time budget and a number of tokens per batch.

    Raises:
        OptionError: a missing or contradictory value.
    """

    _argument_group_name: ClassVar[str] = "training arguments"

    output_dir: str | None = argument(None, "Folder for the trained model, and for its checkpoints while it trains.", ["--output"])
    num_train_epochs: float = argument(
        0.0, "Passes over the data; 0 = 3 passes, or as many as max_steps or max_minutes allow.", ["--epochs"]
    )
    max_minutes: float | None = argument(
        None, "Stop after this many minutes, as measured by the first process; the learning rate reaches zero by then."
    )
    tokens_per_batch: int = argument(
        0, "Tokens of a training batch, in place of a number of rows: in all where batches are packed, else rows × longest; 0 = off."
    )
    total_batch_size: int = argument(
        0, "Rows of an optimiser step over all processes, in place of gradient_accumulation_steps, which follows from it; 0 = off."
    )
    resume: bool = argument(False, "Resume from the latest checkpoint in output_dir that is complete.")
    overwrite: bool = argument(False, "Replace the model, and delete the checkpoints, of an earlier run in output_dir.")
    threads: int = argument(0, "CPU threads of this process; 0 = PyTorch's default.")
    early_stopping_patience: int = argument(
        0, "Stop after this many evaluations without improvement (with eval_strategy and load_best_model_at_end); 0 = never."
    )
    bf16: bool = argument(True, "Train under bfloat16 autocast.")
    max_steps: int = argument(-1, "Optimiser steps; -1 = as num_train_epochs says.")
    save_strategy: str = argument("steps", "When to write checkpoints: no, epoch, steps (see save_steps) or best.")
    warmup_steps: float = argument(0.1, "Steps of linear warm-up; a number below 1 is a fraction of the run.")
    weight_decay: float = argument(0.01, "AdamW's weight decay.")
    logging_steps: float = argument(20, "Steps between log entries; a short run logs ten times, and every run logs its last step.")
    save_steps: float = argument(0, "Steps between checkpoints to resume from; 0 = none.")
    save_total_limit: int | None = argument(2, "Checkpoints kept; older ones are deleted.")

    def __post_init__(self) -> None:
        self.given = given(self)
        named = str(getattr(self, "resume_from_checkpoint", None)).lower()
        if named in ("true", "false"):  # as Trainer.train takes it
            self.resume |= named == "true"
            self.resume_from_checkpoint = None
        self.check()
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.use_cpu:
            self.dataloader_pin_memory = False
        if self.fp16:
            self.bf16 = False
        if self.save_strategy == "steps" and not self.save_steps:
            self.save_strategy = "no"
        if self.max_minutes is not None and self.max_steps <= 0 and not self.num_train_epochs:
            self.max_steps = ENDLESS
        self.num_train_epochs = self.num_train_epochs or EPOCHS
        if self.total_batch_size:
            self.gradient_accumulation_steps = self._passes_per_step()
        try:
            super().__post_init__()
        except (ValueError, ImportError, NotImplementedError) as error:
            raise OptionError(" ".join(str(error).split())) from error

    def check(self) -> None:
        """Refuse values that are missing or contradict one another, before anything is set up."""
        if not self.output_dir:
            raise OptionError("no output folder given; add --output with the folder to write to")
        if self.folder.exists() and not self.folder.is_dir():
            raise OptionError(f"the output {self.output_dir!r} is a file; give a folder, which is created if it does not exist")
        for name in ("gradient_accumulation_steps", "per_device_train_batch_size", "logging_steps"):
            if getattr(self, name) <= 0:
                raise OptionError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.total_batch_size < 0:
            raise OptionError(f"total_batch_size must be at least 1, or 0 to leave it out, not {self.total_batch_size}")
        if both := [name for name in ("gradient_accumulation_steps", "tokens_per_batch") if self.total_batch_size and name in self.given]:
            raise OptionError(f"total_batch_size and {both[0]} contradict each other; leave one out, or give --total_batch_size 0")
        if self.max_minutes is not None and str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)) != "linear":
            raise OptionError("max_minutes has a linear schedule only; leave --lr_scheduler_type out, or give --max_steps instead")
        if self.early_stopping_patience and not self.load_best_model_at_end:
            raise OptionError(
                "early_stopping_patience needs evaluations to compare; add --load_best_model_at_end --eval_strategy steps --save_steps N"
            )

    def _passes_per_step(self) -> int:
        """How often every device goes forward for ``total_batch_size`` rows; devices that share a sequence count once."""
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        shares = getattr(self.parallelism_config, "cp_size", 0) or int(os.environ.get("PARALLELISM_CONFIG_CP_SIZE", "1"))
        devices = max(1, processes // shares) if processes > 1 or self.use_cpu else max(1, torch.accelerator.device_count())
        rows = self.per_device_train_batch_size * devices
        if self.total_batch_size % rows:
            raise OptionError(
                f"total_batch_size {self.total_batch_size} is no multiple of the {rows} rows that go forward at once "
                f"(per_device_train_batch_size {self.per_device_train_batch_size}, devices {devices}); change one of them"
            )
        return self.total_batch_size // rows

    @property
    def folder(self) -> Path:
        """``output_dir`` as a path."""
        return Path(str(self.output_dir))


class TaskArguments(NamedTuple):
    """The arguments of one run."""

    model: ModelArguments
    data: DataArguments
    training: LongTrainingArguments

    @property
    def settings(self) -> dict[str, Any]:
        """The values that were given, for a log or a card."""
        return {**self.model.given, **self.data.given, **self.training.given}

    def check(self) -> None:
        """Refuse arguments that contradict one another.

        Raises:
            OptionError: the output is the folder of the model.
        """
        folder = self.training.folder
        if folder.exists() and folder.resolve() == Path(self.model.model).resolve():
            raise OptionError(
                f"the output {self.training.output_dir!r} is the folder of --model, which would be overwritten; give another --output"
            )


@dataclass
class TextModelArguments(ModelArguments):
    """What a training on plain text starts from."""

    objective: str = argument("auto", "mlm (predict masked tokens), clm (predict the next token), or auto: what the model has a head for.")

    def check(self) -> None:
        super().check()
        if self.objective not in OBJECTIVES:
            raise OptionError(f"objective must be one of {', '.join(OBJECTIVES)}, not {self.objective!r}")


@dataclass
class LMModelArguments(TextModelArguments):
    """What a training of a language model starts from."""

    from_scratch: bool = argument(False, "Start from random weights of the model's architecture, which --model then only describes.")


@dataclass
class MLMModelArguments(LMModelArguments):
    """An encoder, which predicts masked tokens."""

    objective: str = field(default="mlm", init=False)


@dataclass
class CLMModelArguments(LMModelArguments):
    """A decoder, which predicts the next token."""

    objective: str = field(default="clm", init=False)


@dataclass
class TextDataArguments(DataArguments):
    """Plain text, and how inputs are made from it."""

    text: list[str] = argument(
        [], "One or several of: a .txt, .jsonl, .csv, .tsv or .parquet file, a folder of text files, a folder written by datasets, the "
        "name of a dataset on the Hub (NAME:SUBSET)."
    )  # fmt: skip
    column: str = argument("text", "The column that holds the text.")
    template: list[str] = argument(
        [], "Format strings that make the text from several columns, '{title}: {body}', in place of --column; each row takes the first "
        "one whose columns all have a value."
    )  # fmt: skip
    split: str = argument("train", "Split to train on, if the data have several.")
    validation: str = argument("", "Text to measure the loss on; default: the last hundredth of the documents.")
    max_documents: int = argument(0, "Maximum number of documents; 0 = all.")
    mask_probability: float = argument(0.15, "Fraction of tokens that mlm chooses.")

    def check(self) -> None:
        super().check()
        if not self.text:
            raise OptionError("no text given; add --text with a file, a folder or a dataset's name")
        if not 0 < self.mask_probability < 1:
            raise OptionError(f"mask_probability must lie between 0 and 1, not {self.mask_probability}")


@dataclass
class LMDataArguments(TextDataArguments):
    """Text for continued language-model training."""

    segments: int = argument(
        0, "Read each document in consecutive segments of this many tokens, with the model's memory of earlier ones; 0 = independent "
        "inputs. For mechanisms with a memory: transformer_xl, infini, recurrent_memory, linear, window."
    )  # fmt: skip
    packing: bool | None = argument(
        None, "Keep the documents that share an input apart, so that none sees another and positions restart; default: yes where the model "
        "can (Long models). Without, documents are joined by the end token."
    )  # fmt: skip


@dataclass
class MLMDataArguments(LMDataArguments):
    """Text for masked-token prediction."""

    hub_task: ClassVar[str] = "fill-mask"


@dataclass
class CLMDataArguments(LMDataArguments):
    """Text for next-token prediction."""

    hub_task: ClassVar[str] = "text-generation"

    mask_probability: float = field(default=0.15, init=False)


@dataclass
class TextTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` with the batch sizes of long text."""

    per_device_train_batch_size: int = argument(1, "Inputs per forward pass and process.", ["--batch_size", "--batch-size"])
    per_device_eval_batch_size: int = argument(1, "Inputs per forward pass and process in evaluation.")
    gradient_accumulation_steps: int = argument(8, "Forward passes per optimiser step.")


def check_segments(data: LMDataArguments, training: TextTrainingArguments) -> None:
    """Refuse what documents read in segments do not go with; without steps or minutes there are 1,000 steps, as segments never end.

    Raises:
        OptionError: segments too short, or with epochs, ``max_length`` or checkpointed activations.
    """
    if not data.segments:
        return
    checkpointing = training.gradient_checkpointing or getattr(training, "activation_checkpointing", None)
    if data.segments < 2 or "num_train_epochs" in training.given or checkpointing or data.max_length is not None:
        raise OptionError(
            f"segments is {data.segments}: give at least 2 tokens, max_steps or max_minutes instead of epochs, and neither max_length "
            "nor gradient_checkpointing, which drops what the layers remember"
        )
    if training.max_minutes is None and training.max_steps <= 0:
        training.max_steps = 1000


@dataclass
class LabelledDataArguments(DataArguments):
    """Labelled data to train on and to evaluate on."""

    shape: ClassVar[str] = "a file"

    data: list[str] = argument(
        [],
        "One or several of: a .jsonl, .json, .csv, .tsv or .parquet file, a folder written by datasets, the name of a dataset on the Hub "
        "(NAME:SUBSET).",
    )
    split: str = argument("train", "Split to train on, if the data have several.")
    validation: str = argument("", "Data to evaluate on; default: the last tenth of --data.")
    validation_split: str = argument("validation", "Split of --validation, if it has several.")
    max_length: int | None = argument(None, "Tokens at which documents are cut; default: the model's maximum.")

    def check(self) -> None:
        super().check()
        if not self.data:
            raise OptionError(f"no data given; add --data with {self.shape}, a folder or a dataset's name")


@dataclass
class ClassificationDataArguments(LabelledDataArguments):
    """Documents to classify."""

    hub_task: ClassVar[str] = "text-classification"
    shape: ClassVar[str] = "a labelled file"

    data: list[str] = argument(
        [], "One or several of: a .csv, .tsv, .jsonl or .parquet file, a folder with one sub-folder of text files per label, a folder "
        "written by datasets, the name of a dataset on the Hub (NAME:SUBSET)."
    )  # fmt: skip
    text_column: str = argument("text", "The column that holds the text.")
    label_column: str = argument("label", "The column that holds the label: a name or a whole number.")
    validation: str = argument("", "Labelled data to evaluate on; default: a tenth of --data, chosen by --seed.")
    max_documents: int = argument(0, "Maximum number of documents; 0 = all.")
    packing: bool | None = argument(
        None, "Pack the documents of a training batch into one row without padding; default: yes where model and head allow it."
    )

    def check(self) -> None:
        super().check()
        if self.text_column == self.label_column:
            raise OptionError(f"text_column and label_column are both {self.text_column!r}; name two columns")


@dataclass
class ClassificationTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` of document classification."""

    per_device_train_batch_size: int = argument(2, "Documents per forward pass and process.", ["--batch_size", "--batch-size"])
    per_device_eval_batch_size: int = argument(2, "Documents per forward pass and process in evaluation.")
    gradient_accumulation_steps: int = argument(4, "Forward passes per optimiser step.")
    train_sampling_strategy: str = argument("group_by_length", "Order of the training data; group_by_length pads least.")


@dataclass
class QAModelArguments(ModelArguments):
    """What extractive question answering starts from, and is compared with."""

    heads: str = argument(
        "auto", "span, or hotpot: also yes and no answers and supporting sentences, as in Longformer; auto: what the data have."
    )
    global_question: bool | None = argument(
        None, "Make the question's tokens global; default: yes where the mechanism takes global tokens and the tokenizer separates "
        "question and document, so that the saved model marks them itself. Without such a separator, inference needs global_attention_mask."
    )  # fmt: skip
    baseline: str = argument("", "A short model to compare with on --validation, read in windows of 512 tokens that share 128.")

    def check(self) -> None:
        super().check()
        if self.heads not in QA_HEADS:
            raise OptionError(f"heads must be one of {', '.join(QA_HEADS)}, not {self.heads!r}")


@dataclass
class QADataArguments(LabelledDataArguments):
    """Questions about documents, and how documents become inputs."""

    hub_task: ClassVar[str] = "question-answering"
    shape: ClassVar[str] = "a SQuAD-shaped file"

    data: list[str] = argument(
        [], "One or several of: a .json, .jsonl, .csv, .tsv or .parquet file, a folder written by datasets, a name on the Hub "
        "(NAME:SUBSET); in the schema of SQuAD, MRQA, TriviaQA, Natural Questions or HotpotQA, or with question, context and answer."
    )  # fmt: skip
    validation: str = argument("", "Data to answer before, during (eval_strategy) and after training; tunes the no-answer threshold.")
    evidence: str = argument(
        "", "Folder 'evidence' of TriviaQA's release, with the documents of its own JSON; default: the one beside the file or its folder."
    )  # fmt: skip
    skip_bad_rows: bool = argument(False, "Leave out rows that cannot be used, such as answers that are not in their document.")
    max_length: int | None = argument(None, "Tokens of the longest input; default: the model's maximum.")
    long_documents: str = argument(
        "windows", "What to do with documents longer than max_length: windows (overlapping, see stride), truncate (questions whose answer "
        "is cut off are left out of the training), or refuse."
    )  # fmt: skip
    stride: int = argument(128, "Tokens shared by consecutive windows of a document that is longer than max_length (BERT, run_qa).")
    packing: bool | None = argument(
        None, "Pack the documents of a batch into one row without padding; default: yes where the model keeps them apart (Long models)."
    )
    max_question_tokens: int = argument(64, "Tokens at which a question is cut, with a warning.")

    def check(self) -> None:
        super().check()
        if self.long_documents not in LONG_DOCUMENTS:
            raise OptionError(f"long_documents must be one of {', '.join(LONG_DOCUMENTS)}, not {self.long_documents!r}")
        if self.max_question_tokens < 1:
            raise OptionError(f"max_question_tokens must be at least 1, not {self.max_question_tokens}")


@dataclass
class QATrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` of extractive question answering."""

    random_positions: bool = argument(False, "Place question and document at random rows of the position table, so that all are trained.")
    windows: list[int] = argument(
        [], "For short models: train under the attention of their later conversion. In every step document tokens see the question and "
        "this many tokens on either side, drawn from these numbers; 0 = full attention."
    )  # fmt: skip
    per_device_train_batch_size: int = argument(2, "Inputs per forward pass and process.", ["--batch_size", "--batch-size"])
    per_device_eval_batch_size: int = argument(2, "Inputs per forward pass and process in evaluation.")
    gradient_accumulation_steps: int = argument(8, "Forward passes per optimiser step.")
    learning_rate: float = argument(3e-5, "Highest learning rate (BERT fine-tuning: 2e-5 to 5e-5).")
    train_sampling_strategy: str = argument("group_by_length", "Order of the training data; group_by_length pads least.")


@dataclass
class DistillationModelArguments(TextModelArguments):
    """The student of attention distillation, and its teacher."""

    mechanism: str = argument(
        "", "MECHANISM[:NAME=VALUE,...] to convert --model to first, for example hedgehog; default: --model has been converted already."
    )
    option: list[str] = argument([], "Options of --mechanism, each NAME=VALUE.")
    layers: str = argument("", "Other mechanisms in some layers, as for `longattn convert --layers`, for example '0=full'.")
    teacher: str = argument(
        "", "The frozen original: its weights are used, with the mechanisms' parameters from --model; default: --model, whose weights the "
        "conversion has not changed."
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if (self.option or self.layers) and not self.mechanism:
            raise OptionError("--option and --layers require --mechanism; leave them out for a converted --model")
        if self.mechanism:
            self.attention()

    def attention(self) -> LongAttentionConfig:
        """The mechanism, its options and its layers as one configuration."""
        choice: dict[str, Any] = {**read_choice(self.mechanism), **read_options(",".join(self.option))}
        return LongAttentionConfig(layers=self.layers or None, **choice)


@dataclass
class DistillationTrainingArguments(TextTrainingArguments):
    """``TrainingArguments`` of attention distillation in two stages."""

    stage: str = argument("both", "1 (match softmax attention), 2 (fine-tune the model) or both.")
    transfer_steps: int = argument(400, "Optimiser steps of stage 1.")
    transfer_learning_rate: float = argument(1e-2, "Highest learning rate of stage 1.")
    output_factor: float = argument(1.0, "Factor of the squared error of the attention outputs in stage 1.")
    weights_factor: float = argument(0.0, "Factor of the cross-entropy of the attention weights in stage 1 (Hedgehog); needs N×N memory.")
    finetune_steps: int = argument(800, "Optimiser steps of stage 2.")
    finetune_learning_rate: float | None = argument(
        None, "Highest learning rate of stage 2; default: 2e-4 with LoRA, 5e-5 with --full, for models of base size (110M parameters)."
    )  # fmt: skip
    softmax_layers: float = argument(
        0.0, "Layers that keep softmax attention: a number, or a share below 1; restored one after another after stage 1, each time "
        "the one that lowers the KL divergence from the original most (after arXiv 2512.20569). 0 = none."
    )  # fmt: skip
    finetune_loss: str = argument(
        LM_LOSS, "Stage 2's loss: lm, the model's own on the text; kl, the KL divergence of its predictions from those of the original, "
        "which is the same checkpoint with softmax attention; mixed, both."
    )  # fmt: skip
    kl_factor: float = argument(1.0, "Factor of the KL divergence beside the language-model loss, in --finetune_loss mixed.")
    kl_positions: str = argument(
        PREDICTED, "Where an encoder's predictions are compared: predicted, the masked tokens, or all. Decoders predict at every token."
    )
    temperature: float = argument(1.0, "Temperature of both models' predictions in the KL divergence.")
    hidden_factor: float = argument(
        0.0, "Factor of the relative squared error of the hidden states after each layer (MOHAWK), with --finetune_loss kl or mixed."
    )
    full: bool = argument(False, "Train all parameters in stage 2, instead of LoRA on the q, k, v and output projections.")
    lora_rank: int = argument(8, "LoRA's rank.")
    lora_alpha: float = argument(16.0, "LoRA's scale: an update is multiplied by alpha / rank.")
    rate_trials: int = argument(
        0, "Learning rates to try for each stage: so many short runs with rates around the stage's, each 3.2 times the one before; the one "
        "with the lowest held-out loss is taken. 0 = none. Needs Optuna (the extra 'search')."
    )  # fmt: skip
    rate_steps: int = argument(20, "Optimiser steps of each of these runs.")
    held_out_inputs: int = argument(32, "Inputs on which the report's losses are measured.")

    def check(self) -> None:
        super().check()
        if self.stage not in STAGES:
            raise OptionError(f"stage must be one of {', '.join(STAGES)}, not {self.stage!r}")
        for name in ("transfer_steps", "finetune_steps", "lora_rank", "held_out_inputs", "rate_steps"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, not {getattr(self, name)}")
        if min(self.output_factor, self.weights_factor) < 0 or self.output_factor + self.weights_factor == 0:
            raise OptionError("output_factor and weights_factor must be 0 or more, and one of them above 0, so that stage 1 has a loss")
        if self.rate_trials < 0 or self.rate_trials == 1:
            raise OptionError(f"rate_trials must be 2 or more rates to choose from, or 0 to choose none, not {self.rate_trials}")
        if self.softmax_layers < 0 or (self.softmax_layers > 1 and self.softmax_layers % 1):
            raise OptionError(f"softmax_layers must be a number of layers, or a share between 0 and 1, not {self.softmax_layers:g}")
        self._check_finetune_loss()
        of_a_run = [
            name for name in ("max_steps", "num_train_epochs", "learning_rate", "max_minutes", "eval_strategy") if name in self.given
        ]
        if of_a_run:
            name = {"num_train_epochs": "epochs"}.get(of_a_run[0], of_a_run[0])
            raise OptionError(
                f"--{name} does not apply to the two stages of a distillation; give --transfer_steps, --transfer_learning_rate, "
                "--finetune_steps and --finetune_learning_rate"
            )

    def _check_finetune_loss(self) -> None:
        for name, known in (("finetune_loss", (LM_LOSS, KL_LOSS, MIXED_LOSS)), ("kl_positions", (EVERYWHERE, PREDICTED))):
            if getattr(self, name) not in known:
                raise OptionError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if self.temperature <= 0:
            raise OptionError(f"temperature must be above 0, not {self.temperature}")
        if min(self.kl_factor, self.hidden_factor) < 0 or self.kl_factor == 0:
            raise OptionError("kl_factor must be above 0, and hidden_factor 0 or more; give --finetune_loss lm to leave both out")
        unused = [name for name in ("kl_positions", "temperature", "hidden_factor", "kl_factor") if name in self.given]
        if unused and not self.needs_teacher:
            raise OptionError(f"{unused[0]} compares with the original, which --finetune_loss lm does not; add --finetune_loss kl or mixed")
        if self.finetune_loss == KL_LOSS and "kl_factor" in self.given:
            raise OptionError(
                "kl_factor weighs the KL divergence against the language-model loss; add --finetune_loss mixed or leave it out"
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether stage 2 compares with the original."""
        return self.finetune_loss != LM_LOSS

    @property
    def finetune_factors(self) -> dict[str, float]:
        """The factor of each part of stage 2's loss: ``lm``, ``kl`` and ``hidden``."""
        return {
            "lm": float(self.finetune_loss != KL_LOSS),
            "kl": self.kl_factor * self.needs_teacher,
            "hidden": self.hidden_factor * self.needs_teacher,
        }

    def check_length(self, length: int) -> None:
        """Refuse inputs too long for a dense matrix of attention weights."""
        if self.weights_factor and length > DENSE_LIMIT:
            raise OptionError(
                f"weights_factor compares dense attention weights, which exist up to {DENSE_LIMIT} tokens, not for {length}; "
                f"give --max-length {DENSE_LIMIT} or --weights-factor 0"
            )

    def runs(self, stage: int) -> bool:
        """Whether this stage is to be run."""
        return self.stage in ("both", str(stage))

    def checkpoints(self, stage: int) -> Path:
        """The folder of a stage's checkpoints."""
        return self.folder / "checkpoints" / f"stage{stage}"

    def learning_rate_of(self, stage: int) -> float:
        """The highest learning rate that is asked for."""
        if stage == 1:
            return self.transfer_learning_rate
        return (FULL_RATE if self.full else LORA_RATE) if self.finetune_learning_rate is None else self.finetune_learning_rate

    def of_stage(self, stage: int, learning_rate: float | None = None) -> LongTrainingArguments:
        """The arguments of one stage as of a single run; ``learning_rate``: in place of the one that is asked for."""
        return self._single_run(
            stage,
            output_dir=str(self.checkpoints(stage)),
            max_steps=self.transfer_steps if stage == 1 else self.finetune_steps,
            learning_rate=self.learning_rate_of(stage) if learning_rate is None else learning_rate,
        )

    def of_trials(self, stage: int) -> LongTrainingArguments:
        """The arguments of a short run of a stage that tries a learning rate."""
        return self._single_run(
            stage, output_dir=str(self.folder / "checkpoints" / "rates"), max_steps=self.rate_steps, save_strategy="no", report_to="none",
            learning_rate=self.learning_rate_of(stage),
        )  # fmt: skip

    def _single_run(self, stage: int, **changes: Any) -> LongTrainingArguments:
        values = {each.name: getattr(self, each.name) for each in fields(LongTrainingArguments) if each.init}
        return LongTrainingArguments(
            **{
                **values,
                **{name: getattr(self, name) and stage == 2 for name in CHECKPOINTING if name in values},
                "include_num_input_tokens_seen": "non_padding",
                "label_names": ["labels"],
                "remove_unused_columns": False,
                "push_to_hub": False,
                "total_batch_size": 0,  # is in gradient_accumulation_steps
                **changes,
            }
        )


LM = (LMModelArguments, LMDataArguments, TextTrainingArguments)
MLM = (MLMModelArguments, MLMDataArguments, TextTrainingArguments)
CLM = (CLMModelArguments, CLMDataArguments, TextTrainingArguments)
CLASSIFICATION = (ModelArguments, ClassificationDataArguments, ClassificationTrainingArguments)
QA = (QAModelArguments, QADataArguments, QATrainingArguments)
DISTILLATION = (DistillationModelArguments, TextDataArguments, DistillationTrainingArguments)


def build_arguments(kinds: tuple[type[Model], type[Data], type[Training]], **values: Any) -> tuple[Model, Data, Training]:
    """Model, data and training arguments from values by name.

    Raises:
        TypeError: a name that none of the three has.
    """
    parts: list[dict[str, Any]] = []
    for kind in kinds:
        names = {each.name for each in fields(kind) if each.init}
        parts.append({name: values.pop(name) for name in list(values) if name in names})
    if values:
        raise TypeError(f"{', '.join(kind.__name__ for kind in kinds)} have no {', '.join(values)}")
    return kinds[0](**parts[0]), kinds[1](**parts[1]), kinds[2](**parts[2])


def given(arguments: Any) -> dict[str, Any]:
    """The values that differ from their defaults, without secrets: what a log or card says about a run."""
    found = {}
    for each in fields(arguments):
        if each.init and not each.name.endswith("_token"):
            usual = each.default_factory() if each.default_factory is not dataclasses.MISSING else each.default
            value = getattr(arguments, each.name)
            if value != usual:
                found[each.name] = value if isinstance(value, (bool, int, float, list, dict)) else str(value)
    return found


def parse_arguments(
    kinds: tuple[type[Model], type[Data], type[Training]], arguments: list[str], description: str, prog: str | None = None
) -> tuple[Model, Data, Training]:
    """Return the arguments of a recipe (``--config``), overridden by the command line.

    Raises:
        LongAttentionError: the recipe does not exist or has an unknown name, or a value is refused.
    """
    read = next((f" --{each.name} {each.name.upper()}" for each in fields(kinds[1]) if each.name in ("data", "text", "tasks")), "")
    usage = f"%(prog)s --model MODEL{read} --output FOLDER [OPTION ...]"
    parser = HfArgumentParser(kinds, description=description, usage=usage, prog=prog)
    command = (prog or "").removeprefix("longattn ")
    parser.add_argument("--config", help=f"Recipe with the names below: a YAML file, or one of {recipe_names(command) or 'your own'}.")
    for action in parser._actions:  # HfArgumentParser gives --no_bf16 the help of --bf16
        if action.option_strings and action.option_strings[0].startswith("--no_"):
            action.help = f"Turn --{action.dest} off, which is on by default."
    inherited = {each.name for each in fields(TrainingArguments)}
    for group in parser._action_groups:
        group._group_actions.sort(key=lambda action: action.dest in inherited)  # the help lists ours first
    usual = vars(parser.parse_args([]))  # HfArgumentParser's defaults of `debug` and of another option are not TrainingArguments'
    known, _ = parser.parse_known_args(arguments)
    if known.config:
        parser.set_defaults(**_defaults(parser, known.config, command))
    values = vars(parser.parse_args(arguments))
    values.pop("config")
    return build_arguments(kinds, **{name: value for name, value in values.items() if value != usual[name]})


def _defaults(parser: HfArgumentParser, recipe: str, command: str) -> dict[str, Any]:
    """A recipe's values by the fields' names; it may use every name of the command line, and one value where there is a list."""
    options = {option.strip("-").replace("-", "_"): action for action in parser._actions for option in action.option_strings}
    options = {name: action for name, action in options.items() if action.dest not in ("help", "config") and not name.startswith("no_")}
    found: dict[str, Any] = {}
    for name, value in read_recipe(recipe, options, command).items():
        action = options[name]
        if action.dest in found:
            raise OptionError(f"the recipe {recipe} sets {action.dest!r} twice, under two names; leave one of them out")
        try:
            found[action.dest] = _typed(action, value)
        except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
            kind = KINDS.get(action.type, f"a {getattr(action.type, '__name__', 'string')}")
            wanted = f"one of {', '.join(map(str, action.choices))}" if action.choices else kind
            raise OptionError(f"the recipe {recipe} sets {name!r} to {value!r}; it must be {wanted}") from error
    return found


def _typed(action: argparse.Action, value: Any) -> Any:
    """A recipe's value in the type that the command line gives it, since argparse converts texts only.

    Raises:
        TypeError, ValueError, argparse.ArgumentTypeError: it is of another type.
    """
    if value is None and action.default is None:
        return None
    if action.nargs == "+":
        return [_single(action, one) for one in (value if isinstance(value, list) else [value])]
    if isinstance(value, (dict, list)):  # lr_scheduler_kwargs, fsdp_config, report_to …, which are JSON texts on the command line
        kinds = get_args(TrainingArguments.__annotations__.get(action.dest))
        if not any((get_origin(kind) or kind) is type(value) for kind in kinds):
            raise TypeError
        return value
    return _single(action, value)


def _single(action: argparse.Action, value: Any) -> Any:
    if value is False and action.type is not string_to_bool:
        value = "no"  # as in `eval_strategy: no`, which YAML reads as false
    if value is None or isinstance(value, (dict, list)) or (value is True and action.type is str):
        raise TypeError
    typed = action.type(str(value)) if callable(action.type) else value
    if action.choices and typed not in action.choices:
        raise ValueError
    return value if typed == value and not isinstance(typed, bool) else typed


def sets(name: str, arguments: list[str]) -> bool:
    """Whether a command line or its recipe gives this setting."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", nargs="?", const="")
    parser.add_argument("--config", nargs="?")
    known, _ = parser.parse_known_args(arguments)
    if getattr(known, name) is not None or not known.config:
        return getattr(known, name) is not None
    try:
        return name in read_recipe(known.config)
    except LongAttentionError:  # told where the recipe is parsed
        return False
