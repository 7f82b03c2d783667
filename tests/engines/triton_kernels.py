"""Our Triton kernels without a GPU: ``python -m tests.engines.triton_kernels`` prints a JSON line for each case.

``interpreted`` ones run under Triton's interpreter on the CPU, forward and backward, beside the definition in double precision;
``compiled`` ones are compiled for an H100. A process interprets kernels or compiles them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines import dispatch
from hf_longattn.engines.common import accelerator
from hf_longattn.engines.cuda import delta_kernel, linear_kernel, terms_kernel
from hf_longattn.engines.linear import _delta_chunks, gated_delta_rule, linear_attention

from .pretended_h100 import Lacking, triton_folder

CHILD = "HF_LONGATTN_TRITON_KERNELS"
INTERPRETED: dict[str, tuple[Any, ...]] = {
    "one tile": (2, 2, 100, 17, 16, True),
    "grouped heads": (4, 2, 150, 40, 24, True),
    "several chunks": (1, 1, 300, 20, 10, True),
    "many features, no quotient": (2, 2, 70, 130, 8, False),
    "wide values": (2, 1, 65, 5, 150, True),
    "half precision": (2, 1, 200, 48, 16, True, torch.bfloat16),
    "laid out by tokens": (2, 2, 90, 32, 32, True, torch.float32, True),
    "logarithms": (4, 2, 150, 80, 16, True, torch.float32, False, True),
}
"""Heads, heads of keys, tokens, features, width of values, whether there is a quotient, the values' dtype, whether rows of all heads follow
each other, and whether the features are given by their logarithms."""
HYBRID: dict[str, dict[str, Any]] = {
    "hybrid": {"causal": False, "kv_heads": 2},
    "hybrid, causal": {"causal": True, "kv_heads": 4},
    "hybrid, padded": {"causal": True, "kv_heads": 2, "padding": True},
    "hybrid, documents": {"causal": False, "kv_heads": 2, "documents": True},
    "hybrid, few queries": {"causal": True, "kv_heads": 2, "queries": 190, "window": 20},
    "hybrid, a wide window, estimated terms": {"causal": False, "kv_heads": 2, "window": 180, "features": "taylor:feature_dim=4"},
    "hybrid, features of key heads, half precision": {"causal": True, "kv_heads": 2, "features": "linear", "dtype": torch.bfloat16},
}
"""Arguments of :func:`hybrid_errors`."""
DELTA: dict[str, tuple[Any, ...]] = {
    "delta": (2, 150, 16, 16), "delta, keys wider than values": (1, 70, 40, 24), "delta, half precision": (1, 130, 16, 70, torch.bfloat16),
}  # fmt: skip
"""Heads, tokens, numbers of a key, numbers of a value, and the dtype."""
COMPILED: dict[str, dict[str, Any]] = {
    f"{kernel}, {side}, {precision}{', exp' if exponential else ''}": {
        "kernel": kernel, "CHUNK": 256, "BLOCK": linear_kernel.BLOCK, "FEATURES": side, "WIDTH": side, "WEIGH": True, "NORMALISE": True,
        "ADD": False, "REVERSE": False, "EXP": exponential, "PRECISION": precision,
    }
    for kernel in ("chunk_sums", "outputs") for side in (16, 64) for precision in ("tf32", "tf32x3") for exponential in (False, True)
} | {
    f"outputs, added to, {side}, {precision}": {
        "kernel": "outputs", "CHUNK": 256, "BLOCK": linear_kernel.BLOCK, "FEATURES": side, "WIDTH": side, "WEIGH": True, "NORMALISE": False,
        "ADD": True, "REVERSE": True, "EXP": False, "PRECISION": precision,
    }
    for side in (16, 64) for precision in ("tf32", "tf32x3")
} | {
    f"softmax_terms, {side}, {precision}{', labels' if labelled else ''}": {
        "kernel": "softmax_terms", "BLOCK": linear_kernel.BLOCK, "FEATURES": side, "WIDTH": side, "LABELLED": labelled,
        "PRECISION": precision,
    }
    for side in (16, 64) for precision in ("tf32", "tf32x3") for labelled in (False, True)
} | {
    f"{kernel}, {side}, {precision}": {
        "kernel": kernel, "CHUNK": delta_kernel.CHUNK, "FEATURES": side, "WIDTH": width, "PRECISION": precision,
    }
    for kernel, width in (("delta_updates", 64), ("delta_states", 32), ("delta_outputs", 32))
    for side in (64, 128) for precision in ("tf32", "tf32x3")
}  # fmt: skip
"""The name of a kernel and its constants."""
POINTERS = ("k", "q", "scale", "sums", "weights", "out", "out_weights", "g", "beta", "updates", "seen", "states", "factor", "tops")


def errors(
    heads: int, groups: int, length: int, features: int, width: int, normalise: bool, dtype: torch.dtype = torch.float32,
    by_tokens: bool = False, logarithms: bool = False,
) -> list[float]:  # fmt: skip
    """The largest differences of outputs, state and all gradients, relative to the largest number."""
    torch.manual_seed(0)
    q, k, v = (torch.rand(2, count, length, size) for count, size in ((heads, features), (groups, features), (groups, width)))
    if by_tokens:
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    v = v.to(dtype)
    inputs = [x.requires_grad_() for x in (q, k, v, torch.rand(2, groups, features, width), torch.rand(2, groups, features))]
    scale = torch.randn(2, groups, features) if logarithms else None
    found = linear_kernel.kernel_linear_attention(*inputs, normalise, scale)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    given = {"initial_state": {"kv": wide[3], "z": wide[4]}, "scale": None if scale is None else scale.double()}
    out, state = linear_attention(*wide[:3], causal=True, normalise=normalise, **given)
    expected = out, state["kv"], state["z"]
    upstream = [torch.rand_like(x) for x in found]
    pairs = [*zip(found, expected, strict=True)]
    of_inputs = torch.autograd.grad(found, inputs, upstream)
    pairs += zip(of_inputs, torch.autograd.grad(expected, wide, [x.double() for x in upstream]), strict=True)
    return [float((x - y).abs().max() / y.abs().max()) for x, y in pairs]


def delta_errors(heads: int, length: int, features: int, width: int, dtype: torch.dtype = torch.float32) -> list[float]:
    """As :func:`errors`, of the gated delta rule."""
    torch.manual_seed(0)
    q, k = (torch.nn.functional.normalize(torch.randn(2, heads, length, features), dim=-1) for _ in range(2))
    rates = -0.2 * torch.rand(2, heads, length), torch.rand(2, heads, length)
    tensors = *(x.to(dtype) for x in (q, k, torch.randn(2, heads, length, width))), *rates, torch.randn(2, heads, features, width)
    inputs = [x.requires_grad_() for x in tensors]
    found = delta_kernel.kernel_gated_delta_rule(_delta_chunks, *inputs)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    expected = gated_delta_rule(*wide)
    upstream = [torch.rand_like(x) for x in found]
    of_inputs = torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, wide, [x.double() for x in upstream])
    pairs = [*zip(found, expected, strict=True), *zip(*of_inputs, strict=True)]
    return [float((x - y).abs().max() / y.abs().max()) for x, y in pairs]


def hybrid_errors(
    causal: bool, kv_heads: int, window: int = 24, features: str = "hedgehog", padding: bool = False, documents: bool = False,
    queries: int = 200, dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:  # fmt: skip
    """The paths and, as :func:`errors`, the differences of the mechanism's outputs and gradients, those of its parameters among them."""
    torch.manual_seed(0)
    length = 200
    module = build_mechanism("hybrid", num_heads=4, head_dim=16, window=window, features=features)
    q, k, v = (torch.randn(2, heads, length, 16, dtype=dtype) for heads in (4, kv_heads, kv_heads))
    inputs = [q[:, :, -queries:].clone().requires_grad_(), *(x.requires_grad_() for x in (k, v))]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    arguments: dict[str, Any] = {"causal": causal}
    real = torch.ones(2, length, dtype=torch.bool)
    if padding:
        real = arguments["padding_mask"] = torch.arange(length) < torch.tensor([[length], [130]])
    if documents:
        arguments["documents"] = (torch.arange(length) // 70).expand(2, -1)
    paths: list[str] = []
    with dispatch.observe(lambda _, choice: paths.append(choice.path)):
        out = attend(*inputs, module, **arguments)
    expected = reference_attend(*wide, module, **arguments)
    rows = real[:, None, -queries:, None]
    upstream = torch.rand_like(out) * rows
    pairs = [(out * rows, expected * rows)]
    parameters = list(module.parameters())
    of_inputs = torch.autograd.grad(out, [*inputs, *parameters], upstream)
    pairs += zip(of_inputs, torch.autograd.grad(expected, [*wide, *parameters], upstream.double()), strict=True)
    return {"errors": [float((x - y).abs().max() / y.abs().max()) for x, y in pairs], "paths": paths}


def usage(kernel: str, **constants: Any) -> dict[str, int]:
    """The bytes of shared memory that a kernel takes, and of registers that it spills."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = {"delta": delta_kernel, "softmax": terms_kernel}.get(kernel.split("_")[0], linear_kernel)
    function = getattr(module.triton_kernels(), kernel)
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    precision = constants["PRECISION"]
    stages = 1 if kernel == "delta_states" and constants["FEATURES"] > delta_kernel.ALWAYS_AHEAD else 2
    of_inputs = dict.fromkeys(("q", "k", "v") if module is terms_kernel else ("v",), "*bf16" if precision == "tf32" else "*fp32")
    types = dict.fromkeys(POINTERS, "*fp32") | of_inputs | {"q_labels": "*i32", "k_labels": "*i32", "score_scale": "fp32"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in function.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(function.arg_names) if signature[name] not in ("constexpr", "fp32")}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    found = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=linear_kernel.LAUNCH | {"num_stages": stages})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        reader = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        done = subprocess.run([reader, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    stack = re.search(r"STACK:(\d+)", done.stdout)
    assert stack is not None
    return {"shared": found.metadata.shared, "stack": int(stack[1])}


def choose_as_a_gpu() -> None:
    """Paths are chosen from here on as if all tensors were on CUDA; the kernels are tried."""
    accelerator.accelerated = lambda _: True
    dispatch.DispatchContext.device = property(lambda _: "cuda", lambda *_: None)  # type: ignore[assignment]


def main() -> None:
    """Run ``interpreted`` or ``compiled`` cases, the argument, in a process with Triton."""
    (kind,) = sys.argv[1:]
    if CHILD not in os.environ:
        try:
            paths = [str(triton_folder()), os.environ.get("PYTHONPATH", "")]
        except Lacking as error:
            print(json.dumps({"lacking": str(error)}))
            return
        interpreter = {"TRITON_INTERPRET": "1"} if kind == "interpreted" else {}
        environment = {**os.environ, **interpreter, CHILD: "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        os.execve(sys.executable, [sys.executable, "-m", __spec__.name, kind], environment)
    linear_kernel._tried = lambda *_: None
    delta_kernel._tried = lambda *_: None
    for name, case in INTERPRETED.items() if kind == "interpreted" else ():
        print(json.dumps({"case": name, "errors": errors(*case)}), flush=True)
    for name, case in DELTA.items() if kind == "interpreted" else ():
        print(json.dumps({"case": name, "errors": delta_errors(*case)}), flush=True)
    if kind == "interpreted":
        choose_as_a_gpu()
    for name, options in HYBRID.items() if kind == "interpreted" else ():
        print(json.dumps({"case": name, **hybrid_errors(**options)}), flush=True)
    for name, constants in COMPILED.items() if kind == "compiled" else ():
        print(json.dumps({"case": name, **usage(**constants)}), flush=True)


if __name__ == "__main__":
    main()
