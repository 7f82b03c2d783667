"""`longattn env`: the versions and the machine, as an issue wants them. Nothing is imported: a broken installation is described, too."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from ..errors import EXTRAS, UNFIT_TORCHVISION
from . import options as flags
from .terminal import Line, show

REQUIRED = ("torch", "transformers", "accelerate", "datasets", "evaluate", "huggingface_hub", "numpy", "safetensors", "tokenizers", "typer")
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "fla": "flash-linear-attention"}
"""Import names whose package has another name."""


def env(as_json: flags.Json = False) -> None:
    """Print versions, device and missing packages, for an issue."""
    environment = describe_environment()
    facts = {**environment["versions"], **environment["machine"]}
    for extra, packages in environment["extras"].items():
        installed = ", ".join(f"{name} {number or 'missing'}" for name, number in packages.items())
        facts[extra] = installed + ("" if all(packages.values()) else f"; pip install 'hf-longattn[{extra}]'")
    lines = [*(f"{name}: {value}" for name, value in facts.items()), *environment["problems"]]
    show(environment, [Line(f"- {line}") for line in lines], as_json=as_json)


def describe_environment() -> dict[str, Any]:
    """Versions, machine and extras; a package that is not installed has the version ``None``."""
    from .. import __version__

    gpus, command, information = "", shutil.which("nvidia-smi"), Path("/proc/cpuinfo")
    if command is not None:  # torch, which knows the GPUs too, takes seconds to import
        query = [command, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        gpus = ", ".join(done.stdout.splitlines()) if done.returncode == 0 else ""
    model = re.search(r"^model name\s*:\s*(.+)", information.read_text(errors="replace"), re.M) if information.is_file() else None
    processor = model[1] if model else platform.processor() or platform.machine()
    distributions = {extra: [DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in names] for extra, names in EXTRAS.items()}
    return {
        "versions": {
            "hf_longattn": __version__,
            "Python": platform.python_version(),
            **{name: installed_version(name) for name in REQUIRED},
        },
        "machine": {
            "platform": platform.platform(),
            "processor": f"{processor}, {os.cpu_count()} cores",
            "GPU": gpus or "none found",
        },
        "extras": {extra: {name: installed_version(name) for name in names} for extra, names in distributions.items()},
        "problems": [] if torchvision_fits() else [UNFIT_TORCHVISION],
    }


def installed_version(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def torchvision_fits() -> bool:
    """Whether torchvision, where it is installed, was built for the installed torch, as both packages say.

    torchvision requires one version of torch. Builds for the CPU are marked (``2.13.0+cpu``, ``0.28.0+cpu``) and fit only each other.
    """
    torch, torchvision = installed_version("torch"), installed_version("torchvision")
    if torch is None or torchvision is None:
        return True
    builds = [version.partition("+")[2] for version in (torch, torchvision)]
    required = [match[1] for need in requires("torchvision") or () if (match := re.match(r"torch\s*\(?==\s*([\w.]+)", need))]
    return ("cpu" not in builds or builds[0] == builds[1]) and required in ([], [torch.partition("+")[0]])
