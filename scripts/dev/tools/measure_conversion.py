"""Memory and speed of converting a large checkpoint with random weights, beside copying the same files.

    python -m scripts.dev.tools.measure_conversion --gigabytes 3

Writes a Llama-shaped checkpoint tensor by tensor, converts it in several ways, each in a new process, alternating with `cp`, both
synced to the disk and both beginning with the source out of the page cache. Writes OUTPUT.json and OUTPUT.md.

    python -m scripts.dev.tools.measure_conversion --rounds 0 --ways "kept, verified" "kept, verified whole"

measures some ways again and keeps the rest of OUTPUT.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from scripts.dev.benchmarks.report import machine, store_study

HIDDEN, INTERMEDIATE, HEADS, KEY_HEADS, VOCABULARY, LENGTH = 2560, 6912, 20, 4, 32_000, 2048
ARGUMENTS = {"mechanism": "window", "window": LENGTH, "max_length": 16 * LENGTH}
WAYS: dict[str, dict[str, Any]] = {
    "kept": {},
    "cast to fp16": {"dtype": "fp16"},
    "from .bin": {"allow_pickle": True},
    "kept, verified": {"verify": True},
    "kept, verified whole": {"verify": True, "whole": True},
}
"""Ways of converting, and their arguments beside ARGUMENTS and verify=False; "whole" loads the models to be run into memory."""

CHILD = """
import json, sys
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.conversion import model_loading

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

peaks = {"imports": peak()}
def note(stage, done, total):
    if stage == "verify":
        peaks["written" if done == 0 else "tensors compared" if done == 1 else "models run"] = peak()

source, destination, arguments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if arguments.pop("whole", False):
    model_loading.IN_MEMORY, model_loading.SHARE = float("inf"), 1
report = convert_checkpoint(source, destination, progress=note, **arguments)
checks = {check.name: check.detail for check in report.checks}
print(json.dumps({"peaks": {**peaks, "end": peak()}, "seconds": report.seconds, "bytes": report.bytes_written, "checks": checks}))
"""
"""A process that converts and says the most memory that it ever had (VmHWM, mapped files among it) after each stage."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--gigabytes", type=float, default=3.0, help="size of the checkpoint (default: 3)")
    add("--rounds", type=int, default=3, help="turns of cp and conversion; 0 keeps those of OUTPUT.json (default: 3)")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ways of converting (default: all)")
    add("--folder", help="where to work; needs four times the size (default: a temporary folder)")
    add("--output", default="scripts/dev/results/conversion", help="path without suffix (default: %(default)s)")
    return parser.parse_args(arguments)


def build(folder: Path, gigabytes: float) -> tuple[int, int]:
    """Write the checkpoint in shards of 1 GB, one tensor in memory at a time; (bytes, bytes of the largest tensor)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from hf_longattn.conversion.tensor_files import OutputTensor, split_by_size, write_weights

    sizes = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS}
    config = LlamaConfig(**sizes, vocab_size=VOCABULARY, max_position_embeddings=LENGTH, dtype="bfloat16", num_hidden_layers=1)
    with torch.device("meta"):
        one = LlamaForCausalLM(config)
    layer = 2 * sum(p.numel() for p in one.model.layers.parameters())
    config.num_hidden_layers = max(1, round((gigabytes * 1e9 - 4 * VOCABULARY * HIDDEN) / layer))
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).state_dict().items()}

    def random(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.bfloat16).mul_(0.02)

    outputs = [OutputTensor(name, torch.bfloat16, shape, partial(random, shape)) for name, shape in shapes.items()]
    folder.mkdir()
    write_weights(folder, split_by_size(outputs, "1GB"))
    config.save_pretrained(folder)
    return sum(output.nbytes for output in outputs), max(output.nbytes for output in outputs)


def pickle_of(folder: Path, target: Path) -> Path:
    """The same checkpoint as files of torch.save."""
    from safetensors.torch import load_file

    target.mkdir()
    shutil.copyfile(folder / "config.json", target / "config.json")
    names: dict[str, str] = {}
    for number, shard in enumerate(sorted(folder.glob("*.safetensors")), start=1):
        tensors = load_file(shard)  # mapped
        file = f"pytorch_model-{number:05}.bin"
        torch.save(tensors, target / file)
        names |= dict.fromkeys(tensors, file)
    (target / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return target


def out_of_cache(folder: Path) -> None:
    """The next reading of these files comes from the disk."""
    for file in folder.iterdir():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copied(source: Path, target: Path) -> float:
    """Seconds of `cp` until everything is on the disk."""
    out_of_cache(source)
    started = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    for path in [*target.iterdir(), target]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds


def converted(source: Path, target: Path, way: str) -> dict[str, Any]:
    """Peaks in bytes after each stage, and seconds, of a conversion in a new process."""
    out_of_cache(source)
    started = time.perf_counter()
    arguments = {**ARGUMENTS, "verify": False, **WAYS[way]}
    command = [sys.executable, "-c", CHILD, str(source), str(target), json.dumps(arguments)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    shutil.rmtree(target)
    return {"way": way, **found, "process_seconds": time.perf_counter() - started, "busy_cores": os.getloadavg()[0]}


def measure(options: argparse.Namespace, folder: Path, before: dict[str, Any]) -> dict[str, Any]:
    """Everything that the result file holds; `before`: what it held."""
    size, largest = build(folder / "source", options.gigabytes)
    turns: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        seconds = copied(folder / "source", folder / "copy")
        turns.append({"copy_seconds": seconds, "conversion": converted(folder / "source", folder / "long", "kept")})
    runs = {turn["conversion"]["way"]: turn["conversion"] for turn in reversed(turns)}
    for way in options.ways:
        if way == "from .bin":
            runs[way] = converted(pickle_of(folder / "source", folder / "pickled"), folder / "long", way)
            shutil.rmtree(folder / "pickled")
        elif way not in runs:
            runs[way] = converted(folder / "source", folder / "long", way)
    for turn in turns:
        seconds = turn["conversion"]["seconds"]
        turn["speed_of_copy"] = turn["copy_seconds"] / (seconds["convert"] - seconds["plan"])
        turn["speed_of_copy_with_plan"] = turn["copy_seconds"] / seconds["convert"]
    kept = {run["way"]: run for run in before.get("runs", ())} if not turns else {}
    turns = turns or before["turns"]
    return {
        "machine": machine(),
        "arguments": ARGUMENTS,
        "bytes": size,
        "largest_tensor_bytes": largest,
        "limit_bytes": 2 * largest + 300_000_000,
        "limit_running_bytes": 4 * largest + 300_000_000,
        "turns": turns,
        "speed_of_copy": median(turn["speed_of_copy"] for turn in turns),
        "speed_of_copy_with_plan": median(turn["speed_of_copy_with_plan"] for turn in turns),
        "runs": [found for way in WAYS if (found := runs.get(way, kept.get(way))) is not None],
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""

    def mb(count: int | None) -> str:
        return "–" if count is None else f"{count / 1e6:,.0f}"

    size, limit = result["bytes"], result["limit_bytes"]
    lines = [
        "# Converting a large checkpoint: memory and speed",
        "",
        f"Random bf16 weights in the shape of a Llama, {size / 1e9:.2f} GB, its largest tensor {mb(result['largest_tensor_bytes'])} MB."
        " Memory is the peak resident set of the converting process (VmHWM: interpreter, libraries and mapped files included), in MB, up"
        f" to the end of each stage. Twice the largest tensor and 300 MB are {mb(limit)} MB; with the tensor in fp32, in which the models"
        f" run, {mb(result['limit_running_bytes'])} MB.",
        "",
        "| way | after imports | files written | tensors compared | models run in fp32 | seconds to write | seconds to verify |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        peaks, seconds = run["peaks"], run["seconds"]
        written = peaks.get("written", peaks["end"])
        stages = (peaks["imports"], written, peaks.get("tensors compared"), peaks.get("models run"))
        verified = f"{seconds['verify']:.0f}" if WAYS[run["way"]].get("verify") else "–"
        spent = (f"{seconds['convert'] - seconds['plan']:.1f}", verified)
        lines.append(f"| {run['way']} | {' | '.join((*(mb(stage) for stage in stages), *spent))} |")
    lines += ["", "How the models were run:", ""]
    said = "how the models were run"
    lines += [f"- {run['way']}: {run['checks'][said]}" for run in result["runs"] if said in run.get("checks", {})]
    lines += [
        "",
        "Speed beside `cp` of the same files, taking turns, each until everything is on the disk (fsync), the source out of the page cache"
        " before. Planning reads headers and builds the model without storage: it takes as long for a checkpoint of any size.",
        "",
        "| turn | cp, s | plan, s | write, s | write, MB/s | write, of cp's speed | plan and write, of cp's speed |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, turn in enumerate(result["turns"], start=1):
        seconds = turn["conversion"]["seconds"]
        write = seconds["convert"] - seconds["plan"]
        lines.append(
            f"| {number} | {turn['copy_seconds']:.1f} | {seconds['plan']:.1f} | {write:.1f} | {size / write / 1e6:,.0f} |"
            f" {turn['speed_of_copy']:.0%} | {turn['speed_of_copy_with_plan']:.0%} |"
        )
    both = f"{result['speed_of_copy']:.0%}, with the plan {result['speed_of_copy_with_plan']:.0%}"
    lines += ["", f"Medians: {both} of the speed of `cp`.", ""]
    return "\n".join([*lines, *(f"- {name}: {value}" for name, value in result["machine"].items()), ""])


def main(arguments: list[str] | None = None) -> None:
    """Build, measure, write."""
    options = parse(arguments)
    output = Path(options.output)
    before = json.loads(output.with_suffix(".json").read_text(encoding="utf-8")) if not options.rounds else {}
    if options.folder:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(options, Path(folder), before)
    store_study(output, result, markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
