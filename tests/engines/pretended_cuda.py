"""CUDA for PyTorch on a machine without a GPU: what its C++ code asks about the device is answered.

Nothing runs there. A process begins anew with the answers by :func:`started` (``mixed_devices.py``).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

CACHE = Path(__file__).parents[2] / ".tmp"
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


class Lacking(Exception):
    """What this machine lacks for the pretence."""


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
        command = [*f"{compiler} -x c++ - -shared -fPIC -std=c++20".split(), f"-I{root}/include", f"-L{root}/lib"]
        part = f"{library}.{os.getpid()}"
        libraries = ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"]
        done = subprocess.run([*command, *libraries, "-o", part], input=HOOKS, capture_output=True, text=True)
        if done.returncode:
            raise Lacking(f"PyTorch's C++ headers cannot be compiled: {done.stderr.strip().splitlines()[0]}")
        os.replace(part, library)
    return library


STARTED = "PRETENDED_CUDA"
"""The variable of a process that has the hooks."""


def started(module: str) -> bool:
    """Whether this process, the program ``module``, has the hooks; where it has not, it begins anew with them and the
    same arguments.

    ``False``, after a line of JSON that says what is lacking, where this machine cannot have them.
    """
    if STARTED not in os.environ:
        CACHE.mkdir(exist_ok=True)
        try:
            variables = {**os.environ, "LD_PRELOAD": str(hooks()), STARTED: "1"}
        except Lacking as error:
            print(json.dumps({"lacking": str(error)}))
            return False
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], variables)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    return True


@contextlib.contextmanager
def results(module: str, key: str) -> Iterator[Callable[[str], dict[str, Any]]]:
    """The result of a name, which ``python -m module`` prints as lines of JSON, one after another, with the name under
    ``key``."""
    found: dict[str, dict[str, Any]] = {}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-m", module], cwd=CACHE.parent, **pipes) as process:
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
