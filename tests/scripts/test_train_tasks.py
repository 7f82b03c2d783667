"""scripts/train_*.py: each is its command of `longattn train`; a model of the other kind is refused in one sentence."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

import hf_longattn
from hf_longattn.tasks import task_names
from scripts.dev.studies.tokenizer import train_tokenizer
from tests.training.conftest import SOURCES, checkpoint


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(SOURCES, vocab_size=300)


@pytest.mark.parametrize(("objective", "other"), [("mlm", "clm"), ("clm", "mlm")])
def test_each_objective_has_its_script(
    objective: str, other: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capfd: pytest.CaptureFixture[str]
) -> None:
    script = import_module(f"scripts.train_{objective}")
    for number, source in enumerate(SOURCES):
        (tmp_path / f"{number}.txt").write_text(source[:2000])
    usual = ["--text", str(tmp_path), "--output", str(tmp_path / "out"), "--max-steps", "1", "--no-bf16", "--disable-tqdm", "True"]
    assert script.main(["--model", checkpoint(objective, tmp_path / "model", tokenizer), *usual]) == 0
    assert f"written to {tmp_path / 'out'}" in capfd.readouterr().err
    assert (tmp_path / "out" / "README.md").is_file()
    assert script.main(["--model", checkpoint(other, tmp_path / "other", tokenizer), *usual, "--overwrite"]) == 1
    assert f"train it with {other}" in capfd.readouterr().err


def test_help_names_what_the_objective_has(capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for name in ("train_mlm", "train_clm"):
        with pytest.raises(SystemExit, match="0"):
            import_module(f"scripts.{name}").main(["--help"])
        said[name] = capsys.readouterr().out
    assert [name for name, text in said.items() if "--objective" in text] == []
    assert [name for name, text in said.items() if "--mask-probability" in text] == ["train_mlm"]


@pytest.mark.parametrize("task", task_names())
def test_each_task_has_its_script_and_its_row_in_the_documents(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = "distill_attention" if task == "distill" else f"train_{task}"
    with pytest.raises(SystemExit, match="0"):
        import_module(f"scripts.{script}").main(["--help"])
    assert f"usage: longattn train {task} --model" in capsys.readouterr().out
    root = Path(hf_longattn.__file__).parents[1]
    assert f"`{script}.py`" in (root / "scripts" / "README.md").read_text()
    rows = [line.split("|")[1] for line in (root / "docs" / "how-to" / "train.md").read_text().splitlines() if line.startswith("| `")]
    assert any(f"`{task}`" in row for row in rows)
