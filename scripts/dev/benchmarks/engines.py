"""Embeddings of a stock BERT with a longer table in engines that know BERT, against sentence-transformers.

    python -m scripts.dev.benchmarks.engines

The model is all-MiniLM-L6-v2 after `convert … --mechanism full --max-length 4096` and `export … --format native`. The
texts are the first tokens of Python's language reference. llama.cpp comes from a package, and its own converter writes
the weights in F16.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np

from hf_longattn import convert_checkpoint, export_checkpoint, export_native
from scripts.dev import RESULTS
from scripts.dev.benchmarks import report
from scripts.dev.real import make_llama_cpp, real_checkpoint

OUTPUT = RESULTS / "engines"
LONGEST, LENGTHS = 4096, (16, 512, 4096)
LEAST = 0.999
"""Minimum cosine of a result that is stored."""
Embed = Callable[[str], Any]
"""A function from a text to its embedding, of any norm."""


def stock_minilm(folder: Path) -> Path:
    """Write the stock BERT into ``folder``."""
    convert_checkpoint(real_checkpoint(), folder.with_name("long"), mechanism="full", max_length=LONGEST, verify=False)
    export_native(folder.with_name("long"), folder, verify=False)
    return folder


def llama_cpp(stock: Path, tokenizer: Any) -> Embed:
    """The server of llama.cpp, in this process."""
    engine, file = make_llama_cpp(), stock.parent / "stock.gguf"
    convert = [
        sys.executable,
        str(engine / "convert_hf_to_gguf.py"),
        str(stock),
        "--outtype",
        "f16",
        "--outfile",
        str(file),
    ]
    subprocess.run(convert, check=True, capture_output=True)
    if str(engine) not in sys.path:
        sys.path.append(str(engine))
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.embedding, settings.n_parallel = str(file), True, 1
    settings.n_ctx = settings.n_batch = settings.n_ubatch = LONGEST
    server = xllamacpp.Server(settings)
    return lambda text: server.handle_embeddings({"input": text})["data"][0]["embedding"]


def graph_of(stock: Path) -> str:
    """The file of `longattn export`, made at the first call."""
    folder = stock.parent / "graph"
    if not folder.exists():
        export_checkpoint(stock, folder)
    return str(folder / "model.onnx")


def onnx_runtime(stock: Path, tokenizer: Any) -> Embed:
    """ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph_of(stock))
    return lambda text: session.run(["sentence_embedding"], dict(tokenizer(text, return_tensors="np")))[0][0]


def openvino(stock: Path, tokenizer: Any) -> Embed:
    """OpenVINO in float32, with the same file."""
    import openvino

    model = openvino.compile_model(graph_of(stock), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda text: model(dict(tokenizer(text, return_tensors="np")))["sentence_embedding"][0]


ENGINES = {
    "llama.cpp, F16": ("xllamacpp", llama_cpp),
    "ONNX Runtime": ("onnxruntime", onnx_runtime),
    "OpenVINO": ("openvino", openvino),
}
"""Engine -> its package, and the function that loads a stock model with its tokenizer."""


def cosines(engine: str, lengths: Sequence[int], stock: Path) -> list[float]:
    """The cosine of an engine's embedding with that of sentence-transformers, at each number of tokens."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(stock), device="cpu")
    reference = " ".join(topics[name] for name in sorted(topics))[: 20 * LONGEST]
    ends = encoder.tokenizer(reference, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    embed, found = ENGINES[engine][1](stock, encoder.tokenizer), []
    for length in lengths:
        text = reference[: ends[length - 3][1]]  # besides, there are [CLS] and [SEP]
        expected, value = encoder.encode(text), np.asarray(embed(text), dtype=np.float64)
        found.append(float(value @ expected / np.linalg.norm(value) / np.linalg.norm(expected)))
    return found


def table(record: Mapping[str, Any]) -> str:
    """Cosines by length."""
    rows = [
        [f"{engine} ({record['versions'][engine]})", *(f"{value:.6f}" for value in row)]
        for engine, row in record["cosines"].items()
    ]
    return report.markdown_table(
        ["cosine with sentence-transformers", *(f"{length:,} tokens" for length in record["lengths"])], rows
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = report.study_parser(__doc__, OUTPUT, "16 and 512 tokens").parse_args(arguments)
    lengths = LENGTHS[:2] if options.quick else LENGTHS
    with tempfile.TemporaryDirectory() as work:
        stock = stock_minilm(Path(work) / "stock")
        found = {engine: cosines(engine, lengths, stock) for engine in ENGINES}
    if any(min(values) < LEAST for values in found.values()):
        raise SystemExit(f"error: a cosine is below {LEAST}, so nothing is stored: {found}")
    versions = {engine: f"{package} {version(package)}" for engine, (package, _) in ENGINES.items()}
    record = {"machine": report.machine(), "versions": versions, "lengths": lengths, "cosines": found}
    if output := report.output_of(options, OUTPUT):
        report.store_study(output, record)
    print(table(record))


if __name__ == "__main__":
    main()
