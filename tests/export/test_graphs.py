"""A long checkpoint as one graph: equal to the model in the runtime it is for, or one sentence and nothing written."""

from __future__ import annotations

import importlib.util
import json
import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants
from torch import Tensor, nn
from transformers.models.bert import modeling_bert

import hf_longattn.families as families
from hf_longattn import export_checkpoint, list_mechanisms
from hf_longattn import reports as checks
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import CheckpointError, MissingExtraError
from hf_longattn.files import GRAPHS, read_json
from hf_longattn.mechanisms.common.registry import mechanism_class
from scripts.dev.tools.small_models import Shape, small_config
from tests.cli.test_commands import output
from tests.hub_server import Hub
from tests.reference.small_models import padding, tokens
from tests.saved import change_json, label_config
from tests.stock_cases import save_long

from .conftest import LENGTH, saved

EXPORTERS = pytest.importorskip("hf_longattn.export.exporters", exc_type=ImportError).EXPORTERS


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return saved(tmp_path / "long", head="LongBertForSequenceClassification")


@pytest.mark.thorough
@pytest.mark.usefixtures("programs_loaded_once")
def test_torch_graph_runs_without_the_package_and_takes_global_tokens(tmp_path: Path) -> None:
    small = saved(tmp_path / "long", head="LongBertForSequenceClassification")
    report = export_checkpoint(small, tmp_path / "graph", format="torch", global_attention_mask=True)
    assert report.inputs == ("input_ids", "attention_mask", "global_attention_mask")
    exported = torch.export.load(tmp_path / "graph" / "model.pt2")
    assert not [node for node in exported.graph.nodes if "longattn" in str(node.target)]
    program = exported.module()
    model = families.LongBertForSequenceClassification.from_pretrained(small).eval()
    inputs = {"input_ids": tokens(2, 200), "attention_mask": padding(2, 200)}
    for chosen in (0, 1, 5):
        given = {
            **inputs,
            "global_attention_mask": (torch.arange(200)[None] < chosen).long().expand(2, -1).contiguous(),
        }
        with torch.no_grad():
            assert (program(**given)["logits"] - model(**given).logits).abs().max() < 1e-4


class Positions(torch.nn.Module):
    """The position ids that a model gives a batch with this mask."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, mask: torch.Tensor) -> torch.Tensor:
        positions: torch.Tensor = self.model.own_positions({"attention_mask": mask}, mask)
        return positions


def masks(length: int, *texts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of texts of these lengths, padded on the right and on the left."""
    index, sizes = torch.arange(length), torch.tensor(texts)[:, None]
    return (index < sizes).long(), (index >= length - sizes).long()


def test_positions_of_a_graph_follow_its_length_as_those_of_the_model(tmp_path: Path) -> None:
    source = saved(tmp_path / "long", exact_length=40)
    positions = Positions(families.LongBertModel.from_pretrained(source).eval())
    sizes = {"mask": {0: torch.export.Dim("batch", max=8), 1: torch.export.Dim("length", min=2, max=LENGTH)}}
    program = torch.export.export(positions, (masks(60, 60, 9)[0],), dynamic_shapes=sizes).module()
    for length in (9, 40, 41, 90):
        for mask in masks(length, length, 5):
            assert torch.equal(program(mask), positions(mask)), (length, mask)
    assert positions(masks(90, 5)[1])[0, -5:].tolist() == [0, 1, 2, 3, 4]
    assert positions(masks(9, 5)[1])[0, -5:].tolist() == [4, 5, 6, 7, 8]


@pytest.mark.slow
@pytest.mark.usefixtures("programs_loaded_once")
def test_graph_attends_short_texts_in_full_whatever_the_length(tmp_path: Path) -> None:
    """Those of at most 40 tokens, alone, in a longer batch, and with padding on either side, which moves positions in
    long batches only."""
    source = saved(tmp_path / "long", head="LongBertForMaskedLM", exact_length=40)
    export_checkpoint(source, tmp_path / "graph", format="torch")
    program = torch.export.load(tmp_path / "graph" / "model.pt2").module()
    model = families.LongBertForMaskedLM.from_pretrained(source).eval()
    for length, texts in ((9, (9, 5)), (40, (40, 17)), (90, (90, 33))):
        for mask in masks(length, *texts):
            given = {"input_ids": tokens(2, length), "attention_mask": mask}
            with torch.no_grad():
                difference = (program(**given)["logits"] - model(**given).logits)[mask.bool()].abs().max()
            assert difference < 1e-4, (length, mask)


def test_export_refuses_formats_tasks_and_models_that_do_not_fit(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "graph"
    for arguments, sentence in (
        ({"format": "tflite"}, "Unknown format 'tflite'; expected onnx, openvino, torch or"),
        ({"task": "summary"}, "Unknown task 'summary'; expected one of .*, feature-extraction, .*, translation"),
        ({"task": "fill-mask"}, "has no weights for"),
        ({"task": "translation"}, "has no head for the task"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            export_checkpoint(small, target, **arguments)
    with pytest.raises(CheckpointError, match="No layer of this model takes global tokens"):
        export_checkpoint(saved(tmp_path / "plain", "full"), target, global_attention_mask=True)
    for name, options in (("hierarchical", {}), ("window", {"dilation": 2})):
        with pytest.raises(
            CheckpointError, match="but full, linear, longformer, window without dilation can; convert"
        ):
            export_checkpoint(saved(tmp_path / name, name, **options), target)
    monkeypatch.setattr(checks, "TOLERANCE", -1.0)
    with pytest.raises(CheckpointError, match="differs from the model"):
        export_checkpoint(tmp_path / "plain", target, format="torch")
    find_spec, absent = importlib.util.find_spec, ["transformers.exporters"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find_spec(name))
    with pytest.raises(CheckpointError, match=r"has no exporters; type pip install -U 'transformers>=5.24'"):
        export_checkpoint(small, target)
    absent += ["onnx", "openvino"]
    for name in ("onnx", "openvino"):
        with pytest.raises(MissingExtraError, match=rf"The package '{name}' .* type pip install '\.\[{name}\]'"):
            export_checkpoint(small, target, format=name)
    assert {path.name for path in tmp_path.iterdir()} == {"long", "plain", "hierarchical", "window"}


EXPORTED = [name for name in list_mechanisms() if mechanism_class(name).capabilities.exports]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.parametrize("mechanism", EXPORTED)
def test_mechanisms_that_can_be_exported_equal_their_graph(mechanism: str, format: str, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(format, format))
    assert EXPORTED == ["full", "linear", "longformer", "window"]
    report = export_checkpoint(saved(tmp_path / "long", mechanism), tmp_path / "graph", format=format)
    assert [check.values["length"] for check in report.checks] == [7, 333, LENGTH]
    assert all(check.status == "passed" and check.values["difference"] <= 1e-4 for check in report.checks)
    files = {path.name for path in (tmp_path / "graph").iterdir()}
    assert {GRAPHS[format], "config.json", "export_report.json"} <= files


def test_export_refuses_a_decoder_and_an_encoder_decoder(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"A graph is an encoder, and a LongGPT2LMHeadModel has a decoder; .*--format native"
    ):
        export_checkpoint(saved(tmp_path / "gpt2", "full", "gpt2", "LongGPT2LMHeadModel"), tmp_path / "graph")
    save_long(tmp_path / "long", "bart", {"mechanism": "window"})
    with pytest.raises(CheckpointError, match="a LongBartForConditionalGeneration has a decoder"):
        export_checkpoint(tmp_path / "long", tmp_path / "graph", format="torch")


def test_a_module_that_cannot_be_traced_is_named_without_its_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Attention is not the cause, so no other mechanism is advised."""

    def depends_on_values(self: Any, states: Tensor) -> Tensor:
        chosen = states[states.sum(-1) > 0]
        return torch.stack([self.dense(states) + row.mean() for row in chosen]).sum(0)

    source = saved(tmp_path / "long", "full")
    monkeypatch.setattr(modeling_bert.BertIntermediate, "forward", depends_on_values)
    capfd.readouterr()
    with pytest.raises(CheckpointError) as error:
        export_checkpoint(source, tmp_path / "graph", format="torch")
    assert "because of its BertIntermediate (GuardOnDataDependentSymNode" in str(error.value)
    assert "mechanism" not in str(error.value)
    assert len(str(error.value)) < 400
    assert not capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"long"}


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    """An encoder whose tokens choose two of four experts."""
    config = transformers.OpenAIPrivacyFilterConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=LENGTH,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
    )
    transformers.OpenAIPrivacyFilterForTokenClassification(config).save_pretrained(tmp_path / "experts")
    return tmp_path / "experts"


@pytest.mark.slow
@pytest.mark.parametrize("format", GRAPHS)
def test_a_graph_of_experts_equals_the_model_that_loops_over_them(format: str, experts: Path, tmp_path: Path) -> None:
    report = export_checkpoint(experts, tmp_path / "graph", format=format)
    assert [check.status for check in report.checks] == ["passed"] * 3


def sentence_encoder(folder: Path) -> Path:
    """A checkpoint as sentence-transformers saves it, with a tokenizer that knows the letters."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    from sentence_transformers.base.modules import Transformer

    small = saved(folder / "small", "full")
    vocabulary = small / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]))
    transformers.BertTokenizerFast(vocab=str(vocabulary), model_max_length=LENGTH).save_pretrained(small)
    chosen = [Transformer(str(small)), modules.Pooling(32, "mean"), modules.Normalize()]
    sentence_transformers.SentenceTransformer(modules=chosen).save(str(folder / "encoder"))
    return folder / "encoder"


@pytest.mark.thorough
@pytest.mark.usefixtures("programs_loaded_once")
def test_exported_encoder_takes_token_types_and_tells_servers_its_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command. Types are an input even if the tokenizer does not know the text."""
    encoder = sentence_encoder(tmp_path)
    change_json(encoder, "tokenizer_config.json", model_max_length=LENGTH // 2)
    report = json.loads(output(capsys, "export", encoder, tmp_path / "graph", "--format", "torch", "--json"))
    assert report["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    assert report["class_name"] == "LongBertModel"
    with pytest.raises(CheckpointError, match="--overwrite"):
        export_checkpoint(encoder, tmp_path / "graph", format="torch")
    assert read_json(tmp_path / "graph" / "sentence_bert_config.json")["max_seq_length"] == LENGTH // 2
    program = torch.export.load(tmp_path / "graph" / "model.pt2").module()
    inputs = {"input_ids": tokens(1, 40), "attention_mask": torch.ones(1, 40, dtype=torch.long)}
    first, second = (
        program(**inputs, token_type_ids=torch.full((1, 40), kind))["sentence_embedding"] for kind in (0, 1)
    )
    assert not torch.allclose(first, second)


class OfFourTokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 4) * 2


def test_export_refuses_an_axis_that_is_not_free() -> None:
    with pytest.raises(AssertionError, match="axis 0 of x is not free"):
        EXPORTERS["torch"]().exported(OfFourTokens(), {"x": torch.ones(1, 4)}, 64)


QUERY = "How is a frozen dataclass copied with one field changed?"
ANSWERS = [
    "dataclasses.replace returns a new object.",
    "A river meets the sea. " * 150,
    "copy",
    "An object of a frozen dataclass. " * 60,
]


def small_classifier(folder: Path, checkpoints: Path, labels: list[str]) -> Path:
    """A BERT of two layers with random weights, the tokenizer of the reference encoder, and named labels."""
    torch.manual_seed(0)
    shape = Shape(heads=2, tokens=512, vocabulary=8192)
    config = small_config("bert", shape, initializer_range=0.5, **label_config(labels))
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(checkpoints / "bert-python-512" / name, folder / name)
    return folder


def graph_logits(file: Path, *texts: str) -> np.ndarray:
    """ONNX Runtime's, which must be OpenVINO's, too."""
    onnxruntime, openvino = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
    inputs = dict(transformers.AutoTokenizer.from_pretrained(file.parent)(*texts, return_tensors="np"))
    (logits,) = onnxruntime.InferenceSession(str(file)).run(["logits"], inputs)
    found = openvino.compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)["logits"]
    np.testing.assert_allclose(found, logits, atol=1e-4, rtol=1e-4)
    return logits[0]


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["Sigmoid", "Identity", "of old files"])
def test_exported_re_ranker_scores_as_the_cross_encoder_does(
    activation: str, repository: Path, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    plain = small_classifier(tmp_path / "plain", repository / "model_cards", ["relevant"])
    source = tmp_path / "source"
    if activation == "of old files":  # no list of modules, and the activation in the config
        old = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.1"}
        change_json(plain, sentence_transformers=old)
        source = plain
    else:
        function = getattr(torch.nn, activation)()
        sentence_transformers.CrossEncoder(str(plain), activation_fn=function).save_pretrained(str(source))
    convert_checkpoint(source, tmp_path / "long", mechanism="longformer", window=64, max_length=2048)
    report = export_checkpoint(tmp_path / "long", tmp_path / "graph")
    assert report.inputs == ("input_ids", "attention_mask", "token_type_ids")
    config = read_json(tmp_path / "graph" / "config.json")
    assert (config["id2label"], config["architectures"]) == ({"0": "relevant"}, ["BertForSequenceClassification"])
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        assert (tmp_path / "graph" / name).is_file() == (source / name).is_file()
    model = sentence_transformers.CrossEncoder(str(tmp_path / "long"))
    assert model.tokenizer.model_max_length == 2048
    pairs = [(QUERY, text) for text in ANSWERS]
    logits = np.array([graph_logits(tmp_path / "graph" / "model.onnx", *pair)[0] for pair in pairs])
    expected = model.predict(pairs, activation_fn=torch.nn.Identity(), batch_size=1)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(logits, expected, atol=1e-4)


REPO = "someone/long-llama"
COMMANDS = {
    "inspect": f"inspect {REPO}",
    "native": f"export {REPO} {{out}} --format native",
    "compress": f"compress {REPO} {{out}} --method bf16 --length 64",
}


@pytest.mark.thorough
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_download_a_long_model_of_the_hub(
    command: str, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_long(tmp_path / "long", "llama", {"mechanism": "full"}, num_hidden_layers=1, max_position_embeddings=128)
    server.add(REPO, tmp_path / "long")
    assert not Path(constants.HF_HUB_CACHE).exists()
    output(capsys, *COMMANDS[command].format(out=tmp_path / "out").split())
