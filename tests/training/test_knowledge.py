"""Distillation from a teacher: a converted copy of the teacher has no distance from it, a smaller student comes closer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, PreTrainedTokenizerBase

from hf_longattn.cli.train import train
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import OptionError
from hf_longattn.training.args import build_arguments
from hf_longattn.training.knowledge import KNOWLEDGE, ROWS, distill_knowledge, kl_divergence, layer_map, soft_cross_entropy
from tests.training.conftest import FAST, checkpoint


def losses(log: dict[str, Any]) -> list[float]:
    return [entry["loss"] for entry in log["history"] if "loss" in entry]


def small(folder: Path, tokenizer: PreTrainedTokenizerBase, **shape: Any) -> str:
    torch.manual_seed(1)
    usual = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **{**usual, **shape})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["mlm", "llama"])
def test_a_converted_copy_has_no_distance_from_its_teacher(
    kind: str, texts: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    teacher = checkpoint(kind, tmp_path / "teacher", tokenizer)
    convert_checkpoint(teacher, tmp_path / "long", mechanism="window", window=256, max_length=128, verify=False)
    given = {
        "model": str(tmp_path / "long"),
        "output_dir": str(tmp_path / "out"),
        "text": [texts],
        "teacher": teacher,
        "logits_factor": 0.0,
    }
    log = distill_knowledge(*build_arguments(KNOWLEDGE, **given, **FAST, max_steps=1, max_documents=4))
    assert log["input_length"] == 64
    dropout = kind == "mlm"
    assert losses(log)[0] < (2.0 if dropout else 1e-6)


@pytest.mark.parametrize("method", ["tinybert", "logits"])
def test_a_smaller_student_comes_closer(method: str, texts: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    teacher = checkpoint("mlm", tmp_path / "teacher", tokenizer)
    certain = AutoModelForMaskedLM.from_pretrained(teacher)
    with torch.no_grad():
        certain.cls.predictions.bias.copy_(4 * torch.randn(len(tokenizer)))  # untrained, it predicts all tokens alike: no distance to learn
    certain.save_pretrained(teacher)
    student = small(tmp_path / "student", tokenizer)
    given = {"model": student, "output_dir": str(tmp_path / "out"), "text": [texts], "teacher": teacher, "method": method}
    log = distill_knowledge(*build_arguments(KNOWLEDGE, **given, **FAST, max_steps=30, learning_rate=1e-2, max_documents=4))
    assert losses(log)[-1] < 0.95 * losses(log)[0]
    assert log["layers"] == [2]
    saved = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert set(saved.state_dict()) == set(AutoModelForMaskedLM.from_pretrained(student).state_dict())


def test_layers_are_mapped_evenly_or_as_given() -> None:
    class Shape:
        def __init__(self, layers: int) -> None:
            self.config = BertConfig(num_hidden_layers=layers)

    assert layer_map(Shape(4), Shape(12), []) == [3, 6, 9, 12]  # type: ignore[arg-type]
    assert layer_map(Shape(2), Shape(12), [1, 12]) == [1, 12]  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="needs 2 numbers from 1 to 12"):
        layer_map(Shape(2), Shape(12), [0, 12])  # type: ignore[arg-type]


def test_the_logits_loss_is_least_at_the_teacher_s() -> None:
    theirs = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    own = theirs.clone().requires_grad_()
    soft_cross_entropy(own, theirs, 2.0).backward()
    torch.testing.assert_close(own.grad, torch.zeros(5, 7), atol=1e-6, rtol=0)


def test_bad_input_is_a_sentence(texts: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capfd: pytest.CaptureFixture[str]) -> None:
    teacher = checkpoint("mlm", tmp_path / "teacher", tokenizer)
    student = small(tmp_path / "student", tokenizer, num_attention_heads=4)
    given = ["--method", "tinybert", "--model", student, "--output", str(tmp_path / "o"), "--text", texts]
    for more, words in (
        ([], "add --teacher"),
        (["--teacher", teacher], "add --attention_factor 0"),
        (["--teacher", teacher, "--temperature", "0"], "temperature must be above 0"),
    ):
        assert train("distill", [*given, *more]) == 1
        assert words in capfd.readouterr().err


def test_the_method_may_be_set_in_a_recipe(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: logits\ntext: [texts]\nmodel: student\noutput_dir: out\n")
    assert train("distill", ["--config", str(recipe)]) == 1
    assert "add --teacher" in capfd.readouterr().err
    recipe.write_text("method: logits\ntempreature: 2\n")
    assert train("distill", ["--config", str(recipe)]) == 1
    assert "Did you mean 'temperature'?" in capfd.readouterr().err
    assert train("distill", ["--config", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml does not exist; give a YAML file" in capfd.readouterr().err


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kl_divergence_and_its_gradient_are_the_definition(temperature: float, dtype: torch.dtype) -> None:
    """Over several pieces of rows, against float64."""
    drawn = torch.Generator().manual_seed(0)
    own, theirs = (torch.randn(2 * ROWS + 7, 11, generator=drawn).to(dtype) for _ in range(2))
    own.requires_grad_(True)
    (3 * kl_divergence(own, theirs, temperature)).backward()
    exact = own.detach().double().requires_grad_(True)
    predicted, wanted = ((logits / temperature).log_softmax(-1) for logits in (exact, theirs.double()))
    expected = (wanted.exp() * (wanted - predicted)).sum(-1).mean() * temperature**2
    (3 * expected).backward()
    assert own.grad is not None
    assert exact.grad is not None
    close = {"atol": 1e-8, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-4, "rtol": 2e-2}
    torch.testing.assert_close(own.grad.double(), exact.grad, **close)
    assert float(kl_divergence(own.detach(), theirs, temperature)) == pytest.approx(float(expected.detach()), rel=1e-5)
    entropy = -(wanted.exp() * wanted).sum(-1).mean() * temperature**2
    assert float(soft_cross_entropy(own, theirs, temperature) - entropy) == pytest.approx(float(expected), rel=1e-3)
    assert float(kl_divergence(theirs, theirs, temperature)) == pytest.approx(0.0, abs=1e-6)
    assert float(kl_divergence(own[:0], theirs[:0])) == 0.0
