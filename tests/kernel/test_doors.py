"""The kernel by its string, as a user of transformers without this package types it: `make test-kernel`."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from scripts import push_kernel
from scripts.build_kernel import NAMES, write_kernel

from ..hub_server import Hub

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("kernels") is None, reason="make test-kernel, which installs kernels beside"
    ),
]
FLASH, PLAIN = (f"me/{name}" for name in NAMES)
SMALL = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODER = {**SMALL, "num_key_value_heads": 2, "head_dim": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "ModernBert": {**SMALL, "local_attention": 16, "cls_token_id": 1, "sep_token_id": 2},
    "Bert": SMALL,
    "Gemma3Text": {**DECODER, "num_hidden_layers": 6, "sliding_window": 16},
    "Gemma3Text, both ways": {**DECODER, "sliding_window": 16, "use_bidirectional_attention": True},
    "Gemma2": {**DECODER, "sliding_window": 16, "attn_logit_softcapping": 5.0},
    "Mistral": {**DECODER, "sliding_window": 16},
    "Qwen3": DECODER,
}


SINKS = {**DECODER, "sliding_window": 16, "num_local_experts": 2, "num_experts_per_tok": 1}
TEXTS = ["a short text", "a longer text " * 20, "one more"]


@pytest.fixture(scope="session", autouse=True)
def local_kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Both kernels, found by their names in a local folder."""
    folder = tmp_path_factory.mktemp("kernels")
    for name in NAMES:
        write_kernel(folder / name, name)
    os.environ["LOCAL_KERNELS"] = ":".join(f"me/{name}={folder / name}" for name in NAMES)
    yield
    del os.environ["LOCAL_KERNELS"]


def saved(case: str, folder: Path, auto: Any = AutoModel) -> Path:
    """The folder of a small model with random weights."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{case.partition(',')[0]}Config")(**CONFIGS[case])
    auto.from_config(config).save_pretrained(folder)
    return folder


def loaded(folder: Path, implementation: str, auto: Any = AutoModel, **settings: Any) -> Any:
    return auto.from_pretrained(folder, attn_implementation=implementation, allow_all_kernels=True, **settings).eval()


def padded_batch(length: int = 300) -> dict[str, Tensor]:
    torch.manual_seed(0)
    ids, mask = torch.randint(3, 99, (2, length)), torch.ones(2, length, dtype=torch.long)
    mask[1, 2 * length // 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("name", [FLASH, PLAIN])
@pytest.mark.parametrize("case", CONFIGS)
def test_hidden_states_are_those_of_eager_attention(case: str, name: str, tmp_path: Path) -> None:
    folder, batch = saved(case, tmp_path), padded_batch()
    real = batch["attention_mask"].bool()
    # transformers' eager attention rounds weights to float32, so sdpa is the reference in float64
    references = [("eager", torch.float32, 1e-6), ("sdpa", torch.float64, 1e-12)]
    if case == "Gemma2":
        references.pop()  # sdpa has no score caps
    for reference, dtype, tolerance in references:
        states = []
        for implementation in (name, reference):
            model = loaded(folder, implementation, dtype=dtype)
            assert model.config._attn_implementation == implementation
            with torch.inference_mode():
                states.append(model(**batch).last_hidden_state[real])
        assert difference(*states) <= tolerance, dtype


@pytest.mark.parametrize("name", ["GptOss", "OpenAIPrivacyFilter"])
def test_models_with_sinks_take_the_name_without_flash_and_their_own_kernels_for_the_other(
    name: str, tmp_path: Path
) -> None:
    config = getattr(transformers, f"{name}Config")(**SINKS)
    model = getattr(transformers, f"{name}Model")(config).eval()
    for layer in model.layers:
        nn.init.normal_(layer.self_attn.sinks)
    model.save_pretrained(tmp_path)
    batch = padded_batch()
    states = []
    for implementation in (PLAIN, "eager"):
        with torch.inference_mode():
            states.append(loaded(tmp_path, implementation)(**batch).last_hidden_state[batch["attention_mask"].bool()])
    assert difference(*states) <= 1e-6
    with pytest.raises(Exception, match="kernels-community"):  # it asks for a kernel of its own list
        loaded(tmp_path, FLASH)


@pytest.mark.parametrize("name", [FLASH, PLAIN])
def test_gradients_of_a_training_step_are_those_of_eager_attention(name: str, tmp_path: Path) -> None:
    folder = saved("ModernBert", tmp_path / "model", AutoModelForSequenceClassification)
    batch = {**padded_batch(), "labels": torch.tensor([0, 1])}
    gradients = []
    for implementation in (name, "eager"):
        model = loaded(folder, implementation, AutoModelForSequenceClassification)
        model(**batch).loss.backward()
        gradients.append(torch.cat([x.grad.flatten() for x in model.parameters() if x.grad is not None]))
    assert difference(*gradients) <= 1e-5


def test_trainer_takes_a_step(tmp_path: Path) -> None:
    folder = saved("ModernBert", tmp_path / "model", AutoModelForSequenceClassification)
    rows = [{"input_ids": [5] * length, "labels": length % 2} for length in (5, 40, 12, 33)]
    losses = []
    for implementation in (FLASH, "eager"):
        arguments = transformers.TrainingArguments(
            str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True
        )
        trainer = transformers.Trainer(
            loaded(folder, implementation, AutoModelForSequenceClassification),
            arguments,
            data_collator=padded_rows,
            train_dataset=rows,
        )
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def padded_rows(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch, padded on the right with 0."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


@pytest.mark.parametrize("case", ["Gemma3Text", "Mistral", "Qwen3"])
def test_generate_writes_the_tokens_of_sdpa(case: str, tmp_path: Path) -> None:
    folder, ids = saved(case, tmp_path, AutoModelForCausalLM), padded_batch(60)["input_ids"]
    settings = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    expected = loaded(folder, "sdpa", AutoModelForCausalLM).generate(ids, **settings)
    for name in (FLASH, PLAIN):
        assert loaded(folder, name, AutoModelForCausalLM).generate(ids, **settings).equal(expected), name


@pytest.mark.parametrize("case", ["Gemma3Text", "Mistral", "Qwen3"])
def test_continuous_batching_on_a_cpu_writes_the_tokens_of_generate(case: str, tmp_path: Path) -> None:
    folder = saved(case, tmp_path, AutoModelForCausalLM)
    model = loaded(folder, FLASH, AutoModelForCausalLM)
    prompts = [padded_batch(length)["input_ids"][0].tolist() for length in (50, 33, 90)]
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    batching = transformers.ContinuousBatchingConfig(num_blocks=64, page_size=32, max_batch_tokens=64)
    results = model.generate_batch(
        prompts, generation_config=transformers.GenerationConfig(**settings), continuous_batching_config=batching
    )
    for prompt, result in zip(prompts, results.values(), strict=True):
        expected = loaded(folder, "sdpa", AutoModelForCausalLM).generate(torch.tensor([prompt]), **settings)
        assert result.generated_tokens == expected[0, len(prompt) :].tolist()


def test_a_compiled_model_computes_the_same(tmp_path: Path) -> None:
    model, batch = loaded(saved("ModernBert", tmp_path), FLASH), padded_batch()
    batch.pop("attention_mask")  # transformers reads it as a list of lengths, which breaks the graph
    with torch.inference_mode():
        expected = model(**batch).last_hidden_state
        compiled = torch.compile(model)(**batch).last_hidden_state
    assert difference(compiled, expected) <= 1e-6


def test_a_pipeline_takes_the_string(real_folder: Path) -> None:
    settings = {"attn_implementation": FLASH, "allow_all_kernels": True}
    features = [
        transformers.pipeline("feature-extraction", str(real_folder), model_kwargs=given)(TEXTS[1])
        for given in (settings, {"attn_implementation": "eager"})
    ]
    assert difference(*map(torch.tensor, features)) <= 1e-6


def test_sentence_transformers_leaves_padding_out_by_itself(real_folder: Path) -> None:
    from sentence_transformers import CrossEncoder, SentenceTransformer

    settings = {"attn_implementation": FLASH, "allow_all_kernels": True}
    encoder = SentenceTransformer(str(real_folder), device="cpu", model_kwargs=settings)
    inputs = encoder.preprocess(TEXTS) if hasattr(encoder, "preprocess") else encoder.tokenize(TEXTS)
    assert len(inputs["input_ids"]) == 1, "one row for all texts"
    expected = SentenceTransformer(str(real_folder), device="cpu").encode(TEXTS, convert_to_tensor=True)
    assert difference(encoder.encode(TEXTS, convert_to_tensor=True), expected) <= 1e-5
    scores = []
    for given in (settings, {}):
        torch.manual_seed(0)
        model = CrossEncoder(str(real_folder), device="cpu", num_labels=1, model_kwargs=given)
        scores.append(torch.tensor(model.predict([("a question", text) for text in TEXTS])))
    assert difference(*scores) <= 1e-5


PROGRAM = """
import sys
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], attn_implementation="writer/flash-longattn")
print(model.config._attn_implementation)
"""


@pytest.mark.parametrize("trusted", [True, False])
def test_the_hub_serves_a_pushed_kernel_by_its_string(trusted: bool, tmp_path: Path, server: Hub) -> None:
    folder = saved("ModernBert", tmp_path / "model")
    server.trusted = ("writer",) if trusted else ()
    push_kernel.main(["writer", "--upload"])
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_KERNELS", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if trusted:
        assert done.stdout.split()[-1] == "writer/flash-longattn", done.stderr
    else:
        assert "not from a trusted publisher" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("fastapi") is None, reason="make test-kernel installs fastapi")
def test_transformers_serve_answers_with_the_kernel(tmp_path: Path, real_folder: Path) -> None:
    folder = tmp_path / "model"
    CONFIGS["served"] = {**DECODER, "vocab_size": 30522, "sliding_window": 16}
    config = transformers.MistralConfig(**CONFIGS.pop("served"))
    torch.manual_seed(0)
    transformers.MistralForCausalLM(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(real_folder)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--port", str(port)]
    command += ["--attn-implementation", FLASH, "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            answer = asked(server, port, str(folder))
        finally:
            server.terminate()
    assert answer["choices"][0]["message"]["content"].strip()


def asked(server: subprocess.Popen[str], port: int, model: str) -> dict[str, Any]:
    """The answer of a server to one question, as soon as it takes it."""
    question = {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "the river runs"}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(question).encode(),
        {"Content-Type": "application/json"},
    )
    for _ in range(120):
        if server.poll() is not None:
            raise AssertionError(server.stdout.read() if server.stdout else "")
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return dict(json.load(reply))
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except OSError:
            time.sleep(1)
    raise AssertionError("the server did not start")
