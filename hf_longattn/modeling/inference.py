"""Makes models fast on a CPU: :func:`optimize_for_inference` computes linear layers in 8 bits or in fp32.

At 4,096 tokens, linear layers take three quarters of the time of a base-sized encoder with a window. (A single product
for queries, keys and values would save 2 to 3 % of the time in 8 bits.)

In 8 bits, the weight has one scale per output: its largest magnitude over 127. The input has one scale per token,
computed in every call (dynamic and symmetric, as torchao's ``Int8DynamicActivationInt8WeightConfig``). A token's
result therefore depends on no other token of its batch.

``fp16`` is the low precision of processors without bf16. Inputs in 8 bits, and even 8-bit weights alone, lose too much
there (``scripts/dev/benchmarks/half_weights.py``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any, ClassVar, NoReturn, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from ..engines.batch import differentiated, in_graph, transformed
from ..engines.cpu.onednn import check_bf16, fp32_product, has_amx, int8_product, mkl_is_slow, pack_int8
from ..errors import BackendError, OptionError, nearest
from ..mechanisms.common.base import Mechanism
from ..mechanisms.common.masked import has_hooks
from ..names import LOGGER
from .attach.sound_chunks import run_in_chunks

logger = logging.get_logger(LOGGER)
Model = TypeVar("Model", bound=nn.Module)
PRECISIONS = ("int8", "fp16", "fp32")
"""Precisions of linear layers. ``int8`` computes everything else in bf16, ``fp16`` all products in fp32."""
TOKENS_PER_PIECE = 512
"""Maximum tokens, over all rows, per call of the feed-forward block and attention's output layer. Chosen by
measurement (128 to 2,048)."""
PRECISION_ATTRIBUTE = "inference_precision"
"""Name of the model attribute that :func:`optimize_for_inference` sets to the precision."""
INT8_IS_SLOWER = (
    "optimize_for_inference('int8'): this processor (AMX) multiplies as fast in bf16, so int8 takes half the memory "
    "for weights but more time for inputs of less than about 8,000 tokens; for speed load the model with "
    "dtype=torch.bfloat16 instead."
)
"""Warning for processors with AMX (measured on an Intel Xeon of 2023). Without AMX, int8 is the fastest at every
length."""
APPLY_METHOD = "_apply"
"""The method of modules by which torch moves and converts tensors."""
ROTARY_FREQUENCIES = "inv_freq"
"""The suffix of rotary frequencies' names. They stay in float32, because rounding would mix up distant positions."""
LARGEST_CODE = 127
"""The largest magnitude of a symmetric 8-bit number."""
ROWS_PER_PRODUCT = 512
"""Maximum rows per 8-bit product. A smaller number reads the weight too often (measured: 32 to 2,048 rows of 768 and
3,072 values)."""
SMALLEST_SCALE = 1e-8
"""The smallest scale, used for rows of zeros."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context, ``model`` is in eval mode. Afterwards every module has its earlier mode, even if modes are
    mixed."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def without_cache(model: nn.Module) -> dict[str, Any]:
    """The argument with which ``forward`` fills no decode cache. Empty if it takes no such argument."""
    takes_cache = "use_cache" in inspect.signature(model.forward).parameters
    return {"use_cache": False} if takes_cache else {}


def optimize_for_inference(model: Model, precision: str) -> Model:
    """Make ``model`` fast for inference on the CPU, in place.

        model = LongBertModel.from_pretrained("longformer-base")
        hf_longattn.optimize_for_inference(model, "int8")

    - ``int8``: linear layers of the base model have 8-bit weights with one scale per output, and 8-bit inputs with one
      scale per token. Everything else is computed in bf16: embeddings, heads and trained parts of mechanisms; rotary
      frequencies stay in float32. It is the fastest without AMX. With AMX, bf16 is the fastest up to about 8,000
      tokens, and a warning says so.
    - ``fp16``: linear layers, the output layer and the token embeddings have their weights in fp16, in half of the
      memory. Everything is computed in fp32, so that outputs are those of fp32 to about 1e-3. It is for processors
      without bf16, such as those with AVX2 alone. It saves memory, not time.
    - ``fp32`` converts a model from float16 or bfloat16 to float32. On processors of AMD with AVX-512, linear layers
      are then computed by oneDNN, twice as fast as by PyTorch's MKL; outputs are equal except for the order of sums.
    - For bf16, load the model with ``dtype=torch.bfloat16`` instead. ``model.to(torch.bfloat16)`` does the same for
      models without rotary frequencies, which it rounds.
    - In ``int8``, layers with a ``feed_forward_chunk`` (BERT, RoBERTa …) run everything after attention on 512 tokens
      at a time, which then stay in the CPU cache. This changes no result.
    - Audio models of the families with convolutions over samples or feature rows (wav2vec 2.0, WavLM …), converted or
      not, run these and their feed-forward layers on pieces of a long sound. The outputs are those of one pass, in a
      fraction of its memory.

    The model is in eval mode afterwards, and its parameters need no gradients. After ``int8`` and ``fp16`` it computes
    none, stays on its device in its dtypes, and cannot be saved; ``torch.compile`` compiles only the parts between
    linear layers (``fullgraph=True`` is an error).

    Args:
        model: a Long model, a model after :func:`hf_longattn.enable_long_attention`, or any model of transformers or
            sentence-transformers. Further modules of the latter then compute in float32.
        precision: ``int8``, ``fp16`` or ``fp32``.

    Returns:
        The same model.

    Raises:
        OptionError: the precision is unknown.
        BackendError: the model is not one of transformers, or is quantised, optimised already or not on the CPU; or
            the processor has no bf16 (``int8``), or PyTorch no fbgemm (``fp16``).
    """
    first: Any = next(iter(model), None) if isinstance(model, nn.Sequential) else None
    if isinstance(transformer := getattr(first, "auto_model", None), PreTrainedModel):  # of sentence-transformers
        optimize_for_inference(transformer, precision)
        first.register_forward_hook(_in_float32)
        return model.eval()
    _check(model, precision)
    if precision == "int8" and has_amx():
        logger.warning_once(INT8_IS_SLOWER)
    model.eval().requires_grad_(False)
    run_in_chunks(model)
    if precision == "int8":
        _round_to_bf16(model)
        _replace_linear_layers(model, Int8Linear)
        _run_in_pieces(model)
    else:
        if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters()):
            model.float()
            model.config.dtype = torch.float32
        if precision == "fp16":
            _halve_embeddings(model)
            _replace_linear_layers(model, Fp16Linear)
        else:
            use_fast_products(model)
    if precision != "fp32":
        setattr(model, APPLY_METHOD, partial(_apply_to_all, model))
    setattr(model, PRECISION_ATTRIBUTE, precision)
    return model


def _run_in_pieces(model: nn.Module) -> None:
    """Run feed-forward blocks, and the output layers before them, on pieces of a text.

    A product in 8 bits gives a token the same result in any piece. A product in bf16 may depend on its number of rows.
    """
    for module in model.modules():
        feed_forward = getattr(module, "feed_forward_chunk", None)
        if not callable(feed_forward):
            continue
        setattr(module, "feed_forward_chunk", partial(_in_pieces, feed_forward))  # noqa: B010 - only some modules have it
        output = getattr(getattr(module, "attention", None), "output", None)
        if isinstance(output, nn.Module):
            output.forward = partial(_in_pieces, output.forward)


def _apply_to_all(model: nn.Module, fn: Any, recurse: bool = True) -> Any:
    """Replacement for ``_apply``, which ``to``, ``half`` … call. Raises the packed layers' errors before any
    tensor changes."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module._apply(fn)
    return type(model)._apply(model, fn, recurse)


def _check(model: Any, precision: str) -> None:
    if precision == "bf16":
        raise OptionError(
            "optimize_for_inference computes in int8 or fp32; for bf16, load the model with dtype=torch.bfloat16."
        )
    if precision not in PRECISIONS:
        raise OptionError(
            f"There is no precision {precision!r}; choose one of "
            f"{', '.join(PRECISIONS)}.{nearest(precision, PRECISIONS)}"
        )
    if not isinstance(model, PreTrainedModel):
        raise BackendError(
            "optimize_for_inference takes a model of transformers or sentence-transformers, not "
            f"{type(model).__name__}."
        )
    if (before := getattr(model, PRECISION_ATTRIBUTE, None)) is not None:
        raise BackendError(f"This model was optimised for inference already ({before}); load it again to choose anew.")
    if getattr(model.config, "quantization_config", None) is not None:
        raise BackendError(
            f"This {type(model).__name__} is quantised already; load the checkpoint that it was made from."
        )
    if precision == "fp32":
        return
    if (device := next((p.device.type for p in model.parameters() if p.device.type != "cpu"), None)) is not None:
        raise BackendError(
            f"optimize_for_inference({precision!r}) is for CPUs, but this model is on {device!r}; "
            "call model.to('cpu') before, or load it with dtype=torch.bfloat16."
        )
    if precision == "int8":
        check_bf16("precision='fp16'")
    elif "fbgemm" not in torch.backends.quantized.supported_engines:
        raise BackendError("This PyTorch has no products with weights in fp16 (fbgemm); choose precision='fp32'.")


# ---- linear layers


class FastLinear(nn.Linear):
    """A linear layer whose products in fp32 are oneDNN's. Where they cannot be, it is the plain layer.

    A layer becomes one by its ``__class__``, so that weights, names, hooks and saved files stay as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``x (…, in_features)`` -> ``(…, out_features)``."""
        if _onednn_can_multiply(x, self.weight):
            return fp32_product(x, self.weight, self.bias)
        return super().forward(x)


class FastConv1D(Conv1D):
    """GPT-2's linear layer, whose weight is transposed, as :class:`FastLinear`."""

    def forward(self, x: Tensor) -> Tensor:
        """``x (…, nx)`` -> ``(…, nf)``."""
        if _onednn_can_multiply(x, self.weight):
            return fp32_product(x, self.weight.t(), self.bias)
        out: Tensor = super().forward(x)
        return out


def _onednn_can_multiply(x: Tensor, weight: Tensor) -> bool:
    if in_graph() or transformed() or torch.is_autocast_enabled("cpu") or differentiated(x, weight):
        return False
    on_cpu = x.device.type == "cpu" and weight.device.type == "cpu"
    return on_cpu and x.dtype == torch.float32 and weight.dtype == torch.float32 and x.numel() > 0


def use_fast_products(model: nn.Module) -> None:
    """Let oneDNN compute linear layers in fp32, where its products are faster than MKL's."""
    if not mkl_is_slow():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear
        elif type(module) is Conv1D:
            module.__class__ = FastConv1D


def _round_to_bf16(model: PreTrainedModel) -> None:
    """Round parameters and buffers as ``from_pretrained(dtype=torch.bfloat16)`` does. Rotary frequencies and others
    stay in float32."""
    float32_modules = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    for name, values in (*model.named_parameters(), *model.named_buffers()):
        stays = name.endswith(ROTARY_FREQUENCIES) or any(part in float32_modules for part in name.split("."))
        if values.is_floating_point() and not stays:
            values.data = values.data.to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):  # the patch embedding gets float32 pixels from processors
            module.register_forward_pre_hook(_as_its_weight)
    model.config.dtype = torch.bfloat16


def _in_float32(module: nn.Module, inputs: Any, features: dict[str, Any]) -> dict[str, Any]:
    """Forward hook of a sentence-transformers module: cast features to float32, for modules that pool and normalise
    them."""
    return {name: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in features.items()}


def _rows_in_float32(module: nn.Module, inputs: Any, rows: Tensor) -> Tensor:
    """Forward hook of an embedding in fp16."""
    return rows.float()


def _as_its_weight(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    weight: Any = module.weight
    return tuple(x.to(weight.dtype) for x in inputs)


def _halve_embeddings(model: PreTrainedModel) -> None:
    """Keep token embeddings in fp16. Their outputs stay float32.

    The table becomes a buffer, because models read their dtype from the first parameter. An output layer tied to the
    table gets a copy of its own (:func:`_replace_linear_layers`).
    """
    with suppress(NotImplementedError):  # a base with several embeddings
        table: Any = model.get_input_embeddings()
        if not isinstance(table, nn.Embedding):
            return
        weight, half = table.weight, table.weight.detach().half()
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.weight is weight:
                del module.weight
                module.register_buffer("weight", half)
                module.register_forward_hook(_rows_in_float32)


def _replace_linear_layers(model: PreTrainedModel, kind: type[PackedLinear]) -> None:
    """Replace linear layers of the base model by packed ones. In fp16, also the output layer."""
    inside = {id(module) for module in model.base_model.modules()}
    output = id(model.get_output_embeddings())
    if kind is Fp16Linear:
        inside.add(output)
    else:
        inside.discard(output)
    with suppress(NotImplementedError):  # a base with several embeddings
        inside.discard(id(model.get_input_embeddings()))  # models read the embeddings' dtype
    replacements: dict[nn.Module, PackedLinear] = {}
    for module, parent, name in list(_linears(model, kind.original)):
        if id(module) not in inside:
            continue
        if module not in replacements:
            weight = cast(Tensor, module.weight).detach()
            if isinstance(module, Conv1D):
                weight = weight.t()  # (out_features, in_features)
            replacements[module] = kind(weight, cast("Tensor | None", module.bias))
        setattr(parent, name, replacements[module])


def _in_pieces(function: Callable[..., Tensor], *tensors: Any) -> Tensor:
    """Call ``function`` on :data:`TOKENS_PER_PIECE` tokens of tensors ``(B, N, D)`` at a time. For other arguments,
    call it once.

    ``function`` treats tokens independently. transformers counts the parameters of ``feed_forward_chunk``, and
    ``*tensors`` counts as one.
    """
    shapes = {tuple(x.shape[:2]) if isinstance(x, Tensor) and x.dim() == 3 else () for x in tensors}
    rows, length = shapes.pop() or (0, 0)
    size = max(1, TOKENS_PER_PIECE // max(1, rows))
    if shapes or in_graph() or length <= size:
        return function(*tensors)
    out = None
    for start in range(0, length, size):
        piece = function(*(x[:, start : start + size] for x in tensors))
        if out is None:
            out = piece.new_empty(rows, length, *piece.shape[2:])
        out[:, start : start + size] = piece
    assert out is not None
    return out


def _linears(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[tuple[nn.Module, nn.Module, str]]:
    """``(layer, parent, name)`` of every linear layer of ``dtype`` that can be replaced.

    Excludes parts of mechanisms, and layers with hooks or shared weights."""
    excluded = {
        id(module)
        for mechanism in model.modules()
        if isinstance(mechanism, Mechanism)
        for module in mechanism.modules()
    }
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(module))
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            plain = type(module) in (nn.Linear, Conv1D) and id(module) not in excluded and not has_hooks(module)
            if (
                plain
                and len(owners[id(module.weight)]) == 1
                and all(parameter.dtype == dtype for parameter in module.parameters())
            ):
                yield module, parent, name


# ---- models with 8-bit layers of torchao

PRODUCTS_OVERFLOW = (
    "The 8-bit products of torch overflow on this processor, which has no VNNI instructions, so the outputs of a "
    "model of torchao's int8 are wrong on it. Run it on a GPU or on a processor with VNNI, or compress it with "
    "--method int8-weight-only or bf16."
)
"""Warning for processors whose 8-bit products overflow."""


@cache
@torch.no_grad()
def products_overflow() -> bool:
    """Whether 8-bit products of torchao's layers are wrong on this CPU.

    Without VNNI instructions, pairs of products are summed in 16 bits, which can overflow.
    """
    from torchao import quantization as ao

    layer = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    layer.weight.fill_(1.0)
    ao.quantize_(layer, ao.Int8DynamicActivationInt8WeightConfig())
    return abs(float(layer(torch.ones(1, 64, dtype=torch.bfloat16)).mean()) - 64) > 1


def warn_of_overflow(model: Any) -> None:
    """Warn if 8-bit products of ``model`` are wrong on this CPU."""
    quantisation = getattr(model.config, "quantization_config", None)
    scheme = type(getattr(quantisation, "quant_type", None)).__name__
    if scheme == "Int8DynamicActivationInt8WeightConfig" and model.device.type == "cpu" and products_overflow():
        logger.warning(PRODUCTS_OVERFLOW)


# ---- linear layers in 8 bits, or with weights in fp16


@torch.compiler.disable(
    reason="Layers after optimize_for_inference run between graphs; compile without fullgraph=True."
)
def _run_uncompiled(layer: nn.Module, x: Tensor) -> Tensor:
    """The output of ``layer``, computed between two graphs of torch.compile, since Inductor cannot read oneDNN's
    layout."""
    out: Tensor = layer(x)
    return out


class PackedLinear(nn.Module):
    """A linear layer whose weight is in the layout of a library's kernels. It computes no gradients, and stays on the
    CPU in its dtype.

    Args:
        weight: ``(out_features, in_features)``, on the CPU.
        bias: ``(out_features,)``, or ``None``.
    """

    original: ClassVar[torch.dtype]
    """The dtype of the layers that a model's packed layers replace."""
    dtype: torch.dtype
    """The dtype of inputs and outputs."""
    packed: Any
    """The weight in the layout of the kernels."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.bias = None if bias is None else bias.detach().clone()

    def product(self, x: Tensor) -> Tensor:
        """Multiply rows ``(M, in_features)`` by the weight and add the bias: ``(M, out_features)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """``x (…, in_features)`` -> ``(…, out_features)``.

        Raises:
            BackendError: the input needs gradients, or the model is being exported.
        """
        if torch.compiler.is_compiling():
            if torch.compiler.is_exporting():
                raise BackendError(
                    "A model after optimize_for_inference cannot be exported, since its weights are packed; export it "
                    "before."
                )
            return _run_uncompiled(self, x)
        if differentiated(x):
            raise BackendError(
                "A model after optimize_for_inference computes no gradients; load it again to train it."
            )
        out = self.product(x.reshape(-1, self.in_features))
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """The layer itself. ``to``, ``half``, ``cuda`` … would apply ``fn`` to all tensors, but packed weights do not
        change.

        Raises:
            BackendError: the dtype or the device would change.
        """
        probe = torch.empty(0, dtype=self.dtype)
        if (moved := fn(probe)).dtype != probe.dtype or moved.device != probe.device:
            raise BackendError(
                f"A model after optimize_for_inference stays on the CPU in {self.dtype}; load it again to move or "
                "convert it."
            )
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        """The copy shares the weight, which never changes."""
        duplicate = type(self).__new__(type(self))
        duplicate.__dict__ |= {
            name: value.copy() if isinstance(value, dict) else value for name, value in self.__dict__.items()
        }
        memo[id(self)] = duplicate
        return duplicate

    def __getstate__(self, *_: Any) -> NoReturn:
        raise BackendError(
            "The weights of a model after optimize_for_inference are rounded and cannot be saved; save the "
            "model before, or write a quantised checkpoint with `longattn compress`."
        )

    _save_to_state_dict = __getstate__  # type: ignore[assignment]


class Int8Linear(PackedLinear):
    """A linear layer with 8-bit weights and inputs. Sums have 32 bits, outputs the original weight's dtype."""

    original = torch.bfloat16

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        quantised, scale = quantise(weight.detach())
        self.scale = scale.flatten()
        self.packed = pack_int8(quantised)
        self.zeros = torch.zeros(self.out_features, dtype=torch.int32)

    @property
    def weight(self) -> Tensor:
        """The packed weight in oneDNN's layout. T5 reads its dtype in every call."""
        return self.packed

    def product(self, x: Tensor) -> Tensor:
        """Multiply rows ``(M, in_features)`` by the weight and add the bias: ``(M, out_features)``."""
        out = x.new_empty(x.shape[0], self.out_features)
        for start in range(0, x.shape[0], ROWS_PER_PRODUCT):
            rows = slice(start, start + ROWS_PER_PRODUCT)
            codes, scale = quantise(x[rows])
            sums = int8_product(codes, self.packed, self.scale, self.zeros, self.dtype)
            if self.bias is None:
                torch.mul(sums, scale.to(self.dtype), out=out[rows])
            else:
                torch.addcmul(self.bias, sums, scale.to(self.dtype), out=out[rows])
        return out


class Fp16Linear(PackedLinear):
    """A linear layer with weights in fp16, which fbgemm converts to fp32 while it multiplies. Inputs, sums and outputs
    are fp32."""

    original = torch.float32

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.detach().contiguous(), self.bias)

    @property
    def weight(self) -> Tensor:
        """No values. T5 reads the dtype of inputs in every call."""
        return torch.empty(0, dtype=self.dtype)

    def product(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return out


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise every row of ``x (M, K)`` to int8. Returns codes ``(M, K)`` and float32 scales ``(M, 1)``.

    The codes are x · (1 / scale), as in torchao.
    """
    # The largest magnitude of each row. Bit patterns of floats are in the same order, and comparing integers is
    # faster.
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    largest = x.abs().view(bits).amax(-1, keepdim=True).view(x.dtype).float()
    scale = largest.div_(LARGEST_CODE).clamp_(min=SMALLEST_SCALE)
    # the product reads rows, even if x is a transposed weight (Conv1D)
    values = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return values.mul_(scale.reciprocal()).round_().to(torch.int8), scale
