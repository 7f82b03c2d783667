"""Long models in the hands of PyTorch: torch.compile, torch.export, DDP, threads."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.distributed as dist

import hf_longattn.families as families
from tests.ranks import PAIR
from tests.reference.small_models import long_config, long_like, long_model, padding, plain_model, tokens

LONGFORMER = {"mechanism": "longformer", "window": 32}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "head", "backend"),
    [
        ("bert", "BertForQuestionAnswering", "aot_eager"),
        pytest.param(
            "gpt2", "GPT2LMHeadModel", "eager", marks=pytest.mark.slow
        ),  # a decoder of one graph: tests/memory/test_static_decoding.py
    ],
)
def test_long_models_compile_to_one_graph(base: str, head: str, backend: str) -> None:
    model = long_model(base, head, LONGFORMER, num_hidden_layers=1)
    ids, mask = tokens(2, 300), padding(2, 300)
    is_global = torch.zeros(2, 300, dtype=torch.long)
    is_global[:, :4] = 1
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for inputs in ({"attention_mask": mask, "global_attention_mask": is_global}, {}):
        with torch.no_grad():
            expected, found = model(ids, use_cache=False, **inputs), compiled(ids, use_cache=False, **inputs)
        rows = mask.bool() if inputs else ...
        assert (expected[0] - found[0])[rows].abs().max() < 1e-4


@pytest.mark.slow
def test_a_long_model_compiled_with_inductor_has_the_same_gradients() -> None:
    model = long_model("bert", "BertForMaskedLM", LONGFORMER, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    ids = tokens(2, 300)
    model(ids, labels=ids).loss.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch._dynamo.reset()
    torch.compile(model, fullgraph=True)(ids, labels=ids).loss.backward()
    for gradient, parameter in zip(expected, model.parameters(), strict=True):
        assert (gradient - parameter.grad).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_a_long_model_exports_for_any_length(strict: bool) -> None:
    """Of quick tests, those of tests/export/test_graphs.py export this model not strictly, as `longattn export` does, and compare it at any
    length; strictly, Dynamo captures it as it does above."""
    model = long_model("bert", "BertForSequenceClassification", LONGFORMER, num_hidden_layers=1, return_dict=False)
    length = torch.export.Dim("length", min=257, max=512)  # shorter inputs take the dense path, which is another graph
    exported = torch.export.export(
        model,
        (),
        kwargs={"input_ids": tokens(2, 300), "attention_mask": padding(2, 300)},
        dynamic_shapes={"input_ids": {1: length}, "attention_mask": {1: length}},
        strict=strict,
    ).module()
    for n in (300, 257, 450):
        inputs = {"input_ids": tokens(2, n), "attention_mask": padding(2, n)}
        with torch.no_grad():
            assert (model(**inputs)[0] - exported(**inputs)[0]).abs().max() < 1e-4


def sums_after_two_steps() -> list[float]:
    """The sum of every parameter after two steps in DistributedDataParallel, each process with its row."""
    config = long_config("bert", LONGFORMER)
    model = torch.nn.parallel.DistributedDataParallel(families.LongBertForMaskedLM(config))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        ids = tokens(2, 100)[dist.get_rank() :][:1]
        model(ids, labels=ids, global_attention_mask=torch.zeros_like(ids)).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().double().sum().item() for parameter in model.parameters()]


def test_a_long_model_trains_in_ddp_without_find_unused_parameters() -> None:
    first, second = PAIR.run(sums_after_two_steps)
    assert first == second


@pytest.mark.thorough
def test_long_models_run_in_several_threads() -> None:
    plain = plain_model("bert")
    models = [long_like(plain, "bert", chosen) for chosen in (LONGFORMER, {"mechanism": "window", "window": 8}, {"mechanism": "full"})]
    with torch.no_grad():
        expected = [model(tokens(), output_attentions=i == 0) for i, model in enumerate(models)]
    wrong: list[int] = []

    def run(i: int) -> None:
        for _ in range(15):
            with torch.no_grad():
                found = models[i](tokens(), output_attentions=i == 0)
            if not torch.equal(found.last_hidden_state, expected[i].last_hidden_state) or (found.attentions is None) != (i != 0):
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
