"""Models run from their files as they do in memory, and a verification of either gives the same report."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hf_longattn.conversion import convert_checkpoint, model_loading
from hf_longattn.conversion.model_loading import WeightsInFiles, available_memory, choose_memory_mode, outputs
from hf_longattn.conversion.sources import open_source
from hf_longattn.errors import CheckpointError
from tests.fresh_processes import run_fresh
from tests.unsupported import ROTARY

from .conftest import LENGTH

pytestmark = pytest.mark.usefixtures("families_hidden")

Built = Callable[[str], Path]
LENGTHS: dict[str, Any] = {"max_length": 200}
WINDOW: dict[str, Any] = {"mechanism": "window", "window": 16, **LENGTHS}
HOW = "how the models were run"


def small(folder: Path, name: str, **config: Any) -> Path:
    """A checkpoint of several shards."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99}
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**sizes, max_position_embeddings=LENGTH, **config))
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def from_files_of(folder: Path, model_class: Any, scratch: Path) -> tuple[Any, set[str]]:
    scratch.mkdir()
    weights = WeightsInFiles(open_source(folder).tensors, scratch)
    model, info = weights.loading(model_class).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    weights.give_to(model)
    return model.eval(), set(info["missing_keys"])


def test_model_in_files_holds_one_tensor_at_a_time_and_reads_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small(tmp_path / "source", "LlamaForCausalLM", num_key_value_heads=2)
    model, _ = from_files_of(folder, transformers.LlamaForCausalLM, tmp_path / "scratch")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert list((tmp_path / "scratch").iterdir()) == []
    names: list[str] = []
    read: list[weakref.ref[Any]] = []
    given = model_loading._FileParameters.__getitem__

    def noted(parameters: Any, name: str) -> Any:
        found = given(parameters, name)
        if name in parameters.stored:
            assert not any(one() is not None for one in read)
            names.append(parameters.stored[name].header.name)
            read.append(weakref.ref(found))
        return found

    monkeypatch.setattr(model_loading._FileParameters, "__getitem__", noted)
    outputs(model, torch.arange(5, 40)[None])
    assert sorted(names) == sorted(open_source(folder).tensors)


def rounded(value: Any) -> Any:
    """A report without the last digits of its measurements."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


def checked(report: Any) -> tuple[str, list[Any]]:
    """How the models were run, and name, status and values of all other checks."""
    how = next(check.detail for check in report.checks if check.name == HOW)
    return how, [(check.name, check.status, rounded(check.values)) for check in report.checks if check.name != HOW]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param("MarianMTModel", WINDOW, marks=pytest.mark.slow),
        ("LlamaForCausalLM", {**WINDOW, "dtype": "bf16", "max_shard_size": "20KB"}),
        ("BartForConditionalGeneration", WINDOW),
    ],
)
def test_report_from_files_is_that_of_models_in_memory(
    name: str, arguments: dict[str, Any], built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same_reports(built(name), arguments, tmp_path, monkeypatch)


@pytest.mark.thorough
@pytest.mark.parametrize("mechanism", ["hedgehog", "synthesizer"])
def test_report_of_generic_models_is_equal_from_files_and_memory(mechanism: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small(tmp_path / "source", f"{ROTARY}ForCausalLM", num_key_value_heads=2)
    same_reports(folder, {"generic": True, "mechanism": mechanism}, tmp_path, monkeypatch)


def same_reports(source: Path, arguments: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert twice, and run the models whole and from their files."""
    in_memory, expected = checked(convert_checkpoint(source, folder / "whole", **arguments))
    monkeypatch.setattr(model_loading, "IN_MEMORY", 0)
    how, found = checked(convert_checkpoint(source, folder / "files", **arguments))
    assert in_memory.endswith("whole in memory")
    assert "with the weights in their files" in how
    assert found == expected
    assert {path.name for path in (folder / "files").iterdir()} == {path.name for path in (folder / "whole").iterdir()}


@pytest.mark.thorough
@pytest.mark.usefixtures("from_their_files")
def test_verification_from_files_finds_a_result_that_differs(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = model_loading.StoredTensor.read

    def other(stored: model_loading.StoredTensor) -> Tensor:
        values = read(stored)
        return values * 2 if "long" in str(stored.header.file) and "value.weight" in stored.header.name else values

    monkeypatch.setattr(model_loading.StoredTensor, "read", other)
    with pytest.raises(CheckpointError, match="they must be equal"):
        convert_checkpoint(built("BertForMaskedLM"), tmp_path / "long", **WINDOW)
    assert list(tmp_path.iterdir()) == []


def test_model_in_files_refuses_a_tensor_of_another_shape(built: Built, tmp_path: Path) -> None:
    config = transformers.BertConfig.from_pretrained(built("BertModel"))
    config.intermediate_size += 1
    weights = WeightsInFiles(open_source(built("BertModel")).tensors, tmp_path)
    model = weights.loading(transformers.BertModel).from_pretrained(built("BertModel"), config=config)
    with pytest.raises(CheckpointError, match="but its model asks for"):
        weights.give_to(model)


@pytest.mark.parametrize(
    ("free", "parameters", "largest", "expected"),
    [
        (20e9, 110e6, 24e6, "memory"),
        (20e9, 350e6, 31e6, "files"),
        (1e9, 110e6, 24e6, "files"),
        (20e9, 70e9, 500e6, "files"),
        (4e9, 70e9, 500e6, "not"),
    ],
)
def test_models_are_run_in_memory_or_from_files_by_their_size(
    free: float, parameters: float, largest: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_loading, "available_memory", lambda: int(free))
    found = choose_memory_mode(int(parameters), int(largest))
    assert ("not" if found.why_not else "files" if found.from_files else "memory") == expected
    assert found.check().status == ("skipped" if found.why_not else "measured")


def test_available_memory_is_bounded_by_the_limit_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = next(line.partition("::")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    folder = tmp_path / group.strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"memory.max": "1000000\n", "memory.current": "400000\n"}.items():
        (folder / name).write_text(text)
    (folder / "memory.stat").write_text("anon 250000\nactive_file 50000\ninactive_file 100000\n")
    monkeypatch.setattr(model_loading, "GROUPS", tmp_path)
    assert available_memory() == 750_000
    (folder / "memory.max").write_text("max\n")
    assert available_memory() > 1_000_000
    (folder / "memory.max").write_text("1000000\n")
    (folder / "memory.stat").write_text("anon 250000\n")
    assert available_memory() > 1_000_000, "without the counts of cached pages, the limit is not known"
    text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda file, **_: "12:memory:/\n" if file.name == "cgroup" else text(file))
    assert available_memory() > 1_000_000, "a machine with control groups of version 1"


def convert_in_parts(source: str, destination: str) -> None:
    """Convert and verify with models that are not loaded whole; by how much the memory grew since the first tensor, and the checks."""

    def peak() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

    peaks: list[int] = []
    model_loading.IN_MEMORY = 0
    options: dict[str, Any] = {"mechanism": "window", "window": 64, "max_length": 128}
    report = convert_checkpoint(source, destination, **options, progress=lambda stage, done, total: peaks.append(peak()))
    print(json.dumps({"grown": peak() - peaks[0], "checks": {check.name: check.status for check in report.checks}}))


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a process is read from /proc")
def test_verification_takes_less_memory_than_the_model(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_hidden_layers": 11, "vocab_size": 4000}
    model = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=64)).to(torch.bfloat16)
    in_fp32 = 4 * sum(parameter.numel() for parameter in model.parameters())
    largest = 4 * max(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(tmp_path / "source")
    done = run_fresh(convert_in_parts, tmp_path / "source", tmp_path / "long")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["checks"]["equal where the mechanism covers the input"] == "passed"
    assert found["grown"] < 2 * largest + 100e6 < in_fp32
