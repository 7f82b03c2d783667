"""Learning from another model: distillation from a teacher, and attention transfer from softmax attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_longattn import attend, reference_attend
from hf_longattn.cli.train import train
from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.conversion.convert import training_step
from hf_longattn.files import read_json
from hf_longattn.mechanisms import Mechanism, build_mechanism, list_mechanisms, mechanism_class, mechanism_info
from hf_longattn.training.tasks import distill
from hf_longattn.training.tasks.distill import METHODS, DistillTrainer, score_error
from hf_longattn.training.tasks.linearise import AttentionTransfer, prepared_layers, transferring
from scripts.dev.tools.small_models import Shape, small_config
from tests.cases import every_case
from tests.grids import quickly
from tests.largest_tensor import LargestTensor
from tests.modeling.test_sliding_window import CASES
from tests.reference.small_models import LANGUAGE_MODELS, long_like, plain_model, tokens
from tests.training.conftest import checkpoint, launched, losses, quick


@pytest.mark.parametrize("kind", quickly(["mlm", "llama"], ["mlm"]))
def test_distill_of_a_converted_copy_has_no_loss(
    kind: str, texts: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    teacher = checkpoint(kind, tmp_path / "teacher", tokenizer)
    convert_checkpoint(teacher, tmp_path / "long", mechanism="window", window=256, max_length=128, verify=False)
    run = {"teacher": teacher, "method": "tinybert", "max_steps": 1, "max_train_samples": 4}
    log = quick("distill", tmp_path / "long", tmp_path / "out", texts, **run)
    assert log["input_length"] == 64
    dropout = kind == "mlm"
    assert losses(log)[0] < (2.0 if dropout else 1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("method", quickly(["tinybert", "logits"], ["tinybert"]))
def test_distill_brings_a_student_near_its_teacher(
    method: str, texts: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    teacher = checkpoint("mlm", tmp_path / "teacher", tokenizer)
    certain = AutoModelForMaskedLM.from_pretrained(teacher)
    with torch.no_grad():
        # untrained, it predicts all tokens alike: no distance to learn
        certain.cls.predictions.bias.copy_(4 * torch.randn(len(tokenizer)))
    certain.save_pretrained(teacher)
    student = checkpoint("mlm", tmp_path / "student", tokenizer, hidden_size=8, num_hidden_layers=1)
    run = {"teacher": teacher, "method": method, "max_steps": 30, "learning_rate": 1e-2, "max_train_samples": 4}
    log = quick("distill", student, tmp_path / "out", texts, **run)
    assert losses(log)[-1] < 0.95 * losses(log)[0]
    saved = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert set(saved.state_dict()) == set(AutoModelForMaskedLM.from_pretrained(student).state_dict())


def test_distill_brings_a_sentence_encoder_with_alibi_closer_to_its_teacher(
    texts: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a head and without masks, from texts as sentence-transformers encodes them; its other modules come
    along."""
    encoder = BertModel.from_pretrained(checkpoint("mlm", tmp_path / "mlm", tokenizer))
    encoder.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    transformer = Transformer(str(tmp_path / "bert"))
    SentenceTransformer(modules=[transformer, Pooling(16, "mean"), Normalize()]).save(str(tmp_path / "teacher"))
    change: dict[str, Any] = {"mechanism": "full", "max_length": 128, "positions": "alibi"}
    command = training_step(plan_conversion(tmp_path / "teacher", **change))["command"]
    assert command[:3] + command[5:9] == [
        "longattn",
        "train",
        "distill",
        "--method",
        "hidden",
        "--teacher",
        str(tmp_path / "teacher"),
    ]
    convert_checkpoint(tmp_path / "teacher", tmp_path / "long", **change, verify=False)
    fed: list[dict[str, Tensor]] = []
    mean_loss = DistillTrainer.mean_loss
    monkeypatch.setattr(
        DistillTrainer,
        "mean_loss",
        lambda self, model, inputs: fed.append(dict(inputs)) or mean_loss(self, model, inputs),
    )
    run = {"method": "hidden", "max_steps": 20, "learning_rate": 2e-2, "max_length": 32}
    log = quick("distill", tmp_path / "long", tmp_path / "out", texts, teacher=str(tmp_path / "teacher"), **run)
    assert losses(log)[-1] < 0.5 * losses(log)[0]
    assert log["metrics"]["after"]["n"] == 1
    kept = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert [type(module) for module in kept] == [Transformer, Pooling, Normalize]
    assert type(kept[0].auto_model).__name__ == "LongBertModel"
    rows = {
        tuple(tokenizer(Path(file).read_text(), truncation=True, max_length=32)["input_ids"])
        for file in Path(texts).iterdir()
    }
    read = [pair for batch in fed for pair in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert {tuple(ids[real.bool()].tolist()) for ids, real in read} == rows


def test_distill_loss_of_hidden_states_leaves_padding_out() -> None:
    """The loss of two texts of other lengths is the mean over their tokens."""
    config = small_config("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
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
    student, teacher = (
        checkpoint("mlm", tmp_path / str(layers), tokenizer, num_hidden_layers=layers) for layers in (4, 12)
    )
    log = quick("distill", student, tmp_path / "out", texts, teacher=teacher, method="tinybert")
    assert log["layers"] == [3, 6, 9, 12]


def test_distill_refuses_methods_and_options_that_do_not_fit(
    texts: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capfd: pytest.CaptureFixture[str]
) -> None:
    teacher = checkpoint("mlm", tmp_path / "teacher", tokenizer)
    student = checkpoint("mlm", tmp_path / "student", tokenizer, num_attention_heads=4)
    given = f"--method tinybert --model {student} --output {tmp_path / 'o'} --data {texts}".split()
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
    texts: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = checkpoint("mlm", tmp_path / "teacher", tokenizer)
    prepare = DistillTrainer.create_accelerator_and_postprocess

    def sharded(self: DistillTrainer) -> None:
        prepare(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(DistillTrainer, "create_accelerator_and_postprocess", sharded)
    line = f"--model {teacher} --teacher {teacher} --data {texts} --output {tmp_path / 'o'}"
    assert train("distill", line.split()) == 1
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


def test_score_error_makes_no_tensor_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "QUERIES_AT_A_TIME", 8)
    own, theirs = drawn_projections(0, 256), drawn_projections(1, 256)
    learns = own[0].requires_grad_(True), own[1].requires_grad_(True)
    with LargestTensor() as largest:
        score_error(learns, theirs, torch.ones(2, 256).bool(), True).backward()
    assert largest.elements <= 2 * 3 * 8 * 256


LENGTH = 96
LINE = "--batch-size 4 --gradient-accumulation-steps 1 --no-bf16 --disable-tqdm True --logging-steps 1 --max-length 64"


def softmax(heads: int, width: int) -> Mechanism:
    return build_mechanism("full", num_heads=heads, head_dim=width)


@pytest.fixture(params=["mlm", "clm", "llama"])
def model(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    short = checkpoint(request.param, tmp_path / "short", tokenizer)
    convert_checkpoint(short, tmp_path / "long", mechanism="hedgehog", max_length=LENGTH, verify=False)
    loader: Any = AutoModelForMaskedLM if request.param == "mlm" else AutoModelForCausalLM
    return loader.from_pretrained(tmp_path / "long", use_cache=False).eval()  # Trainer trains without a cache


@contextmanager
def with_transfers(model: PreTrainedModel) -> Iterator[list[Any]]:
    """The layers of a model with a head, which keeps its outputs."""
    layers = prepared_layers(model.base_model)
    for site, _, replacement in layers:
        site.put(replacement)
    yield layers
    for site, mechanism, _ in layers:
        site.put(mechanism)


def padded(model: PreTrainedModel, side: str = "right") -> dict[str, Tensor]:
    ids = torch.randint(5, model.config.vocab_size, (2, LENGTH))
    mask = torch.ones_like(ids)
    mask[1, LENGTH - 30 :] = 0
    return {"input_ids": ids, "attention_mask": mask if side == "right" else mask.flip(1)}


@pytest.mark.parametrize("side", ["right", "left"])
def test_attention_transfer_gives_the_states_of_the_original(model: PreTrainedModel, side: str) -> None:
    batch = padded(model, side)
    ids = batch["input_ids"]
    # the original alone would count padding
    batch["position_ids"] = model.running_base.own_positions(batch, ids)
    with torch.no_grad():
        with with_transfers(model):
            found = model(**batch).logits
        model.use_base_attention("sdpa")
        expected = model(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("base", ["mistral", "gemma2", "smollm3"])
def test_attention_transfer_imitates_the_windows_of_the_base(base: str) -> None:
    plain = plain_model(base, LANGUAGE_MODELS[base], **CASES[base])
    plain.set_attn_implementation("eager")  # the sdpa of transformers 5.20 caps no score
    layers = {layer: {"mechanism": "adaptive_span", "max_span": 16} for layer in range(plain.config.num_hidden_layers)}
    model = long_like(plain, base, {"mechanism": "full", "layers": layers}, **CASES[base])
    model.config.use_cache = False
    ids = tokens(2, 100)
    with torch.no_grad():
        expected = plain(ids).logits
        assert (model(ids).logits - expected).abs().max() > 1e-3
        with with_transfers(model):
            torch.testing.assert_close(model(ids).logits, expected, atol=2e-5, rtol=1e-5)


def test_attention_transfer_gives_gradients_to_mechanisms_from_their_own_layer_alone(model: PreTrainedModel) -> None:
    batch = padded(model)
    mechanisms = [module for module in model.modules() if isinstance(module, Mechanism)]
    base = model.base_model
    layers = prepared_layers(base)
    with transferring(base, layers):
        base(**batch)["loss"].backward()
        summed = {name: p.grad.clone() for name, p in base.named_parameters() if p.grad is not None}
        assert all(".long_attention.student." in name for name in summed)
        base.zero_grad()
        base(**batch)
        layers[1][2].loss.backward()
        alone = {name: p.grad for name, p in base.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert 0 < len(alone) < len(summed)
    assert all(torch.equal(summed[name], gradient) for name, gradient in alone.items())
    assert [module for module in model.modules() if isinstance(module, Mechanism)] == mechanisms
    assert {name for name, p in base.named_parameters() if p.requires_grad} == {
        name for name, _ in base.named_parameters() if ".long_attention." in name
    }


@pytest.mark.parametrize("causal", [False, True])
def test_distance_from_softmax_attention_is_its_definition_over_real_tokens(causal: bool) -> None:
    student = build_mechanism("hedgehog", num_heads=4, head_dim=8)
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter)
    layer = AttentionTransfer(student, softmax(4, 8))
    q, k, v = torch.randn(2, 4, 20, 8), torch.randn(2, 2, 20, 8), torch.randn(2, 2, 20, 8)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, 13:] = False
    arguments = {"causal": causal, "padding_mask": mask}
    target = attend(q, k, v, layer, **arguments)
    full = build_mechanism("full", num_heads=4, head_dim=8)
    torch.testing.assert_close(target, attend(q, k, v, full, **arguments))

    shares = []
    wanted, given = reference_attend(q, k, v, full, **arguments), reference_attend(q, k, v, student, **arguments)
    for b, length in enumerate((20, 13)):
        squared = (wanted - given)[b, :, :length].square().mean()
        shares.append(squared / wanted[b, :, :length].square().mean())
    torch.testing.assert_close(layer.distances.double(), torch.stack(shares), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(layer.loss.double(), torch.stack(shares).mean(), atol=1e-5, rtol=1e-5)
    first = layer.loss.clone()
    for tensor in (q, k, v):
        tensor[1, :, 13:] = 7.0
    attend(q, k, v, layer, **arguments)
    torch.testing.assert_close(layer.loss, first)


@every_case(
    "name",
    [name for name in list_mechanisms(grid=False) if mechanism_info(name).trains and name != "recurrent_memory"],
)
def test_attention_transfer_trains_every_mechanism_with_parameters(name: str) -> None:
    cls = mechanism_class(name)
    student = build_mechanism(name, **{"num_heads": 4, "head_dim": 16, "max_length": 640, **cls.about.sample})
    layer = AttentionTransfer(student, softmax(4, 16)).train()
    hidden = {"hidden_states": torch.randn(2, 96, 64)} if student.capabilities.takes_hidden_states else {}
    attend(*torch.randn(3, 2, 4, 96, 16), mechanism=layer, causal=student.causal is True, **hidden)
    layer.loss.backward()
    gradients = [p.grad for p in student.parameters() if p.requires_grad and p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert any(bool(gradient.abs().max() > 0) for gradient in gradients)


@pytest.fixture
def converted(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[..., str]:
    """Converts a tiny checkpoint that has something to attend to."""

    def convert(kind: str = "mlm", mechanism: str = "hedgehog", **options: Any) -> str:
        short, long = tmp_path / kind, tmp_path / f"{kind}-{mechanism}"
        weights = load_file(Path(checkpoint(kind, short, tokenizer), "model.safetensors"))
        sharpened = {
            name: tensor * (8.0 if "attn" in name or "attention" in name else 1.0) for name, tensor in weights.items()
        }
        save_file(sharpened, short / "model.safetensors", metadata={"format": "pt"})
        convert_checkpoint(short, long, mechanism=mechanism, max_length=128, verify=False, **options)
        return str(long)

    return convert


def linearised(model: str, texts: str, output: Path, line: str = "") -> dict[str, Any]:
    """The log of a run."""
    assert train("linearise", f"--model {model} --data {texts} --output {output} {LINE} {line}".split()) == 0
    log: dict[str, Any] = read_json(output / "training_log.json")
    return log


@pytest.mark.parametrize("kind", quickly(("mlm", "clm", "llama"), ("mlm",)))
def test_linearise_brings_every_layer_closer_and_changes_mechanisms_alone(
    kind: str, converted: Callable[..., str], texts: str, tmp_path: Path
) -> None:
    long = converted(kind)
    log = linearised(long, texts, tmp_path / "out", "--max-steps 20 --learning-rate 3e-2 --bf16")
    first, last = (entry for entry in log["history"] if "eval_loss" in entry)
    assert all(last[f"eval_layer_{layer}"] < first[f"eval_layer_{layer}"] for layer in (0, 1))
    error = log["metrics"]["after"]["attention_error"]
    assert (
        error
        == pytest.approx((last["eval_layer_0"] + last["eval_layer_1"]) / 2)
        == pytest.approx(50 * last["eval_loss"], rel=1e-4)
    )
    assert "squared error of attention" in (tmp_path / "out" / "README.md").read_text()
    before, after = (load_file(Path(folder, "model.safetensors")) for folder in (long, tmp_path / "out"))
    assert set(after) == set(before)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if ".long_attention." in name
    }
    configs = [read_json(Path(folder, "config.json")) for folder in (long, tmp_path / "out")]
    assert all(configs[0][name] == configs[1][name] for name in ("architectures", "long_attention"))


def test_linearise_leaves_layers_without_parameters_as_they_are(
    converted: Callable[..., str], texts: str, tmp_path: Path
) -> None:
    long = converted(layers={1: {"mechanism": "window", "window": 8}})
    log = linearised(long, texts, tmp_path / "out", "--max-steps 2")
    assert [name for name in log["history"][0] if name.startswith("eval_layer") and not name.endswith("_se")] == [
        "eval_layer_0"
    ]
    config = read_json(tmp_path / "out" / "config.json")
    assert config["long_attention"] == {"mechanism": "hedgehog", "layers": {"1": {"mechanism": "window", "window": 8}}}


def test_linearise_keeps_a_sentence_encoder(texts: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Without a head, and with the other modules of sentence-transformers."""
    words = BertModel(small_config("bert", Shape(vocabulary=len(tokenizer))))
    for parameter in words.parameters():
        torch.nn.init.normal_(parameter)
    words.save_pretrained(tmp_path / "words")
    tokenizer.save_pretrained(tmp_path / "words")
    modules = [Transformer(str(tmp_path / "words"), max_seq_length=32), Pooling(32, "mean")]
    SentenceTransformer(modules=modules, prompts={"query": "Q: "}).save(str(tmp_path / "encoder"))
    commands = {}
    for mechanism in ("hedgehog", "linear"):
        commands[mechanism] = training_step(
            plan_conversion(tmp_path / "encoder", mechanism=mechanism, max_length=128)
        )["command"][2]
        convert_checkpoint(
            tmp_path / "encoder", tmp_path / mechanism, mechanism=mechanism, max_length=128, verify=False
        )
    assert commands == {"hedgehog": "linearise", "linear": "embed"}
    linearised(str(tmp_path / "hedgehog"), texts, tmp_path / "out", "--max-steps 2")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("hedgehog", "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert (set(after), changed) == (set(before), {name for name in before if ".long_attention." in name})
    assert read_json(tmp_path / "out" / "config.json")["architectures"] == ["LongBertModel"]
    model, theirs = (SentenceTransformer(str(tmp_path / folder), device="cpu") for folder in ("out", "hedgehog"))
    assert (model.max_seq_length, model.prompts) == (theirs.max_seq_length, theirs.prompts)
    assert [type(module) for module in model] == [type(module) for module in theirs]
    assert np.isfinite(model.encode("some words " * 20)).all()


def test_linearise_refuses_models_without_anything_to_learn(
    converted: Callable[..., str], texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = (
        (converted(mechanism="linear"), "The model has linear, without parameters that could learn; convert it"),
        (str(tmp_path / "mlm"), "mlm' is not a converted text model; type longattn convert"),
        (
            converted("clm", "recurrent_memory", segment_length=48),
            "The model has recurrent_memory, without parameters",
        ),
    )
    for model, words in cases:
        line = f"--model {model} --data {texts} --output {tmp_path / 'out'} {LINE}"
        assert train("linearise", line.split()) == 1
        error = capsys.readouterr().err
        assert words in error
        assert "Traceback" not in error


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["hedgehog", "hybrid"])
def test_linearise_in_two_processes_equals_one(
    mechanism: str, converted: Callable[..., str], texts: str, tmp_path: Path
) -> None:
    line = f"train linearise --model {converted('clm', mechanism)} --data {texts} {LINE} --max-steps 4 --use-cpu"
    for processes in (1, 2):
        launched(f"{line} --batch-size {4 // processes} --output {processes}".split(), tmp_path, processes)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("1", "2"))
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-4)
