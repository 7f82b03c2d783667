"""Tokenizer, chat template, generation config and licence come along, and the lengths in them follow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, GenerationConfig

from hf_longattn.conversion import convert_checkpoint

from .conftest import LENGTH

Checkpoint = Callable[..., Path]
TOKENIZER_OF = {
    "BertForMaskedLM": "bert",
    "GPT2LMHeadModel": "gpt2",
    "XLMRobertaForSequenceClassification": "xlm-roberta",
    "CamembertForMaskedLM": "camembert",
    "AlbertForMaskedLM": "albert",
    "DebertaV2ForTokenClassification": "deberta-v2",
    "MPNetForMaskedLM": "mpnet",
    "EsmForMaskedLM": "esm",
    "ElectraForPreTraining": "electra",
    "DistilBertForQuestionAnswering": "distilbert",
}


@pytest.mark.parametrize(("name", "tokenizer"), TOKENIZER_OF.items())
def test_the_tokenizer_follows(name: str, tokenizer: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint(name, tokenizer=tokenizer)
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=200)
    assert {check.name: check.status for check in report.checks}["tokenizer"] == "passed"
    old, new = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(tmp_path / "long")
    assert type(new) is type(old)
    assert (old.model_max_length, new.model_max_length) == (LENGTH, 200)
    text = "Naïve façades don't cost 3.50 – or do they?"
    assert new(text)["input_ids"] == old(text)["input_ids"]
    assert len(new(text * 50, truncation=True)["input_ids"]) == 200


def test_every_file_of_a_tokenizer_comes_along(checkpoint: Checkpoint, tmp_path: Path) -> None:
    files = {"source.spm", "target.spm", "bpe.codes", "merges.txt", "spiece.model", "vocab.json"}  # Marian, BERTweet, T5 ...
    source = checkpoint("BertForMaskedLM")
    for name in files:
        (source / name).write_text("{}")
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", max_length=200, verify=False)
    assert files <= set(report.files)
    assert all((tmp_path / "long" / name).read_text() == "{}" for name in files)


def test_a_bare_vocabulary_gets_its_class_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("BertForMaskedLM")
    (source / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "una", "##ffa", "##ble"]))
    convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=200)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "long")
    assert tokenizer.tokenize("unaffable") == ["una", "##ffa", "##ble"]
    assert tokenizer.model_max_length == 200


@pytest.mark.parametrize(("before", "after"), [(LENGTH, 200), (20, 20)], ids=["the model's limit", "the author's choice"])
def test_generation_length_follows_where_it_was_the_models_limit(before: int, after: int, checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("GPT2LMHeadModel")
    GenerationConfig(max_length=before, do_sample=True, top_k=7).save_pretrained(source)
    convert_checkpoint(source, tmp_path / "long", mechanism="window", max_length=200, verify=False)
    written = json.loads((tmp_path / "long" / "generation_config.json").read_text())
    assert written.get("max_length", 20) == after
    assert written["top_k"] == 7


def test_what_belongs_to_the_model_is_copied_and_nothing_else(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("LlamaForCausalLM")
    kept = {"chat_template.jinja": "{{ messages }}", "LICENSE": "Apache-2.0", "special_tokens_map.json": "{}"}
    left = {"training_args.bin": "pickle", "optimizer.pt": "pickle", "trainer_state.json": "{}"}
    for name, text in {**kept, **left, "README.md": "# short"}.items():
        (source / name).write_text(text)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", max_length=128, verify=False)
    assert {name: (tmp_path / "long" / name).read_text() for name in kept} == kept
    assert (tmp_path / "long" / "additional_chat_templates" / "rag.jinja").is_file()
    assert not any((tmp_path / "long" / name).exists() for name in left)
    assert "# short" not in (tmp_path / "long" / "README.md").read_text(), "the card is its own"
    assert sorted(report.files) == sorted(path.name for path in (tmp_path / "long").iterdir())


@pytest.mark.parametrize(("name", "prefix"), [("BertForMaskedLM", "bert."), ("LlamaForCausalLM", "model.")])
def test_memory_tokens_are_in_the_file_and_the_same_on_every_run(
    name: str, prefix: str, built: Callable[[str], Path], tmp_path: Path
) -> None:
    options = {"mechanism": "recurrent_memory", "segment_length": 12, "num_memory_tokens": 2, "max_length": 200}
    found = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        report = convert_checkpoint(built(name), folder, **options, verify=False)
        assert report.plan["tensor_counts"]["added"] == 1
        found.append(load_file(folder / "model.safetensors")[f"{prefix}long_memory.tokens"])
    assert torch.equal(*found)
    assert 0 < found[0].std() < 0.1
    loaded, info = AutoModel.from_pretrained(tmp_path / "one", output_loading_info=True)
    assert not [key for key in info["missing_keys"] if "memory" in key]
    assert torch.equal(loaded.long_memory.tokens, found[0])
