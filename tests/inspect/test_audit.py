"""The measured reach of models, graphs and servers, and attention that was dropped without a word."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AttentionInterface,
    AutoModel,
    BertTokenizerFast,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import hf_longattn.families as families
from hf_longattn import convert_checkpoint, enable_long_attention, export_checkpoint, list_mechanisms, load_generic
from hf_longattn.cli import main
from hf_longattn.errors import BackendError, CheckpointError, LengthError, OptionError
from hf_longattn.inspect import audit as run
from hf_longattn.inspect import audit_reach, server
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.modeling.generic import towers_of
from tests.alike import code_of_form
from tests.cells import every_cell
from tests.grids import grid
from tests.inspect.fakes import WORDS, graph, serving, window
from tests.modeling.test_generic_towers import build
from tests.reference.small_models import long_config
from tests.unsupported import ENCODER

pytestmark = pytest.mark.usefixtures("families_hidden")

FORMS = [(name, causal) for causal in (False, True) for name in list_mechanisms(causal=causal, grid=False)]


@every_cell(
    ("mechanism", "causal"),
    grid(FORMS, lambda name, causal: (name, not causal) not in FORMS or (FORMS.index((name, False)) + causal) % 2 == 0),
    of=4,
    alike=code_of_form,
)
def test_every_mechanism_reaches_what_it_says(mechanism: str, causal: bool) -> None:
    """Of those with two forms, the quick tests take one, in turn."""
    options = {"mechanism": mechanism, **mechanism_class(mechanism).sample}
    config = long_config("gpt2" if causal else "bert", options, max_position_embeddings=256)
    model = getattr(families, "LongGPT2Model" if causal else "LongBertModel")(config)
    model.train().base_model.get_input_embeddings().eval()
    modes = [module.training for module in model.modules()]
    audit = audit_reach(model, length=144)
    assert audit.agrees, audit.to_dict()
    assert audit.noise == 0
    assert [module.training for module in model.modules()] == modes


@pytest.mark.thorough
def test_an_attention_function_that_ignores_the_window_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server does that registers its own function under our name."""
    folder = window(tmp_path / "long", window=16)
    assert audit_reach(folder, length=160).agrees
    registered = AttentionInterface._global_mapping  # one table for the process
    monkeypatch.setitem(registered, "longattn", sdpa_attention_forward)
    audit = audit_reach(folder, length=160)
    assert not audit.agrees
    for layer in audit.stages[:2]:
        assert (layer.declared, layer.measured[0]) == ((8, 8), 159)
        assert layer.measured[1] > 100
        assert layer.beyond > 160
        assert "token 0 changes the output at 159, which the config keeps apart" in layer.problem


@pytest.mark.thorough
@pytest.mark.parametrize(
    "options", [{"name": "longformer", "window": 16, "global_tokens": (0, 40)}, {"name": "segmented", "block_size": 16}]
)
def test_what_is_dropped_is_found_beside_global_tokens_and_blocks(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = window(tmp_path / "long", **options)
    right = audit_reach(folder, length=160)
    assert right.agrees
    assert not right.note
    monkeypatch.setitem(AttentionInterface._global_mapping, "longattn", sdpa_attention_forward)
    assert "which the config keeps apart" in audit_reach(folder, length=160).stages[0].problem


def test_a_window_that_is_narrower_is_found(tmp_path: Path) -> None:
    folder = window(tmp_path / "long", window=64)
    config = json.loads((folder / "config.json").read_text())
    narrow = families.LongBertModel.from_pretrained(window(tmp_path / "narrow", window=16))
    narrow.config.long_attention = families.LongBertConfig.from_dict(config).long_attention
    audit = audit_reach(narrow, length=160)
    assert audit.stages[0].problem.endswith("; nothing changes at the distances -32 to -9, 9 to 32")
    assert audit.stages[0].unreached == ((-32, -9), (9, 32))
    assert not audit.stages[0].beyond


def plain_encoder(**values: Any) -> Any:
    """A small encoder without a family."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return AutoModel.from_config(getattr(transformers, f"{ENCODER}Config")(**{**sizes, **values}))


@pytest.mark.thorough
def test_a_plain_architecture_with_mechanisms_agrees(tmp_path: Path) -> None:
    plain_encoder(max_position_embeddings=200).save_pretrained(tmp_path / "short")
    convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="window", window=16, generic=True, verify=False)
    assert audit_reach(tmp_path / "long", length=160).stages[0].measured == (8, 8)
    model = enable_long_attention(AutoModel.from_pretrained(tmp_path / "short"), {"mechanism": "window", "window": 16})
    assert audit_reach(model, length=160).agrees
    model.set_attn_implementation("sdpa")
    assert "which the config keeps apart" in audit_reach(model, length=160).stages[0].problem


@pytest.mark.thorough
def test_the_reach_of_each_tower_is_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("siglip")[0].save_pretrained(tmp_path / "plain")
    towers = {"text": {"mechanism": "window", "window": 16}, "vision": {"mechanism": "window2d", "window": 2}}
    convert_checkpoint(tmp_path / "plain", tmp_path / "long", generic=True, towers=towers, verify=False)
    audit = audit_reach(tmp_path / "long")
    assert audit.agrees
    assert set(audit.towers) == {"text", "vision"}
    assert audit.towers["text"].stages[0].measured == (8, 8)
    assert audit.towers["vision"].stages[0].mechanism.startswith("window2d")
    model: Any = load_generic(tmp_path / "long")
    towers_of(model)["text"].set_attn_implementation("sdpa")
    found = audit_reach(model).towers
    assert "which the config keeps apart" in found["text"].stages[0].problem
    assert found["vision"].agrees
    with pytest.raises(SystemExit) as stopped:
        main(["audit", str(tmp_path / "long")])
    assert stopped.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "tower text" in said
    assert "tower vision" in said


def test_towers_that_pack_images_are_named_and_left_out() -> None:
    model = build("qwen2_vl")[0]
    towers = {"text": {"mechanism": "window", "window": 16}, "vision": {"mechanism": "window2d", "window": 2}}
    audit = audit_reach(enable_long_attention(model, {"towers": towers}), length=64)
    assert audit.agrees
    assert set(audit.towers) == {"text"}
    assert "The tower vision packs images of different sizes" in audit.notes[0]


@pytest.mark.thorough
def test_a_graph_without_the_window_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = window(tmp_path / "long", window=16)
    local, everywhere = graph(tmp_path / "local.onnx", window=32), graph(tmp_path / "everywhere.onnx", window=None)
    assert audit_reach(folder, onnx=local, length=160).agrees  # two layers of 8 tokens to either side
    reached = audit_reach(folder, onnx=local, length=12)
    assert reached.agrees
    assert "a longer input may show it" in reached.note
    wide = audit_reach(folder, onnx=graph(tmp_path / "wide.onnx", window=40), length=160)
    assert (wide.stages[0].declared, wide.stages[0].measured) == ((16, 16), (20, 20))
    narrow = audit_reach(folder, onnx=graph(tmp_path / "narrow.onnx", window=12), length=160)
    assert narrow.stages[0].problem.endswith("; nothing changes at the distances -16 to -7, 7 to 16")
    with pytest.raises(SystemExit) as stopped:
        main(["audit", str(folder), "--onnx", str(everywhere), "--length", "160", "--html", str(tmp_path / "reach.html")])
    assert stopped.value.code == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "What runs is not what the config says." in said
    assert 'src="data:image/png;base64,' in (tmp_path / "reach.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_exports_with_and_without_the_window(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = window(tmp_path / "long", window=16)
    export_checkpoint(folder, tmp_path / "right")
    export_checkpoint(window(tmp_path / "full", "full"), tmp_path / "wrong")
    assert audit_reach(folder, onnx=tmp_path / "right", length=160).agrees
    assert "which the config keeps apart" in audit_reach(folder, onnx=tmp_path / "wrong", length=160).stages[0].problem


@pytest.fixture
def served(tmp_path: Path) -> tuple[Path, PreTrainedModel, BertTokenizerFast]:
    folder = window(tmp_path / "long", window=16)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", *WORDS]))
    tokenizer = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), model_max_length=256)
    tokenizer.save_pretrained(folder)
    return folder, families.LongBertModel.from_pretrained(folder), tokenizer


def embed(model: PreTrainedModel, tokenizer: BertTokenizerFast, text: str, length: int | None = None) -> list[float]:
    inputs = tokenizer(text, return_tensors="pt", truncation=length is not None, max_length=length)
    with torch.no_grad():
        return list(model(**inputs).last_hidden_state[0].mean(0).tolist())


@pytest.mark.thorough
def test_a_server_that_reads_everything_agrees(served: tuple[Path, PreTrainedModel, BertTokenizerFast]) -> None:
    folder, model, tokenizer = served
    with serving(lambda body: (200, [embed(model, tokenizer, body["inputs"][0])]), "/embed") as url:
        audit = audit_reach(folder, url=url)
    assert audit.agrees
    assert audit.note.startswith("By the config, every token tried reaches the embedding")
    assert audit.length == 256
    assert len(audit.probes) > 16


def test_a_server_that_cuts_its_input_off_is_found_to_the_token(served: tuple[Path, PreTrainedModel, BertTokenizerFast]) -> None:
    folder, model, tokenizer = served
    answer = lambda body: (200, {"data": [{"embedding": embed(model, tokenizer, body["input"][0], 100)}]})  # noqa: E731
    with serving(answer, "/v1/embeddings") as url:
        audit = audit_reach(folder, url=url)
    assert audit.stages[0].problem == "no token from 98 on changes the embedding: the input is cut off"


NO_EMBEDDINGS: dict[str, tuple[Any, str]] = {
    "an object": ({"answer": 1}, "something other than embeddings; expected a list of lists of numbers"),
    "a number": (7, "something other than embeddings"),
    "words": ([["a", "b"]], "something other than embeddings"),
    "no JSON": (b"<html>not found</html>", "does not answer with JSON"),
    "nothing": (b"", "does not answer with JSON"),
    "cut short": (b"[[1.0, 2.0", "does not answer with JSON"),
    "none": ([], "0 embeddings of one text"),
    "two": ([[1.0, 2.0], [3.0, 4.0]], "2 embeddings of one text"),
    "of tokens": ([[[1.0, 2.0], [3.0, 4.0]]], "2×2 for a text, not with one vector"),
    "empty": ([[]], "not with one vector"),
    "bare": ([1.0], "a single number for a text"),
    "NaN": ([[1.0, float("nan")]], "returns NaN or infinite values"),
    "too large": (b"[[" + b"1.0, " * 10_000 + b"1.0]]", r"the answer has more than \d+ MB"),
}


@every_cell("name", NO_EMBEDDINGS)
def test_what_a_server_may_answer_instead(
    name: str, served: tuple[Path, PreTrainedModel, BertTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, words = NO_EMBEDDINGS[name]
    monkeypatch.setattr(server, "MAX_ANSWER_BYTES", 40_000)
    with serving(lambda body: (200, answer), "/embed") as url, pytest.raises(OptionError, match=words) as refused:
        audit_reach(served[0], url=url, length=16)
    assert str(refused.value).startswith(url)


def test_a_server_that_is_late_or_breaks_off(served: tuple[Path, PreTrainedModel, BertTokenizerFast]) -> None:
    def late(body: Any) -> tuple[int, Any]:
        time.sleep(0.4)
        return 200, []

    with serving(late, "/embed") as url, pytest.raises(OptionError, match=r"within 0\.2 seconds; give a larger --timeout"):
        audit_reach(served[0], url=url, length=16, timeout=0.2)
    answers = iter([[[1.0, 2.0]], [[1.0, 2.0]], [[1.0, 2.0]], [[1.0, 2.0, 3.0]]])
    with (
        serving(lambda body: (200, next(answers)), "/embed") as url,
        pytest.raises(OptionError, match="returns 2 numbers for one input and 3"),
    ):
        audit_reach(served[0], url=url, length=16)
    with pytest.raises(OptionError, match="needs more than 0"):
        audit_reach(served[0], url="http://127.0.0.1:9/embed", timeout=0)
    for url in ("http://", "http://local host/embed", "http://127.0.0.1:port/embed"):
        with pytest.raises(OptionError, match=r"does not answer: .*is the server running"):
            audit_reach(served[0], url=url, length=16)


def table_graph(
    file: Path,
    inputs: tuple[str, ...] = ("input_ids",),
    rows: int = 1000,
    tokens: int | str = "tokens",
    whole: str = "INT64",
    fill: float = 1.0,
) -> Path:
    """An ONNX file whose output at a token is the token's row of a table."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    table = onnx.numpy_helper.from_array(np.full((rows, 8), fill, np.float32) * np.arange(1, rows + 1, dtype=np.float32)[:, None], "table")
    kind = getattr(onnx.TensorProto, whole)
    values = [onnx.helper.make_tensor_value_info(name, kind, ["batch", tokens]) for name in inputs]
    states = onnx.helper.make_tensor_value_info("last_hidden_state", onnx.TensorProto.FLOAT, ["batch", tokens, 8])
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", ["table", inputs[0]], ["last_hidden_state"])], "rows", values, [states], [table]
    )
    onnx.save(onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), file)
    return file


def test_graphs_that_cannot_be_asked(tmp_path: Path) -> None:
    folder, file = window(tmp_path / "long", window=16), tmp_path / "model.onnx"
    for settings, words in (
        ({"inputs": ("tokens",)}, "takes tokens, but an audit gives input_ids"),
        ({"inputs": ("input_ids", "global_attention_mask")}, "export the model with these inputs only"),
        ({"tokens": 128}, r"exactly 128 tokens; give --length 128\."),
        ({"rows": 50}, r"does not run with 160 tokens of the model's vocabulary; is it a graph of this model\?"),
        ({"fill": float("nan")}, r"returns NaN or infinite values \(output\)"),
    ):
        with pytest.raises(OptionError, match=words):
            audit_reach(folder, onnx=table_graph(file, **settings), length=160)
    table_graph(file, tokens=128, whole="INT32")
    assert not audit_reach(folder, onnx=file, length=128).agrees  # no token sees another, which is found as well
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(OptionError, match="onnxruntime cannot load"):
        audit_reach(folder, onnx=file)


def test_a_checkpoint_without_the_weights_of_a_layer_is_refused(tmp_path: Path) -> None:
    """transformers draws them at random and only warns."""
    folder = window(tmp_path / "long", window=16)
    tensors = load_file(folder / "model.safetensors")
    assert audit_reach(folder, length=32).agrees
    others = {name: values for name, values in tensors.items() if "layer.1." not in name}
    save_file(others, folder / "model.safetensors", {"format": "pt"})
    first = min(tensors.keys() - others.keys())
    with pytest.raises(CheckpointError, match=f"16 tensors that a LongBertModel needs are missing in .*long', the first is '{first}'"):
        audit_reach(folder, length=32)
    without_pooler = {name: values for name, values in tensors.items() if "pooler" not in name}
    assert len(without_pooler) < len(tensors)
    save_file(without_pooler, folder / "model.safetensors", {"format": "pt"})
    assert audit_reach(folder, length=32).agrees


def test_an_audit_leaves_a_model_as_it_was() -> None:
    model = enable_long_attention(
        plain_encoder(),
        {"mechanism": "window", "window": 16},
    )
    model.set_attn_implementation("sdpa")
    model.train()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    assert not audit_reach(model, length=64).agrees
    assert model.config._attn_implementation == "sdpa"
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.encoder.layer)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_damaged_tokenizer_is_refused(served: tuple[Path, PreTrainedModel, BertTokenizerFast]) -> None:
    folder, _, _ = served
    file = folder / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:100])
    for url in (None, "http://127.0.0.1:9/embed"):
        with pytest.raises(CheckpointError, match=r"The tokenizer of .* cannot be loaded"):
            audit_reach(folder, url=url)


@pytest.mark.thorough
def test_a_repository_of_the_hub(served: tuple[Path, PreTrainedModel, BertTokenizerFast], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, model, tokenizer = served
    downloads: list[tuple[str, str | None, bool]] = []

    def download(name: str, revision: str | None, token: Any, allow_patterns: list[str]) -> str:
        downloads.append((name, revision, any(pattern.endswith("safetensors") for pattern in allow_patterns)))
        return str(folder)

    monkeypatch.setattr("hf_longattn.conversion.sources.hub.snapshot_download", download)
    assert audit_reach("user/model", length=160, revision="v1").agrees
    with serving(lambda body: (200, [embed(model, tokenizer, body["inputs"][0])]), "/embed") as url:
        audit = audit_reach("user/model", url=url, length=64)
    assert (audit.agrees, audit.model) == (True, "user/model")
    assert downloads == [("user/model", "v1", True), ("user/model", None, False)]


def test_bad_input(served: tuple[Path, PreTrainedModel, BertTokenizerFast], tmp_path: Path) -> None:
    folder, model, _ = served
    with (
        serving(lambda body: (413, {"error": "at most 128 tokens"}), "/embed") as url,
        pytest.raises(OptionError, match=r"413 to 8 tokens: .*at most 128 tokens.*is this the route"),
    ):
        audit_reach(folder, url=url)
    with pytest.raises(OptionError, match="does not answer"):
        audit_reach(folder, url="http://127.0.0.1:9/embed")
    for url in ("localhost", "http://[::1", "ftp://localhost/embed"):
        with pytest.raises(OptionError, match="not the address of a server"):
            audit_reach(folder, url=url)
    with pytest.raises(OptionError, match="not at both"):
        audit_reach(folder, url="http://localhost", onnx="model.onnx")
    with pytest.raises(OptionError, match="does not exist; give an ONNX file"):
        audit_reach(folder, onnx=tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(OptionError, match="cannot load"):
        audit_reach(folder, onnx=tmp_path / "bad.onnx")
    with pytest.raises(CheckpointError, match="There is no folder"):
        audit_reach(tmp_path / "none")
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        audit_reach(folder / "config.json")
    with pytest.raises(OptionError, match="leave --attn-implementation out"):
        audit_reach(folder, onnx="model.onnx", attn_implementation="flex_attention")
    with pytest.raises(BackendError, match="does not compute the mechanism"):
        audit_reach(folder, attn_implementation="flex_attention")
    with pytest.raises(LengthError, match=r"takes 8 to 256 tokens .* not 1,000"):
        audit_reach(folder, length=1000)
    with pytest.raises(OptionError, match="share of the largest change"):
        audit_reach(folder, tolerance=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        audit_reach(tmp_path / "empty")
    window(tmp_path / "mute", window=16)
    with pytest.raises(OptionError, match="has no tokenizer, which auditing a server needs"):
        audit_reach(tmp_path / "mute", url="http://127.0.0.1:9/embed")
    (tmp_path / "special.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]")
    BertTokenizerFast(vocab=str(tmp_path / "special.txt")).save_pretrained(tmp_path / "mute")
    with pytest.raises(OptionError, match="no word as one token"):
        audit_reach(tmp_path / "mute", url="http://127.0.0.1:9/embed")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with pytest.raises(OptionError, match="returns the same for every input"):
        audit_reach(model, length=64)


@pytest.mark.thorough
def test_the_command_says_one_sentence(
    served: tuple[Path, PreTrainedModel, BertTokenizerFast],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = str(served[0])
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("refused before anything is measured"))
    for line, words in (
        (["--onnx", "model.onnx", "--url", "http://127.0.0.1:9/embed"], "leave out --onnx or --url"),
        (["--url", "http://127.0.0.1:9/embed", "--timeout", "-1"], "needs more than 0"),
        (["--onnx", str(tmp_path / "bad.onnx")], "cannot load"),
        (["--html", str(tmp_path / "none" / "reach.html")], "The folder .* does not exist"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["audit", folder, *line])
        assert stopped.value.code == 1
        said = capsys.readouterr().err
        assert re.search(words, said), said
        assert len(said.strip().splitlines()) == 1
    (served[0] / "model.safetensors").rename(served[0] / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds its weights only as pickle"):
        audit_reach(folder)
