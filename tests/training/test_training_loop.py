"""What a training writes over, finds in its output and leaves beside its model: the log, and a card with the licence, the language, and
what the model was made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_longattn.cli.train import train
from hf_longattn.errors import OptionError
from hf_longattn.hub import write_model_card
from hf_longattn.training.old_lm import MLM, finetune_lm
from hf_longattn.training.parsing import build_arguments
from hf_longattn.training.training_loop import LOG_NAME, write_trained_card

from ..damage import CONVERT, convert, make_checkpoint
from ..permissions import bound_by_permissions
from .conftest import FAST, checkpoint
from .kills import Ending

Start = Callable[..., dict[str, Any]]


@pytest.fixture
def start(tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase) -> Start:
    """A training of four steps with a checkpoint after every second one, which does not write over anything."""
    held = tmp_path / "held.txt"
    held.write_text("def held(out):\n    return out\n" * 20)
    model = checkpoint("mlm", tmp_path / "short", tokenizer)

    def run(output: str = "out", **more: Any) -> dict[str, Any]:
        given = {"model": model, "text": [texts], "validation": str(held), "output_dir": str(tmp_path / output), "max_steps": 4}
        return finetune_lm(*build_arguments(MLM, **{**given, "save_steps": 2, **FAST, "overwrite": False, **more}))

    return run


def interrupt() -> None:
    raise KeyboardInterrupt


def test_resume_from_a_checkpoint_elsewhere_overwrites_nothing(start: Start, tmp_path: Path) -> None:
    start("first")
    elsewhere = str(tmp_path / "first" / "checkpoint-2")
    shutil.copytree(tmp_path / "first", tmp_path / "out")
    for left_out, words in ((None, "a finished training"), (LOG_NAME, "checkpoints of an earlier run"), ("checkpoint-*", "a model")):
        for path in () if left_out is None else list((tmp_path / "out").glob(left_out)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(OptionError, match=f"holds {words}"):
            start(resume_from_checkpoint=elsewhere)
    with pytest.raises(OptionError, match="name two checkpoints"):
        start(resume_from_checkpoint=elsewhere, resume=True)
    (tmp_path / "out" / "checkpoint-8").mkdir()
    log = start(resume_from_checkpoint=elsewhere, overwrite=True)
    assert [entry["step"] for entry in log["history"] if "loss" in entry] == [1, 2, 3, 4]
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-4"]
    assert start("first", resume_from_checkpoint=elsewhere)["history"], "the one in the output is resumed"


def test_output_that_cannot_be_written_is_refused_before_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the data, which are not there."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    line = ["--model", "bert", "--text", str(tmp_path / "none.txt"), "--output", str(locked / "new" / "out")]
    with bound_by_permissions():
        assert train("mlm", line) == 1
    assert capsys.readouterr().err == f"Error: Cannot write in '{locked}': Permission denied; nothing was written.\n"
    assert list(locked.iterdir()) == []


@pytest.mark.thorough
@pytest.mark.parametrize("overwrite", [False, True])
def test_half_written_model_has_no_training_log(overwrite: bool, start: Start, tmp_path: Path) -> None:
    """Nor that of the model which it replaces; the run resumes from its last checkpoint."""
    if overwrite:
        start(save_strategy="no", eval_on_start=False, max_steps=1)
    with pytest.raises(KeyboardInterrupt), Ending("half model", 3, interrupt):
        start(overwrite=overwrite)
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert not (tmp_path / "out" / LOG_NAME).exists()
    with pytest.raises(OptionError, match="holds checkpoints of an earlier run; add --resume"):
        start()
    log = start(resume=True)
    assert json.loads((tmp_path / "out" / LOG_NAME).read_text()) == json.loads(json.dumps(log))


def test_overwriting_a_model_removes_the_files_of_the_old_one(start: Start, tmp_path: Path) -> None:
    other, out = shutil.copytree(tmp_path / "short", tmp_path / "other"), tmp_path / "out"
    (other / "chat_template.jinja").write_text("{{ messages }}")
    (other / "preprocessor_config.json").write_text("{}")
    (other / "LICENSE").write_text("of the other")
    short = {"save_strategy": "no", "eval_on_start": False, "max_steps": 1}
    start(model=str(other), **short)
    inherited = {"chat_template.jinja", "preprocessor_config.json", "LICENSE"}
    assert inherited <= {path.name for path in out.iterdir()}
    kept = [out / "notes.txt", out / "LICENSE.project"]
    for path in kept:
        path.write_text("kept")
    start(**short, overwrite=True)
    assert not inherited & {path.name for path in out.iterdir()}
    assert [path.read_text() for path in kept] == ["kept", "kept"]
    assert AutoTokenizer.from_pretrained(out).chat_template is None


def test_ctrl_c_in_training_says_how_to_resume(start: Start, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del start  # made the model
    line = ["--model", str(tmp_path / "short"), "--text", texts, "--output", str(tmp_path / "out"), "--max-steps", "4", "--save-steps", "2",
            "--no-eval-on-start", "--max-train-samples", "8", "--no-bf16", "--disable-tqdm", "True"]  # fmt: skip
    with Ending("half model", 2, interrupt):
        assert train("mlm", line) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"Stopped; run again with --resume, from {tmp_path}/out/checkpoint-2."
    assert train("mlm", [*line, "--resume"]) == 0


def test_trained_card_takes_licence_language_and_base_from_its_model(tmp_path: Path) -> None:
    make_checkpoint("bert", tmp_path / "short")
    assert convert(tmp_path / "short", tmp_path / "long", *CONVERT)[0] == 0
    write_model_card(tmp_path / "long", license="mit", language="de", base_model="someone/small-bert", tags=["letters"])
    without_card = shutil.ignore_patterns("README.md", "*report.json")
    shutil.copytree(tmp_path / "long", tmp_path / "trained", ignore=without_card)  # as a trainer saves the model
    write_trained_card(str(tmp_path / "long"), tmp_path / "trained", "Five steps.")
    card = ModelCard.load(tmp_path / "trained" / "README.md")
    assert (card.data.license, card.data.language, card.data.base_model) == ("mit", "de", "someone/small-bert")
    assert "letters" in card.data.tags
    assert "## Training\n\nFine-tuned from `long`. Five steps." in card.text

    write_model_card(tmp_path / "trained", license="apache-2.0")
    card = ModelCard.load(tmp_path / "trained" / "README.md")
    assert card.data.license == "apache-2.0"
    assert "Fine-tuned from `long`. Five steps." in card.text
