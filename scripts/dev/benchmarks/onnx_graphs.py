"""Memory, time and outputs of an encoder's ONNX graph at up to 8,192 tokens: `longattn export` against PyTorch's own
exporter.

    python -m scripts.dev.benchmarks.onnx_graphs

The model has BERT-base's size and random weights. Every run is a process of its own with ONNX Runtime's defaults, in
which sides take turns. Its peak memory contains the weights, Python and the runtime.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, BertConfig, BertModel

from hf_longattn import export_checkpoint
from scripts.dev import RESULTS
from scripts.dev.benchmarks import report

OUTPUT = RESULTS / "onnx_graphs"
ROUNDS = {512: 4, 4096: 2, 8192: 1}
"""Tokens -> processes of each side."""
OURS, TOLERANCE, LIMIT = "longattn export", 1e-5, 22
"""Our side; its maximum difference; GiB of addresses that a process may take, since PyTorch's graph was killed at 23
GB of memory."""
PROCESS = """
import json, pathlib, re, resource, sys, time
import numpy, onnxruntime

graph, length, expected = sys.argv[1], int(sys.argv[2]), numpy.load(sys.argv[3], mmap_mode="r")
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[4]) << 30,) * 2)
session = onnxruntime.InferenceSession(graph)
ids = 5 + numpy.arange(length)[None] * 7919 % 30000
inputs = {value.name: ids if value.name == "input_ids" else numpy.ones_like(ids) for value in session.get_inputs()}
seconds, peaks = [], []
for _ in range(max(2, 2048 // length)):
    start = time.perf_counter()
    output = session.run(None, inputs)[0]
    seconds.append(time.perf_counter() - start)
    status = pathlib.Path("/proc/self/status").read_text()
    peaks.append(int(re.search(r"VmHWM:\\s*(\\d+)", status)[1]) * 1024)  # without the parent's
difference = float(abs(output - expected).max() / abs(expected).max())
print(json.dumps({"seconds": min(seconds), "first": peaks[0], "peak": peaks[-1], "difference": difference}))
"""
"""One side at one length: its time, peak bytes after the first and the last run, and largest difference of the largest
output."""


def graphs(folder: Path) -> dict[str, Path]:
    """Write the model and its graph by every way."""
    torch.manual_seed(0)
    BertModel(BertConfig(max_position_embeddings=max(ROUNDS))).save_pretrained(folder / "model")
    export_checkpoint(folder / "model", folder / "ours")
    files = {OURS: folder / "ours" / "model.onnx"}
    example = {name: torch.ones(1, 600, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    axes = {name: {1: torch.export.Dim("length", min=2, max=max(ROUNDS))} for name in example}
    for attention in ("sdpa", "eager"):
        model = AutoModel.from_pretrained(folder / "model", attn_implementation=attention).eval()
        files[f"torch.onnx.export, {attention}"] = file = folder / f"{attention}.onnx"
        torch.onnx.export(
            model, kwargs=example, f=file, dynamo=True, dynamic_shapes=axes, external_data=True, verbose=False
        )
    return files


def measured(folder: Path, rounds: Mapping[int, int]) -> dict[str, dict[str, Any]]:
    """Length -> way -> best time, peaks of memory and difference from the model in PyTorch, over the processes of
    ``rounds``."""
    files, found = graphs(folder), dict[str, dict[str, Any]]()
    model = AutoModel.from_pretrained(folder / "model").eval()
    for length, processes in rounds.items():
        with torch.no_grad():
            expected = model(5 + torch.arange(length)[None] * 7919 % 30000).last_hidden_state.numpy()
        np.save(folder / "expected.npy", expected)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in files}
        for _ in range(processes):
            for name, file in files.items():
                command = [
                    sys.executable,
                    "-c",
                    PROCESS,
                    str(file),
                    str(length),
                    str(folder / "expected.npy"),
                    str(LIMIT),
                ]
                runs[name].append(
                    json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                )
        for name, rows in runs.items():
            row = {part: (min if part == "seconds" else max)(run[part] for run in rows) for part in rows[0]}
            ratios = (run["seconds"] / own["seconds"] for run, own in zip(rows, runs[OURS], strict=True))
            found.setdefault(str(length), {})[name] = row | {"times_ours": statistics.median(ratios)}
    return found


def table(record: Mapping[str, Any]) -> str:
    """Memory with the first and with later texts of a length, time (and how many times ours), and the largest
    difference."""
    lengths = list(record["runs"])
    heads = ["", *(f"{unit} at {int(length):,}" for unit in ("GB", "s") for length in lengths), "difference"]
    rows = []
    for name in record["runs"][lengths[0]]:
        runs = [record["runs"][length][name] for length in lengths]
        peaks = [f"{run['first'] / 1e9:.2f}; {run['peak'] / 1e9:.2f}" for run in runs]
        times = [f"{run['seconds']:.2f} ({run['times_ours']:.2f} ×)" for run in runs]
        rows.append([name, *peaks, *times, f"{max(run['difference'] for run in runs):.1e}"])
    return report.markdown_table(heads, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = report.study_parser(__doc__, OUTPUT, "512 tokens, once").parse_args(arguments)
    with tempfile.TemporaryDirectory() as work:
        runs = measured(Path(work), {512: 1} if options.quick else ROUNDS)
    worst = max(row[OURS]["difference"] for row in runs.values())
    if not worst <= TOLERANCE:
        raise SystemExit(
            f"error: the graph differs from the model by {worst:.1e} of its largest output, so nothing is stored"
        )
    record = {"machine": report.machine(), "onnxruntime": version("onnxruntime"), "runs": runs}
    if output := report.output_of(options, OUTPUT):
        report.store_study(output, record)
    print(table(record))


if __name__ == "__main__":
    main()
