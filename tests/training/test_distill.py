"""Distillation from a teacher: a converted copy of the teacher has no distance from it, a smaller student comes closer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerBase

from hf_longattn.cli.train import train
from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.conversion.convert import training_step
from hf_longattn.training.tasks import distill
from hf_longattn.training.tasks.distill import METHODS, DistillTrainer, score_error
from tests.grids import quickly
from tests.training.conftest import FAST, checkpoint, start_task


def losses(log: dict[str, Any]) -> list[float]:
    return [entry["loss"] for entry in log["history"] if "loss" in entry]


def small(folder: Path, tokenizer: PreTrainedTokenizerBase, **shape: Any) -> str:
    torch.manual_seed(1)
    usual = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **{**usual, **shape})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", quickly(["mlm", "llama"], ["mlm"]))
def test_distill_of_a_converted_copy_has_no_loss(kind: str, texts: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    teacher = checkpoint(kind, tmp_path / "teacher", tokenizer)
    convert_checkpoint(teacher, tmp_path / "long", mechanism="window", window=256, max_length=128, verify=False)
    given = {
        "model": str(tmp_path / "long"),
        "output_dir": str(tmp_path / "out"),
        "data": [texts],
        "teacher": teacher,
        "method": "tinybert",
    }
    log = start_task("distill", **given, **FAST, max_steps=1, max_train_samples=4)
    assert log["input_length"] == 64
    dropout = kind == "mlm"
    assert losses(log)[0] < (2.0 if dropout else 1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("method", quickly(["tinybert", "logits"], ["tinybert"]))
def test_distill_brings_a_student_near_its_teacher(method: str, texts: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    teacher = checkpoint("mlm", tmp_path / "teacher", tokenizer)
    certain = AutoModelForMaskedLM.from_pretrained(teacher)
    with torch.no_grad():
        certain.cls.predictions.bias.copy_(4 * torch.randn(len(tokenizer)))  # untrained, it predicts all tokens alike: no distance to learn
    certain.save_pretrained(teacher)
    student = small(tmp_path / "student", tokenizer)
    given = {"model": student, "output_dir": str(tmp_path / "out"), "data": [texts], "teacher": teacher, "method": method}
    log = start_task("distill", **given, **FAST, max_steps=30, learning_rate=1e-2, max_train_samples=4)
    assert losses(log)[-1] < 0.95 * losses(log)[0]
    saved = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert set(saved.state_dict()) == set(AutoModelForMaskedLM.from_pretrained(student).state_dict())


def test_distill_brings_a_sentence_encoder_with_alibi_closer_to_its_teacher(
    texts: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a head and without masks, from texts as sentence-transformers encodes them; its other modules come along."""
    encoder = BertModel.from_pretrained(checkpoint("mlm", tmp_path / "mlm", tokenizer))
    encoder.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    transformer = Transformer(str(tmp_path / "bert"))
    SentenceTransformer(modules=[transformer, Pooling(16, "mean"), Normalize()]).save(str(tmp_path / "teacher"))
    change: dict[str, Any] = {"mechanism": "full", "max_length": 128, "positions": "alibi"}
    command = training_step(plan_conversion(tmp_path / "teacher", **change))["command"]
    assert command[:3] + command[5:9] == ["longattn", "train", "distill", "--method", "hidden", "--teacher", str(tmp_path / "teacher")]
    convert_checkpoint(tmp_path / "teacher", tmp_path / "long", **change, verify=False)
    fed: list[dict[str, Tensor]] = []
    mean_loss = DistillTrainer.mean_loss
    monkeypatch.setattr(DistillTrainer, "mean_loss", lambda self, model, inputs: fed.append(dict(inputs)) or mean_loss(self, model, inputs))
    given = {"model": str(tmp_path / "long"), "teacher": str(tmp_path / "teacher"), "data": [texts], "method": "hidden"}
    log = start_task("distill", **given, output_dir=str(tmp_path / "out"), **FAST, max_steps=20, learning_rate=2e-2, max_length=32)
    assert losses(log)[-1] < 0.5 * losses(log)[0]
    assert log["metrics"]["after"]["n"] == 1
    kept = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert [type(module) for module in kept] == [Transformer, Pooling, Normalize]
    assert type(kept[0].auto_model).__name__ == "LongBertModel"
    rows = {tuple(tokenizer(Path(file).read_text(), truncation=True, max_length=32)["input_ids"]) for file in Path(texts).iterdir()}
    read = [pair for batch in fed for pair in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert {tuple(ids[real.bool()].tolist()) for ids, real in read} == rows


def test_distill_loss_of_hidden_states_leaves_padding_out() -> None:
    """The loss of two texts of other lengths is the mean over their tokens."""
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 50, "hidden_dropout_prob": 0.0}
    config = BertConfig(**shape, num_hidden_layers=2, attention_probs_dropout_prob=0.0)
    teacher, student = BertModel(config).double(), BertModel(config).double()
    accelerator = SimpleNamespace(unwrap_model=lambda model: model)
    trainer: Any = SimpleNamespace(accelerator=accelerator, compared=METHODS["hidden"], teacher=teacher, layers=[1, 2])
    ids, mask = torch.randint(1, 50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, 5:] = 0

    def loss(rows: slice, length: int) -> Tensor:
        batch = {"input_ids": ids[rows, :length], "attention_mask": mask[rows, :length], "labels": ids[rows, :length]}
        return DistillTrainer.mean_loss(trainer, student, batch)[0]

    torch.testing.assert_close(loss(slice(0, 2), 9), (5 * loss(slice(0, 1), 5) + 9 * loss(slice(1, 2), 9)) / 14)


def test_distill_maps_layers_evenly(
    texts: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "finish", lambda trainer, *_, **__: {"layers": trainer.layers})
    student, teacher = (small(tmp_path / str(layers), tokenizer, num_hidden_layers=layers) for layers in (4, 12))
    log = start_task("distill", model=student, teacher=teacher, data=[texts], output_dir=str(tmp_path / "out"), method="tinybert", **FAST)
    assert log["layers"] == [3, 6, 9, 12]


def test_distill_refuses_methods_and_options_that_do_not_fit(
    texts: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capfd: pytest.CaptureFixture[str]
) -> None:
    teacher = checkpoint("mlm", tmp_path / "teacher", tokenizer)
    student = small(tmp_path / "student", tokenizer, num_attention_heads=4)
    given = ["--method", "tinybert", "--model", student, "--output", str(tmp_path / "o"), "--data", texts]
    assert train("distill", [*given, "--method", "tinybret"]) == 2
    assert "--method: invalid choice: 'tinybret'" in capfd.readouterr().err
    for more, words in (
        ([], "add --teacher"),
        (["--teacher", teacher], "cannot be compared; add --method logits"),
        (["--teacher", teacher, "--temperature", "0"], "--temperature must be above 0"),
    ):
        assert train("distill", [*given, *more]) == 1
        assert words in capfd.readouterr().err


def test_distill_refuses_sharded_weights(
    texts: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = checkpoint("mlm", tmp_path / "teacher", tokenizer)
    prepare = DistillTrainer.create_accelerator_and_postprocess

    def sharded(self: DistillTrainer) -> None:
        prepare(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(DistillTrainer, "create_accelerator_and_postprocess", sharded)
    assert train("distill", ["--model", teacher, "--teacher", teacher, "--data", texts, "--output", str(tmp_path / "o")]) == 1
    assert "This does not run under FSDP or DeepSpeed" in capfd.readouterr().err


def drawn_projections(seed: int, length: int = 7) -> tuple[Tensor, Tensor]:
    """Queries and keys ``(B, H, N, D)`` of two rows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, length, 4, generator=generator), torch.randn(2, 3, length, 4, generator=generator)


@pytest.mark.parametrize("causal", [False, True])
def test_score_error_is_the_mean_over_pairs_that_softmax_sees(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float64 on dense scores, with padding; a causal model's future keys do not count."""
    monkeypatch.setattr(distill, "QUERIES_AT_A_TIME", 3)
    own, theirs = drawn_projections(0), drawn_projections(1)
    real = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]]).bool()
    learns = [states.clone().requires_grad_(True) for states in own]
    found = score_error((learns[0], learns[1]), theirs, real, causal)
    (5 * found).backward()
    exact = [states.double().requires_grad_(True) for states in own]
    counted = real[:, None, :, None] & real[:, None, None, :]
    counted = (counted.tril() if causal else counted).expand(2, 3, 7, 7)
    difference = exact[0] @ exact[1].mT - theirs[0].double() @ theirs[1].double().mT
    expected = difference[counted].square().mean()
    (5 * expected).backward()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    for states, reference in zip(learns, exact, strict=True):
        assert states.grad is not None
        assert reference.grad is not None
        torch.testing.assert_close(states.grad, reference.grad.float())


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest tensor has that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        self.elements = max(
            self.elements, *(one.numel() for one in torch.utils._pytree.tree_leaves(returned) if isinstance(one, Tensor)), 0
        )
        return returned


def test_score_error_makes_no_tensor_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "QUERIES_AT_A_TIME", 8)
    own, theirs = drawn_projections(0, 256), drawn_projections(1, 256)
    learns = own[0].requires_grad_(True), own[1].requires_grad_(True)
    with LargestTensor() as largest:
        score_error(learns, theirs, torch.ones(2, 256).bool(), True).backward()
    assert largest.elements <= 2 * 3 * 8 * 256
