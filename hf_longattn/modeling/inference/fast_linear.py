"""Linear layers for inference on the CPU, with weights packed once for oneDNN's kernels.

``nn.Linear`` packs its weight again in every call. :class:`PackedLinear` stores it in oneDNN's layout and computes the same bits.
:class:`Int8Linear` stores 8 bits per weight. (A single product for queries, keys and values would save 2 to 3 % of the time in 8 bits.)

In 8 bits, the weight has one scale per output: its largest magnitude over 127. The input has one scale per token, computed in every call
(dynamic and symmetric, as torchao's ``Int8DynamicActivationInt8WeightConfig``). A token's result therefore depends on no other token of
its batch.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ...engines.batch import differentiated
from ...engines.cpu.onednn import int8_product, pack_int8, pack_weight, packed_product
from ...errors import BackendError

LARGEST_CODE = 127
"""The largest magnitude of a symmetric 8-bit number."""
ROWS_PER_PRODUCT = 512
"""Maximum rows per 8-bit product. With fewer, the weight is read too often (measured: 32 to 2,048 rows of 768 and 3,072 values)."""
VALUES_PER_ROUNDING = 3 * 2**16
"""Number of input values to quantise at a time, so that they stay in the CPU cache between the steps of rounding."""
SMALLEST_SCALE = 1e-8
"""The smallest scale, used for rows of zeros."""


@torch.compiler.disable(reason="Layers after optimize_for_inference run between graphs; compile without fullgraph=True.")
def _run_uncompiled(layer: nn.Module, x: Tensor) -> Tensor:
    """The output of ``layer``, computed between two graphs of torch.compile, since Inductor cannot read oneDNN's layout."""
    out: Tensor = layer(x)
    return out


class InferenceLinear(nn.Module):
    """Base class of linear layers without gradients. On a fixed device and in a fixed dtype."""

    in_features: int
    out_features: int
    bias: Tensor | None
    dtype: torch.dtype
    """The dtype of inputs and outputs."""
    packed: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """``x (…, in_features)`` -> ``(…, out_features)``.

        Raises:
            BackendError: the input needs gradients, or the model is being exported.
        """
        if torch.compiler.is_compiling():
            if torch.compiler.is_exporting():
                raise BackendError(
                    "A model after optimize_for_inference cannot be exported, since its weights are packed; export it before."
                )
            return _run_uncompiled(self, x)
        return self.product(self.rows(x)).view(*x.shape[:-1], self.out_features)

    def rows(self, x: Tensor) -> Tensor:
        """``x`` as rows, ``(…, in_features)`` -> ``(M, in_features)``."""
        if differentiated(x):
            raise BackendError("A model after optimize_for_inference computes no gradients; load it again to train it.")
        return x.reshape(-1, self.in_features)

    def product(self, x: Tensor) -> Tensor:
        """The product of rows, ``(M, in_features)`` -> ``(M, out_features)``."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.check_stays(fn)
        return self

    def check_stays(self, fn: Any) -> None:
        """Raise :class:`BackendError` if ``fn`` would change packed weights. ``to``, ``half``, ``cuda`` … apply it to all tensors.

        Raises:
            BackendError: the dtype or the device would change.
        """
        probe = torch.empty(0, dtype=self.dtype)
        if (moved := fn(probe)).dtype != probe.dtype or moved.device != probe.device:
            raise BackendError(
                f"A model after optimize_for_inference stays on the CPU in {self.dtype}; load it again to move or convert it."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> InferenceLinear:
        """The copy shares the weight, which never changes."""
        duplicate = type(self).__new__(type(self))
        duplicate.__dict__ |= {name: value.copy() if isinstance(value, dict) else value for name, value in self.__dict__.items()}
        memo[id(self)] = duplicate
        return duplicate

    @property
    def weight(self) -> Tensor:
        """The packed weight in oneDNN's layout. T5 reads its dtype in every call."""
        return self.packed


class PackedLinear(InferenceLinear):
    """``nn.Linear`` with its weight packed for oneDNN; the same results, bit for bit.

    Args:
        weight: ``(out_features, in_features)``, on the CPU.
        bias: ``(out_features,)``, or ``None``.
        transposed: whether to save the weight as ``(in_features, out_features)``, the layout of the replaced layer (Conv1D).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, transposed: bool = False) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype, self.transposed = weight.dtype, transposed
        self.packed = pack_weight(weight.detach().contiguous())
        self.bias = None if bias is None else bias.detach().clone()

    def product(self, x: Tensor) -> Tensor:
        return packed_product(x, self.packed, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": self.packed.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.packed = pack_weight(state["packed"])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        weight = self.packed.to_dense()
        destination[f"{prefix}weight"] = weight.t().contiguous() if self.transposed else weight
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias


class Int8Linear(InferenceLinear):
    """A linear layer with 8-bit weights and inputs. Sums have 32 bits, outputs the original weight's dtype.

    Args:
        weight: ``(out_features, in_features)``, on the CPU.
        bias: ``(out_features,)``, or ``None``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        quantised, scale = quantise(weight.detach())
        self.scale = scale.flatten()
        self.packed = pack_int8(quantised)
        self.zeros = torch.zeros(self.out_features, dtype=torch.int32)
        self.bias = None if bias is None else bias.detach().clone()

    def product(self, x: Tensor) -> Tensor:
        out = x.new_empty(x.shape[0], self.out_features)
        for start in range(0, x.shape[0], ROWS_PER_PRODUCT):
            rows = slice(start, start + ROWS_PER_PRODUCT)
            codes, scale = quantise_in_pieces(x[rows])
            sums = int8_product(codes, self.packed, self.scale, self.zeros, self.dtype)
            if self.bias is None:
                torch.mul(sums, scale.to(self.dtype), out=out[rows])
            else:
                torch.addcmul(self.bias, sums, scale.to(self.dtype), out=out[rows])
        return out

    def __getstate__(self) -> NoReturn:
        refuse_saving()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        refuse_saving()


def quantise(x: Tensor, codes: Tensor | None = None, space: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantise every row of ``x (M, K)``. int8 codes ``(M, K)`` and float32 scales ``(M, 1)``. Codes are x · (1 / scale), as in torchao.

    ``codes (M, K)`` int8 and ``space (M, K)`` float32 are reused if given, which saves allocating them.
    """
    scale = largest_magnitudes(x).div_(LARGEST_CODE).clamp_(min=SMALLEST_SCALE)
    # the product reads rows, even if x is a transposed weight (Conv1D)
    values = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format) if space is None else space.copy_(x)
    values.mul_(scale.reciprocal()).round_()
    return values.to(torch.int8) if codes is None else codes.copy_(values), scale


def quantise_in_pieces(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise ``x (M, K)`` as :func:`quantise` does, about :data:`VALUES_PER_ROUNDING` values at a time."""
    rows = max(1, VALUES_PER_ROUNDING // x.shape[1])
    if x.shape[0] <= rows:
        return quantise(x)
    codes, space = torch.empty(x.shape, dtype=torch.int8), torch.empty(rows, x.shape[1])
    scales = [
        quantise(x[start : start + rows], codes[start : start + rows], space[: len(x) - start])[1] for start in range(0, len(x), rows)
    ]
    return codes, torch.cat(scales)


def largest_magnitudes(x: Tensor) -> Tensor:
    """The largest magnitude of every row of ``x (M, K)``, float32 ``(M, 1)``. Bit patterns are compared: they have the same order, and
    comparing integers is faster."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.abs().view(bits).amax(-1, keepdim=True).view(x.dtype).float()


def refuse_saving() -> NoReturn:
    raise BackendError(
        "The weights of a model after optimize_for_inference('int8') are rounded and cannot be saved; save the model before, or write a "
        "quantised checkpoint with `longattn compress`."
    )
