"""Encoders without padding: documents per second and memory, beside padded batches, sorted ones and ONNX Runtime.

    python -m scripts.dev.benchmarks.padding  # twenty minutes
    python -m scripts.dev.benchmarks.padding --quick  # 64 texts, MiniLM alone; stores nothing

The texts are 500 docstrings and topics of Python's own documentation, of 16 to 8,192 tokens. Batches have 32 of them,
in the order in which they were drawn, or sorted by length. Each way runs in a process of its own, which tells its time
and its growth. Equality of the outputs with the first way's comes first.
"""

from __future__ import annotations

import importlib
import inspect
import multiprocessing
import os
import pydoc_data.topics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertForSequenceClassification, ModernBertConfig, ModernBertModel

import hf_longattn
from scripts.dev import RESULTS
from scripts.dev.benchmarks import report
from scripts.dev.benchmarks.memory import growth
from scripts.dev.real import real_checkpoint

OUTPUT = RESULTS / "padding"
BATCH, TEXTS, QUICK, SHORTEST, LONGEST = 32, 500, 64, 16, 8192
LAYERS = 3
"""Layers of the model of ModernBERT-base's shape, of 22."""
QUERY = "Which function raises this error?"
TOLERANCE = 1e-5
NOT_IMPORTED = frozenset(("antigravity", "this", "idlelib", "test", "tkinter", "turtledemo", "turtle"))
ENCODER, RERANKER, SHAPE = "all-MiniLM-L6-v2", "the same as a cross-encoder", f"ModernBERT-base, {LAYERS} of 22 layers"
POSITIONS = {ENCODER: 512, RERANKER: 512, SHAPE: LONGEST}
"""Model -> length at which texts are cut."""
UNPADDED, OPTIMISED, PADDED, SDPA, RUNTIME, LIBRARY = (
    "longattn, unpad",
    "longattn, unpad, optimize_for_inference",
    "longattn, padded",
    "sdpa, padded",
    "ONNX Runtime, longattn export",
    "sentence-transformers, sdpa",
)
ORDERS = ("given", "sorted")


def documentation() -> list[str]:
    """The docstrings of the standard library and the topics of its reference, each once."""
    texts = dict.fromkeys(pydoc_data.topics.topics.values())
    for name in sorted(sys.stdlib_module_names - NOT_IMPORTED):
        if name.startswith("_"):
            continue
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        for value in [module, *vars(module).values()]:
            members = vars(value).values() if inspect.isclass(value) else ()
            for documented in (value, *members):
                text = getattr(documented, "__doc__", None)
                if isinstance(text, str):
                    texts[text] = None
    return [*texts]


def drawn(count: int, folder: Path) -> list[str]:
    """``count`` texts of :data:`SHORTEST` to :data:`LONGEST` tokens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules
        texts = documentation()
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(folder)(texts, verbose=False)["input_ids"]]
    fitting = [text for text, length in zip(texts, lengths, strict=True) if SHORTEST <= length <= LONGEST]
    return [fitting[number] for number in np.random.default_rng(0).choice(len(fitting), count, replace=False)]


def network(model: str, folder: Path) -> Any:
    torch.manual_seed(0)
    if model == SHAPE:
        return ModernBertModel(ModernBertConfig(vocab_size=30522, num_hidden_layers=LAYERS, pad_token_id=0)).eval()
    if model == RERANKER:
        return BertForSequenceClassification.from_pretrained(folder).eval()
    return AutoModel.from_pretrained(folder).eval()


def runner(model: str, way: str, folder: Path, scratch: Path) -> Callable[[dict[str, Tensor]], Tensor]:
    """A function from the inputs of a batch to a row for each text: the mean of its tokens, or its score."""
    if way == RUNTIME:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(scratch / "graph" / "model.onnx"))
        names = {value.name for value in session.get_inputs()}

        def run(inputs: dict[str, Tensor]) -> Tensor:
            arrays = {name: x.numpy() for name, x in inputs.items() if name in names}
            return torch.from_numpy(session.run(None, arrays)[0])

    else:
        stock = network(model, folder)
        stock.set_attn_implementation("sdpa" if way == SDPA else "longattn")
        if way in (UNPADDED, OPTIMISED):
            hf_longattn.unpad(stock)
        if way == OPTIMISED:
            hf_longattn.optimize_for_inference(stock, "fp32")

        def run(inputs: dict[str, Tensor]) -> Tensor:
            if model == SHAPE:
                inputs = {name: x for name, x in inputs.items() if name != "token_type_ids"}
            with torch.inference_mode():
                return stock(**inputs)[0]

    def rows(inputs: dict[str, Tensor]) -> Tensor:
        states = run(inputs)
        if states.dim() == 2:
            return states
        real = inputs["attention_mask"][..., None]
        return (states * real).sum(1) / real.sum(1)

    return rows


def measured(model: str, way: str, order: str, texts: list[str], folder: Path, scratch: Path) -> dict[str, Any]:
    """Seconds and growth in MiB for all texts, and a row for each. In a process of its own."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    if way == LIBRARY:
        return measured_library(model, texts, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = ([QUERY] * len(texts), texts) if model == RERANKER else (texts,)
    ids = tokenizer(*pairs, truncation="only_second" if model == RERANKER else True, max_length=POSITIONS[model])
    lengths = [len(row) for row in ids["input_ids"]]
    numbers = sorted(range(len(texts)), key=lengths.__getitem__) if order == "sorted" else [*range(len(texts))]
    run = runner(model, way, folder, scratch)

    def batch(chosen: Sequence[int]) -> dict[str, Tensor]:
        padded = tokenizer.pad({name: [ids[name][row] for row in chosen] for name in ids}, padding_side="right")
        return {name: torch.tensor(values) for name, values in padded.items()}

    run(batch(numbers[:2]))  # lazy imports and threads
    rows: dict[int, Any] = {}

    def run_all() -> None:
        for first in range(0, len(numbers), BATCH):
            chosen = numbers[first : first + BATCH]
            rows.update(zip(chosen, run(batch(chosen)).float().numpy(), strict=True))

    started = time.perf_counter()
    grown = growth(run_all)
    return {
        "seconds": time.perf_counter() - started,
        "mebibytes": grown,
        "rows": np.stack([rows[row] for row in range(len(texts))]),
    }


def measured_library(model: str, texts: list[str], folder: Path) -> dict[str, Any]:
    """:func:`measured` for sentence-transformers, which sorts texts itself."""
    from sentence_transformers import CrossEncoder, SentenceTransformer

    outputs: list[Any] = []
    if model == RERANKER:
        reranker = CrossEncoder(str(folder), device="cpu", max_length=POSITIONS[model])
        pairs = [(QUERY, text) for text in texts]

        def run(count: int) -> None:
            scores = reranker.predict(pairs[:count], batch_size=BATCH, activation_fn=torch.nn.Identity())
            outputs.append(scores[:, None])

    else:
        encoder = SentenceTransformer(str(folder), device="cpu")
        encoder.max_seq_length = POSITIONS[model]

        def run(count: int) -> None:
            outputs.append(encoder.encode(texts[:count], batch_size=BATCH, normalize_embeddings=False))

    run(2)  # lazy imports and threads
    started = time.perf_counter()
    grown = growth(lambda: run(len(texts)))
    return {"seconds": time.perf_counter() - started, "mebibytes": grown, "rows": outputs[-1]}


def apart(*arguments: Any) -> dict[str, Any]:
    with (
        mock.patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(2**16)),
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process,
    ):
        return process.submit(measured, *arguments).result()


def compared(model: str, texts: list[str], folder: Path, scratch: Path) -> list[dict[str, Any]]:
    """The lines of a model.

    Raises:
        SystemExit: an output differs by more than :data:`TOLERANCE` of the largest.
    """
    ways = [(way, order) for way in (SDPA, PADDED, UNPADDED, OPTIMISED) for order in ORDERS]
    if model == RERANKER:
        torch.manual_seed(0)
        reranker = BertForSequenceClassification.from_pretrained(folder, num_labels=1)
        reranker.save_pretrained(scratch / "model")
        AutoTokenizer.from_pretrained(folder).save_pretrained(scratch / "model")
        folder = scratch / "model"
    if model != SHAPE:  # it has no tokenizer of its own
        hf_longattn.export_checkpoint(str(folder), scratch / "graph")
        ways += [(LIBRARY, "sorted"), (RUNTIME, "sorted"), (RUNTIME, "given")]
    lines: list[dict[str, Any]] = []
    expected = None
    for way, order in ways:
        line = apart(model, way, order, texts, folder, scratch)
        rows = line.pop("rows")
        expected = rows if expected is None else expected
        reference = expected
        if model == ENCODER and way in (LIBRARY, RUNTIME):  # of these, vectors have length 1
            rows, reference = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rows, reference))
        difference = float(abs(rows - reference).max() / abs(reference).max())
        if not difference <= TOLERANCE:
            raise SystemExit(f"error: {model} by {way} differs by {difference}, so nothing is stored")
        lines.append({"model": model, "way": way, "order": order, **line, "difference": difference})
        print(*cells(lines[-1], len(texts)), sep=", ", file=sys.stderr, flush=True)
    return lines


def cells(line: dict[str, Any], texts: int) -> list[str]:
    """A row of the table."""
    speed = texts / line["seconds"]
    return [line["model"], line["way"], line["order"], f"{speed:.1f}", f"{line['mebibytes']:,.0f}"]


def markdown(record: dict[str, Any]) -> str:
    """The table of the page."""
    header = ["model", "way", "order", "texts/s", "MiB"]
    rows = [cells(line, record["texts"]) for line in record["lines"]]
    table = report.markdown_table(header, rows)
    lengths = record["lengths"]
    largest = max(line["difference"] for line in record["lines"])
    note = (
        f"{record['texts']} texts of Python's documentation, {lengths[0]:,} to {lengths[2]:,} tokens, half of them up "
        f"to {lengths[1]:,}; batches of {BATCH}. Largest difference: {largest:.0e}."
    )
    return f"{table}\n\n{note}\n\n*{report.where(record['machine'])}, commit {record['commit']}*\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = report.study_parser(__doc__, OUTPUT, f"{QUICK} texts, one model")
    options = parser.parse_args(arguments)
    output = report.output_of(options, OUTPUT)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    folder = real_checkpoint()
    texts = drawn(QUICK if options.quick else TEXTS, folder)
    lengths = sorted(len(ids) for ids in AutoTokenizer.from_pretrained(folder)(texts, verbose=False)["input_ids"])
    lines: list[dict[str, Any]] = []
    for model in (ENCODER,) if options.quick else POSITIONS:
        with tempfile.TemporaryDirectory() as scratch:
            lines += compared(model, texts, folder, Path(scratch))
    record = {
        "machine": report.machine(),
        "commit": commit.stdout.strip(),
        "texts": len(texts),
        "lengths": [lengths[0], lengths[len(lengths) // 2], lengths[-1]],
        "lines": lines,
    }
    if output:
        report.store_study(output, record)
    print(markdown(record))


if __name__ == "__main__":
    main()
