"""The one file that loads what a user names: its refusals, and what is said of weights that are new or unused."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import typer
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFKC, NFKD, Prepend, Replace
from torch import Tensor
from transformers import (
    AddedToken,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    WhisperConfig,
    dynamic_module_utils,
)

from hf_longattn import Embedder, cli, convert_checkpoint
from hf_longattn.cli import app
from hf_longattn.conversion.tokenizer import token_ids
from hf_longattn.errors import CheckpointError
from hf_longattn.loading import (
    call_tokenizer,
    check_token_ids,
    check_tokenizer,
    fit_tokenizer,
    load_config,
    load_model,
    load_padding_tokenizer,
    load_part,
    load_sentence_model,
    loading_errors,
    read_config,
)
from hf_longattn.modeling.generic import class_problem
from hf_longattn.training.lm import load_lm
from hf_longattn.training.tasks.qa import load_qa_model
from tests.byte_tokenizer import train_tokenizer
from tests.cases import every_case
from tests.hostile import Room, answer
from tests.hub_server import Hub
from tests.saved import change_json, label_config, read_json
from tests.training.conftest import SOURCES, checkpoint, written_texts


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(SOURCES, vocab_size=1024)


@pytest.fixture
def folder(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """A BERT with its head of masked tokens."""
    return checkpoint("mlm", tmp_path / "short", tokenizer)


def to_pickle(folder: str) -> None:
    """Replace the weights by the same in a .bin file."""
    weights = BertForMaskedLM.from_pretrained(folder).state_dict()
    Path(folder, "model.safetensors").unlink()
    torch.save(weights, Path(folder, "pytorch_model.bin"))


def test_load_model_refuses_new_weights_where_nothing_is_trained(folder: str) -> None:
    load_model(AutoModelForMaskedLM, folder, complete=True)
    with pytest.raises(
        CheckpointError,
        match=r"lacks weights of BertForSequenceClassification: bert\.pooler\.dense, classifier; give a",
    ):
        load_model(AutoModelForSequenceClassification, folder, complete=True)
    load_model(AutoModelForSequenceClassification, folder, num_labels=3).save_pretrained(folder)
    load_model(AutoModelForSequenceClassification, folder, complete=True)
    with pytest.raises(CheckpointError, match="BertForSequenceClassification: classifier of this size; give a"):
        load_model(AutoModelForSequenceClassification, folder, complete=True, **label_config(list("abcde")))


def test_load_model_and_load_lm_refuse_pickled_weights(folder: str, server: Hub) -> None:
    to_pickle(folder)
    server.add("someone/pickled", Path(folder))
    for name in (folder, "someone/pickled"):
        for load in (lambda name: load_lm(name, "mlm"), lambda name: load_model(AutoModelForMaskedLM, name)):
            with pytest.raises(
                CheckpointError,
                match=f"'{name}' has no weights, or holds .* only as pickle .* add --allow-pickle .* longattn convert",
            ):
                load(name)


def test_load_sentence_model_refuses_pickled_modules(folder: str, server: Hub) -> None:
    sentence_transformers: Any = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Dense

    modules = [*sentence_transformers.SentenceTransformer(folder, device="cpu"), Dense(16, 8)]
    sentence_transformers.SentenceTransformer(modules=modules, device="cpu").save(folder)
    load_sentence_model(sentence_transformers.SentenceTransformer, folder, device="cpu")
    (dense,) = Path(folder).glob("*_Dense")
    weights = dense / "model.safetensors"
    weights.unlink()
    torch.save(modules[-1].state_dict(), dense / "pytorch_model.bin")
    server.add("someone/dense", Path(folder))
    for name in (folder, "someone/dense"):
        with pytest.raises(CheckpointError, match="_Dense' has no weights, or holds its weights only as pickle"):
            load_sentence_model(sentence_transformers.SentenceTransformer, name, device="cpu")


def test_sentence_model_that_lacks_weights_is_refused_but_may_lack_a_pooler(folder: str) -> None:
    sentence_transformers: Any = pytest.importorskip("sentence_transformers")
    loader = sentence_transformers.SentenceTransformer
    encoder = "encoder.layer.0.output.dense"
    beside = Path(folder, "0_Transformer")
    load_sentence_model(loader, folder, complete=True, device="cpu")  # of a masked LM, which has no pooler
    loader(folder, device="cpu").save(folder)
    for name in ("config.json", "model.safetensors"):  # as sentence-transformers saved the first module before
        beside.mkdir(exist_ok=True)
        shutil.move(Path(folder, name), beside / name)
    for file in Path(folder).glob("*token*"):
        shutil.copy(file, beside / file.name)
    modules = read_json(Path(folder), "modules.json")
    Path(folder, "modules.json").write_text(json.dumps([{**modules[0], "path": beside.name}, *modules[1:]]))
    tensors = load_file(beside / "model.safetensors")
    for name in [name for name in tensors if "pooler" in name]:
        del tensors[name]
    save_file(tensors, beside / "model.safetensors", {"format": "pt"})
    load_sentence_model(loader, folder, complete=True, device="cpu")
    lacking = {name: value for name, value in tensors.items() if encoder not in name}
    save_file(lacking, beside / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError,
        match=f"lacks weights of BertModel: {encoder}; give a checkpoint that was saved with all of them",
    ):
        load_sentence_model(loader, folder, complete=True, device="cpu")
    load_sentence_model(loader, folder, device="cpu")


def test_load_config_refuses_an_adapter_without_a_model(folder: str, server: Hub) -> None:
    described = Path(folder, "config.json")
    described.rename(described.with_name("adapter_config.json"))
    server.add("someone/adapter", Path(folder))
    for name in (folder, "someone/adapter"):
        with pytest.raises(CheckpointError, match="holds an adapter, not a model"):
            load_config(name)


def test_load_sentence_model_refuses_unknown_processors(folder: str) -> None:
    sentence_transformers: Any = pytest.importorskip("sentence_transformers")
    Path(folder, "processor_config.json").write_text(json.dumps({"processor_class": "Processor"}))
    for loader in (sentence_transformers.CrossEncoder, sentence_transformers.SentenceTransformer):
        with pytest.raises(CheckpointError, match="cannot be loaded: "):
            load_sentence_model(loader, folder, device="cpu")


def test_commands_refuse_a_revision_of_a_folder(tmp_path: Path) -> None:
    room = Room.make(tmp_path / "room")
    (tmp_path / "out").mkdir()
    program: Any = typer.main.get_command(app)
    accepting = [
        name
        for name, command in program.commands.items()
        if any(option.name == "revision" for option in command.params)
    ]
    tried = [
        line
        for line in room.lines(tmp_path / "room" / "good", tmp_path / "out", training=False)
        if line[0] in accepting
    ]
    taken = {
        " ".join(line): answer(program, [*line, "--revision", "v1"], io.StringIO())[1]
        for line in tried
        if line[0] != "push"
    }
    assert {
        said
        for said in taken.values()
        if "--revision is for a repository of the Hub; leave --revision out" not in said
    } == set()
    assert {line.split()[0] for line in taken} == {*accepting} - {"push"}


def plain_tokenizer(**tokens: Any) -> Any:
    """A tokenizer with these special tokens alone."""
    backend = train_tokenizer(["the tree is here"], vocab_size=280).backend_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)


def test_check_token_ids_refuses_tables_smaller_than_the_tokenizer() -> None:
    """Whichever way the tokens came; the table may be larger."""
    added: dict[str, Any] = {
        "a word": lambda tokenizer: tokenizer.add_tokens(["covid"]),
        "a special token": lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": ["<entity>"]}),
        "a padding token": lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "<pad>"}),
        "a mask": lambda tokenizer: tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True)}),
    }
    for add in added.values():
        tokenizer = plain_tokenizer(eos_token="[SEP]")
        rows = len(tokenizer)
        fit_tokenizer(tokenizer, BertConfig(vocab_size=rows), "folder")
        add(tokenizer)
        new = tokenizer.convert_ids_to_tokens(rows)
        for config in (BertConfig(vocab_size=rows), LlamaConfig(vocab_size=rows), WhisperConfig(vocab_size=rows)):
            with pytest.raises(
                CheckpointError,
                match=rf"gives token ids up to {rows} \('{new}'\), but its model has {rows} embeddings; enl",
            ):
                check_token_ids(tokenizer, config, "folder")
        check_token_ids(tokenizer, BertConfig(vocab_size=rows + 1), "folder")
        check_token_ids(tokenizer, BertConfig(vocab_size=rows + 64), "folder")
    with pytest.raises(
        CheckpointError, match=rf"gives token ids up to {rows - 1}, but|gives token ids up to {rows - 1} "
    ):  # its own pieces
        check_token_ids(plain_tokenizer(eos_token="[SEP]"), BertConfig(vocab_size=rows - 5), "folder")


def test_check_token_ids_needs_no_row_for_a_placeholder_of_images(tmp_path: Path) -> None:
    """Gemma 3's models of texts have no row for the ``image_token`` of their tokenizer, which no text becomes."""
    tokenizer = plain_tokenizer(eos_token="[SEP]", extra_special_tokens={"image_token": "<image_soft_token>"})
    rows = len(tokenizer) - 1
    assert tokenizer.convert_tokens_to_ids("<image_soft_token>") == rows
    check_token_ids(tokenizer, LlamaConfig(vocab_size=rows), "folder")
    tokenizer.save_pretrained(tmp_path)
    assert load_padding_tokenizer(tmp_path, LlamaConfig(vocab_size=rows)).pad_token == "[SEP]"
    tokenizer.add_special_tokens({"pad_token": "<image_soft_token>"})
    with pytest.raises(CheckpointError, match=f"up to {rows} "):
        check_token_ids(tokenizer, LlamaConfig(vocab_size=rows), "folder")


def test_tokenizers_without_padding_pad_with_their_end_token_in_every_loader(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    tokenizer = plain_tokenizer(bos_token="[CLS]", eos_token="[SEP]")
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": len(tokenizer),
    }
    LlamaForCausalLM(LlamaConfig(**shape, eos_token_id=3, bos_token_id=2)).save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    folder = str(tmp_path / "decoder")
    assert load_lm(folder, "auto")[1].pad_token == "[SEP]"
    assert load_qa_model(folder, complete=False)[1].pad_token == "[SEP]"
    classifier = str(tmp_path / "classifier")
    LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1)).save_pretrained(classifier)
    tokenizer.save_pretrained(classifier)
    for loader, place in (
        ("SentenceTransformer", folder),
        ("CrossEncoder", classifier),
        ("MultiVectorEncoder", folder),
    ):
        model = load_sentence_model(getattr(sentence_transformers, loader), place, device="cpu")
        assert model.tokenizer.pad_token == "[SEP]"
        assert model.transformers_model.config.pad_token_id == 3
    plain_tokenizer(bos_token="[CLS]").save_pretrained(tmp_path / "decoder")
    neither = "has neither a padding nor an end token; give it one"
    with pytest.raises(CheckpointError, match=neither):
        load_lm(folder, "auto")
    with pytest.raises(CheckpointError, match=neither):
        load_sentence_model(sentence_transformers.SentenceTransformer, folder, device="cpu")


CATASTROPHIC = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
FAILING_TEXT = f"{'a' * 40}b"


def tokenizer_with(limit: Any = 512, **parts: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of three words with a normalizer, a pre-tokenizer or a post-processor."""
    backend = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2, "[CLS]": 3}, "[UNK]"))
    for name, part in parts.items():
        setattr(backend, name, part)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=limit, unk_token="[UNK]", pad_token="[UNK]"
    )


def template(single: str, count: int = 1) -> processors.TemplateProcessing:
    special = {"id": "[CLS]", "ids": [3] * count, "tokens": ["[CLS]"] * count}
    return processors.TemplateProcessing(single=single, special_tokens=[special])


def precompiled(longest: str) -> normalizers.Normalizer:
    """SentencePiece's table of characters, with an empty trie and one text that it can write."""
    return normalizers.Precompiled((1024).to_bytes(4, "little") + bytes(1024) + longest.encode() + b"\0")


GROWING = {
    "one rule": {"normalizer": Replace(".", " . " * 40)},
    "two rules": {"normalizer": normalizers.Sequence([Replace(".", " . " * 8), Replace(".", " . " * 8)])},
    "of nothing": {"normalizer": Replace(Regex("x*"), "word " * 10)},
    "in SentencePiece's table": {"normalizer": normalizers.Sequence([precompiled("word " * 30), Replace(" ", "▁")])},
    "before a text": {"normalizer": Prepend("a" * 100)},
    "in the pre-tokenizer": {
        "pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(use_regex=False)] * 20)
    },
    "a later pre-tokenizer": {"normalizer": Replace("b", "é" * 12), "pre_tokenizer": pre_tokenizers.ByteLevel()},
}
USUAL = {
    "none": {},
    "sentencepiece": {"normalizer": normalizers.Sequence([Prepend("▁"), Replace(" ", "▁")])},
    "quotes": {
        "normalizer": normalizers.Sequence(
            [Replace("``", '"'), Replace("''", '"'), NFKD(), normalizers.StripAccents()]
        )
    },
    "names of pictures": {
        "normalizer": normalizers.Sequence([Replace("😀", " :grinning_face_with_a_long_name: ")] * 40)
    },
    "compatibility forms": {"normalizer": NFKC()},
    "SentencePiece's table": {"normalizer": precompiled("صلى الله عليه وسلم")},  # the longest text of nmt_nfkc
    "bytes": {"pre_tokenizer": pre_tokenizers.ByteLevel()},
    "no limit": {"limit": int(1e30)},
    "no limit as JSON's number": {"limit": 1e30},
    "special tokens": {"post_processor": template("[CLS] $A [CLS]", 9)},
}


@every_case("name", GROWING)
def test_check_tokenizer_refuses_rules_that_make_a_text_far_longer(name: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"The tokenizer.json of 'bert' makes a text more than 32 times as long, or repeats it"
    ):
        check_tokenizer(tokenizer_with(**GROWING[name]), "bert")


@every_case("name", USUAL)
def test_check_tokenizer_passes_rules_of_usual_tokenizers(name: str) -> None:
    tokenizer = tokenizer_with(**USUAL[name])
    check_tokenizer(tokenizer, "bert")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(object())  # such as RoFormer's
    check_tokenizer(tokenizer, "bert")


def test_check_tokenizer_refuses_repeated_texts_and_too_many_special_tokens() -> None:
    for repeated in (template("$A $A"), processors.Sequence([template("[CLS] $A $A [CLS]"), template("$A")])):
        with pytest.raises(CheckpointError, match="or repeats it"):
            check_tokenizer(tokenizer_with(post_processor=repeated), "bert")
    with pytest.raises(CheckpointError, match="or repeats it"):
        check_tokenizer(tokenizer_with(post_processor=template("[CLS] $A", 600)), "bert")


def test_panics_of_a_tokenizer_are_one_sentence(tmp_path: Path) -> None:
    failing = tokenizer_with(pre_tokenizer=CATASTROPHIC)
    for call in (call_tokenizer, token_ids):
        with pytest.raises(CheckpointError, match=r"tokenizer.* does not fit the text: Onig: Regex search error"):
            call(failing, FAILING_TEXT)
    growing = tokenizer_with(normalizer=Replace("b", "a" * 30 + "!"), pre_tokenizer=CATASTROPHIC)
    growing.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"The tokenizer.json of .* is damaged: Onig"):
        load_part(AutoTokenizer, tmp_path)


def test_load_part_refuses_a_tokenizer_that_makes_a_text_far_longer(tmp_path: Path) -> None:
    tokenizer_with().save_pretrained(tmp_path)
    assert load_part(AutoTokenizer, tmp_path)("a").input_ids == [1]
    values = read_json(tmp_path, "tokenizer.json")
    values["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": "a b " * 100}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="makes a text more than 32 times as long"):
        load_part(AutoTokenizer, tmp_path)


# Heads of checkpoints that name no class.

COMMANDS = {
    "convert": "convert {short} {out} --mechanism full",
    "export onnx": "export {short} {out} --format torch",
    "export long": "export {long} {out} --format torch",
    "export native": "export {long} {out} --format native",
    "compress": "compress {short} {out} --method prune-heads",
    "compress long": "compress {long} {out} --method bf16",
    "linearise": "train linearise --model {long} --data {texts} --output {out} --max-steps 1",
    "distill": "train distill --method hidden --model {short} --teacher {short} --data {texts} --output {out}",
}


@every_case("command", COMMANDS)
def test_no_command_loses_the_head_of_a_checkpoint_that_names_no_class(
    command: str, folder: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    long = tmp_path / "long"
    texts = tmp_path / "texts"
    out = tmp_path / "out"
    if "{long}" in COMMANDS[command]:
        change_json(Path(folder), architectures=["BertForMaskedLM"])
        convert_checkpoint(folder, long, mechanism="hedgehog", max_length=128, verify=False, overwrite=True)
    if "{texts}" in COMMANDS[command] and not texts.exists():
        written_texts(texts, 12_000)
    change_json(long if "{long}" in COMMANDS[command] else Path(folder), architectures=None)
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main(COMMANDS[command].format(short=folder, long=long, texts=texts, out=out).split())
    printed = " ".join(capfd.readouterr().err.split())
    headless = "LongBertModel" if "{long}" in COMMANDS[command] else "BertModel"
    assert stopped.value.code == 1, printed
    assert "cls.predictions" in printed
    assert f'or "architectures": ["{headless}"] to leave them out' in printed
    assert not out.exists()


def test_class_problem_is_told_by_the_classes_that_a_config_names(folder: str) -> None:
    def problem(architectures: Any) -> str:
        change_json(Path(folder), architectures=architectures)
        return class_problem("source", Path(folder), read_config(Path(folder)))

    for one in (["BertModel"], ["BertForMaskedLM"], ["BertForMaskedLM", "BertForMaskedLM"]):
        assert problem(one) == ""
    assert "names the classes ['BertModel', 'BertForMaskedLM'], and several are" in problem(
        ["BertModel", "BertForMaskedLM"]
    )
    for none in (None, [], [None]):
        assert "its config.json names no class; write the class that saved them there" in problem(none)
    assert "names the class 'Evil', which is not supported; write" in problem(["Evil"])
    to_pickle(folder)
    assert problem(None) == ""  # no .bin file is read unasked


# Loading in threads.


def in_threads(call: Callable[[int], Any]) -> list[Any]:
    """The results of ``call(0)``, ``call(1)`` …, which begin together."""
    start = threading.Barrier(4)

    def run(number: int) -> Any:
        start.wait()
        return call(number)

    with ThreadPoolExecutor(start.parties) as threads:
        return [*threads.map(run, range(start.parties))]


def settings_of_the_process() -> dict[str, Any]:
    return {
        "environment": dict(os.environ),
        "question": dynamic_module_utils.TIME_OUT_REMOTE_CODE,
        "dtype": torch.get_default_dtype(),
        "random": torch.get_rng_state().tolist(),
        "replaced": (PreTrainedModel.tie_weights, torch.linspace, torch.nn.init.normal_),
        "verbosity": (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()),
        "warnings": list(warnings.filters),
        "log": [logging.getLogger(name).level for name in ("torchao", "torch.onnx")],
        "filters": list(logging.getLogger("transformers.modeling_utils").filters),
    }


def test_loads_that_overlap_in_threads_are_those_of_one_after_another(folder: str, tmp_path: Path) -> None:
    sentence_transformers: Any = pytest.importorskip("sentence_transformers")
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
    expected = load_file(Path(folder, "model.safetensors"))
    (tmp_path / "damaged").mkdir()
    shutil.copy(Path(folder, "config.json"), tmp_path / "damaged")

    def load(number: int) -> None:
        for _ in range(3):
            model = load_model(AutoModelForMaskedLM, folder, dtype=dtypes[number])
            embeddings = model.bert.embeddings.word_embeddings.weight
            assert model.cls.predictions.decoder.weight is embeddings
            assert torch.equal(embeddings, expected["bert.embeddings.word_embeddings.weight"].to(dtypes[number]))
            with pytest.raises(CheckpointError, match="has no weights"):
                load_model(AutoModelForMaskedLM, tmp_path / "damaged", dtype=dtypes[number])
            assert load_padding_tokenizer(folder, model.config)("the tree").input_ids
            encoder = load_sentence_model(sentence_transformers.SentenceTransformer, folder, device="cpu")
            assert {value.dtype for value in encoder.parameters()} == {torch.float32}

    load_sentence_model(sentence_transformers.SentenceTransformer, folder, device="cpu")  # its imports change settings
    before = settings_of_the_process()
    in_threads(load)
    assert {**settings_of_the_process(), "random": before["random"]} == before  # new poolers draw numbers


def test_conversions_in_threads_write_the_same_files_and_leave_no_setting_changed(folder: str, tmp_path: Path) -> None:
    def convert(number: int | str) -> dict[str, Tensor]:
        convert_checkpoint(folder, tmp_path / str(number), max_length=128, mechanism="linformer", rank=32)
        return load_file(tmp_path / str(number) / "model.safetensors")

    expected = convert("alone")
    before = settings_of_the_process()
    for tensors in in_threads(convert):
        assert tensors.keys() == expected.keys()
        assert [name for name, value in tensors.items() if not torch.equal(value, expected[name])] == []
    assert {**settings_of_the_process(), "random": before["random"]} == before  # new parameters draw numbers


def test_embedder_called_by_threads_gives_the_vectors_of_one_call(folder: str) -> None:
    pytest.importorskip("sentence_transformers")
    texts = [["the tree is here " * count for count in range(number + 1, number + 4)] for number in (0, 3, 20, 60)]
    for vectors in ("document", "passages:8"):
        embedder = Embedder(folder, vectors=vectors)
        returned = in_threads(lambda number, embedder=embedder: embedder({"text": texts[number]})["embedding"])
        for batch, embeddings in zip(texts, returned, strict=True):
            for embedding, expected in zip(embeddings, embedder({"text": batch})["embedding"], strict=True):
                np.testing.assert_allclose(np.array(embedding), np.array(expected), atol=1e-6)


def test_only_loads_of_this_package_refuse_code_without_a_question(folder: str, monkeypatch: Any) -> None:
    questions: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "no")

    def resolve() -> None:
        dynamic_module_utils.resolve_trust_remote_code(None, folder, has_local_code=False, has_remote_code=True)

    for _ in range(2):
        with pytest.raises(CheckpointError, match="needs its own Python code"), loading_errors(folder):
            resolve()
        with pytest.raises(ValueError, match="trust_remote_code"):
            resolve()
    assert len(questions) == 2


def test_no_load_requests_a_conversion_of_weights_on_the_hub(
    folder: str, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence_transformers: Any = pytest.importorskip("sentence_transformers")
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    to_pickle(folder)
    server.add("someone/pickled", Path(folder))
    for load in (
        lambda: load_model(AutoModelForMaskedLM, "someone/pickled"),
        lambda: load_sentence_model(sentence_transformers.SentenceTransformer, "someone/pickled", device="cpu"),
    ):
        with pytest.raises(CheckpointError, match="holds its weights only as pickle"):
            load()
    assert [request for request in server.requests if request.split()[0] not in ("GET", "HEAD")] == []
    assert [request for request in server.requests if "discussions" in request] == []
