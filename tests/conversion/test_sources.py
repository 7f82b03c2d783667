"""What conversion reads, and what it refuses: folders, repositories, weights in every format."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import FalconH1Config

import hf_longattn
from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.conversion.source import open_source
from hf_longattn.errors import CheckpointError
from hf_longattn.families import FAMILIES
from hf_longattn.loading import load_model, read_config
from tests.cases import every_case
from tests.conversion.conftest import source_config
from tests.hub_server import Hub, serve
from tests.reports import check_of
from tests.saved import change_json, change_tensors, read_json

Checkpoint = Callable[..., Path]
WINDOW = {"mechanism": "window", "window": 16, "max_length": 128}


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        convert_checkpoint(folder, folder.parent / "long", mechanism="full", verify=False)
    assert not (folder.parent / "long").exists()
    return str(refused.value)


def test_conversion_refuses_a_config_with_other_shapes_or_layers(checkpoint: Checkpoint) -> None:
    source = checkpoint("BertForMaskedLM")
    change_json(source, num_hidden_layers=4)
    assert refusal(source).startswith("32 tensors that a LongBertForMaskedLM needs are missing in ")
    change_json(source, num_hidden_layers=1)
    assert "has tensors of layers that its config.json does not have, the first is 'bert.encoder.layer.1." in refusal(
        source
    )
    change_json(source, num_hidden_layers=2, intermediate_size=96)
    assert re.search(
        r"intermediate\.dense\.\w+' of .* has the shape \(.*, but its config requires \(", refusal(source)
    )


@pytest.mark.parametrize(
    ("body", "head", "settings"),
    [
        ("BertModel", "BertForQuestionAnswering", WINDOW),
        ("ViTModel", "ViTForImageClassification", {"mechanism": "full"}),
        ("LongformerModel", "LongformerForTokenClassification", {}),
    ],
)
def test_head_without_weights_stays_without_and_hidden_states_are_compared(
    body: str, head: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config_class = getattr(transformers, body).config_class
    more = {
        "BertModel": {"max_position_embeddings": 64},
        "LongformerModel": {"attention_window": 16, "vocab_size": 100},
    }
    config = config_class(**sizes, **more.get(body, {}))
    getattr(transformers, body)(config).save_pretrained(tmp_path / "short")
    change_json(tmp_path / "short", architectures=[head])
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", **settings)
    assert any("the source has no weights for its head" in check.detail for check in report.checks)
    written = load_file(tmp_path / "long" / "model.safetensors")
    assert not [name for name in written if re.match(r"(qa_outputs|classifier)\.", name)]


def test_no_part_of_a_tied_head_without_weights_is_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The bias of BERT's decoder is tied to that of the head, and both are missing."""
    source = checkpoint("BertForMaskedLM")
    tensors = load_file(source / "model.safetensors")
    body = {name: value for name, value in tensors.items() if not name.startswith("cls.")}
    save_file(body, source / "model.safetensors", {"format": "pt"})
    convert_checkpoint(source, tmp_path / "long", **WINDOW)
    assert load_file(tmp_path / "long" / "model.safetensors").keys() == body.keys()


@pytest.mark.parametrize(
    "narrow", [("bert.embeddings.",), ("bert.encoder.", "cls."), ("",), ()], ids=["table", "layers", "all", "none"]
)
@pytest.mark.parametrize("named", ["float32", "bfloat16"])
def test_every_tensor_keeps_its_dtype_and_the_config_the_one_that_it_names(
    named: str, narrow: tuple[str, ...], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = checkpoint("BertForMaskedLM")
    tensors = load_file(source / "model.safetensors")
    tensors = {name: value.bfloat16() if name.startswith(narrow) else value for name, value in tensors.items()}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    change_json(source, dtype=named)
    convert_checkpoint(source, tmp_path / "long", **WINDOW)
    written = load_file(tmp_path / "long" / "model.safetensors")
    assert {name: value.dtype for name, value in written.items()} == {
        name: value.dtype for name, value in tensors.items()
    }
    assert all(torch.equal(written[name][: len(value)], value) for name, value in tensors.items())
    assert read_json(tmp_path / "long")["dtype"] == named


def test_experts_of_a_mixture_are_those_of_the_source(tmp_path: Path) -> None:
    """A file holds every expert's matrices, which the class has as one tensor."""
    config = source_config("mixtral")
    short = transformers.MixtralForCausalLM(config)
    short.save_pretrained(tmp_path / "short")
    convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="full")
    long = hf_longattn.LongMixtralForCausalLM.from_pretrained(tmp_path / "long").state_dict()
    assert all(torch.equal(long[name], value) for name, value in short.state_dict().items())


def test_checkpoint_without_the_name_of_its_class_becomes_the_base_model(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = checkpoint("BertModel")
    change_json(source, architectures=None)
    convert_checkpoint(source, tmp_path / "long", **WINDOW)
    assert read_json(tmp_path / "long")["architectures"] == ["LongBertModel"]


def test_conversion_refuses_a_config_of_a_far_larger_model_before_it_takes_memory(checkpoint: Checkpoint) -> None:
    source = checkpoint("BertForMaskedLM")
    change_json(source, intermediate_size=40_000_000)
    assert "bytes; does it belong to another model?" in refusal(source)


def pickled(folder: Path, *, shards: int = 1, zipped: bool = True) -> Path:
    """Replace the safetensors file of a checkpoint by what old versions of transformers wrote."""
    state = transformers.AutoModelForPreTraining.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        return folder
    files = {name: f"pytorch_model-{index % shards + 1:05}-of-{shards:05}.bin" for index, name in enumerate(state)}
    for file in set(files.values()):
        torch.save({name: value for name, value in state.items() if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


@pytest.mark.parametrize(
    ("shards", "zipped"), [(1, True), (1, False), (3, True)], ids=["one file", "old format", "shards"]
)
def test_pickled_checkpoint_is_converted_only_if_allowed(
    shards: int, zipped: bool, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source, folder = pickled(checkpoint("GPT2LMHeadModel"), shards=shards, zipped=zipped), tmp_path / "results"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="add --allow-pickle"):
        convert_checkpoint(source, folder / "long", **WINDOW)
    report = convert_checkpoint(source, folder / "long", allow_pickle=True, **WINDOW)
    assert report.plan["source"] == str(source)
    assert "equal" in check_of(report, "equal at the old length with full attention").detail
    assert [path.name for path in folder.iterdir()] == ["long"]
    assert [path.name for path in (folder / "long").glob("*.safetensors")] == ["model.safetensors"]
    assert not list((folder / "long").glob("*.bin"))


def test_pickled_weights_of_another_dtype_than_the_config_are_rounded_as_it_says(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = pickled(checkpoint("BertForMaskedLM"))
    change_json(source, dtype="bfloat16")
    convert_checkpoint(source, tmp_path / "long", allow_pickle=True, **WINDOW)
    written = load_file(tmp_path / "long" / "model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.bfloat16}


class Harmful:
    """What must never run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("harm"),)


@every_case(
    "content",
    [
        {"weight": Harmful()},
        {"state_dict": {"weight": torch.zeros(2)}},
        [torch.zeros(2)],
        {"weight": torch.zeros(2).to_sparse()},
        None,
    ],
    ids=["code", "nested", "list", "sparse", "damaged"],
)
@every_case("zipped", [True, False], ids=["zip", "old format"])
def test_pickle_of_anything_but_tensors_is_refused_and_runs_no_code(
    content: object, zipped: bool, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint("BertForMaskedLM")
    monkeypatch.chdir(tmp_path)
    (source / "model.safetensors").unlink()
    file = source / "pytorch_model.bin"
    torch.save(
        {"weight": torch.randn(1000)} if content is None else content, file, _use_new_zipfile_serialization=zipped
    )
    if content is None:
        file.write_bytes(file.read_bytes()[:2000])
    sentence = (
        r"^The \.bin files of .* hold more than tensors|cannot be loaded|tensors that a LongBertForMaskedLM "
        r"needs are missing"
    )
    with pytest.raises(CheckpointError, match=sentence):
        convert_checkpoint(source, tmp_path / "long", allow_pickle=True, **WINDOW)
    assert not [*tmp_path.iterdir()]


def test_config_with_infinite_numbers_is_read_as_transformers_writes_it(tmp_path: Path) -> None:
    FalconH1Config(mamba_ssm_multipliers=None, time_step_limit=(0.0, float("inf"))).save_pretrained(tmp_path)
    assert "__float__" in (tmp_path / "config.json").read_text()
    assert read_config(tmp_path)["time_step_limit"] == [0.0, float("inf")]


def test_plan_refuses_a_file_and_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("{}")
    for name, sentence in (("file.txt", "is a file; give the folder"), ("missing folder", "There is no folder")):
        with pytest.raises(CheckpointError, match=sentence):
            plan_conversion(tmp_path / name)


def test_plan_refuses_a_folder_with_an_adapter(checkpoint: Callable[..., Path]) -> None:
    source = checkpoint("BertModel")
    (source / "adapter_config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"holds an adapter, not a model; merge it first: .*\.merge_and_unload\(\)"
    ):
        plan_conversion(source)


REPO = "someone/small-bert"


def test_plan_of_a_hub_source_fetches_no_weights_and_a_conversion_all_files(
    built: Callable[[str], Path], hub: Callable[[str], None], tmp_path: Path
) -> None:
    weights = (built("BertForMaskedLM") / "model.safetensors").stat().st_size
    server = Hub()
    server.add(REPO, built("BertForMaskedLM"))
    with serve(server):
        hub(server.endpoint)
        plan = plan_conversion(REPO, mechanism="window", window=16, max_length=128)
        assert plan.parameters > 0
        assert sum(int(line.split()[-1]) for line in server.requests if line.startswith("GET")) < weights / 2
        report = convert_checkpoint(REPO, tmp_path / "long", mechanism="window", window=16, max_length=128)
        assert report.plan == {**plan.to_dict(), "source": REPO}


@pytest.mark.parametrize(
    ("name", "revision", "sentence"),
    [
        ("someone/else", None, "is not a folder, and it cannot be downloaded: .*Repository Not Found"),
        (REPO, "v9", "Revision Not Found"),
    ],
)
def test_conversion_refuses_a_repository_or_revision_that_the_hub_lacks(
    name: str,
    revision: str | None,
    sentence: str,
    built: Callable[[str], Path],
    hub: Callable[[str], None],
    tmp_path: Path,
) -> None:
    server = Hub()
    server.add(REPO, built("BertForMaskedLM"))
    with serve(server):
        hub(server.endpoint)
        with pytest.raises(CheckpointError, match=sentence):
            convert_checkpoint(name, tmp_path / "long", revision=revision)
    assert not (tmp_path / "long").exists()


def test_conversion_refuses_a_hub_repository_without_safetensors(hub: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "config.json").write_text('{"model_type": "bert"}')
    server = Hub()
    server.add(REPO, tmp_path / "repository")
    with serve(server):
        hub(server.endpoint)
        with pytest.raises(
            CheckpointError, match=r"'someone/small-bert' has no weights, or .* give a folder with model"
        ):
            convert_checkpoint(REPO, tmp_path / "long")
        (tmp_path / "repository" / "pytorch_model.bin").write_text("")
        server.add("someone/pickled", tmp_path / "repository")
        with pytest.raises(CheckpointError, match=r"'someone/pickled' has no weights, or .*add --allow-pickle"):
            open_source("someone/pickled")


def test_plan_of_a_hub_source_without_a_connection_is_one_sentence(hub: Callable[[str], None]) -> None:
    hub("http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="it cannot be downloaded"):
        plan_conversion(REPO)


@every_case(
    ("settings", "method"),
    [({"load_in_8bit": True}, "an unnamed method"), ({"quant_method": "gptq", "bits": 4}, "gptq")],
)
def test_convert_refuses_quantised_source(
    settings: dict[str, Any], method: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint("LlamaForCausalLM")
    change_json(source, quantization_config=settings)
    for refuse in (plan_conversion, convert_checkpoint):
        with pytest.raises(
            CheckpointError,
            match=rf"quantised weights \({method}\), .* give the checkpoint that it was quantised from\.",
        ):
            refuse(source, tmp_path / "long", mechanism="window", window=16)
    assert not (tmp_path / "long").exists()


@every_case(
    ("head", "changed"),
    [
        ("BertForSequenceClassification", "null"),
        ("BertForMaskedLM", "without the prefix"),
        ("DistilBertForQuestionAnswering", "empty"),
        ("LlamaForCausalLM", "unknown"),
        ("BartForConditionalGeneration", "in shards"),
    ],
)
def test_source_that_names_no_class_is_refused_if_it_has_a_head(head: str, changed: str, tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "short"
    base = getattr(transformers, head).config_class.model_type
    model = getattr(transformers, head)(source_config(base))
    model.save_pretrained(folder, max_shard_size="50KB" if changed == "in shards" else "5GB")
    if changed == "without the prefix":
        tensors = load_file(folder / "model.safetensors")
        prefix = f"{model.base_model_prefix}."
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    named = {"empty": [], "unknown": ["Evil"]}.get(changed)
    change_json(folder, architectures=named)
    sentence = refusal(folder)
    assert f'or "architectures": ["{FAMILIES[base].base_model_name}"] to leave them out' in sentence
    assert ("names the class 'Evil', which is not supported" if named else "names no class") in sentence


def test_pickled_source_that_names_no_class_is_refused_if_it_has_a_head(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = pickled(checkpoint("BertForMaskedLM"))
    change_json(source, architectures=None)
    with pytest.raises(CheckpointError, match="weights that a BertModel does not read, cls"):
        convert_checkpoint(source, tmp_path / "long", allow_pickle=True, **WINDOW)


def add_tensors(folder: Path, **tensors: torch.Tensor) -> None:
    change_tensors(folder, lambda stored: stored.update(tensors))


def test_matrix_beside_the_model_that_no_class_reads_is_left_out_only_if_the_class_is_named(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Such as ColBERT's projection of the hidden states."""
    source = checkpoint("BertModel")
    add_tensors(source, **{"linear.weight": torch.ones(8, 32)})
    change_json(source, architectures=None)
    assert "weights that a BertModel does not read, linear, and" in refusal(source)
    change_json(source, architectures=["BertModel"])
    report = convert_checkpoint(source, tmp_path / "long", **WINDOW)
    check = check_of(report, "tensors")
    assert check.values["left_out"] == {"linear.weight": "not in BertModel"}
    assert "left out, not in BertModel: linear" in check.detail


def test_tensors_of_the_files_are_counted_and_those_left_out_are_named(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=99
    )
    transformers.BertForPreTraining(config).save_pretrained(tmp_path / "short")
    add_tensors(
        tmp_path / "short",
        **{"bert.embeddings.position_ids": torch.arange(512)[None], "note": torch.ones(3)},
    )
    change_json(tmp_path / "short", architectures=["BertForMaskedLM"])
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="window", window=16, max_length=1024)
    check = check_of(report, "tensors")
    stored = load_file(tmp_path / "short" / "model.safetensors")
    unread = {name for name in stored if re.search("seq_relationship|pooler|note", name)}
    assert check.values["left_out"] == {
        **dict.fromkeys(unread, "not in BertForMaskedLM"),
        "bert.embeddings.position_ids": "computed by the model",
    }
    assert check.detail.startswith(f"{len(stored)} tensors of the source accounted for: ")
    assert check.values["kept"] + check.values["extended"] + check.values["left out"] == len(stored)
    left_out = stored.keys() - load_file(tmp_path / "long" / "model.safetensors").keys()
    assert left_out == check.values["left_out"].keys()
    assert check.values["extended"] == 1


def test_source_that_names_no_class_leaves_out_what_is_computed_or_no_head(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = checkpoint("BertModel")
    add_tensors(source, **{"embeddings.position_ids": torch.arange(64)[None], "note": torch.ones(3)})
    change_json(source, architectures=None)
    report = convert_checkpoint(source, tmp_path / "long", **WINDOW)
    check = check_of(report, "tensors")
    assert check.values["left_out"].keys() == {"embeddings.position_ids", "note"}


def test_copy_of_tied_embeddings_is_no_head(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("GPT2LMHeadModel")
    embeddings = load_file(source / "model.safetensors")["transformer.wte.weight"]
    add_tensors(source, **{"lm_head.weight": embeddings.clone()})
    change_json(source, architectures=None)
    convert_checkpoint(source, tmp_path / "copy", **WINDOW)


@every_case(("base", "head"), [("llama", "LlamaForCausalLM"), ("gpt_neox", "GPTNeoXForCausalLM")])
def test_decoder_without_its_untied_head_is_refused(base: str, head: str, tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "short"
    getattr(transformers, head)(source_config(base)).base_model.save_pretrained(folder)
    change_json(folder, architectures=[head], tie_word_embeddings=False)
    sentence = refusal(folder)
    assert f"has no lm_head.weight, the head of a {head}" in sentence
    change_json(folder, architectures=[FAMILIES[base].base_model_name])
    convert_checkpoint(folder, folder.parent / "long", mechanism="full")


@every_case(
    ("file", "sentence"),
    [
        ("model.fp16.safetensors", r"but model.fp16.safetensors; .* \(with variant='fp16' if"),
        ("consolidated.safetensors", "has neither model.safetensors nor all files of its index, but consolidated"),
    ],
)
def test_safetensors_under_another_name_are_named_in_the_refusal(
    file: str, sentence: str, checkpoint: Checkpoint
) -> None:
    source = checkpoint("BertForMaskedLM")
    (source / "model.safetensors").rename(source / file)
    assert re.search(sentence, refusal(source))
    with pytest.raises(CheckpointError, match=sentence):
        load_model(transformers.AutoModelForMaskedLM, source)
