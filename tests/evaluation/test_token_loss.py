"""Losses token by token, the divergence of predictions, and standard errors, each against its definition."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from hf_longattn.data.batching import masked_tokens
from hf_longattn.data.tokenization import IGNORED
from hf_longattn.errors import CheckpointError
from hf_longattn.evaluation.summaries import in_percent, mean_and_error, means_in_percent, plus_minus, ratio_and_error
from hf_longattn.evaluation.token_loss import (
    ROWS_AT_ONCE,
    LossChange,
    in_chunks,
    kl_divergence,
    token_losses,
    with_context,
)
from tests.reference.small_models import plain_model
from tests.trained import tokenizer_of


@pytest.mark.parametrize("causal", [False, True])
def test_mean_of_token_losses_is_the_loss_of_transformers(causal: bool) -> None:
    model = plain_model(*(("llama", "LlamaForCausalLM") if causal else ("bert", "BertForMaskedLM")))
    ids = torch.randint(0, 50, (1, 512))
    labels = ids if causal else ids.masked_fill(torch.rand(ids.shape) < 0.8, IGNORED)
    losses = token_losses(model, ids, labels, causal=causal)
    assert losses.shape == (512,)
    with torch.no_grad():
        assert losses.nanmean() == pytest.approx(float(model(input_ids=ids, labels=labels).loss), rel=1e-5)
    pieces = zip(ids.split(128, 1), labels.split(128, 1), strict=True)
    chunks = token_losses(model, *in_chunks(ids, labels, 128), causal=causal)
    torch.testing.assert_close(
        chunks, torch.cat([token_losses(model, *pair, causal=causal) for pair in pieces]), equal_nan=True
    )


@pytest.mark.parametrize(("before", "after"), [([1], []), ([1], [2]), ([], [2]), ([], [])])
def test_losses_read_every_chunk_between_special_tokens(before: list[int], after: list[int]) -> None:
    """A decoder reads a chunk from its first token (BOS) on, as it reads any text."""
    seen = []

    def model(input_ids: torch.Tensor, return_dict: bool) -> dict[str, torch.Tensor]:
        seen.append(input_ids)
        return {"logits": torch.zeros(*input_ids.shape, 50)}

    ids = torch.arange(10, 34)[None]
    losses = token_losses(model, *in_chunks(ids, ids, 8, (before, after)), causal=False)
    read = torch.cat(seen)
    inner = slice(len(before), 8 - len(after))
    assert all(row == [*before, *row[inner], *after] for row in read.tolist())
    assert torch.equal(read[:, inner], ids.view(3, 8)[:, inner])
    assert int(losses.isnan().sum()) == 3 * (len(before) + len(after))
    assert torch.equal(ids, torch.arange(10, 34)[None]), "the text is left as it is"


def test_masked_tokens_depend_on_the_seed_and_spare_special_tokens() -> None:
    tokenizer = tokenizer_of("bert")
    ids = torch.tensor([tokenizer("Call me Ishmael. " * 100)["input_ids"]])
    shown, target = masked_tokens(ids, tokenizer)
    hidden = target != IGNORED
    assert 0.1 < hidden.float().mean() < 0.2
    assert (shown[hidden] == tokenizer.mask_token_id).all()
    assert torch.equal(target[hidden], ids[hidden])
    assert torch.equal(shown[~hidden], ids[~hidden])
    assert not hidden[0, [0, -1]].any()
    assert torch.equal(masked_tokens(ids, tokenizer)[0], shown)
    assert not torch.equal(masked_tokens(ids, tokenizer, seed=1)[0], shown)


def test_masked_tokens_need_a_mask_token_and_mask_at_least_one() -> None:
    with pytest.raises(CheckpointError, match="needs a tokenizer with a mask token"):
        masked_tokens(torch.arange(9), None)
    tokenizer = tokenizer_of("bert")
    special = torch.tensor(tokenizer("")["input_ids"])
    assert (masked_tokens(special, tokenizer)[1] == IGNORED).all()
    for seed in range(20):
        _, labels = masked_tokens(torch.tensor(tokenizer("word")["input_ids"]), tokenizer, seed)
        assert int((labels != IGNORED).sum()) >= 1


def test_loss_change_is_worse_only_beyond_its_standard_error() -> None:
    before = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 4
    noise = torch.randn(400, generator=torch.Generator().manual_seed(1))
    for shift, worse in ((0.5, True), (0.05, False), (-0.5, False)):
        change = LossChange.of(before, before + noise - noise.mean() + shift)
        assert change is not None
        assert change.change == pytest.approx(shift, abs=1e-5)
        assert change.error == pytest.approx(0.05, rel=0.1)
        assert change.worse == worse
        assert f"{shift:+.3f} ± 0.0" in str(change)
    small = LossChange.of(before, before + 0.001)
    assert small is not None
    assert not small.worse, "a thousandth of a nat, however certain, is none"
    broken = LossChange.of(before, torch.full_like(before, float("inf")))
    assert broken is not None
    assert broken.worse
    assert LossChange.of(before, torch.full_like(before, float("nan"))) is None


def test_loss_change_of_a_decoder_compares_chunks_where_they_have_context() -> None:
    chunked, whole = torch.ones(64), torch.zeros(64)
    chunked[:8] = chunked[16:24] = 100.0
    for chunk, causal, before in ((16, True, 1.0), (16, False, 25.75), (64, True, 25.75)):
        change = LossChange.of(with_context(chunked, chunk, causal=causal), whole)
        assert change is not None
        assert change.before == pytest.approx(before)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kl_divergence_and_its_gradient_are_the_definition(temperature: float, dtype: torch.dtype) -> None:
    """Over several pieces of rows, against float64."""
    drawn = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2 * ROWS_AT_ONCE + 7, 11, generator=drawn).to(dtype) for _ in range(2))
    student.requires_grad_(True)
    (3 * kl_divergence(student, teacher, temperature)).backward()
    exact = student.detach().double().requires_grad_(True)
    predicted, wanted = ((logits / temperature).log_softmax(-1) for logits in (exact, teacher.double()))
    expected = (wanted.exp() * (wanted - predicted)).sum(-1).mean() * temperature**2
    (3 * expected).backward()
    assert student.grad is not None
    assert exact.grad is not None
    close = {"atol": 1e-8, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-4, "rtol": 2e-2}
    torch.testing.assert_close(student.grad.double(), exact.grad, **close)
    assert float(kl_divergence(student.detach(), teacher, temperature)) == pytest.approx(
        float(expected.detach()), rel=1e-5
    )
    assert float(kl_divergence(teacher, teacher, temperature)) == pytest.approx(0.0, abs=1e-6)
    assert float(kl_divergence(student[:0], teacher[:0])) == 0.0


@pytest.mark.parametrize("count", [10, 11, 300])
def test_mean_error_is_the_standard_error_of_the_sample(count: int) -> None:
    """Bessel's correction: the spread is divided by n - 1."""
    values = [random.Random(count).gauss(3, 2) for _ in range(count)]
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(np.mean(values))
    assert error == pytest.approx(np.std(values, ddof=1) / count**0.5, rel=1e-9)


def test_ratio_error_is_that_of_cochran() -> None:
    choose = random.Random(0)
    pairs = [(choose.randint(0, 5), choose.randint(5, 9)) for _ in range(12)]
    parts, sizes = (np.array(column) for column in zip(*pairs, strict=True))
    ratio, error = ratio_and_error(pairs)
    assert ratio == pytest.approx(parts.sum() / sizes.sum())
    residuals = parts - ratio * sizes
    assert error == pytest.approx(np.sqrt((residuals**2).sum() / (12 - 1) / 12) / sizes.mean(), rel=1e-9)


def test_scores_of_fewer_than_ten_items_have_no_standard_error() -> None:
    for count in range(10):
        assert mean_and_error([1.0] * count)[1] is None
        assert ratio_and_error([(1, 2)] * count)[1] is None
        assert means_in_percent(("f1",), [(1.0,)] * count) == {"f1": 100.0 * bool(count), "n": count}
    assert means_in_percent(("f1",), [(1.0,)] * 10) == {"f1": 100.0, "f1_se": 0.0, "n": 10}
    assert in_percent({"a": (0.5, None), "b": (0.5, 0.1)}, 10) == {"a": 50.0, "b": 50.0, "b_se": 10.0, "n": 10}
    assert (plus_minus(2.935, None, 2), plus_minus(2.935, 0.04, 1)) == ("2.94", "2.9 ± 0.0")
