"""Low precision on a processor with AVX2 alone: cosine with fp32, memory of weights, and time.

    python -m scripts.dev.benchmarks.half_weights --text wikitext-2/test.txt  # ten minutes
    python -m scripts.dev.benchmarks.half_weights --quick  # 64 tokens of all-MiniLM-L6-v2; stores nothing

The models are all-MiniLM-L6-v2 and Gemma 3 270M (`make real-decoder`). Variables tell the libraries of PyTorch to use
AVX2 alone, and a fresh process reads them. Each way is compared with fp32 token by token, in the last hidden states.
Times are processor seconds of one thread, in turns with fp32. They are left out for 8-bit weights, which only round
here. Texts have no special tokens. ONNX Runtime reads no such variable, but its sums are the same with all
instructions, so that its cosines hold.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from hf_longattn import export_checkpoint, optimize_for_inference
from hf_longattn.modeling.inference import Fp16Linear, quantise
from scripts.dev.benchmarks import report
from scripts.dev.benchmarks.run import in_turn
from scripts.dev.real import DECODER, real_checkpoint

OUTPUT = Path("scripts/dev/results/half_weights")
ONLY_AVX2 = dict.fromkeys(("MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "FBGEMM_ENABLE_INSTRUCTIONS"), "AVX2") | {
    "ATEN_CPU_CAPABILITY": "avx2"
}
"""The variables that keep MKL, oneDNN, fbgemm and PyTorch's own kernels from newer instructions."""
SMALL, LARGE = "all-MiniLM-L6-v2", "Gemma 3 270M"
MODELS = {SMALL: AutoModel, LARGE: AutoModelForCausalLM}
OURS, ROUNDED = "`fp16`", "8-bit weights, fp32 inputs"
TURNS, LEAST, SCORED, PIECE = 3, 0.999, 256, 20_000
"""Times of a pass, the least cosine allowed for our way, the last tokens whose loss is measured, and characters of the
text."""


def rounded(model: nn.Module) -> nn.Module:
    """Round the weights of linear layers to 8 bits, with one scale per output."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            codes, scale = quantise(module.weight.detach())
            module.weight = nn.Parameter(codes * scale, requires_grad=False)
    return model


def dynamic(model: nn.Module) -> nn.Module:
    """PyTorch's dynamic int8 with its default engine."""
    out: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return out


WAYS: dict[str, Callable[[Any], Any]] = {
    OURS: lambda model: optimize_for_inference(model, "fp16"),
    ROUNDED: rounded,
    "PyTorch's dynamic int8": dynamic,
}


def bytes_of(model: nn.Module) -> int:
    """Bytes of parameters, buffers and packed fp16 weights. Tied tensors count once."""
    tensors = {x.data_ptr(): x.nbytes for x in (*model.parameters(), *model.buffers())}
    packed = [x.in_features * x.out_features for x in model.modules() if isinstance(x, Fp16Linear)]
    return sum(tensors.values()) + 2 * sum(packed)


def cosines(found: Tensor, expected: Tensor) -> dict[str, float]:
    """Least and mean cosine of the vectors of tokens."""
    each = cosine_similarity(found.double(), expected.double(), dim=-1)
    return {"least": float(each.min()), "mean": float(each.mean())}


def onnx_rows(folder: Path, ids: Tensor, expected: Tensor) -> list[dict[str, Any]]:
    """ONNX Runtime's dynamic int8 of the exported graph, in both kinds that cannot overflow without VNNI."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    rows = []
    with tempfile.TemporaryDirectory() as work:
        export_checkpoint(folder, Path(work) / "graph")
        for name, settings in (
            ("unsigned weights", {"weight_type": QuantType.QUInt8}),
            ("reduce_range", {"weight_type": QuantType.QInt8, "reduce_range": True}),
        ):
            file = f"{work}/{settings['weight_type']}.onnx"
            quantize_dynamic(f"{work}/graph/model.onnx", file, per_channel=True, **settings)
            session = onnxruntime.InferenceSession(file)
            inputs = {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "token_type_ids": torch.zeros_like(ids),
            }
            states = session.run(["last_hidden_state"], {name: x.numpy() for name, x in inputs.items()})[0]
            found = cosines(torch.from_numpy(states), expected)
            rows.append({"way": f"ONNX Runtime's dynamic int8, {name}", **found})
    return rows


@torch.no_grad()
def measure(name: str, folder: Path, text: str, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of a model."""
    plain: Any = MODELS[name].from_pretrained(folder, dtype=torch.float32).eval()
    head = plain.get_output_embeddings()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", add_special_tokens=False).input_ids
    states = {length: plain.base_model(ids[:, :length]).last_hidden_state for length in lengths}
    rows: list[dict[str, Any]] = []
    for way, change in WAYS.items():
        changed = change(copy.deepcopy(plain))
        for length, expected in states.items():
            found = changed.base_model(ids[:, :length]).last_hidden_state
            row: dict[str, Any] = {"model": name, "way": way, "length": length, **cosines(found, expected)}
            if way == OURS and not row["least"] >= LEAST:
                raise SystemExit(f"error: a cosine of fp16 with fp32 is {row['least']}, so nothing is stored")
            if way == OURS:
                row["bytes"] = [bytes_of(plain), bytes_of(changed)]
            if head is not None:
                answers = ids[0, max(1, length - SCORED + 1) : length + 1]
                sides = ((head, expected), (changed.get_output_embeddings(), found))
                row["losses"] = [float(cross_entropy(layer(x[0, -len(answers) :]), answers)) for layer, x in sides]
            if way != ROUNDED and length == lengths[0]:
                row["times"] = [times(plain, changed, ids[:, :size]) for size in (length, 1)]
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    if head is None:
        inputs = ids[:, : lengths[0]]
        rows += [{"model": name, "length": lengths[0], **row} for row in onnx_rows(folder, inputs, states[lengths[0]])]
    return rows


def times(plain: Any, changed: Any, inputs: Tensor) -> float:
    """Time of a pass relative to fp32's."""
    passes = {"fp32": partial(plain.base_model, inputs), "changed": partial(changed.base_model, inputs)}
    fp32, other = (min(each) for each in in_turn(passes, TURNS, clock=time.process_time).values())
    return other / fp32


def table(record: dict[str, Any]) -> str:
    """Cosine, loss, memory of weights and time of each way."""
    head = ("model", "way", "tokens", "least cosine", "mean", "loss", "weights, MB", "time", "time of one token")
    rows = []
    for row in record["rows"]:
        loss = " → ".join(f"{x:.4f}" for x in row.get("losses", ()))
        size = " → ".join(f"{x / 1e6:,.0f}" for x in row.get("bytes", ()))
        ratios = [f"{x:.2f} ×" for x in row.get("times", ())] or ["", ""]
        cosine = [f"{row[name]:.6f}" for name in ("least", "mean")]
        rows.append([row["model"], row["way"], f"{row['length']:,}", *cosine, loss, size, *ratios])
    return f"{report.markdown_table(head, rows)}\n\n*{report.where(record['machine'])}, limited to AVX2*"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command, in a process with AVX2 alone."""
    parser = report.study_parser(__doc__, OUTPUT, "64 tokens of all-MiniLM-L6-v2")
    parser.add_argument("--text", type=Path, help="file of text (default: Python's language reference)")
    options = parser.parse_args(arguments)
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        command = [sys.executable, "-m", "scripts.dev.benchmarks.half_weights", *(arguments or sys.argv[1:])]
        raise SystemExit(subprocess.run(command, env={**os.environ, **ONLY_AVX2}).returncode)
    torch.set_num_threads(1)
    text = options.text.read_text(encoding="utf-8") if options.text else "\n".join(topics.values())
    rows = measure(SMALL, real_checkpoint(), text[:PIECE], [64 if options.quick else 512])
    if not options.quick:
        rows += measure(LARGE, DECODER, text[:PIECE], [512, 2048])
    record = {"machine": report.machine(), "rows": rows}
    if output := report.output_of(options, OUTPUT):
        report.store_study(output, record)
    print(table(record))


if __name__ == "__main__":
    main()
