"""Fine-tune an encoder-decoder to summarise long documents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers import (
    AutoModelForSeq2SeqLM,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from hf_longattn.data.batching import SummaryCollator
from hf_longattn.data.documents import read_summaries, to_summaries
from hf_longattn.data.lengths import input_length
from hf_longattn.data.sources import each_part, train_test_split
from hf_longattn.errors import CheckpointError, OptionError, check_extra
from hf_longattn.evaluation import load_metric
from hf_longattn.evaluation.summaries import plus_minus
from hf_longattn.tasks import Task
from hf_longattn.training.args import LabelledDataArguments, ModelArguments, argument, batch_size_argument, check_least
from hf_longattn.training.loading import load_head, load_start
from hf_longattn.training.results import Scores, error_of, held_out_in_words, plain_scores, sources_in_words, steps_of
from hf_longattn.training.trainer import LongTrainer
from hf_longattn.training.training_args import LongTrainingArguments
from hf_longattn.training.training_loop import prepare_run, save_run, train

PREDICTIONS = "predictions.txt"


@dataclass
class Seq2SeqDataArguments(LabelledDataArguments):
    """Documents and their summaries."""

    text_column: str = argument("document", "The column that holds the text to read (article in CNN/DailyMail, PubMed and arXiv).")
    summary_column: str = argument("summary", "The column that holds the text to write (highlights in CNN/DailyMail, abstract in PubMed).")
    prefix: str = argument("", "Text before every document, as T5 needs it: 'summarize: '.")
    max_length: int | None = argument(None, "Tokens at which documents are cut; default: the model's maximum (LED: 16,384).")
    max_summary_length: int = argument(256, "Tokens at which summaries are cut, and generated ones end (LED on arXiv: 512).")

    def check(self) -> None:
        super().check()
        if self.text_column == self.summary_column:
            raise OptionError(f"--text-column and --summary-column are both {self.text_column!r}; name two columns.")
        check_least(self, max_summary_length=2)


@dataclass
class Seq2SeqLongTrainingArguments(LongTrainingArguments, Seq2SeqTrainingArguments):
    """``Seq2SeqTrainingArguments`` of summarisation."""

    evaluation_options: ClassVar[tuple[str, ...]] = ("predict_with_generate", "generation_num_beams", "generation_max_length")
    without_effect: ClassVar[tuple[str, ...]] = ("neftune_noise_alpha",)  # encoders of BART's family do not read the shared embedding

    predict_with_generate: bool = argument(True, "Write summaries in evaluation and score them with ROUGE.")
    generation_num_beams: int | None = argument(4, "Beams in evaluation (LED and BART: 4).")
    per_device_train_batch_size: int = batch_size_argument(1, "Documents per forward pass and process.")
    per_device_eval_batch_size: int = argument(1, "Documents per forward pass and process in evaluation.")
    gradient_accumulation_steps: int = argument(32, "Forward passes per optimiser step (LED: 32 documents a step).")
    learning_rate: float = argument(3e-5, "Peak learning rate (BART and LED: 3e-5; Pegasus uses Adafactor at 1e-4).")
    label_smoothing_factor: float = argument(0.1, "Label smoothing (BART, Pegasus: 0.1).")

    def check(self) -> None:
        super().check()
        if self.predict_with_generate:
            check_extra("metrics", "rouge_score")


SEQ2SEQ = (ModelArguments, Seq2SeqDataArguments, Seq2SeqLongTrainingArguments)


class LongSeq2SeqTrainer(LongTrainer, Seq2SeqTrainer):
    """transformers' Seq2SeqTrainer with a time budget."""


def finetune_seq2seq(
    model_args: ModelArguments, data_args: Seq2SeqDataArguments, training_args: Seq2SeqLongTrainingArguments
) -> dict[str, Any]:
    """Train, and write the model and its summaries of the validation data to ``training_args.output_dir``.

    Returns:
        The log, as written to ``training_log.json``: arguments, versions, ROUGE before and after, Trainer's history.
    """
    run = prepare_run(model_args, data_args, training_args)
    _, tokenizer = load_start(model_args.model, "writing text from text", MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    columns = data_args.text_column, data_args.summary_column
    data, held = train_test_split(data_args, lambda source, split: read_summaries(source, split, *columns), training_args.seed)
    model = load_head(AutoModelForSeq2SeqLM, model_args.model, tokenizer, complete=training_args.only_scores)
    write_in_one_language(model, tokenizer)
    length = input_length(model, tokenizer, data_args.max_length)
    training_args.generation_max_length = training_args.generation_max_length or data_args.max_summary_length
    limits = {"length": length, "summary_length": data_args.max_summary_length}
    rows, held_out = each_part(partial(to_summaries, tokenizer=tokenizer, prefix=data_args.prefix, **limits), data, held)
    training_args.remove_unused_columns = False

    def written(ids: Any) -> list[str]:
        return tokenizer.batch_decode(np.where(np.asarray(ids) < 0, tokenizer.pad_token_id, ids), skip_special_tokens=True)

    def rouge(evaluation: EvalPrediction) -> dict[str, float]:
        """ROUGE against the uncut summaries. Labels are cut, and some tokenizers lose line breaks."""
        return load_metric("rouge").compute(predictions=written(evaluation.predictions), references=held["summary"][:])

    trainer = LongSeq2SeqTrainer(
        model,
        training_args,
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        data_collator=SummaryCollator(tokenizer, model),
        compute_metrics=rouge if training_args.predict_with_generate else None,
        max_minutes=training_args.max_minutes,
    )
    before = train(trainer, run, lambda: plain_scores(trainer.evaluate()))
    prediction = trainer.predict(held_out)
    after = plain_scores(prediction.metrics)
    if training_args.predict_with_generate and trainer.is_world_process_zero():
        texts = [" ".join(text.split()) for text in written(prediction.predictions)]
        training_args.folder.mkdir(parents=True, exist_ok=True)
        Path(training_args.folder, PREDICTIONS).write_text("\n".join(texts) + "\n", encoding="utf-8")
    log = {"input_length": length, "documents": len(data), "held_out": {"before": before, "after": after}}
    return save_run(trainer, run, log, describe_seq2seq, hub_task="summarization")


def write_in_one_language(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a multilingual model (mBART) write in the language that it reads, the tokenizer's ``src_lang``, as ``run_summarization --lang``
    does: labels end with its code, and decoding begins with it where the config does not say how.

    Raises:
        CheckpointError: nothing says with which token decoding begins.
    """
    language = getattr(tokenizer, "src_lang", None)
    if language is not None:
        tokenizer.tgt_lang = language
    if model.config.decoder_start_token_id is None and language is not None:
        model.config.decoder_start_token_id = tokenizer.convert_tokens_to_ids(language)
        if model.generation_config is not None:
            model.generation_config.decoder_start_token_id = model.config.decoder_start_token_id
    if model.config.decoder_start_token_id is None:
        raise CheckpointError(
            f"{type(model).__name__} does not know with which token it begins to write; set decoder_start_token_id in config.json."
        )


def describe_seq2seq(log: dict[str, Any]) -> str:
    """The text of the model card about a run."""
    return (
        f"{steps_of(log)} with `longattn train seq2seq` on {log['documents']:,} documents of {sources_in_words(log['settings'])}, cut to "
        f"{log['input_length']:,} tokens. {seq2seq_result(log)}."
    )


def seq2seq_result(log: dict[str, Any]) -> str:
    """The result of a run for the terminal."""
    return held_out_in_words(log["held_out"], _in_words, "document")


def _in_words(scores: Scores) -> str:
    names = [name for name in ("rouge1", "rouge2", "rougeL") if name in scores]
    rouge = "/".join(plus_minus(scores[name], error_of(scores, name), 1) for name in names)
    loss = f"loss {plus_minus(scores['loss'], error_of(scores, 'loss'), 3)}"
    return f"{loss}, ROUGE-1/2/L {rouge} %" if rouge else loss


TASK = Task(arguments=SEQ2SEQ, train=finetune_seq2seq, result=seq2seq_result, evaluation="Score summaries of long documents.")
