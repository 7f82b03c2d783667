"""Stock models that declare windows: transformers' own attention against ``attn_implementation="longattn"``, in one
run.

    python -m scripts.dev.benchmarks.stock_windows  # an hour; a run that was stopped goes on where it was
    python -m scripts.dev.benchmarks.stock_windows --quick  # 512 and 2,048 tokens; stores nothing
    python -m scripts.dev.benchmarks.stock_windows --gemma FOLDER  # with the real Gemma 3 270M, instead of random
    weights

Shapes are those of the published checkpoints, in fp32 and without gradients. Each model and length has a process of
its own. Equality comes first: both ways get the same tokens and weights, and their outputs are compared. Their passes
take turns. Memory is the largest growth of the process during a pass, so that weights do not count.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from hf_longattn.names import BACKEND
from scripts.dev.benchmarks import report
from scripts.dev.benchmarks.memory import growth

OUTPUT = Path("scripts/dev/results/stock_windows")
LENGTHS = (512, 2048, 8192, 32768, 131072)
TOLERANCE = 1e-4
"""Largest difference of hidden states, relative to the largest of them."""
SLOWER = 0.97
"""The ratio below which a model counts as slower than under transformers' attention."""
TURN_SECONDS, TURNS = 30.0, 9
"""Wall time of turns after the first, and their maximum number. Where there is time for none, the first counts."""
STOCK_GIB = 4
"""Maximum size of the mask or of the scores for which transformers' attention is run. It takes several times this
memory."""


class Shape(NamedTuple):
    """A published model: its config, the attention that transformers runs, its layers, and how many of them run at
    some lengths."""

    model_type: str
    settings: dict[str, Any]
    stock: str
    layers: int
    fewer: dict[int, int]

    def config(self, length: int) -> Any:
        """The config of the model that reads ``length`` tokens."""
        return AutoConfig.for_model(
            self.model_type, **self.settings, num_hidden_layers=self.fewer.get(length, self.layers)
        )

    def square_gib(self, length: int) -> float:
        """GiB of the mask that transformers makes for sdpa, or of one layer's scores under eager attention."""
        return length**2 * (4 * self.config(length).num_attention_heads if self.stock == "eager" else 1) / 2**30


GEMMA = {
    "vocab_size": 262144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "sliding_window": 512,
    "max_position_embeddings": 32768,
    "use_cache": False,
}
MISTRAL = {"sliding_window": 4096, "use_cache": False}
SHAPES = {
    "openai/privacy-filter": Shape("openai_privacy_filter", {}, "eager", 8, {512: 2, 2048: 2, 8192: 2}),
    "answerdotai/ModernBERT-base": Shape("modernbert", {}, "sdpa", 22, {32768: 3, 131072: 3}),
    "google/gemma-3-270m": Shape("gemma3_text", GEMMA, "sdpa", 18, {32768: 6, 131072: 6}),
    # a layer takes 21 GiB
    "mistralai/Mistral-7B-v0.1": Shape("mistral", MISTRAL, "sdpa", 32, {**dict.fromkeys(LENGTHS, 1), 131072: 0}),
}


def run(model: Any, way: str, ids: Tensor) -> tuple[Tensor, float, float]:
    """Hidden states of a pass, with its seconds of the wall and of the processor."""
    model.set_attn_implementation(way)
    wall, processor = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        states = model(ids).last_hidden_state
    return states, time.perf_counter() - wall, time.process_time() - processor


def measure(name: str, length: int, folder: str | None, turn_seconds: float = TURN_SECONDS) -> dict[str, Any]:
    """The row of a model at a length, measured in this process. Weights are random without a ``folder``.

    Turns after the first take ``turn_seconds`` in all.
    """
    shape = SHAPES[name]
    config = shape.config(length)
    torch.manual_seed(0)
    settings: dict[str, Any] = {"config": config, "attn_implementation": shape.stock}
    model = (
        AutoModel.from_pretrained(folder, dtype=torch.float32, **settings)
        if folder
        else AutoModel.from_config(**settings)
    ).eval()
    ways = (shape.stock, BACKEND) if shape.square_gib(length) <= STOCK_GIB else (BACKEND,)
    ids = torch.randint(0, 32000, (1, length), generator=torch.Generator().manual_seed(length))
    row: dict[str, Any] = {
        "model": name,
        "length": length,
        "layers": config.num_hidden_layers,
        "random": folder is None,
    }
    mebibytes: list[float] = []
    states: list[Any] = []
    for way in ways:
        run(model, way, ids[:, :256])  # lazy imports and threads
        ctypes.CDLL(None).malloc_trim(0)
        mebibytes.append(growth(lambda: states.append(run(model, way, ids))))  # noqa: B023 - called at once
    turns = [[seconds for _, *seconds in states]]
    if len(ways) == 2:
        row["difference"] = float((states[0][0] - states[1][0]).abs().max() / states[0][0].abs().max())
    states.clear()
    more = min(TURNS, int(turn_seconds / sum(wall for wall, _ in turns[0])))
    turns = [[run(model, way, ids)[1:] for way in ways] for _ in range(more)] or turns
    return {**row, "mebibytes": mebibytes, "turns": turns}


def times_as_fast(row: dict[str, Any]) -> float | None:
    """The median over turns of transformers' seconds of the wall by ours. ``None`` if only ours ran."""
    return statistics.median(stock[0] / ours[0] for stock, ours in row["turns"]) if "difference" in row else None


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table. In italics: the size of a mask or of scores that were not made."""
    seconds = [f"{statistics.median(wall for wall, _ in taken):,.1f}" for taken in zip(*row["turns"], strict=True)]
    mebibytes = [f"{size:,.0f}" for size in row["mebibytes"]]
    ratio = times_as_fast(row)
    if ratio is None:
        seconds, mebibytes = (
            ["–", *seconds],
            [f"*{SHAPES[row['model']].square_gib(row['length']):,.0f} GiB*", *mebibytes],
        )
    return [f"{row['length']:,}", *seconds, "–" if ratio is None else f"{ratio:.1f} ×", *mebibytes]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of a document."""
    header = ["", "tokens", "transformers, s", "longattn, s", "times as fast", "transformers, MiB", "longattn, MiB"]
    names = [f"{row['model'].split('/')[1]}, {row['layers']} of {SHAPES[row['model']].layers} layers" for row in rows]
    return report.markdown_table(header, [[name, *cells(row)] for name, row in zip(names, rows, strict=True)])


def markdown(record: dict[str, Any]) -> str:
    """The table of the page."""
    rows = record["rows"]
    ratios = {
        f"{row['model']} at {row['length']:,} tokens": ratio
        for row in rows
        if (ratio := times_as_fast(row)) is not None
    }
    slower = ", ".join(f"{case} ({ratio:.2f})" for case, ratio in ratios.items() if ratio < SLOWER)
    verdict = (
        f"Slower by more than 3 %: {slower}." if slower else "From 512 tokens on, nothing is slower by more than 3 %."
    )
    difference = (
        "Largest difference of hidden states, relative to the largest: "
        f"{max(row.get('difference', 0.0) for row in rows):.0e}."
    )
    real = ", ".join(sorted({row["model"] for row in rows if not row["random"]})) or "none"
    note = f"{verdict} {difference} Published weights: {real}; the others are random."
    longer = [row for row in rows if row["length"] > min(LENGTHS)]
    return f"{table(longer)}\n\n{note}\n\n*{report.where(record['machine'])}*\n"


def brief(record: dict[str, Any]) -> str:
    """A list of seconds and memory at 8,192 tokens."""
    lines = list[str]()
    for row in record["rows"]:
        if row["length"] != 8192:
            continue
        _, stock, ours, faster, stock_memory, memory = cells(row)
        layers = (
            ""
            if row["layers"] == SHAPES[row["model"]].layers
            else f" ({row['layers']} of its {SHAPES[row['model']].layers} layers)"
        )
        name = row["model"].split("/")[1]
        lines.append(
            f"- {name}{layers}: {ours} s instead of {stock} ({faster}), {memory} MiB instead of {stock_memory}"
        )
    return "\n".join([f"8,192 tokens in fp32 ({report.where(record['machine'])}):", "", *lines])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = report.study_parser(__doc__, OUTPUT, "512 and 2,048 tokens")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="models with this in their name, also those that are stored"
    )
    parser.add_argument(
        "--gemma", metavar="FOLDER", help="the checkpoint google/gemma-3-270m, instead of random weights"
    )
    options = parser.parse_args(arguments)
    output = report.output_of(options, OUTPUT)
    rows = {
        (row["model"], row["length"]): row for row in (report.stored_study(output).get("rows", []) if output else [])
    }
    record = {"machine": report.machine(), "rows": list(rows.values())}
    for length, name in itertools.product(LENGTHS[:2] if options.quick else LENGTHS, SHAPES):
        if (
            SHAPES[name].fewer.get(length) == 0
            or options.only not in name
            or ((name, length) in rows and not options.only)
        ):
            continue
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            row = process.submit(measure, name, length, options.gemma if "gemma" in name else None).result()
        print(f"{name}, {length:,} tokens: {', '.join(cells(row)[1:])}", file=sys.stderr, flush=True)
        if not row.get("difference", 0.0) <= TOLERANCE:
            raise SystemExit(
                f"error: outputs differ by {row['difference']:.1e} of the largest, so the row is not stored"
            )
        rows[name, length] = row
        record["rows"] = [rows[case] for case in itertools.product(SHAPES, LENGTHS) if case in rows]
        if output:
            report.store_study(output, record)
    print(markdown(record))


if __name__ == "__main__":
    main()
