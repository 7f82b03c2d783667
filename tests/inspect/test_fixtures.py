"""Tiny stock checkpoints with their reach: transformers' other attention agrees with it, a wrong window does not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hf_longattn.cli import main
from hf_longattn.inspect import audit_reach, fixtures
from tests.cells import every_cell

NAMES = [*json.loads((Path(fixtures.__file__).parent / "fixtures.json").read_text(encoding="utf-8"))["fixtures"]]
WRONG: dict[str, dict[str, Any]] = {
    "bert-full": {"is_decoder": True},
    "modernbert-sliding": {"local_attention": 18},
    "modernbert-full": {"layer_types": ["sliding_attention"] * 3},
    "gemma3-embedding-sliding": {"sliding_window": 18},
    "mistral-sliding": {"sliding_window": 9},
    "gemma3-sliding": {"layer_types": ["full_attention", "full_attention"]},
    "gemma3-full": {"layer_types": ["full_attention", "sliding_attention"]},
    "qwen3-sliding": {"sliding_window": 7},
    "qwen3-full": {"use_sliding_window": True},
    "llama-full": {},
}
"""For each fixture a config by which an engine goes wrong: one key too many, a window in the wrong layers."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fixtures") / "reach"
    assert fixtures.make_fixtures(made) == NAMES
    return made


@pytest.fixture(scope="module")
def check(folder: Path) -> Callable[[Path, Any], None]:
    """The function of the README beside the fixtures."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    found: Callable[[Path, Any], None] = names["check"]
    return found


def outputs_of(folder: Path, attention: str) -> Callable[[list[int]], Any]:
    """An engine: logits, or hidden states of a model without a head."""
    name = json.loads((folder / "reach.json").read_text(encoding="utf-8"))["architecture"]
    model = getattr(transformers, name).from_pretrained(folder, attn_implementation=attention).eval()

    def outputs(ids: list[int]) -> Any:
        with torch.no_grad():
            returned = model(torch.tensor([ids]))
        return (returned.logits if "logits" in returned else returned.last_hidden_state)[0, :, :16].tolist()

    return outputs


@pytest.mark.thorough
@every_cell("name", NAMES)
def test_another_attention_agrees_and_a_wrong_config_does_not(
    name: str, folder: Path, check: Callable[[Path, Any], None], tmp_path: Path
) -> None:
    check(folder / name, outputs_of(folder / name, "sdpa"))
    if WRONG[name]:
        wrong = tmp_path / name
        wrong.mkdir()
        for file in (folder / name).iterdir():
            (wrong / file.name).write_bytes(file.read_bytes())
        config = json.loads((wrong / "config.json").read_text(encoding="utf-8"))
        (wrong / "config.json").write_text(json.dumps({**config, **WRONG[name]}), encoding="utf-8")
        with pytest.raises(AssertionError, match=rf"{name}: token \d+ changes the outputs"):
            check(wrong, outputs_of(wrong, "sdpa"))


@pytest.mark.thorough
@every_cell("name", NAMES)
def test_the_reach_is_that_of_the_name(name: str, folder: Path) -> None:
    values = json.loads((folder / name / "reach.json").read_text(encoding="utf-8"))
    reach, length = values["reach"], len(values["input_ids"])
    assert all(first <= row <= last for row, (first, last) in enumerate(reach))
    seen = {last - first + 1 for first, last in reach[length // 2 - 1 : length // 2 + 1]}
    assert (max(seen) < length // 2) == name.endswith("sliding")
    assert values["least_share"] > 2e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / name)
    assert tokenizer(values["text"])["input_ids"] == values["input_ids"]
    assert all(one != other for one, other in zip(values["input_ids"], values["replacement_ids"], strict=True))
    assert audit_reach(folder / name, length=48).agrees == (not values["silent_layers"])  # a silent layer sees nothing


def test_the_command_writes_a_new_folder_or_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)

    def typed(*line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["audit", *line])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, " ".join(captured.err.replace("│", " ").split())

    (tmp_path / "mine").mkdir()
    assert typed("--make-fixtures", "mine") == (1, "", "Error: '" + str(tmp_path / "mine") + "' already exists; choose another folder.")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    for line in ([], ["mine", "--make-fixtures", "new"]):
        code, _, err = typed(*line)
        assert code == 2
        assert "give either MODEL or --make-fixtures DIR" in err
    code, _, err = typed("--make-fixtures", "new", "--length", "48")
    assert code == 2
    assert "is for MODEL" in err
    monkeypatch.setattr(fixtures, "text_stack", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert typed("--make-fixtures", "new")[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, out, err = typed("--make-fixtures", "new", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"destination": "new", "fixtures": NAMES}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {*NAMES, "README.md"}
