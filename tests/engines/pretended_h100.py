"""An H100 for PyTorch's compiler on a machine without a GPU: lowers graphs of fake CUDA tensors to Triton kernels.

Nothing runs. Tensors are fake, CUDA's properties are those of an H100, Triton comes from its wheel, and a kernel that
has been generated is noted in place of being launched. A process that does so is started with :func:`environment` and
calls :func:`pretend` (``lowering.py``).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

CACHE = Path(__file__).parents[2] / ".tmp"
TRITON = {"2.13": "3.7.1", "2.15": "3.9.0"}
"""The Triton that each PyTorch for CUDA asks for."""
HOOKS = """
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

struct CUDAHooks : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(at::DeviceIndex) const override { return true; }
  at::DeviceIndex deviceCount() const override { return 1; }
  at::DeviceIndex current_device() const override { return 0; }
  at::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(at::DeviceIndex) const override {}
  at::DeviceIndex exchangeDevice(at::DeviceIndex) const override { return 0; }
  at::DeviceIndex maybeExchangeDevice(at::DeviceIndex) const override { return 0; }
};

struct Guard : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  static c10::Device device() { return c10::Device(c10::DeviceType::CUDA, 0); }
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, device()); }
  c10::Device getDevice() const override { return device(); }
  c10::Device exchangeDevice(c10::Device) const override { return device(); }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

namespace at { REGISTER_CUDA_HOOKS(CUDAHooks) }
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, Guard) }
"""
SHARED_MEMORY = 232448
PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    warp_size=32,
    total_memory=80 << 30,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    regs_per_multiprocessor=65536,
    L2_cache_size=50 << 20,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=SHARED_MEMORY,
    shared_memory_per_multiprocessor=233472,
    gcnArchName="",
    clock_rate=1980000,
    memory_clock_rate=2619000,
    memory_bus_width=5120,
    is_integrated=0,
)


class Lacking(Exception):
    """What this machine lacks for the pretence."""


class Lowered(Exception):
    """Raised where the first generated kernel would run."""


class Generated(NamedTuple):
    """A Triton kernel, whose name begins with ``triton_tem`` where it is one of flex_attention."""

    name: str
    source: str


def triton_folder() -> Path:
    """The folder with an unpacked wheel of Triton, downloaded once.

    Raises:
        Lacking: the wheel cannot be had.
    """
    version = TRITON.get(".".join(torch.__version__.split(".")[:2]))
    if version is None:
        raise Lacking(f"no Triton is known for PyTorch {torch.__version__}")
    folder = CACHE / f"triton-{version}"
    if folder.exists():
        return folder
    part = f"{folder}.{os.getpid()}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        "--target",
        part,
        f"triton=={version}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Lacking(
            f"triton {version} cannot be downloaded: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}"
        )
    Path(part).rename(folder)
    return folder


def hooks() -> Path:
    """The library with what PyTorch asks CUDA in C++, compiled once for each PyTorch.

    Raises:
        Lacking: it cannot be compiled.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise Lacking("there is no g++")
    library = CACHE / f"pretended_cuda-{torch.__version__}.so"
    if not library.exists():
        root = Path(torch.__file__).parent
        command = [
            compiler,
            "-x",
            "c++",
            "-",
            "-shared",
            "-fPIC",
            "-std=c++20",
            f"-I{root / 'include'}",
            f"-L{root / 'lib'}",
        ]
        part = f"{library}.{os.getpid()}"
        libraries = ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"]
        done = subprocess.run([*command, *libraries, "-o", part], input=HOOKS, capture_output=True, text=True)
        if done.returncode:
            raise Lacking(f"PyTorch's C++ headers cannot be compiled: {done.stderr.strip().splitlines()[0]}")
        os.replace(part, library)
    return library


def environment(triton: bool = True) -> dict[str, str]:
    """The variables with which a process has the hooks before PyTorch asks for any, and Triton.

    Raises:
        Lacking: this machine does not have what that needs.
    """
    CACHE.mkdir(exist_ok=True)
    paths = [os.environ.get("PYTHONPATH", "")]
    if triton and importlib.util.find_spec("triton") is None:
        paths.insert(0, str(triton_folder()))
    caches = {
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TRITON_CACHE_DIR": str(CACHE / "triton-cache"),
    }
    return {**os.environ, **caches, "LD_PRELOAD": str(hooks()), "PYTHONPATH": os.pathsep.join(filter(None, paths))}


STARTED = "PRETENDED_H100"
"""The variable of a process that has been started with :func:`environment`."""


def variables(triton: bool = True) -> dict[str, str]:
    """:func:`environment`, of a process that need not begin anew; this one's, where this machine does not have what
    that needs."""
    try:
        return environment(triton) | {STARTED: "1"}
    except Lacking:  # which the process says
        return {**os.environ}


def started(module: str, triton: bool = True) -> bool:
    """Whether this process, the program ``module``, has the hooks; where it has not, it begins anew with them and the
    same arguments.

    ``False``, after a line of JSON that says what is lacking, where this machine cannot have them.
    """
    if STARTED not in os.environ:
        try:
            os.execve(
                sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environment(triton) | {STARTED: "1"}
            )
        except Lacking as error:
            print(json.dumps({"lacking": str(error)}))
            return False
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    return True


def pretend() -> list[Generated]:
    """Make this process, for the rest of its life, one with an H100; the list gets every Triton kernel that is
    generated."""
    kernels: list[Generated] = []
    _pretend_device()
    _note_kernels(kernels)
    return kernels


def _pretend_device() -> None:
    from torch._dynamo.device_interface import CudaInterface

    def answers(value: Any) -> Any:
        return lambda *_, **__: value

    state = torch.zeros(1)
    for name, answer in {
        "_lazy_init": None,
        "is_available": True,
        "is_initialized": True,
        "current_device": 0,
        "device_count": 1,
        "set_device": None,
        "get_device_properties": PROPERTIES,
        "get_device_capability": (9, 0),
        "is_bf16_supported": True,
        "synchronize": None,
        "current_stream": SimpleNamespace(cuda_stream=0),
        "is_current_stream_capturing": False,
        "get_rng_state": state,
        "set_rng_state": None,
        "device": contextlib.nullcontext(),
        "_DeviceGuard": contextlib.nullcontext(),
    }.items():
        setattr(torch.cuda, name, answers(answer))
    torch.cuda.random.get_rng_state, torch.cuda.random.set_rng_state = answers(state), answers(None)
    torch.version.cuda = "13.0"
    for name in (
        "_cuda_getDevice",
        "_cuda_getCurrentRawStream",
        "_cuda_setDevice",
        "_cuda_exchangeDevice",
        "_cuda_maybeExchangeDevice",
    ):
        setattr(torch._C, name, answers(0))
    for name, answer in {
        "is_available": True,
        "get_compute_capability": 90,
        "current_device": 0,
        "device_count": 1,
        "get_device_properties": PROPERTIES,
        "is_triton_capable": True,
        "raise_if_triton_unavailable": None,
        "is_bf16_supported": True,
        "synchronize": None,
    }.items():
        setattr(CudaInterface, name, staticmethod(answers(answer)))
    for function in vars(torch.utils._triton).values():
        getattr(function, "cache_clear", lambda: None)()
    CudaInterface.Worker.get_device_properties = staticmethod(answers(PROPERTIES))
    CudaInterface.Worker.current_device = staticmethod(answers(0))


def _note_kernels(kernels: list[Generated]) -> None:
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor
    import triton
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.fx_passes import joint_graph, post_grad
    from torch._inductor.output_code import CompiledFxGraph
    from triton.backends.compiler import GPUTarget

    def noted(_: Any, name: str, source: str, *__: Any, **___: Any) -> Any:
        kernels.append(Generated(name, source))
        return SimpleNamespace(run=lambda *_, **__: None)

    def lowered(*_: Any, **__: Any) -> None:
        raise Lowered

    AsyncCompile.triton, AsyncCompile.wait = noted, lambda *_: None
    AsyncCompile.warm_pool = classmethod(lambda _: None)
    CompiledFxGraph.__call__ = lowered
    inductor.compile_threads, inductor.fallback_random, inductor.triton.cudagraphs = 1, True, False
    # they compute constants on the device
    inductor.pattern_matcher, inductor.joint_graph_constant_folding = False, False
    joint_graph.lazy_init, post_grad.lazy_init = lambda *_, **__: None, lambda *_, **__: None
    functorch.force_non_lazy_backward_lowering = True
    limits = {"max_shared_mem": SHARED_MEMORY, "multiprocessor_count": 132, "warpSize": 32}
    driver = SimpleNamespace(
        utils=SimpleNamespace(get_device_properties=lambda _: limits),
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_active_torch_device=lambda: torch.device("cuda", 0),
        get_current_stream=lambda _=None: 0,
        get_device_interface=lambda: torch.cuda,
    )
    triton.runtime.driver.set_active(driver)


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Tensors without data, which may be on CUDA."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@contextlib.contextmanager
def results(module: str, key: str, *arguments: str, triton: bool = True) -> Iterator[Callable[[str], dict[str, Any]]]:
    """The result of a name, which ``python -m module`` with the arguments prints as lines of JSON, one after another,
    with the name under ``key``."""
    found: dict[str, dict[str, Any]] = {}
    command = [sys.executable, "-m", module, *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, cwd=CACHE.parent, env=variables(triton), **pipes) as process:
        output = process.stdout
        assert output is not None

        def result_of(name: str) -> dict[str, Any]:
            while name not in found:
                line = output.readline()
                assert line, f"`python -m {module}` ended before {name!r}"
                result = json.loads(line)
                found[result.get(key, name)] = result
            if "lacking" in found[name]:
                pytest.skip(f"there is no pretended GPU: {found[name]['lacking']}")
            return found[name]

        yield result_of
        process.kill()
