"""Memory, time and outputs of an encoder's ONNX graph at up to 8,192 tokens: `longattn export` against PyTorch's own exporter.

    python -m scripts.dev.benchmarks.onnx_graphs

The model has BERT-base's size and random weights. Every run is a process of its own with ONNX Runtime's defaults, in which sides take
turns. Its peak memory contains the weights, Python and the runtime.
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
LENGTHS, OURS, ROUNDS, TOLERANCE = (512, 4096, 8192), "longattn export", 3, 1e-5
PROCESS = """
import json, resource, sys, time
import numpy, onnxruntime

graph, length, expected = sys.argv[1], int(sys.argv[2]), numpy.load(sys.argv[3], mmap_mode="r")
session = onnxruntime.InferenceSession(graph)
ids = 5 + numpy.arange(length)[None] * 7919 % 30000
inputs = {value.name: ids if value.name == "input_ids" else numpy.ones_like(ids) for value in session.get_inputs()}
seconds, peaks = [], []
for _ in range(max(2, 2048 // length)):
    start = time.perf_counter()
    output = session.run(None, inputs)[0]
    seconds.append(time.perf_counter() - start)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
difference = float(abs(output - expected).max() / abs(expected).max())
print(json.dumps({"seconds": min(seconds), "first": peaks[0], "peak": peaks[-1], "difference": difference}))
"""
"""One side at one length: its time, peak bytes after the first and the last run, and largest difference of the largest output."""


def graphs(folder: Path) -> dict[str, Path]:
    """Write the model and its graph by every way."""
    torch.manual_seed(0)
    BertModel(BertConfig(max_position_embeddings=LENGTHS[-1])).save_pretrained(folder / "model")
    export_checkpoint(folder / "model", folder / "ours")
    files = {OURS: folder / "ours" / "model.onnx"}
    example = {name: torch.ones(1, 600, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    axes = {name: {1: torch.export.Dim("length", min=2, max=LENGTHS[-1])} for name in example}
    for attention in ("sdpa", "eager"):
        model = AutoModel.from_pretrained(folder / "model", attn_implementation=attention).eval()
        files[f"torch.onnx.export, {attention}"] = file = folder / f"{attention}.onnx"
        torch.onnx.export(model, kwargs=example, f=file, dynamo=True, dynamic_shapes=axes, external_data=True, verbose=False)
    return files


def measured(folder: Path, lengths: Sequence[int], rounds: int) -> dict[str, dict[str, Any]]:
    """Length -> way -> best time, peaks of memory and difference from the model in PyTorch, over ``rounds`` processes."""
    files, found = graphs(folder), dict[str, dict[str, Any]]()
    model = AutoModel.from_pretrained(folder / "model").eval()
    for length in lengths:
        with torch.no_grad():
            expected = model(5 + torch.arange(length)[None] * 7919 % 30000).last_hidden_state.numpy()
        np.save(folder / "expected.npy", expected)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in files}
        for _ in range(rounds):
            for name, file in files.items():
                command = [sys.executable, "-c", PROCESS, str(file), str(length), str(folder / "expected.npy")]
                runs[name].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        found[str(length)] = {
            name: {part: (min if part == "seconds" else max)(run[part] for run in rows) for part in rows[0]}
            | {"times_ours": statistics.median(run["seconds"] / own["seconds"] for run, own in zip(rows, runs[OURS], strict=True))}
            for name, rows in runs.items()
        }
    return found


def table(record: Mapping[str, Any]) -> str:
    """Memory and time by length, and the largest difference."""
    lengths = list(record["runs"])
    heads = ["", *(f"GB at {int(length):,} tokens" for length in lengths), *(f"s at {int(length):,}" for length in lengths), "difference"]
    rows = []
    for name in record["runs"][lengths[0]]:
        runs = [record["runs"][length][name] for length in lengths]
        peaks, times = [f"{run['peak'] / 1e9:.2f}" for run in runs], [f"{run['seconds']:.2f}" for run in runs]
        rows.append([name, *peaks, *times, f"{max(run['difference'] for run in runs):.1e}"])
    return report.markdown_table(heads, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = report.study_parser(__doc__, OUTPUT, "512 tokens, once").parse_args(arguments)
    with tempfile.TemporaryDirectory() as work:
        runs = measured(Path(work), LENGTHS[: 1 if options.quick else None], 1 if options.quick else ROUNDS)
    worst = max(row[OURS]["difference"] for row in runs.values())
    if not worst <= TOLERANCE:
        raise SystemExit(f"error: the graph differs from the model by {worst:.1e} of its largest output, so nothing is stored")
    record = {"machine": report.machine(), "onnxruntime": version("onnxruntime"), "runs": runs}
    if output := report.output_of(options, OUTPUT):
        report.store_study(output, record)
    print(table(record))


if __name__ == "__main__":
    main()
