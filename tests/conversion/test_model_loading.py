"""Models run from their files as they do in memory, and a verification of either gives the same report."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hf_longattn.conversion import model_loading
from hf_longattn.conversion.model_loading import WeightsInFiles, available_memory, choose_memory_mode, outputs
from hf_longattn.conversion.sources import open_source
from hf_longattn.errors import CheckpointError

from .conftest import LENGTH

pytestmark = pytest.mark.usefixtures("families_hidden")

Built = Callable[[str], Path]


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
