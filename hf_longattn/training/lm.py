"""Continued training of a language model on long text: the tasks mlm and clm, and what other tasks on plain text share with them."""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from datasets import Dataset
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.data.batching import chosen_packing
from hf_longattn.data.lengths import input_length
from hf_longattn.data.masking import DataCollatorForPackedText, RepeatableMasks
from hf_longattn.data.rows import each_part, read_texts
from hf_longattn.data.segments import Segments
from hf_longattn.data.tokenization import to_documents, to_inputs
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.loading import load_config, load_model, load_padding_tokenizer
from hf_longattn.modeling.family.definition import CAUSAL_LANGUAGE_MODELS
from hf_longattn.modeling.family.registration import auto_mapping, mapped_names
from hf_longattn.training.arguments import DataArguments, LongTrainingArguments, ModelArguments, argument, batch_size_argument
from hf_longattn.training.run import begin, finish
from hf_longattn.training.segments import SegmentTrainer
from hf_longattn.training.trainer import LongTrainer

HEADS: dict[str, Any] = {"mlm": AutoModelForMaskedLM, "clm": AutoModelForCausalLM, "hidden": AutoModel}
"""Objective -> the class that loads a model for it."""


@dataclass
class TextDataArguments(DataArguments):
    """Plain text. A .txt file, and every file of a folder, is one document."""

    roles: ClassVar[dict[str, tuple[str, ...]]] = {"text": ("text",)}

    template: list[str] = argument(
        [], "Format strings that make the text from several columns, '{title}: {body}'; each row takes the first one whose columns all "
        "have a value."
    )  # fmt: skip


@dataclass
class LMDataArguments(TextDataArguments):
    """Text for continued language-model training."""

    mlm_probability: float = argument(0.15, "Fraction of the tokens that are predicted by mlm.")
    segments: int = argument(
        0, "Read each document in consecutive segments of this many tokens, with the model's memory of earlier ones, for --max-steps "
        "(1,000 by default); 0 = independent inputs. For mechanisms with a memory: transformer_xl, recurrent_memory, linear, window."
    )  # fmt: skip
    packing: bool | None = argument(
        None, "Keep the documents that share an input apart, so that none sees another and positions restart; default: yes where the model "
        "can (Long models). Otherwise they follow one another, as in run_mlm and run_clm."
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mlm_probability < 1:
            raise OptionError(f"--mlm-probability must lie between 0 and 1, not {self.mlm_probability}.")
        if self.segments and (self.segments < 2 or self.max_length is not None):
            raise OptionError(f"--segments is {self.segments}; give at least 2, and no --max-length.")


@dataclass
class TextTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` with the batch sizes of long text."""

    per_device_train_batch_size: int = batch_size_argument(1)
    gradient_accumulation_steps: int = argument(8, "Forward passes per optimiser step.")


ARGUMENTS = (ModelArguments, LMDataArguments, TextTrainingArguments)


def train_lm(
    objective: str, model_args: ModelArguments, data_args: LMDataArguments, training_args: TextTrainingArguments
) -> dict[str, Any]:
    """Train by masked ("mlm") or next tokens ("clm"), and write the model to ``training_args.output_dir``. Returns the log."""
    begin(model_args, data_args, training_args)
    model, tokenizer, _ = load_lm(model_args.model, objective, complete=not training_args.do_train)
    documents, held_out = read_texts(data_args, training_args.seed)
    pack = chosen_packing(model, data_args.packing, training_args) and not data_args.segments
    masks = DataCollatorForPackedText if pack else RepeatableMasks
    collator: Any = masks(tokenizer, mlm=objective == "mlm", mlm_probability=data_args.mlm_probability, seed=training_args.seed)
    length = data_args.segments or input_length(model, tokenizer, data_args.max_length)

    def encode(data: Dataset) -> Any:
        if data_args.segments:
            return Segments(to_documents(data, tokenizer), length, tokenizer.pad_token_id)
        return to_inputs(data, tokenizer, length, pack)

    train, scored = each_part(encode, documents, held_out)
    trainer_of = SegmentTrainer if data_args.segments else LongTrainer
    trainer = trainer_of(model, training_args, collator, train, scored, tokenizer)
    return finish(trainer, model_args, data_args, input_length=length, packed=pack)


def load_lm(name: str, objective: str, *, complete: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Load a model with its language-modelling head in float32, its tokenizer, and its objective.

    Args:
        objective: "mlm" (masked tokens), "clm" (next tokens), "auto" (what the model has a head for), or "hidden" (no head).
        complete: refuse a checkpoint that lacks weights.
    """
    config = load_config(name)
    kind = config.model_type
    tokenizer: PreTrainedTokenizerBase = load_padding_tokenizer(name, config)
    has_head = {name: kind in mapped_names(auto_mapping(loader))[0] for name, loader in HEADS.items()}
    if objective == "auto":
        if not has_head["mlm"] and not has_head["clm"]:
            raise CheckpointError(f"{name!r} ({kind}) has no language-modelling head; take a model that predicts tokens.")
        is_masked = has_head["mlm"] and not (config.architectures or [""])[0].endswith(CAUSAL_LANGUAGE_MODELS)
        objective = "mlm" if is_masked and tokenizer.mask_token is not None else "clm"
    sees_next = has_head["mlm"] and not config.is_encoder_decoder and not getattr(config, "is_decoder", False)
    if not has_head[objective] or (objective == "clm" and sees_next):
        words = {"mlm": "predict masked tokens", "clm": "predict the next token from those before it", "hidden": "have hidden states"}
        other = "clm" if objective == "mlm" else "mlm"
        raise OptionError(f"{name!r} ({kind}) does not {words[objective]}, which {objective} needs; take the task {other}.")
    model: PreTrainedModel = load_model(HEADS[objective], name, complete=complete)
    if getattr(model, "is_quantized", False):
        raise CheckpointError(f"{name!r} holds quantised weights, which cannot be trained; train the checkpoint that it was made from.")
    if objective == "mlm" and tokenizer.mask_token is None:
        raise CheckpointError(f"The tokenizer of {name!r} has no mask token, which mlm needs; give it one (tokenizer.add_special_tokens).")
    return model, tokenizer, objective
