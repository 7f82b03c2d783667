"""The divergence of predictions, against its definition in float64."""

from __future__ import annotations

import pytest
import torch

from hf_longattn.evaluation.token_loss import ROWS_AT_ONCE, kl_divergence


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
    assert float(kl_divergence(student.detach(), teacher, temperature)) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(kl_divergence(teacher, teacher, temperature)) == pytest.approx(0.0, abs=1e-6)
    assert float(kl_divergence(student[:0], teacher[:0])) == 0.0
