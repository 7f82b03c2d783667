"""Summaries: a short run of a converted BART, and bad input."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import BartForConditionalGeneration, MBartForConditionalGeneration, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LabelSmoother

import hf_longattn
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.sources import DataError
from hf_longattn.data.tokenization import decoder_length
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.training.tasks import seq2seq
from hf_longattn.training.tasks.seq2seq import write_in_one_language
from scripts.dev.tools.small_models import Shape, small_config, small_values
from tests.trained import tokenizer_of
from tests.training.conftest import checkpoint, quick, write_rows

STACKS: dict[str, Any] = {
    "vocab_size": 99,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "pad_token_id": 0,
    "eos_token_id": 3,
    "bos_token_id": 1,
    "forced_eos_token_id": 3,
}
"""Of a small model with an encoder and a decoder, with the names of BART's config."""


def bart(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    torch.manual_seed(0)
    ends = {
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.sep_token_id,
        "forced_eos_token_id": tokenizer.sep_token_id,
    }
    shape = Shape(width=16, layers=1, heads=2, inner=32, vocabulary=len(tokenizer))
    BartForConditionalGeneration(small_config("bart", shape, dropout=0.0, **ends)).save_pretrained(folder / "short")
    tokenizer.save_pretrained(folder / "short")
    convert_checkpoint(
        folder / "short", folder / "long", mechanism="longformer", window=16, max_length=128, verify=False
    )
    return str(folder / "long")


def pairs(folder: Path, count: int = 20) -> str:
    choose = random.Random(0)
    rows = []
    for _ in range(count):
        word = choose.choice(["tree", "file"])
        rows.append({"document": " ".join([word] * choose.randint(20, 60)), "summary": f"the {word} is here"})
    return write_rows(rows, folder / "pairs.jsonl")


@pytest.mark.thorough
def test_converted_bart_learns_to_summarise(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    run = {"max_steps": 60, "learning_rate": 2e-2, "max_target_length": 12, "generation_num_beams": 2}
    model, data = bart(tmp_path, tokenizer), pairs(tmp_path)
    log = quick("seq2seq", model, tmp_path / "out", data, **run, per_device_train_batch_size=4)
    before, after = log["metrics"]["before"], log["metrics"]["after"]
    assert after["loss"] < before["loss"]
    assert after["rouge1"] > max(40.0, before["rouge1"])
    assert len((tmp_path / "out" / "predictions.txt").read_text().splitlines()) == 2
    BartForConditionalGeneration.from_pretrained(tmp_path / "short")


def small(name: str, **changes: Any) -> Any:
    """A small random model of a class of transformers or of ours."""
    model_class = getattr(transformers, name, None) or getattr(hf_longattn, name)
    return model_class(model_class.config_class(**{**STACKS, **changes})).eval()


@pytest.mark.parametrize(
    "architecture", ["Blenderbot", "BlenderbotSmall", "M2M100", "LongBlenderbot", "NllbMoe", "Bart", "Marian"]
)
def test_seq2seq_label_smoothing_is_its_definition_for_every_class(architecture: str) -> None:
    """Collators make the decoder's input of labels only for classes with a method for it, which Blenderbot and M2M-100
    lack."""
    name = {"Marian": "MarianMTModel"}.get(architecture, f"{architecture}ForConditionalGeneration")
    model = small(name, num_experts=2, long_attention={"mechanism": "window"})
    ids, labels = torch.randint(4, 99, (2, 20)), torch.randint(4, 99, (2, 9))
    labels[1, 6:] = -100
    batch = transformers.DataCollatorForSeq2Seq(tokenizer_of("bart"), model)(
        [
            {"input_ids": row, "attention_mask": [1] * 20, "labels": label[label >= 0].tolist()}
            for row, label in zip(ids.tolist(), labels, strict=True)
        ]
    )
    trainer: Any = SimpleNamespace(label_smoother=LabelSmoother(0.1))
    with torch.no_grad():
        loss, outputs = seq2seq.LongSeq2SeqTrainer.mean_loss(trainer, model, dict(batch))
        started = labels.clamp(min=0).roll(1, 1)
        started[:, 0] = model.config.decoder_start_token_id
        expected = model(ids, decoder_input_ids=started).logits.log_softmax(-1)
    real = labels >= 0
    of_labels = -expected.gather(-1, labels.clamp(min=0)[..., None])[..., 0][real].mean()
    torch.testing.assert_close(loss, 0.9 * of_labels - 0.1 * expected.mean(-1)[real].mean())
    assert outputs.logits.shape == (2, 9, 99)


def test_summaries_are_at_most_as_long_as_the_decoder_reads(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default; what an option asks for beyond that is refused. The decoder here reads 64 tokens, and 256 are the
    default."""
    model, data = bart(tmp_path, tokenizer), pairs(tmp_path)
    monkeypatch.setattr(seq2seq, "finish", lambda trainer, *_, **__: trainer)
    for folder in (model, str(tmp_path / "short")):
        for option, value in (("max_target_length", 65), ("generation_max_length", 256)):
            with pytest.raises(
                OptionError,
                match=rf"--{option.replace('_', '-')} {value} exceeds the 64 tokens that the decoder reads; give",
            ):
                quick("seq2seq", folder, tmp_path / "out", data, **{option: value})
        for limit in (None, 64):
            trainer = quick("seq2seq", folder, tmp_path / "out", data, max_target_length=limit)
            assert trainer.args.generation_max_length == 64
            assert max(map(len, trainer.train_dataset["labels"])) <= 64


def test_decoder_length_is_that_of_the_decoder_positions() -> None:
    joined = {"max_position_embeddings": 50, "is_decoder": True, "add_cross_attention": True}
    for base, length in (("bert", 50), ("roberta", 48), ("gpt2", 50)):  # two of RoBERTa's are padding
        config = small_config(base, **joined)
        both = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(small_config("bert"), config)
        assert decoder_length(transformers.EncoderDecoderModel(both)) == length
    led = transformers.LEDConfig(**{**STACKS, "attention_window": 4}, max_decoder_position_embeddings=32)
    assert decoder_length(transformers.LEDForConditionalGeneration(led)) == 32
    assert (
        decoder_length(
            small("LongBartForConditionalGeneration", max_decoder_position_embeddings=32, max_position_embeddings=128)
        )
        == 32
    )
    # positions are distances
    for place, name in ((transformers, "T5"), (transformers, "MT5"), (hf_longattn, "LongAttentionT5")):
        model_class = getattr(place, f"{name}ForConditionalGeneration")
        assert decoder_length(model_class(model_class.config_class(**small_values("t5")))) is None
    whisper = transformers.WhisperConfig(
        **{**STACKS, "max_target_positions": 20, "num_mel_bins": 8, "max_source_positions": 10}
    )
    assert decoder_length(transformers.WhisperForConditionalGeneration(whisper)) == 20


def test_summaries_are_scored_by_whole_texts(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were scored against the labels, which are cut: the beginning of a summary was all of it."""
    rows = [{"document": "tree " * 20, "summary": f"line {number}\nthe tree is here"} for number in range(10)]
    source = write_rows(rows, tmp_path / "rows.jsonl")
    scored: list[list[str]] = []

    def compute(predictions: list[str], references: list[str]) -> dict[str, float]:
        scored.append(references)
        return {"rouge1": 0.0, "n": len(predictions)}

    monkeypatch.setattr(seq2seq, "load_metric", lambda name: SimpleNamespace(compute=compute))
    run = {"validation": source, "max_steps": 1, "max_target_length": 4, "generation_num_beams": 1}
    quick("seq2seq", bart(tmp_path, tokenizer), tmp_path / "out", source, **run)
    assert scored == [[row["summary"] for row in rows]] * 2


def test_seq2seq_refuses_columns_lengths_and_models_that_do_not_fit(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model, data = bart(tmp_path, tokenizer), pairs(tmp_path)
    cases = [
        (
            DataError,
            "has the columns document, summary, not 'text'; name one with --columns document=NAME",
            {"columns": ["document=text"]},
        ),
        (OptionError, "exceeds the 128 tokens", {"max_length": 500}),
        (OptionError, "--language has no effect on a model that reads texts", {"language": "en"}),
        (
            CheckpointError,
            "BertConfig'> for this kind of AutoModel: AutoModelForSeq2SeqLM",
            {"model": checkpoint("mlm", tmp_path / "bert", tokenizer)},
        ),
    ]
    for error, words, more in cases:
        with pytest.raises(error, match=words):
            quick("seq2seq", output=tmp_path / "o", **{"model": model, "data": data, **more})


@pytest.mark.parametrize("language", ["en_XX", "de_DE"])
def test_multilingual_seq2seq_model_writes_in_the_language_it_reads(language: str) -> None:
    tokenizer = tokenizer_of("mbart")
    tokenizer.src_lang = language
    config = small_config("mbart", Shape(vocabulary=len(tokenizer)), decoder_start_token_id=None)
    model = MBartForConditionalGeneration(config)
    write_in_one_language(model, tokenizer)
    code = tokenizer.convert_tokens_to_ids(language)
    assert tokenizer(text_target="a text")["input_ids"][-1] == tokenizer("a text")["input_ids"][-1] == code
    assert model.config.decoder_start_token_id == model.generation_config.decoder_start_token_id == code


def test_seq2seq_model_without_a_decoder_start_token_is_refused() -> None:
    model = BartForConditionalGeneration(small_config("bart", decoder_start_token_id=None))
    with pytest.raises(CheckpointError, match=r"set decoder_start_token_id in config\.json"):
        write_in_one_language(model, tokenizer_of("bart"))
