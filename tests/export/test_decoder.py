"""A decoder as one graph with a cache: it generates what the model generates, from states whose size the report tells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hf_longattn
from hf_longattn import export_checkpoint, list_mechanisms
from hf_longattn.cli import main
from hf_longattn.cli.show import show_export
from hf_longattn.errors import ExportError
from hf_longattn.export import ExportReport
from hf_longattn.export import decoder as decoder_export
from hf_longattn.export.decoder import TASK
from hf_longattn.mechanisms.common.registry import mechanism_class, prototype
from hf_longattn.memory.graph_cache import KeysLayer
from tests.reference.small_models import CAUSAL, LANGUAGE_MODELS, long_model, tokens

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LENGTH = 256
WINDOW: dict[str, Any] = {"mechanism": "window", "window": 32}
LINEAR: dict[str, Any] = {"mechanism": "linear"}
GRAPHS = {
    *("cosformer", "delta", "hedgehog", "hybrid", "infini", "linear", "performer", "taylor"),  # with a state of constant size
    *("adaptive_span", "fixed", "full", "shifted_groups", "top_k", "transformer_xl", "window"),  # with keys, some or all
}
"""Mechanisms that must have a graph; others say by themselves whether they have one."""


def saved(folder: Path, base: str, long_attention: dict[str, Any], **changes: Any) -> Path:
    changes = {"max_position_embeddings": LENGTH, "num_hidden_layers": 2, **changes}
    long_model(base, LANGUAGE_MODELS[base], long_attention, **changes).save_pretrained(folder)
    return folder


def model_of(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


class Reader:
    """A program that knows nothing but the report and the graph."""

    def __init__(self, folder: Path, batch: int = 1) -> None:
        self.report = json.loads((folder / "export_report.json").read_text())
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        self.tensors = self.report["decoding"]["state"]
        self.state = {
            one["input"]: np.zeros(
                [{"batch_size": batch, "past_sequence_length": 0}.get(size, size) for size in one["shape"]], one["dtype"]
            )
            for one in self.tensors
        }

    def read(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        given = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "position_ids": positions.numpy(), **self.state}
        taken = {one.name for one in self.session.get_inputs()}
        logits, *after = self.session.run(None, {name: value for name, value in given.items() if name in taken})
        self.state = {one["input"]: value for one, value in zip(self.tensors, after, strict=True)}
        return torch.from_numpy(logits)

    def sizes(self) -> dict[str, tuple[int, ...]]:
        return {name: value.shape for name, value in self.state.items()}


def generated(reader: Reader, prompt: torch.Tensor, count: int, columns: int | None) -> tuple[list[int], list[dict[str, tuple[int, ...]]]]:
    """Tokens chosen greedily, and the sizes of the state after each step; only the last ``columns`` past columns of the mask are given."""
    chosen: list[int] = []
    sizes: list[dict[str, tuple[int, ...]]] = []
    ids, seen = prompt, 0
    for _ in range(count):
        before = seen if columns is None else min(seen, columns)
        mask = torch.ones(1, before + ids.shape[1], dtype=torch.long)
        logits = reader.read(ids, mask, torch.arange(seen, seen + ids.shape[1])[None])
        seen += ids.shape[1]
        sizes.append(reader.sizes())
        chosen.append(int(logits[0, -1].argmax()))
        ids = torch.tensor([chosen[-1:]])
    return chosen, sizes


def check(folder: Path, out: Path, prompt: int = 50, count: int = 20) -> Reader:
    """Export, and generate as ``model.generate`` does; returns the reader after that."""
    export_checkpoint(folder, out, task=TASK)
    return check_exported(folder, out, prompt, count)


def check_exported(folder: Path, out: Path, prompt: int = 50, count: int = 20) -> Reader:
    report = json.loads((out / "export_report.json").read_text())
    assert [check["status"] for check in report["checks"]] == ["passed"] * 3
    model, ids = model_of(folder), tokens(1, prompt)
    wanted = model.generate(ids, max_new_tokens=count, do_sample=False, eos_token_id=None)[0, prompt:].tolist()
    reader = Reader(out)
    chosen, sizes = generated(reader, ids, count, reader.report["decoding"]["mask_columns"])
    assert chosen == wanted
    bounded = {one["input"] for one in reader.tensors if "past_sequence_length" not in one["shape"] or one["longest_past"] is not None}
    for name in bounded:
        assert len({step[name] for step in sizes}) == 1, f"{name} grew past the window"
    return reader


def test_llama_with_windows_and_linear_attention_generates_in_constant_memory(decoder_graph: tuple[Path, Path]) -> None:
    reader = check_exported(*decoder_graph)
    assert reader.report["inputs"][:3] == ["input_ids", "attention_mask", "position_ids"]
    assert reader.report["inputs"][3:] == [f"past_key_values.{name}" for name in ("0.key", "0.value", "1.kv", "1.z")]
    assert reader.report["outputs"] == ["logits", *(name.replace("past_key_values", "present") for name in reader.report["inputs"][3:])]
    assert [reader.sizes()[f"past_key_values.0.{name}"] for name in ("key", "value")] == 2 * [(1, 2, 23, 16)]
    assert reader.report["decoding"]["mask_columns"] == 23
    axes = {one.name: one.shape for one in reader.session.get_inputs()}  # as optimum writes and transformers.js reads them
    assert axes["input_ids"] == ["batch_size", "sequence_length"]
    assert axes["past_key_values.0.key"] == ["batch_size", 2, "past_sequence_length_up_to_23", 16]


def test_a_graph_does_not_say_where_the_packages_are_on_this_machine(decoder_graph: tuple[Path, Path]) -> None:
    graph = (decoder_graph[1] / "model.onnx").read_bytes()
    assert not any(str(Path(package.__file__ or "").parent).encode() in graph for package in (hf_longattn, torch))


DECODING_ROBERTA = {"is_decoder": True, "pad_token_id": 3, "max_position_embeddings": LENGTH, "num_hidden_layers": 1}


def test_positions_count_from_0_where_the_model_itself_starts_later() -> None:
    """RoBERTa's first position is that after the padding token's; before it is traced."""
    model = long_model("roberta", "RobertaForCausalLM", WINDOW, **DECODING_ROBERTA).eval()
    words: Any = None  # for what it is compared on
    graph = decoder_export.DecoderGraph(model, words)
    assert "position_ids" in graph.inputs
    ids = tokens(1, 9)
    with torch.no_grad():
        logits, *_ = graph(ids, torch.ones_like(ids), torch.arange(9)[None], graph.zeros(1, 0))
        torch.testing.assert_close(logits, model(ids).logits)


@pytest.mark.slow
def test_a_graph_whose_positions_start_later(tmp_path: Path) -> None:
    long_model("roberta", "RobertaForCausalLM", WINDOW, **DECODING_ROBERTA).save_pretrained(tmp_path / "long")
    reader = check(tmp_path / "long", tmp_path / "graph")
    assert "position_ids" in reader.report["inputs"]


def test_the_command_says_how_many_tensors_the_state_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = [{"input": f"past_key_values.{layer}.kv", "output": f"present.{layer}.kv"} for layer in range(12)]
    ends = [tuple(one[end] for one in state) for end in ("input", "output")]
    report = ExportReport(
        tmp_path, "onnx", "LongGPT2LMHeadModel", ("input_ids", *ends[0]), ("logits", *ends[1]), 1, 1024, 20, (), (), 0, {},
        decoding={"state": state},
    )  # fmt: skip
    show_export(report)
    shown = capsys.readouterr().out
    assert shown.count("12 tensors of the state") == 2
    assert "past_key_values" not in shown


@pytest.mark.slow
def test_gpt2_with_linear_attention_generates_from_a_state(tmp_path: Path) -> None:
    reader = check(saved(tmp_path / "long", "gpt2", LINEAR, num_hidden_layers=1), tmp_path / "graph")
    assert reader.report["decoding"]["mask_columns"] == 0
    assert [one["input"] for one in reader.tensors] == ["past_key_values.0.kv", "past_key_values.0.z"]


@pytest.mark.slow
def test_layers_may_differ_and_rows_may_start_at_different_times(tmp_path: Path) -> None:
    layers = {1: {"mechanism": "linear"}, 2: {"mechanism": "full"}, 3: {"window": 16, "num_sinks": 3}}
    folder = saved(tmp_path / "long", "llama", {**WINDOW, "layers": layers}, num_hidden_layers=4)
    reader = check(folder, tmp_path / "graph")
    assert reader.report["decoding"]["mask_columns"] is None
    assert reader.sizes()["past_key_values.2.key"] == (1, 2, 69, 16)
    assert reader.sizes()["past_key_values.3.key"] == (1, 2, 18, 16)

    ids, mask = tokens(3, 60), torch.ones(3, 60, dtype=torch.long)
    mask[1, :41], mask[2, :7] = 0, 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        wanted = model_of(folder)(ids, attention_mask=mask, position_ids=positions).logits
    reader, at = Reader(tmp_path / "graph", batch=3), 0
    for count in (30, 1, 1, 20, 1, 7):
        here = slice(at, at + count)
        found = reader.read(ids[:, here], mask[:, : here.stop], positions[:, here].contiguous())
        real = mask[:, here].bool()
        assert (found - wanted[:, here])[real].abs().max() < 1e-3
        at += count


@pytest.mark.slow
@pytest.mark.parametrize("attention", [WINDOW, LINEAR], ids=["window", "linear"])
@pytest.mark.parametrize("base", CAUSAL)
def test_every_decoder_family(base: str, attention: dict[str, Any], tmp_path: Path) -> None:
    if base == "gemma2" and attention is LINEAR:
        pytest.skip("it bounds its scores, and linear attention has none")
    if base in ("mixtral", "qwen3_moe"):
        return  # below
    check(saved(tmp_path / "long", base, attention), tmp_path / "graph")


@pytest.mark.slow
def test_experts_are_the_reason_where_they_are(tmp_path: Path) -> None:
    folder = saved(tmp_path / "long", "mixtral", WINDOW, num_hidden_layers=1)
    with pytest.raises(ExportError, match=r"as one onnx graph for all lengths .*: transformers loops over the experts .*--format native"):
        export_checkpoint(folder, tmp_path / "graph", task=TASK)
    assert not (tmp_path / "graph").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", list_mechanisms(causal=True, grid=False))
def test_every_mechanism_has_a_graph_with_a_cache_or_a_sentence(mechanism: str, tmp_path: Path) -> None:
    own = {"cosformer": {"max_length": LENGTH}, "synthesizer": {"max_length": LENGTH}, "infini": {"segment_length": 24}}.get(mechanism, {})
    options = {**mechanism_class(mechanism).sample, **own}
    folder = saved(tmp_path / "long", "llama", {"mechanism": mechanism, **options}, num_hidden_layers=1)
    refusal = ""
    try:
        reader = check(folder, tmp_path / "graph")
    except ExportError as error:
        refusal = str(error)
    if refusal:
        assert mechanism not in GRAPHS
        assert re.search(f"Mechanism '{mechanism}' .*(for example window or linear|these can be exported)", refusal)
        assert not (tmp_path / "graph").exists()
        return
    assert all("past_sequence_length" not in one["shape"] for one in reader.tensors) == prototype(mechanism, options).traits.stateful


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"num_sinks": 4}, {"relative": "alibi"}, {"dilation": 2}, {"window": 2}, {"num_sinks": 2, "relative": "alibi"}],
)
def test_windows_with_options(options: dict[str, Any], tmp_path: Path) -> None:
    check(saved(tmp_path / "long", "llama", {**WINDOW, **options}), tmp_path / "graph", prompt=80)


@pytest.mark.slow
@pytest.mark.parametrize("attention", [WINDOW, LINEAR], ids=["window", "linear"])
def test_a_program_of_torch_export(attention: dict[str, Any], tmp_path: Path) -> None:
    report = export_checkpoint(saved(tmp_path / "long", "llama", attention), tmp_path / "graph", task=TASK, format="torch")
    assert [one.status for one in report.checks] == ["passed"] * 3


def test_what_has_no_cache_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    for base, head, attention, sentence in (
        ("llama", "LlamaForCausalLM", {"mechanism": "nsa"}, "Mechanism 'nsa' with these options keeps or chooses past keys"),
        ("gpt2", "GPT2LMHeadModel", {**WINDOW, "relative": "shaw:clip=8"}, "Mechanism 'window' with these options"),
        ("llama", "LlamaForCausalLM", {"mechanism": "recurrent_memory"}, "Mechanism 'recurrent_memory'"),
        ("bert", "BertLMHeadModel", WINDOW, "LongBertLMHeadModel is not a decoder alone"),
    ):
        folder = tmp_path / base / attention["mechanism"]
        long_model(base, head, attention, num_hidden_layers=1).save_pretrained(folder)
        with pytest.raises(ExportError, match=sentence):
            export_checkpoint(folder, tmp_path / "graph", task=TASK)
    with pytest.raises(ExportError, match="has no global tokens; leave global_attention_mask"):
        export_checkpoint(tmp_path / "llama" / "nsa", tmp_path / "graph", task=TASK, global_attention_mask=True)
    assert not (tmp_path / "graph").exists()


@pytest.mark.slow
def test_a_graph_that_generates_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "long", "gpt2", WINDOW, num_hidden_layers=1)
    monkeypatch.setattr(decoder_export, "graph_layer", lambda tensors, mechanism, state, before: KeysLayer(state, before, 20))
    with pytest.raises(SystemExit):
        main(["export", str(folder), str(tmp_path / "graph"), "--task", TASK])
    assert "differs from the model, so nothing was kept" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "graph").exists()
