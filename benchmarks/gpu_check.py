"""Check every mechanism on CUDA against the float64 definition, then time them; `python scripts/gpu_check.py` runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from hf_longattn import list_mechanisms, mechanism_info

from .case import Case
from .device_check import DeviceCheck, check_device
from .report import machine, store_study
from .run import run_attention

CHECKED = [1, 77, 512, 1000, 2048]
TIMED = [1024, 4096, 16384, 65536]


def main(
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the script itself.")] = "cuda",
    quick: Annotated[bool, typer.Option("--quick", help="Short inputs only, a minute on a CPU.")] = False,
    output: Annotated[Path, typer.Option(help="Where the results go.")] = Path("docs/results/gpu_check.json"),
) -> None:
    """Forward and backward in fp32, bf16 and fp16 against float64; then timings against SDPA and flex_attention."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        typer.echo("There is no CUDA device here, so nothing was checked; `--device cpu --quick` tries the script itself.")
        return
    dtypes = ["fp32", "bf16"] if device == "cpu" else ["fp32", "bf16", "fp16"]
    checks = list(check_device(device, [1, 40, 130] if quick else CHECKED, dtypes, typer.echo))
    failed = [check for check in checks if not check.passed]
    timed = [] if failed else timings(device, quick)
    store(output, checks, timed)
    typer.echo(f"{len(checks) - len(failed)} of {len(checks)} checks passed; stored in {output}")
    if failed or not all(record["equal"] for record in timed):
        raise typer.Exit(1)


def timings(device: str, quick: bool) -> list[dict[str, Any]]:
    """Every mechanism against SDPA over all keys (FlashAttention), SDPA with a written-out mask, and flex with an exact block mask."""
    records = []
    for name in list_mechanisms():
        form = mechanism_info(name).causal
        for causal in [False, True] if form == "both" else [bool(form)]:
            for backward in [False, True]:
                typer.echo(f"\n{name}, {'causal' if causal else 'both ways'}, {'forward and backward' if backward else 'forward'}")
                case = Case(name, dtype="fp32" if device == "cpu" else "bf16", causal=causal, backward=backward, device=device)
                if quick:
                    case = case.at(heads=2)
                lengths = [128, 256] if quick else TIMED
                records.append(run_attention(case, lengths, ["sdpa", "sdpa-mask", "flex"], log=typer.echo).to_dict())
    return records


def store(path: Path, checks: list[DeviceCheck], timed: list[dict[str, Any]]) -> None:
    """One JSON: the machine, every check with its errors, every timing."""
    store_study(path, {"machine": machine(), "checks": [check.to_dict() for check in checks], "timings": timed})
