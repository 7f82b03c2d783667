"""What a conversion writes beside weights; when it is killed or the disk is full, it leaves no destination or a whole
one."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, GenerationConfig

from hf_longattn.conversion import convert_checkpoint, folders
from hf_longattn.errors import CheckpointError
from tests.cases import every_case
from tests.conversion.conftest import LENGTH
from tests.fresh_processes import run_fresh
from tests.reports import statuses
from tests.saved import change_json, read_json

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


@pytest.mark.thorough
@every_case(("name", "tokenizer"), TOKENIZER_OF.items())
def test_converted_tokenizer_gives_the_same_ids_up_to_new_length(
    name: str, tokenizer: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = checkpoint(name, tokenizer=tokenizer)
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=200)
    assert statuses(report)["tokenizer"] == "passed"
    old, new = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(tmp_path / "long")
    assert type(new) is type(old)
    assert (old.model_max_length, new.model_max_length) == (LENGTH, 200)
    text = "Naïve façades don't cost 3.50 – or do they?"
    assert new(text)["input_ids"] == old(text)["input_ids"]
    assert len(new(text * 50, truncation=True)["input_ids"]) == 200


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [("Qwen2ForCausalLM", "qwen2"), ("Phi3ForCausalLM", "gpt2"), ("ModernBertForMaskedLM", "gpt2")],
)
def test_wrong_tokenizer_class_becomes_that_of_transformers(
    name: str, tokenizer: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """DeepSeek-R1-Distill-Qwen names LlamaTokenizerFast; for Qwen2, transformers knows better."""
    source = checkpoint(name, tokenizer=tokenizer)
    change_json(source, "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=200)
    assert statuses(report)["tokenizer"] == "passed"
    text = "The keeper's notebooks, in 1987:\n  forty years."
    expected = AutoTokenizer.from_pretrained(source)(text)["input_ids"]
    for model_type in (read_json(tmp_path / "long")["model_type"], "unknown"):  # as where hf_longattn is not imported
        change_json(tmp_path / "long", model_type=model_type)
        assert AutoTokenizer.from_pretrained(tmp_path / "long")(text)["input_ids"] == expected


def test_conversion_refuses_a_tokenizer_that_changes_and_says_a_way_out(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint("BertForMaskedLM", tokenizer="bert")
    monkeypatch.setattr(
        folders, "_tokenizer_settings", lambda values, *_: {**values, "do_lower_case": not values.get("do_lower_case")}
    )
    with pytest.raises(
        CheckpointError, match=r"token ids differ from the source's.*load it with AutoTokenizer.*save_pretrained"
    ):
        convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=200)
    assert not (tmp_path / "long").exists()


def test_conversion_copies_every_file_of_a_tokenizer(checkpoint: Checkpoint, tmp_path: Path) -> None:
    # Marian, BERTweet, T5 ...
    files = {"source.spm", "target.spm", "bpe.codes", "merges.txt", "spiece.model", "vocab.json"}
    source = checkpoint("BertForMaskedLM")
    for name in files:
        (source / name).write_text("{}")
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", max_length=200, verify=False)
    assert files <= set(report.files)
    assert all((tmp_path / "long" / name).read_text() == "{}" for name in files)


@pytest.mark.thorough
def test_bare_vocabulary_gets_its_tokenizer_class_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("BertForMaskedLM")
    (source / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "una", "##ffa", "##ble"])
    )
    convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=200)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "long")
    assert tokenizer.tokenize("unaffable") == ["una", "##ffa", "##ble"]
    assert tokenizer.model_max_length == 200


@pytest.mark.parametrize(
    ("before", "after"), [(LENGTH, 200), (20, 20)], ids=["the model's limit", "the author's choice"]
)
def test_generation_length_follows_if_it_was_the_limit_of_model(
    before: int, after: int, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = checkpoint("GPT2LMHeadModel")
    GenerationConfig(max_length=before, do_sample=True, top_k=7).save_pretrained(source)
    convert_checkpoint(source, tmp_path / "long", mechanism="window", max_length=200, verify=False)
    written = read_json(tmp_path / "long", "generation_config.json")
    assert written.get("max_length", 20) == after
    assert written["top_k"] == 7


def test_conversion_copies_files_of_the_model_and_none_of_its_training(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("LlamaForCausalLM")
    kept = {"chat_template.jinja": "{{ messages }}", "LICENSE": "Apache-2.0", "special_tokens_map.json": "{}"}
    left = {"training_args.bin": "pickle", "optimizer.pt": "pickle", "predictions.txt": "A summary."}
    of_training = ("trainer_state", "training_log", "eval_results", "predictions", "nbest_predictions", "null_odds")
    left |= {f"{name}.json": "{}" for name in of_training}
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
def test_memory_tokens_are_written_and_equal_on_every_run(
    name: str, prefix: str, built: Callable[[str], Path], tmp_path: Path
) -> None:
    options = {"mechanism": "recurrent_memory", "segment_length": 12, "num_memory_tokens": 2, "max_length": 200}
    found = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        convert_checkpoint(built(name), folder, **options, verify=False)
        found.append(load_file(folder / "model.safetensors")[f"{prefix}long_memory.tokens"])
    assert torch.equal(*found)
    assert 0 < found[0].std() < 0.1
    loaded, info = AutoModel.from_pretrained(tmp_path / "one", output_loading_info=True)
    assert not [key for key in info["missing_keys"] if "memory" in key]
    assert torch.equal(loaded.long_memory.tokens, found[0])


def convert_until_killed(source: str, destination: str) -> None:
    def kill(stage: str, done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    convert_checkpoint(source, destination, mechanism="full", max_length=128, progress=kill)


def test_conversion_killed_while_writing_is_cleaned_up_by_the_next(
    built: Callable[[str], Path], tmp_path: Path
) -> None:
    destination = tmp_path / "long"
    assert run_fresh(convert_until_killed, built("BertModel"), destination).returncode == -9
    assert [path.name.startswith(".long.partial-") for path in tmp_path.iterdir()] == [True]
    convert_checkpoint(built("BertModel"), destination, mechanism="full", max_length=128, verify=False)
    assert os.listdir(tmp_path) == ["long"]


def test_conversion_asked_to_end_while_writing_leaves_nothing(built: Callable[[str], Path], tmp_path: Path) -> None:
    def end(stage: str, done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    options: dict[str, Any] = {"mechanism": "longformer", "window": 16, "max_length": 128}
    try:
        with pytest.raises(SystemExit):
            convert_checkpoint(built("BertModel"), tmp_path / "long", progress=end, **options)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("full_at", ["weights", "sync"])
def test_conversion_onto_a_full_disk_is_one_sentence_and_leaves_nothing(
    full_at: str, built: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **more: object) -> None:
        if full_at == "sync":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    source = built("BertModel")
    monkeypatch.setattr("os.fsync" if full_at == "sync" else "transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(CheckpointError, match=r"The disk of .* is full"):
        convert_checkpoint(source, tmp_path / "deep" / "long", mechanism="full", max_length=128)
    assert os.listdir(tmp_path) == []
