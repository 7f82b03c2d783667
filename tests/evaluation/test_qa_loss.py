"""The loss over all correct spans, padded and packed."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from hf_longattn.evaluation.qa_reader import qa_loss, span_loss


def test_span_loss_is_bert_s_for_one_answer_and_sums_over_several() -> None:
    generator = torch.Generator().manual_seed(0)
    start, end = (torch.randn(2, 7, generator=generator, requires_grad=True) for _ in range(2))
    one = span_loss(start, end, torch.tensor([[1], [4]]), torch.tensor([[2], [6]]))
    usual = (
        F.cross_entropy(start, torch.tensor([1, 4]), reduction="none") + F.cross_entropy(end, torch.tensor([2, 6]), reduction="none")
    ) / 2
    torch.testing.assert_close(one, usual)
    several = span_loss(start, end, torch.tensor([[1, 3], [4, -1]]), torch.tensor([[2, -1], [6, -1]]))
    probability = start.softmax(-1)[0, [1, 3]].sum()
    torch.testing.assert_close(several[0], (-probability.log() - end.log_softmax(-1)[0, 2]) / 2)
    torch.testing.assert_close(several[1], one[1])
    several.sum().backward()
    assert start.grad is not None
    assert bool(start.grad.isfinite().all())


def test_span_loss_gives_padding_no_probability_and_is_the_same_packed() -> None:
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    starts, ends = torch.tensor([[2], [1]]), torch.tensor([[3], [2]])
    padded = span_loss(logits, logits, starts, ends, real)
    short = span_loss(logits[1:, :3], logits[1:, :3], starts[1:], ends[1:])
    torch.testing.assert_close(padded[1:], short)
    row = torch.cat([logits[0], logits[1, :3]])[None]
    packed = {"starts": starts, "ends": ends, "lengths": torch.tensor([6, 3])}
    torch.testing.assert_close(qa_loss(SimpleNamespace(start_logits=row, end_logits=row), packed), padded)
