"""Fine-tune an encoder-decoder to summarise long documents, or a speech model to transcribe recordings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import transformers
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoFeatureExtractor,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from hf_longattn.data.audio import AudioCollator, to_utterances
from hf_longattn.data.rows import each_part, read_rows
from hf_longattn.data.tokenization import decoder_length, input_length
from hf_longattn.errors import CheckpointError, OptionError, check_extra, flag
from hf_longattn.evaluation import load_metric
from hf_longattn.files import write_text
from hf_longattn.loading import call_tokenizer, load_config, load_model, load_padding_tokenizer, load_part
from hf_longattn.modeling.family.registration import auto_mapping, mapped_names
from hf_longattn.training.arguments import LongTrainingArguments, ModelArguments, argument, batch_size_argument
from hf_longattn.training.run import begin, finish
from hf_longattn.training.tasks.ctc import CASES, UtteranceArguments, read_utterances, speech_processor
from hf_longattn.training.trainer import LongTrainer

SUMMARIES = {"document": ("document", "article"), "summary": ("summary", "highlights", "abstract")}
"""Role -> recognised names of its column, as in XSum, CNN/DailyMail, arXiv and PubMed."""
EXTRAS = ("metrics",)


@dataclass
class Seq2SeqDataArguments(UtteranceArguments):
    """Documents and their summaries, or utterances and their transcripts."""

    roles = {**SUMMARIES, **UtteranceArguments.roles}

    prefix: str = argument("", "Text before every document, as T5 needs it: 'summarize: '.")
    language: str = argument(
        "", "Language of the transcripts, for a multilingual Whisper: en, de …; default: the model's."
    )
    max_target_length: int | None = argument(
        None,
        "Tokens at which summaries are cut, and generated texts end; default: 256 (LED on arXiv: 512), or what the "
        "decoder reads.",
    )


@dataclass
class Seq2SeqLongTrainingArguments(LongTrainingArguments, Seq2SeqTrainingArguments):
    """``Seq2SeqTrainingArguments`` with the defaults of this task."""

    predict_with_generate: bool = argument(
        True, "Write texts in evaluation; score summaries by ROUGE, and transcripts by their errors."
    )
    per_device_train_batch_size: int = batch_size_argument(1)
    gradient_accumulation_steps: int = argument(32, "Forward passes per optimiser step (LED: 32 documents a step).")
    learning_rate: float = argument(
        3e-5, "Peak learning rate (BART and LED: 3e-5; Pegasus uses Adafactor at 1e-4; Whisper: 1e-5)."
    )


class LongSeq2SeqTrainer(LongTrainer, Seq2SeqTrainer):
    """transformers' ``Seq2SeqTrainer`` with the additions of :class:`LongTrainer`."""

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """As in Trainer, but with label smoothing, the model also gets the labels.

        The model makes the decoder's input from the labels. Trainer would leave this to the collator, which calls a
        method of the model that Blenderbot, M2M-100 and others do not have.
        """
        if self.label_smoother is None:
            return super().mean_loss(model, inputs)
        outputs = model(**inputs)
        return self.label_smoother(outputs, inputs["labels"]), outputs

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """As in ``Seq2SeqTrainer``, but in one autocast context, which converts the weights once per batch.

        ``Seq2SeqTrainer`` would have a context for the encoder and one for each step of the decoder.
        """
        with self.accelerator.autocast():
            return super().prediction_step(*args, **kwargs)


ARGUMENTS = (ModelArguments, Seq2SeqDataArguments, Seq2SeqLongTrainingArguments)


def main(
    model_args: ModelArguments, data_args: Seq2SeqDataArguments, training_args: Seq2SeqLongTrainingArguments
) -> dict[str, Any]:
    """Train a model to summarise documents or to transcribe speech, evaluate and save it. Returns the log."""
    check_extra("metrics", "rouge_score", "jiwer")
    begin(model_args, data_args, training_args)

    # The model, of texts or of speech
    config = load_config(model_args.model)
    hears = config.model_type in mapped_names(auto_mapping(transformers.AutoModelForSpeechSeq2Seq))
    loader: Any = transformers.AutoModelForSeq2SeqLM
    hub_task, metric = "summarization", "rouge"
    unused, input_kind = ["language", "letter_case", "max_seconds"], "reads texts"
    if hears:
        loader = transformers.AutoModelForSpeechSeq2Seq
        hub_task, metric = "automatic-speech-recognition", "wer"
        unused, input_kind = ["prefix"], "hears sound"
    for name in unused:
        if getattr(data_args, name):
            raise OptionError(f"{flag(name)} has no effect on a model that {input_kind}; leave it out.")
    tokenizer = load_padding_tokenizer(model_args.model, config)
    model = load_model(loader, model_args.model, complete=not training_args.do_train)
    write_in_one_language(model, tokenizer, data_args.language)

    # Maximum tokens of labels and of generated texts
    most = decoder_length(model)
    limits = {
        "max_target_length": data_args.max_target_length,
        "generation_max_length": training_args.generation_max_length,
    }
    for name, limit in limits.items():
        if most is not None and limit is not None and limit > most:
            raise OptionError(
                f"{flag(name)} {limit} exceeds the {most} tokens that the decoder reads; give at most {most}."
            )
    target_length = data_args.max_target_length or (most if hears else min(256, most or 256))
    training_args.generation_max_length = training_args.generation_max_length or target_length

    # Data
    if hears:
        processor, rows, held_out, collator = utterances(
            model, tokenizer, target_length, data_args, training_args.seed
        )
        references = held_out["text"][:]
    else:
        documents, held_out_documents = read_rows(data_args, training_args.seed, SUMMARIES)
        references = held_out_documents["summary"][:]
        length = input_length(model, tokenizer, data_args.max_length, decoded=False)
        encode = partial(
            to_summaries, tokenizer=tokenizer, prefix=data_args.prefix, length=length, summary_length=target_length
        )
        rows, held_out = each_part(encode, documents, held_out_documents)
        processor, collator = tokenizer, transformers.DataCollatorForSeq2Seq(tokenizer, model)

    # The metric compares with the texts of the data: labels may be truncated, and some tokenizers lose line breaks.
    def scores(evaluation: EvalPrediction) -> dict[str, float]:
        """Scores of the generated texts, which are also written to predictions.txt."""
        ids = np.where(np.asarray(evaluation.predictions) < 0, tokenizer.pad_token_id, evaluation.predictions)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        if hears:
            texts = [CASES[data_args.letter_case](text.strip()) for text in texts]
        if trainer.is_world_process_zero():
            lines = "".join(f"{' '.join(text.split())}\n" for text in texts)
            write_text(training_args.folder / "predictions.txt", lines)
        return load_metric(metric).compute(predictions=texts, references=references)

    trainer = LongSeq2SeqTrainer(
        model,
        training_args,
        collator,
        rows,
        held_out,
        processor,
        compute_metrics=scores if training_args.predict_with_generate else None,
    )
    return finish(trainer, model_args, data_args, hub_task=hub_task, rows=len(rows))


def to_summaries(
    data: Dataset, tokenizer: PreTrainedTokenizerBase, prefix: str, length: int, summary_length: int | None
) -> Dataset:
    """Truncated tokens of documents (``input_ids``) and of summaries (``labels``), as in ``run_summarization``.

    Args:
        prefix: text to put before every document.
        length: maximum tokens of a document.
        summary_length: maximum tokens of a summary; ``None`` = the tokenizer's.
    """

    def encode(rows: dict[str, list[str]]) -> dict[str, Any]:
        documents = [prefix + text for text in rows["document"]]
        inputs = call_tokenizer(tokenizer, documents, truncation=True, max_length=length)
        targets = call_tokenizer(tokenizer, text_target=rows["summary"], truncation=True, max_length=summary_length)
        return {"input_ids": inputs["input_ids"], "labels": targets["input_ids"]}

    return data.map(encode, batched=True, batch_size=100, remove_columns=data.column_names)


def utterances(
    model: PreTrainedModel, tokenizer: Any, target_length: int | None, args: Seq2SeqDataArguments, seed: int
) -> tuple[Any, Dataset, Dataset, AudioCollator]:
    """Processor, training rows, held-out rows and collator, as in ``run_speech_recognition_seq2seq``.

    Utterances that are longer than the model's input or ``--max-seconds``, or that have more than ``target_length``
    tokens, are left out.
    """
    config: Any = model.config
    if hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()
    # Whisper masks features in training (SpecAugment), and needs a padding mask for it.
    masked = getattr(config, "apply_spec_augment", False) and getattr(config, "mask_time_prob", 0) > 0
    collator = AudioCollator(load_part(AutoFeatureExtractor, model.name_or_path), masked=bool(masked))
    limits = [args.max_seconds] if args.max_seconds is not None else []
    if collator.most_samples is not None:
        limits.append(collator.most_samples / collator.sampling_rate)

    def encode(data: Dataset) -> Dataset:
        """The utterances with the tokens of their transcripts. Those that do not fit are left out."""
        labels = [call_tokenizer(tokenizer, text)["input_ids"] for text in data["text"]]
        for row in labels:
            if row[:1] == [config.decoder_start_token_id]:  # the model adds this token itself
                del row[0]
        return to_utterances(
            data,
            labels,
            collator,
            fits=lambda row, _: target_length is None or len(row) <= target_length,
            most_seconds=min(limits, default=None),
        )

    rows, held_out = each_part(encode, *read_utterances(args, seed))
    return speech_processor(config, collator.extractor, tokenizer), rows, held_out, collator


def write_in_one_language(model: PreTrainedModel, tokenizer: Any, language: str = "") -> None:
    """Set the output language of a multilingual model, in its tokenizer and its generation config.

    Whisper writes in ``language``. Models such as mBART, whose tokenizer has a ``src_lang``, write in this language.
    The tokenizer adds the code of the language to labels. If the config has no start token, decoding starts with it.

    Raises:
        OptionError: ``language`` is given, but the model is not a multilingual Whisper.
        CheckpointError: the model has no token to start with.
    """
    generation: Any = model.generation_config
    if language:
        if not getattr(generation, "is_multilingual", False):
            raise OptionError(
                f"--language {language} is for a multilingual Whisper, and {type(model).__name__} is not one; leave "
                "it out."
            )
        tokenizer.set_prefix_tokens(language=language, task="transcribe")
        generation.language, generation.task = language, "transcribe"
    code = getattr(tokenizer, "src_lang", None)
    if code is not None:
        tokenizer.tgt_lang = code
        if model.config.decoder_start_token_id is None:
            model.config.decoder_start_token_id = tokenizer.convert_tokens_to_ids(code)
            if generation is not None:
                generation.decoder_start_token_id = model.config.decoder_start_token_id
    if model.config.decoder_start_token_id is None:
        raise CheckpointError(
            f"{type(model).__name__} has no token to begin with; set decoder_start_token_id in config.json."
        )
