"""The programs of a checkout: each answers --help, and a training's script does what longattn does."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from hf_longattn.cli.train import train
from hf_longattn.training.tasks import task_names, task_summary
from tests.byte_tokenizer import train_tokenizer
from tests.cases import every_case
from tests.training.conftest import SOURCES, checkpoint

SCRIPTS = Path(__file__).parents[2] / "scripts"


def modules() -> list[str]:
    """What can be run by ``python -m``."""
    programs = []
    for path in sorted(SCRIPTS.rglob("*.py")):
        code = path.read_text(encoding="utf-8")
        if path.stem == "__main__" or re.search(r"^if __name__ == ", code, flags=re.MULTILINE):
            programs.append(".".join(path.relative_to(SCRIPTS.parent).with_suffix("").parts).removesuffix(".__main__"))
    return programs


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@every_case("module", modules())
def test_every_script_answers_help(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__")
    assert end.value.code in (0, None)
    assert "usage: " in capsys.readouterr().out.lower()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(SOURCES, vocab_size=300)


@pytest.mark.thorough
@pytest.mark.parametrize(("objective", "other"), [("mlm", "clm"), ("clm", "mlm")])
def test_training_mlm_and_clm_refuse_a_model_of_the_other(
    objective: str, other: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, source in enumerate(SOURCES):
        (tmp_path / f"{number}.txt").write_text(source[:2000])
    usual = f"--data {tmp_path} --output {tmp_path}/out --max-steps 1 --no-bf16 --disable-tqdm True".split()
    assert train(objective, ["--model", checkpoint(objective, tmp_path / "model", tokenizer), *usual]) == 0
    assert f"written to {tmp_path / 'out'}" in capfd.readouterr().err
    assert (tmp_path / "out" / "README.md").is_file()
    assert train(objective, ["--model", checkpoint(other, tmp_path / "other", tokenizer), *usual, "--overwrite"]) == 1
    assert f"take the task {other}" in capfd.readouterr().err


@every_case("task", task_names())
def test_every_training_task_has_its_row_in_the_documents(task: str, repository: Path) -> None:
    table = (repository / "docs" / "how-to" / "train.md").read_text(encoding="utf-8")
    assert any(f"`{task}`" in line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    assert task_summary(task).endswith(".")


def test_training_refuses_an_unknown_setting_and_a_missing_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("learning_rat: 1\n")
    assert train("qa", ["--config", str(recipe)]) == 2
    assert "Did you mean '--learning-rate'?" in capsys.readouterr().err
    assert train("qa", ["--config", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml does not exist; give a YAML file" in capsys.readouterr().err
