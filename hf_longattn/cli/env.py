"""`longattn env`: the versions and the machine, as an issue wants them. Nothing is imported: a broken installation is described, too."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import EXTRAS, UNFIT_TORCHVISION, hides_torchvision
from . import options as flags
from .terminal import print_json, say

REQUIRED = ("torch", "transformers", "accelerate", "datasets", "evaluate", "huggingface_hub", "numpy", "safetensors", "tokenizers", "typer")
PURPOSES = {
    "audio": "`longattn train ctc`, `longattn train classify --audio`, and sound files wherever they are read",
    "compress": "`longattn compress --method int8` and other methods of torchao",
    "fla": "faster linear attention on CUDA",
    "images": "`longattn train classify --images`, with augmentation",
    "metrics": "scores of `longattn train ctc`, `embed`, `seq2seq` and `tokens`",
    "onnx": "`longattn export` to ONNX",
    "peft": "LoRA in training",
    "plot": "drawings: `longattn inspect --plot`",
    "sentence": "`longattn train embed`, `longattn embed`",
}
"""What each extra is for, in the words of a user."""
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "fla": "flash-linear-attention"}
"""Modules whose package has another name."""
INDEX = re.compile(r"(?:cpu|cu\d+|rocm[\d.]+|xpu)?")
"""The marks of torch's indices of packages; PyPI's have none."""


def env(as_json: flags.Json = False) -> None:
    """Print versions, device and missing packages, for an issue."""
    environment = describe_environment()
    if as_json:
        print_json(environment)
        return
    say(*(f"- {name}: {value}" for name, value in environment["versions"].items()))
    say(*(f"- {name}: {value}" for name, value in environment["machine"].items()))
    for extra, about in environment["extras"].items():
        missing = [name for name, installed in about["packages"].items() if installed is None]
        packages = ", ".join(f"{name} {installed or 'missing'}" for name, installed in about["packages"].items())
        say(f"- {extra} ({about['purpose']}): {packages}" + (f"; pip install 'hf-longattn[{extra}]'" if missing else ""))
    for problem in environment["problems"]:
        say(f"- {problem}")


def describe_environment() -> dict[str, Any]:
    """Versions, machine and extras; a package that is not installed has the version ``None``."""
    from .. import __version__

    versions = {name: installed_version(name) for name in REQUIRED}
    return {
        "versions": {"hf_longattn": __version__, "Python": platform.python_version(), **versions},
        "machine": {
            "platform": platform.platform(),
            "processor": f"{processor_name()}, {os.cpu_count()} cores",
            "GPU": ", ".join(gpu_names()) or "none found",
        },
        "extras": {
            extra: {"purpose": PURPOSES[extra], "packages": {name: installed_version(name) for name in packages}}
            for extra, packages in EXTRAS.items()
        },
        "problems": [] if torchvision_fits() else [UNFIT_TORCHVISION],
    }


def installed_version(module: str) -> str | None:
    """The version of an import's package, "unknown" where it does not say."""
    if find_spec(module) is None and not (module == "torchvision" and hides_torchvision()):
        return None
    for name in (module, module.replace("_", "-"), DISTRIBUTIONS.get(module, module)):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def torchvision_fits() -> bool:
    """Whether torchvision, where it is installed, was built for the installed torch, as both packages say: without importing either.

    Builds of one index have the same mark (``2.13.0+cpu``, ``0.28.0+cpu``), and torchvision requires one version of torch. Other marks, as
    in NVIDIA's containers, are those of each package's source, and say nothing.
    """
    torch, torchvision = (installed_version(name) for name in ("torch", "torchvision"))
    if torch is None or torchvision in (None, "unknown"):
        return True
    (number, _, build), built_for = torch.partition("+"), torchvision.partition("+")[2]
    wanted = [found[1] for need in requires("torchvision") or () if (found := re.match(r"torch\s*\(?==\s*([\w.]+)", need))]
    comparable = all(INDEX.fullmatch(mark) for mark in (build, built_for))
    return (build == built_for or not comparable) and wanted in ([], [number])


def processor_name() -> str:
    """The processor's model, or its architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8", errors="replace").splitlines() if information.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def gpu_names() -> list[str]:
    """The NVIDIA GPUs that the driver lists, by nvidia-smi; without torch, which takes seconds to import."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    done = subprocess.run([program, "--query-gpu=name,memory.total", "--format=csv,noheader"], capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []
