"""Fine-tune an encoder-decoder to summarise long documents, or to transcribe speech (--audio)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoFeatureExtractor,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from hf_longattn.data.audio import EXTRA as AUDIO_EXTRA
from hf_longattn.data.audio import Hearing
from hf_longattn.data.batching import SummaryCollator
from hf_longattn.data.documents import read_summaries, to_summaries
from hf_longattn.data.lengths import decoder_length, input_length
from hf_longattn.data.sources import each_part, train_test_split
from hf_longattn.data.transcripts import UtteranceCollator, rewritten, to_utterances
from hf_longattn.errors import CheckpointError, OptionError, check_extra, flag, sentence_case
from hf_longattn.evaluation import load_metric
from hf_longattn.evaluation.summaries import plus_minus
from hf_longattn.files import GENERIC_TYPE
from hf_longattn.loading import call_tokenizer, load_part
from hf_longattn.training import utterances
from hf_longattn.training.args import ModelArguments, argument, batch_size_argument, check_least
from hf_longattn.training.loading import load_head, load_start
from hf_longattn.training.old_trainer import LongTrainer
from hf_longattn.training.results import Scores, error_of, held_out_in_words, plain_scores, sources_in_words, steps_of
from hf_longattn.training.task import Task
from hf_longattn.training.training_args import LongTrainingArguments
from hf_longattn.training.training_loop import prepare_run, save_run, train

PREDICTIONS = "predictions.txt"
OF_TEXTS = ("summary_column", "prefix", "max_summary_length")
OF_AUDIO = ("audio_column", "resample", "mono", "letter_case", "max_seconds", "language")
"""Options of one kind of data."""
BEAMS, SMOOTHING, SUMMARY_LENGTH = 4, 0.1, 256
"""Beams in evaluation, label smoothing, and maximum tokens, of summaries. Speech has 1 beam and 0, as in transformers' example."""
WRITERS = ("whisper", "speech_to_text", "moonshine", "moonshine_streaming", "speech-encoder-decoder")
"""Model types of the encoder-decoders that transcribe."""
WRITERS_AND_LONG = [kind for name in WRITERS for kind in (name, f"long_{name}", f"{GENERIC_TYPE}{name}")]
BY_CTC = {"it transcribes by CTC: type longattn train ctc": MODEL_FOR_CTC_MAPPING_NAMES}
"""Advice for a model of speech without a decoder -> the types of such models."""


@dataclass
class Seq2SeqDataArguments(utterances.UtteranceArguments):
    """Documents and their summaries, or utterances and their transcripts."""

    audio: bool = argument(False, "Transcribe audio files, with a model that hears them (Whisper, Speech2Text, Moonshine …).")
    text_column: str = argument(
        "document", "The column that holds the text to read (article in CNN/DailyMail, PubMed and arXiv). With --audio, the column that "
        "holds the transcripts; default: transcription, text, sentence, transcript or normalized_text."
    )  # fmt: skip
    summary_column: str = argument("summary", "The column that holds the text to write (highlights in CNN/DailyMail, abstract in PubMed).")
    prefix: str = argument("", "Text before every document, as T5 needs it: 'summarize: '.")
    language: str = argument("", "Language of the transcripts, for a multilingual Whisper: en, de …; default: the model's.")
    max_length: int | None = argument(None, "Tokens at which documents are cut; default: the model's maximum (LED: 16,384).")
    max_summary_length: int | None = argument(
        None, "Tokens at which summaries are cut, and generated ones end (LED on arXiv: 512); default: 256, or what the decoder reads if "
        "that is less."
    )  # fmt: skip

    @property
    def transcript_column(self) -> str:
        return self.text_column if "text_column" in self.explicit else ""

    def check(self) -> None:
        super().check()
        wrong = OF_TEXTS if self.audio else OF_AUDIO
        if (unused := next((name for name in wrong if name in self.explicit), None)) is not None:
            kind, advice = ("texts", "leave --audio out") if self.audio else ("audio files", "add --audio")
            raise OptionError(f"{flag(unused)} is an option for {kind}; leave it out, or {advice}.")
        if self.audio:
            self.check_utterances()
            check_extra(AUDIO_EXTRA, "soundfile", *(["scipy"] if self.resample else []))
        elif self.text_column == self.summary_column:
            raise OptionError(f"--text-column and --summary-column are both {self.text_column!r}; name two columns.")
        check_least(self, max_summary_length=2)


@dataclass
class Seq2SeqLongTrainingArguments(LongTrainingArguments, Seq2SeqTrainingArguments):
    """``Seq2SeqTrainingArguments`` of summarisation and transcription."""

    evaluation_options: ClassVar[tuple[str, ...]] = ("predict_with_generate", "generation_num_beams", "generation_max_length")
    without_effect: ClassVar[tuple[str, ...]] = ("neftune_noise_alpha",)  # encoders of BART's family do not read the shared embedding

    predict_with_generate: bool = argument(True, "Write texts in evaluation; score summaries with ROUGE, and transcripts by their errors.")
    generation_num_beams: int | None = argument(None, "Beams in evaluation; default: 4 (LED and BART), with --audio 1.")
    per_device_train_batch_size: int = batch_size_argument(1, "Documents or audio files per forward pass and process.")
    per_device_eval_batch_size: int = argument(1, "Documents or audio files per forward pass and process in evaluation.")
    gradient_accumulation_steps: int = argument(32, "Forward passes per optimiser step (LED: 32 documents a step).")
    learning_rate: float = argument(3e-5, "Peak learning rate (BART and LED: 3e-5; Pegasus uses Adafactor at 1e-4; Whisper: 1e-5).")
    label_smoothing_factor: float | None = argument(None, "Label smoothing; default: 0.1 (BART, Pegasus), with --audio 0.")

    def check(self) -> None:
        super().check()
        if self.predict_with_generate:
            check_extra("metrics", "rouge_score", "jiwer")


SEQ2SEQ = (ModelArguments, Seq2SeqDataArguments, Seq2SeqLongTrainingArguments)


class LongSeq2SeqTrainer(LongTrainer, Seq2SeqTrainer):
    """transformers' Seq2SeqTrainer with a time budget."""

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """As Trainer's. With label smoothing, the model gets the labels too, as in evaluations, and makes the decoder's input of them:
        Blenderbot, M2M-100 and others have no method with which a collator could."""
        if self.label_smoother is None:
            return super().mean_loss(model, inputs)
        outputs = model(**inputs)
        return self.label_smoother(outputs, inputs["labels"]), outputs

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """As Seq2SeqTrainer's; autocast holds for the encoder, too, and converts weights once a batch, not once a token."""
        with self.accelerator.autocast():
            return super().prediction_step(*args, **kwargs)


class Inputs(NamedTuple):
    """What a run reads and writes.

    model, processor: of the run. The processor is written beside the model.
    tokenizer: of the texts that the model writes.
    train, held_out: rows to train on and to evaluate on.
    collator: makes batches of them.
    metric: the name of the metric of written texts.
    references: what the model should write for the held-out rows.
    log: entries for the log.
    """

    model: PreTrainedModel
    processor: Any
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    held_out: Dataset
    collator: Callable[..., Any]
    metric: str
    references: list[str]
    log: dict[str, Any]


def finetune_seq2seq(
    model_args: ModelArguments, data_args: Seq2SeqDataArguments, training_args: Seq2SeqLongTrainingArguments
) -> dict[str, Any]:
    """Train, and write the model and what it writes for the validation data to ``training_args.output_dir``.

    Returns:
        The log, as written to ``training_log.json``: arguments, versions, ROUGE or error rates before and after, Trainer's history.
    """
    run = prepare_run(model_args, data_args, training_args)
    inputs = (utterance_inputs if data_args.audio else summary_inputs)(model_args, data_args, training_args)

    def written(ids: Any) -> list[str]:
        tokens = np.where(np.asarray(ids) < 0, inputs.tokenizer.pad_token_id, ids)
        texts = inputs.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [rewritten(text.strip(), data_args.letter_case) for text in texts] if data_args.audio else texts

    def scores(evaluation: EvalPrediction) -> dict[str, float]:
        """The scores against uncut references. Labels may be cut, and some tokenizers lose line breaks."""
        return load_metric(inputs.metric).compute(predictions=written(evaluation.predictions), references=inputs.references)

    trainer = LongSeq2SeqTrainer(
        inputs.model,
        training_args,
        train_dataset=inputs.train,
        eval_dataset=inputs.held_out,
        processing_class=inputs.processor,
        data_collator=inputs.collator,
        compute_metrics=scores if training_args.predict_with_generate else None,
    )
    before = train(trainer, run, lambda: plain_scores(trainer.evaluate()))
    prediction = trainer.predict(inputs.held_out)
    after = plain_scores(prediction.metrics)
    if training_args.predict_with_generate and trainer.is_world_process_zero():
        texts = [" ".join(text.split()) for text in written(prediction.predictions)]
        training_args.folder.mkdir(parents=True, exist_ok=True)
        Path(training_args.folder, PREDICTIONS).write_text("\n".join(texts) + "\n", encoding="utf-8")
    log = {**inputs.log, "held_out": {"before": before, "after": after}}
    return save_run(trainer, run, log, describe_seq2seq, hub_task="automatic-speech-recognition" if data_args.audio else "summarization")


def summary_inputs(model_args: ModelArguments, args: Seq2SeqDataArguments, training_args: Seq2SeqLongTrainingArguments) -> Inputs:
    """Documents and their summaries."""
    training_args.generation_num_beams = training_args.generation_num_beams or BEAMS
    if training_args.label_smoothing_factor is None:
        training_args.label_smoothing_factor = SMOOTHING
    advice: dict[str, Any] = {"it hears audio files: add --audio": WRITERS_AND_LONG, **BY_CTC}
    _, tokenizer = load_start(model_args.model, "writing text from text", MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, advice)
    columns = args.text_column, args.summary_column
    data, held = train_test_split(args, lambda source, split: read_summaries(source, split, *columns), training_args.seed)
    model = load_head(AutoModelForSeq2SeqLM, model_args.model, tokenizer, complete=training_args.only_scores)
    write_in_one_language(model, tokenizer)
    length = input_length(model, tokenizer, args.max_length, decoded=False)
    most = written_length(model, args, training_args)
    summary_length = args.max_summary_length or min(SUMMARY_LENGTH, most or SUMMARY_LENGTH)
    training_args.generation_max_length = training_args.generation_max_length or summary_length
    limits = {"length": length, "summary_length": summary_length}
    rows, held_out = each_part(partial(to_summaries, tokenizer=tokenizer, prefix=args.prefix, **limits), data, held)
    log = {"input_length": length, "documents": len(data)}
    return Inputs(model, tokenizer, tokenizer, rows, held_out, SummaryCollator(tokenizer, model), "rouge", held["summary"][:], log)


def utterance_inputs(model_args: ModelArguments, args: Seq2SeqDataArguments, training_args: Seq2SeqLongTrainingArguments) -> Inputs:
    """Utterances and their transcripts, as transformers' example ``run_speech_recognition_seq2seq`` prepares them.

    Raises:
        OptionError: an option has no effect on speech.
    """
    if training_args.label_smoothing_factor or training_args.tokens_per_batch:
        option = "--label-smoothing-factor" if training_args.label_smoothing_factor else "--tokens-per-batch"
        raise OptionError(f"{option} has no effect with --audio; leave it out.")
    training_args.generation_num_beams = training_args.generation_num_beams or 1
    training_args.label_smoothing_factor = 0.0
    advice: dict[str, Any] = {"it reads texts: leave --audio out": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, **BY_CTC}
    config, tokenizer = load_start(model_args.model, "writing text from sound", WRITERS_AND_LONG, advice)
    model = load_head(AutoModelForSpeechSeq2Seq, model_args.model, tokenizer, complete=training_args.only_scores)
    write_in_one_language(model, tokenizer)
    transcribe_into(model, tokenizer, args.language)
    if hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()
    extractor = load_part(AutoFeatureExtractor, model_args.model)
    masks_features = getattr(config, "apply_spec_augment", False) and getattr(config, "mask_time_prob", 0) > 0  # of a Whisper in training
    hearing = Hearing(extractor, args.resample, args.mono, masked=bool(masks_features))
    longest = None if hearing.most_samples is None else hearing.most_samples / hearing.sampling_rate
    limit = min((seconds for seconds in (longest, args.max_seconds) if seconds is not None), default=None)
    begin, most = model.config.decoder_start_token_id, written_length(model, args, training_args)
    if most is not None and (getattr(model.generation_config, "max_length", None) or 0) > most:
        training_args.generation_max_length = training_args.generation_max_length or most

    def prepared(part: Dataset) -> tuple[Dataset, dict[str, list[str]]]:
        """Labels are the tokenizer's tokens without the one with which decoding begins."""
        tokens = [call_tokenizer(tokenizer, text)["input_ids"] for text in part["text"]]
        labels = [row[1:] if row[:1] == [begin] else row for row in tokens]
        return to_utterances(part, labels, hearing, len, lambda row, _: most is None or len(row) <= most, limit)

    (rows, left_out), (held_out, held_left_out) = each_part(prepared, *utterances.read_utterances(args, training_args.seed))
    utterances.check_left(args, rows, held_out)
    log = {**utterances.log_of(rows, held_out, left_out, held_left_out), "read_seconds": limit}
    processor, collator, references = utterances.processor_of(config, extractor, tokenizer), UtteranceCollator(hearing), held_out["text"][:]
    return Inputs(model, processor, tokenizer, rows, held_out, collator, "wer", references, log)


def written_length(model: PreTrainedModel, args: Seq2SeqDataArguments, training_args: Seq2SeqLongTrainingArguments) -> int | None:
    """Maximum number of tokens that the model writes, and reads as labels; ``None`` without a limit.

    Raises:
        OptionError: an option asks for more.
    """
    most = decoder_length(model)
    values = {"max_summary_length": args.max_summary_length, "generation_max_length": training_args.generation_max_length}
    for name, value in values.items():
        if most is not None and value is not None and value > most:
            raise OptionError(f"{flag(name)} {value} exceeds the {most} tokens that the decoder reads; give at most {most}.")
    return most


def transcribe_into(model: PreTrainedModel, tokenizer: Any, language: str) -> None:
    """Let a multilingual Whisper transcribe in one language: its tokens are the first labels, and decoding begins with them.

    Raises:
        OptionError: the model knows one language only.
    """
    if not language:
        return
    generation: Any = model.generation_config
    if not getattr(generation, "is_multilingual", False):
        raise OptionError(f"--language {language} is for a multilingual Whisper, and {type(model).__name__} is none; leave it out.")
    tokenizer.set_prefix_tokens(language=language, task="transcribe")
    generation.language, generation.task = language, "transcribe"


def write_in_one_language(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a multilingual model (mBART) write in the language that it reads, the tokenizer's ``src_lang``. As with ``run_summarization
    --lang``, labels end with its code, and decoding begins with it where the config does not say how.

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
    steps = f"{steps_of(log)} with `longattn train seq2seq"
    if "utterances" in log:
        return f"{steps} --audio` on {utterances.utterances_in_words(log)}. {sentence_case(scores_in_words(log))}."
    return (
        f"{steps}` on {log['documents']:,} documents of {sources_in_words(log['settings'])}, cut to {log['input_length']:,} tokens. "
        f"{scores_in_words(log)}."
    )


def seq2seq_result(log: dict[str, Any]) -> str:
    """The result of a run for the terminal."""
    if "utterances" not in log:
        return scores_in_words(log)
    notes = {
        "seconds": f"longer than {log['read_seconds'] or 0:g} seconds",
        "transcript": "transcribed in more tokens than the model writes",
    }
    return "\n".join([scores_in_words(log), *utterances.left_out_in_words(log, notes)])


def scores_in_words(log: dict[str, Any]) -> str:
    """The scores of a log in words."""
    return held_out_in_words(log, _in_words, "utterance" if "utterances" in log else "document")


def _in_words(scores: Scores) -> str:
    if "wer" in scores:
        return utterances.error_rates_in_words(scores)
    names = [name for name in ("rouge1", "rouge2", "rougeL") if name in scores]
    rouge = "/".join(plus_minus(scores[name], error_of(scores, name), 1) for name in names)
    loss = f"loss {plus_minus(scores['loss'], error_of(scores, 'loss'), 3)}"
    return f"{loss}, ROUGE-1/2/L {rouge} %" if rouge else loss


TASK = Task(
    arguments=SEQ2SEQ,
    train=finetune_seq2seq,
    result=seq2seq_result,
    evaluation="Score summaries of long documents, or transcripts (--audio).",
)
