"""Summaries: a short run of a converted BART, and bad input."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, MBartConfig, MBartForConditionalGeneration, PreTrainedTokenizerBase

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.sources import DataError
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.training.parsing import build_arguments
from hf_longattn.training.tasks import seq2seq
from hf_longattn.training.tasks.seq2seq import SEQ2SEQ, finetune_seq2seq, write_in_one_language
from tests.trained import tokenizer_of
from tests.training.conftest import FAST, checkpoint


def bart(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    torch.manual_seed(0)
    ends = {
        "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.sep_token_id, "forced_eos_token_id": tokenizer.sep_token_id,
    }  # fmt: skip
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    shape = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64, **heads}
    BartForConditionalGeneration(BartConfig(vocab_size=len(tokenizer), dropout=0.0, **shape, **ends)).save_pretrained(folder / "short")
    tokenizer.save_pretrained(folder / "short")
    convert_checkpoint(folder / "short", folder / "long", mechanism="longformer", window=16, max_length=128, verify=False)
    return str(folder / "long")


def pairs(folder: Path, count: int = 20) -> str:
    choose = random.Random(0)
    rows = []
    for _ in range(count):
        word = choose.choice(["tree", "file"])
        rows.append({"document": " ".join([word] * choose.randint(20, 60)), "summary": f"the {word} is here"})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "pairs.jsonl")


@pytest.mark.thorough
def test_a_converted_bart_learns_to_summarise(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    given = {"model": bart(tmp_path, tokenizer), "output_dir": str(tmp_path / "out"), "data": [pairs(tmp_path)]}
    settings = {**FAST, "max_steps": 60, "learning_rate": 2e-2, "max_summary_length": 12, "generation_num_beams": 2}
    log = finetune_seq2seq(*build_arguments(SEQ2SEQ, **given, **settings, per_device_train_batch_size=4))
    before, after = log["held_out"]["before"], log["held_out"]["after"]
    assert log["input_length"] == 128
    assert after["loss"] < before["loss"]
    assert after["rouge1"] > max(40.0, before["rouge1"])
    assert len((tmp_path / "out" / "predictions.txt").read_text().splitlines()) == 2
    BartForConditionalGeneration.from_pretrained(tmp_path / "short")


def test_summaries_are_scored_against_whole_references(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were scored against the labels, which are cut: the beginning of a summary was all of it."""
    rows = [{"document": "tree " * 20, "summary": f"line {number}\nthe tree is here"} for number in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored: list[list[str]] = []

    def compute(predictions: list[str], references: list[str]) -> dict[str, float]:
        scored.append(references)
        return {"rouge1": 0.0, "n": len(predictions)}

    monkeypatch.setattr(seq2seq, "load_metric", lambda name: SimpleNamespace(compute=compute))
    source = str(tmp_path / "rows.jsonl")
    given = {"model": bart(tmp_path, tokenizer), "output_dir": str(tmp_path / "out"), "data": [source], "validation": source}
    finetune_seq2seq(*build_arguments(SEQ2SEQ, **given, **FAST, max_steps=1, max_summary_length=4, generation_num_beams=1))
    assert scored == [[row["summary"] for row in rows]] * 2


def test_bad_input_is_a_sentence(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model, data = bart(tmp_path, tokenizer), pairs(tmp_path)
    (tmp_path / "empty.jsonl").write_text('{"document": "", "summary": "x"}\n')
    cases = [
        (OptionError, "No data given", {"data": []}),
        (OptionError, "name two columns", {"summary_column": "document"}),
        (DataError, "not 'article'; name one with --text-column", {"text_column": "article"}),
        (DataError, "No row of .* has both", {"data": [str(tmp_path / "empty.jsonl")]}),
        (OptionError, "exceeds the 128 tokens", {"max_length": 500}),
        (CheckpointError, "no head for writing text", {"model": checkpoint("mlm", tmp_path / "bert", tokenizer)}),
    ]
    for error, words, more in cases:
        with pytest.raises(error, match=words):
            finetune_seq2seq(*build_arguments(SEQ2SEQ, **{"model": model, "output_dir": str(tmp_path / "o"), "data": [data], **more}))


@pytest.mark.parametrize("language", ["en_XX", "de_DE"])
def test_a_multilingual_model_writes_in_the_language_that_it_reads(language: str) -> None:
    tokenizer = tokenizer_of("mbart")
    tokenizer.src_lang = language
    shape = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1, "decoder_attention_heads": 1, "d_model": 8}
    config = MBartConfig(vocab_size=len(tokenizer), encoder_ffn_dim=8, decoder_ffn_dim=8, **shape)
    config.decoder_start_token_id = None
    model = MBartForConditionalGeneration(config)
    write_in_one_language(model, tokenizer)
    code = tokenizer.convert_tokens_to_ids(language)
    assert tokenizer(text_target="a text")["input_ids"][-1] == tokenizer("a text")["input_ids"][-1] == code
    assert model.config.decoder_start_token_id == model.generation_config.decoder_start_token_id == code


def test_a_model_that_cannot_begin_to_write_is_refused() -> None:
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    model = BartForConditionalGeneration(BartConfig(vocab_size=9, d_model=8, encoder_layers=1, decoder_layers=1, **heads))
    model.config.decoder_start_token_id = None
    with pytest.raises(CheckpointError, match=r"set decoder_start_token_id in config\.json"):
        write_in_one_language(model, tokenizer_of("bart"))
