"""Linear layers for inference: what equals what, and what they refuse."""

from __future__ import annotations

import copy
import pickle
import time

import pytest
import torch
from torch import Tensor, nn

from hf_longattn.engines.cpu import onednn
from hf_longattn.engines.cpu.onednn import cpu_computes_bf16
from hf_longattn.errors import BackendError
from hf_longattn.modeling.inference import ROWS_PER_PRODUCT, VALUES_PER_ROUNDING, Int8Linear, PackedLinear, quantise
from tests.cases import every_case

NEEDS_BF16 = pytest.mark.skipif(not cpu_computes_bf16(), reason="this processor computes no bf16")
SHAPES = ((1, 64, 96), (3, 100, 7), (517, 96, 64))


def layer(features: int, outputs: int, *, bias: bool = True, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    return nn.Linear(features, outputs, bias=bias).to(dtype).requires_grad_(False)


@NEEDS_BF16
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "features", "outputs"), SHAPES)
def test_packed_linear_equals_linear_bit_for_bit(rows: int, features: int, outputs: int, bias: bool) -> None:
    plain = layer(features, outputs, bias=bias)
    x = torch.randn(2, rows, features, dtype=torch.bfloat16)
    packed = PackedLinear(plain.weight, plain.bias)
    assert torch.equal(packed(x), plain(x))
    assert torch.equal(packed.weight.to_dense(), plain.weight)
    assert packed.weight.dtype == plain.weight.dtype
    assert packed.state_dict().keys() == plain.state_dict().keys()


def int8_by_hand(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The definition in float64: both sides rounded to 8 bits, one scale per row."""

    def rounded(values: Tensor) -> Tensor:
        scale = values.float().abs().amax(-1, keepdim=True) / 127
        return ((values.float() * (1 / scale)).round() * scale).double()

    return rounded(x) @ rounded(weight).T + (0 if bias is None else bias.double())


@NEEDS_BF16
@every_case("dtype", [torch.bfloat16, torch.float32])
@every_case("bias", [True, False])
@every_case(("rows", "features", "outputs"), SHAPES)
def test_int8_linear_equals_its_definition(rows: int, features: int, outputs: int, bias: bool, dtype: torch.dtype) -> None:
    plain = layer(features, outputs, bias=bias, dtype=dtype)
    x = torch.randn(rows, features, dtype=dtype)
    found, expected = Int8Linear(plain.weight, plain.bias)(x), int8_by_hand(x, plain.weight, plain.bias)
    assert found.dtype == dtype
    away = (found.double() - expected).norm() / expected.norm()
    assert away < (6e-3 if dtype == torch.bfloat16 else 1e-6)
    assert (found.double() - plain(x).double()).norm() / expected.norm() < 2e-2


@NEEDS_BF16
@pytest.mark.parametrize("amx", [False, True])
def test_int8_products_of_signed_and_unsigned_inputs_are_the_same(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AMX the kernel is given unsigned ones. Every 8-bit number is among them."""
    monkeypatch.setattr(onednn, "has_amx", lambda: amx)
    codes, weight = torch.randint(-127, 128, (40, 64), dtype=torch.int8), torch.randint(-127, 128, (24, 64), dtype=torch.int8)
    codes[:4] = torch.arange(-128, 128).to(torch.int8).view(4, 64)
    ones, zeros = torch.ones(24), torch.zeros(24, dtype=torch.int32)
    sums = onednn.int8_product(codes, onednn.pack_int8(weight), ones, zeros, torch.float32)
    assert torch.equal(sums, (codes.double() @ weight.double().T).float())


def test_products_in_8_bits_run_in_a_kernel() -> None:
    """oneDNN's reference code, which it takes for data types without a kernel, is some thousand times as slow as fp32."""
    weight, x = torch.randn(512, 512), torch.randn(128, 512)

    def seconds(run: nn.Module) -> float:
        run(x)
        started = time.process_time()
        run(x)
        return time.process_time() - started

    plain = nn.Linear(512, 512)
    assert min(seconds(Int8Linear(weight, None)) for _ in range(3)) < 50 * max(seconds(plain) for _ in range(3))


@pytest.mark.parametrize("features", [64, 512])  # rounded at once, and in pieces
def test_int8_linear_reads_transposed_tensors(features: int) -> None:
    weight, x = torch.randn(features, 96, dtype=torch.bfloat16), torch.randn(features, ROWS_PER_PRODUCT, dtype=torch.bfloat16)
    expected = Int8Linear(weight.t().contiguous(), None)(x.t().contiguous())
    assert torch.equal(Int8Linear(weight.t(), None)(x.t()), expected)
    assert VALUES_PER_ROUNDING // 512 < ROWS_PER_PRODUCT < VALUES_PER_ROUNDING // 64


def test_int8_linear_of_a_token_depends_on_no_other() -> None:
    rows = ROWS_PER_PRODUCT + 3  # more than are in one product
    quantised = Int8Linear(torch.randn(40, 512, dtype=torch.bfloat16), torch.randn(40, dtype=torch.bfloat16))
    x = torch.randn(rows, 512, dtype=torch.bfloat16) * torch.logspace(-3, 3, rows)[:, None].bfloat16()
    whole = quantised(x)
    for row in (0, 17, rows - 1):
        assert torch.equal(quantised(x[row : row + 1])[0], whole[row])


@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf")])
def test_int8_linear_keeps_tokens_that_are_not_finite_apart(value: float) -> None:
    quantised = Int8Linear(torch.randn(40, 64, dtype=torch.bfloat16), torch.randn(40, dtype=torch.bfloat16))
    x = torch.randn(9, 64, dtype=torch.bfloat16)
    expected = quantised(x)
    x[3, 5] = value
    found = quantised(x)
    assert not found[3].isfinite().any()
    others = torch.arange(9) != 3
    assert torch.equal(found[others], expected[others])


def test_quantised_rows_of_zeros_are_finite() -> None:
    values, scale = quantise(torch.zeros(2, 3))
    assert not values.any()
    assert (scale > 0).all()


@NEEDS_BF16
def test_fast_linear_layers_are_copied_and_int8_is_not_saved() -> None:
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    packed = PackedLinear(torch.randn(8, 64).bfloat16(), None)
    quantised = Int8Linear(torch.randn(8, 64).bfloat16(), None)
    for made in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(made(x), packed(x))
    assert torch.equal(copy.deepcopy(quantised)(x), quantised(x))
    with pytest.raises(BackendError, match="cannot be saved; save the model before"):
        pickle.dumps(quantised)
    with pytest.raises(BackendError, match="longattn compress"):
        quantised.state_dict()


@NEEDS_BF16
def test_packed_linear_refuses_gradients_and_other_dtypes() -> None:
    packed = PackedLinear(torch.randn(8, 64).bfloat16(), None)
    with pytest.raises(BackendError, match="computes no gradients"):
        packed(torch.randn(3, 64, dtype=torch.bfloat16, requires_grad=True))
    with pytest.raises(BackendError, match="stays on the CPU"):
        packed.float()
    assert packed.to(torch.bfloat16) is packed
