"""Continue training a converted model on long text, by the objective of its head."""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from datasets import Dataset
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from hf_longattn.data.batching import chosen_packing
from hf_longattn.data.lengths import input_length
from hf_longattn.data.masking import DataCollatorForPackedText, RepeatableMasks
from hf_longattn.data.rows import each_part, read_texts
from hf_longattn.data.segments import SegmentCollator, SegmentStream
from hf_longattn.data.tokenization import to_documents, to_inputs
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.loading import load_config, load_model, load_padding_tokenizer, new_model
from hf_longattn.modeling.family.definition import CAUSAL_LANGUAGE_MODELS
from hf_longattn.training.args import DataArguments, ModelArguments, argument, batch_size_argument
from hf_longattn.training.loading import check_reads_text
from hf_longattn.training.old_trainer import LongTrainer
from hf_longattn.training.results import compared_losses, loss_in_words, loss_name, plain_scores, sources_in_words, steps_of
from hf_longattn.training.segment_trainer import SegmentTrainer
from hf_longattn.training.training_args import LongTrainingArguments
from hf_longattn.training.training_loop import prepare_run, save_run, train

MOST_HELD_OUT = 1000
"""Maximum number of held-out documents per source. Untuned."""
_TASKS = {"mlm": "predict masked tokens", "clm": "predict the next token from those before it", "hidden": "have hidden states"}
_HEADS = {
    "mlm": (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "clm": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "hidden": (AutoModel, MODEL_MAPPING_NAMES),
}


@dataclass
class LMModelArguments(ModelArguments):
    """The checkpoint of a language model's training."""

    training_only: ClassVar[tuple[str, ...]] = ("from_scratch",)

    objective: str = field(default="auto", init=False)
    from_scratch: bool = argument(False, "Start from random weights of the model's architecture, which --model then only describes.")

    def check(self) -> None:
        super().check()


@dataclass
class TextDataArguments(DataArguments):
    """Plain text, and its encoding."""

    training_only: ClassVar[tuple[str, ...]] = ("validation",)

    text: list[str] = argument(
        [], "Files, folders or names on the Hub, one or several: "
        "a .txt, .jsonl, .csv, .tsv or .parquet file, a folder of text files, a folder written by datasets, the "
        "name of a dataset on the Hub (NAME:SUBSET)."
    )  # fmt: skip
    column: str = argument("text", "The column that holds the text.")
    template: list[str] = argument(
        [], "Format strings that make the text from several columns, '{title}: {body}', in place of --column; each row takes the first "
        "one whose columns all have a value."
    )  # fmt: skip
    split: str = argument("train", "Split to train on, if the data have several.")
    validation: str = argument(
        "", "Text to measure the loss on, all of it; default: a tenth of the documents of every source (1,000 at most), chosen by --seed."
    )
    mask_probability: float = argument(0.15, "Fraction of the tokens that are predicted by mlm.")

    def check(self) -> None:
        super().check()
        if not self.text:
            raise OptionError("No text given; add --text with a file, a folder or a dataset's name.")
        if not 0 < self.mask_probability < 1:
            raise OptionError(f"--mask-probability must lie between 0 and 1, not {self.mask_probability}.")


@dataclass
class LMDataArguments(TextDataArguments):
    """Text for continued language-model training."""

    segments: int = argument(
        0, "Read each document in consecutive segments of this many tokens, with the model's memory of earlier ones; 0 = independent "
        "inputs. For mechanisms with a memory: transformer_xl, recurrent_memory, linear, window."
    )  # fmt: skip
    packing: bool | None = argument(
        None, "Keep the documents that share an input apart, so that none sees another and positions restart; default: yes where the model "
        "can (Long models). Otherwise they follow one another, as in run_mlm and run_clm."
    )  # fmt: skip


@dataclass
class TextTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` with the batch sizes of long text."""

    per_device_train_batch_size: int = batch_size_argument(1)
    per_device_eval_batch_size: int = argument(1, "Inputs per forward pass and process in evaluation.")
    gradient_accumulation_steps: int = argument(8, "Forward passes per optimiser step.")


LM = (LMModelArguments, LMDataArguments, TextTrainingArguments)


def check_segments(data: LMDataArguments, training: TextTrainingArguments) -> None:
    """Refuse options that contradict reading in segments. Segments never end, so the default is 1,000 steps.

    Raises:
        OptionError: segments too short, or with epochs, ``max_length`` or checkpointed activations.
    """
    if not data.segments:
        return
    checkpointing = training.gradient_checkpointing or getattr(training, "activation_checkpointing", None)
    if data.segments < 2 or "num_train_epochs" in training.explicit or checkpointing or data.max_length is not None:
        raise OptionError(
            f"--segments is {data.segments}: give at least 2, --max-steps or --max-minutes instead of --epochs, and neither --max-length "
            "nor --gradient-checkpointing, which drops what the layers remember."
        )
    if training.max_minutes is None and training.max_steps < 0:
        training.max_steps = 1000


def finetune_lm(model_args: LMModelArguments, data_args: LMDataArguments, training_args: TextTrainingArguments) -> dict[str, Any]:
    """Train, and write the model to ``training_args.output_dir``.

    Returns:
        The log, as written to ``training_log.json``: arguments, versions, held-out loss before and after, Trainer's history.
    """
    check_segments(data_args, training_args)
    run = prepare_run(model_args, data_args, training_args)
    sources = {"from_scratch": model_args.from_scratch, "complete": training_args.only_scores}
    model, tokenizer, objective = load_lm(model_args.model, model_args.objective, **sources)
    length = data_args.segments or input_length(model, tokenizer, data_args.max_length)
    training_args.accelerator_config.dispatch_batches = False  # every process reads a stream itself, and keeps its rows
    documents, held_out = read_documents(data_args, training_args.seed)
    pack = chosen_packing(model, data_args.packing, training_args) and not data_args.segments
    masks = DataCollatorForPackedText if pack else RepeatableMasks
    collator: Any = masks(tokenizer, mlm=objective == "mlm", mlm_probability=data_args.mask_probability, seed=training_args.seed)
    inputs: Any
    held_out_inputs: Any
    if data_args.segments:
        rows, padding = training_args.per_device_train_batch_size * training_args.world_size, {"pad_token_id": tokenizer.pad_token_id}
        inputs = SegmentStream(
            to_documents(documents, tokenizer), length, rows, shuffle=True, seed=training_args.seed, epochs=None, **padding
        )
        held_out_inputs = SegmentStream(to_documents(held_out, tokenizer), length, training_args.per_device_eval_batch_size, **padding)
        collator = SegmentCollator(collator if collator.mlm else None)
    else:
        inputs, held_out_inputs = each_part(partial(to_inputs, tokenizer=tokenizer, length=length, pack=pack), documents, held_out)
    trainer = (SegmentTrainer if data_args.segments else LongTrainer)(
        model, training_args, train_dataset=inputs, eval_dataset=held_out_inputs, data_collator=collator, processing_class=tokenizer
    )
    before, after = train(trainer, run, lambda: plain_scores(trainer.evaluate())), plain_scores(trainer.evaluate())
    log = {"objective": objective, "packed": pack, "input_length": length, "held_out_loss": compared_losses(before, after)}
    return save_run(trainer, run, log, describe_lm_training)


def describe_lm_training(log: dict[str, Any]) -> str:
    """The text of the model card about a run."""
    kind = {"mlm": "masked", "clm": "next"}[log["objective"]]
    return (
        f"{steps_of(log)} with `longattn train {log['objective']}` on {sources_in_words(log['settings'])}, inputs of "
        f"{log['input_length']:,} tokens: {loss_name(log, f'{kind}-token loss')} {loss_in_words(log['held_out_loss'])}."
    )


def describe_lm_result(log: dict[str, Any]) -> str:
    """The result of a run for the terminal."""
    return f"{loss_name(log)} {loss_in_words(log['held_out_loss'])}"


def read_documents(args: TextDataArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Training documents and held-out ones, as the new core reads them."""
    named: Any = {"data": args.text, "named": {"text": args.column}, "roles": {"text": ("text",)}, "only_scores": args.only_scores}
    for name in ("split", "validation", "template", "max_train_samples", "max_eval_samples"):
        named[name] = getattr(args, name, None)
    reading = SimpleNamespace(scored_rows={}, **named)
    parts = read_texts(reading, seed)
    args.scored_rows = reading.scored_rows
    return parts


def load_lm(
    name: str, objective: str, *, from_scratch: bool = False, complete: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Load a model with its language-modelling head in float32, its tokenizer, and its objective.

    Args:
        objective: "mlm" (masked tokens), "clm" (next tokens), "auto" (what the model has a head for), or "hidden" (no head).
        from_scratch: with random weights.
        complete: refuse a checkpoint that lacks weights.

    Raises:
        CheckpointError: it cannot be loaded, lacks weights, or has no head for the objective.
    """
    config = load_config(name)
    check_reads_text(config, name)
    tokenizer: PreTrainedTokenizerBase = load_padding_tokenizer(name, config)
    predicts_masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if objective == "auto":
        check_trains(config, name)
        is_masked = predicts_masked and not (config.architectures or [""])[0].endswith(CAUSAL_LANGUAGE_MODELS)
        objective = "mlm" if is_masked and tokenizer.mask_token is not None else "clm"
    loader, names = _HEADS[objective]
    sees_next = predicts_masked and not config.is_encoder_decoder and not getattr(config, "is_decoder", False)
    if config.model_type not in names or (objective == "clm" and sees_next):
        raise OptionError(
            f"{name!r} ({config.model_type}) does not {_TASKS[objective]}, which {objective} needs; "
            f"take the task {'clm' if objective == 'mlm' else 'mlm'}."
        )
    model: PreTrainedModel = new_model(loader, config, dtype=torch.float32) if from_scratch else load_model(loader, name, complete=complete)
    if getattr(model, "is_quantized", False):
        raise CheckpointError(f"{name!r} holds quantised weights, which cannot be trained; train the checkpoint that it was made from.")
    if objective == "mlm" and tokenizer.mask_token is None:
        raise CheckpointError(f"The tokenizer of {name!r} has no mask token, which mlm needs; give it one (tokenizer.add_special_tokens).")
    return model, tokenizer, objective


def check_trains(config: Any, name: str) -> None:
    """Refuse a family without a model that predicts masked or next tokens.

    Raises:
        CheckpointError: with one sentence.
    """
    if config.model_type not in {*MODEL_FOR_MASKED_LM_MAPPING_NAMES, *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}:
        raise CheckpointError(f"{name!r} ({config.model_type}) has no language-modelling head; take a model that predicts tokens.")


@dataclass
class MLMModelArguments(LMModelArguments):
    """An encoder, which predicts masked tokens."""

    objective: str = field(default="mlm", init=False)


@dataclass
class CLMModelArguments(LMModelArguments):
    """A decoder, which predicts the next token."""

    objective: str = field(default="clm", init=False)


@dataclass
class CLMDataArguments(LMDataArguments):
    """Text for next-token prediction."""

    mask_probability: float = field(default=0.15, init=False)


MLM = (MLMModelArguments, LMDataArguments, TextTrainingArguments)
CLM = (CLMModelArguments, CLMDataArguments, TextTrainingArguments)
