"""Converted models against their originals in the same precision, from inputs that the original reads to long ones, on one thread.

    python -m scripts.dev.benchmarks.same_precision  # a quarter of an hour; writes results/same_precision.json and .md
    python -m scripts.dev.benchmarks.same_precision --quick  # inputs of up to 1,536 tokens and fewer turns; stores nothing

BERT with SDPA and LongBert have the same random weights, the width of BERT-base and four layers, and read one sequence without padding.
Each pair is in one precision: as loaded in fp32 and bf16, and after optimize_for_inference, which takes the original as well. Equality
comes first: in every precision the original with a dense mask of the mechanism's pairs has the outputs of the converted model. Times are
processor time of one thread; both models take turns in one process, and a ratio is the median of those of the turns.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import hf_longattn
from hf_longattn.families import LongBertConfig, LongBertModel
from scripts.dev.benchmarks.attention import mask_of
from scripts.dev.benchmarks.case import AttentionInputs, Case
from scripts.dev.benchmarks.report import finish_study, machine, markdown_table, output_of, study_parser, where
from scripts.dev.benchmarks.run import in_turn

OUTPUT = Path("scripts/dev/results/same_precision")
WINDOW = 512
MECHANISM: dict[str, Any] = {"mechanism": "longformer", "window": WINDOW}
LAYERS = 4
LENGTHS = (128, 256, 512, 1024, 1536, 2048, 4096, 8192)
QUICK_LENGTHS = tuple(length for length in LENGTHS if length <= 1536)
MODES = ("fp32", "fp32, optimised", "bf16", "bf16, optimised", "int8, optimised")
"""Precisions as loaded, and after ``optimize_for_inference``."""
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "int8": 1e-1}
"""Largest difference of hidden states, relative to their norm."""
CHECKED_LENGTH = 1024
SECONDS, TURNS = 12.0, (3, 41)
"""Processor time that the turns of one pair may take, and fewest and most turns."""
QUICK_SECONDS = 4.0
SLOWER = 0.97
"""The ratio below which the table marks a converted model as slower than its original."""


def build(layers: int = LAYERS) -> tuple[Any, Any]:
    """BERT and LongBert with the same weights, in fp32."""
    torch.manual_seed(0)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    shape: dict[str, Any] = {**quiet, "num_hidden_layers": layers, "max_position_embeddings": max(LENGTHS)}
    original = BertModel(BertConfig(**shape, attn_implementation="sdpa"), add_pooling_layer=False).eval()
    converted = LongBertModel(LongBertConfig(**shape, long_attention=MECHANISM), add_pooling_layer=False).eval()
    converted.load_state_dict(original.state_dict(), strict=False)
    return original, converted


def in_mode(model: Any, mode: str) -> Any:
    """A copy of ``model`` in one of :data:`MODES`."""
    precision, _, optimised = mode.partition(", ")
    duplicate = copy.deepcopy(model)
    if optimised:
        return hf_longattn.optimize_for_inference(duplicate, precision)
    return duplicate.bfloat16() if precision == "bf16" else duplicate


def tokens(length: int) -> Tensor:
    return torch.randint(1000, 30522, (1, length), generator=torch.Generator().manual_seed(length))


@torch.inference_mode()
def difference(pair: tuple[Any, Any], length: int = CHECKED_LENGTH) -> float:
    """That of the hidden states of the converted model from those of the original with a dense mask, relative to their norm."""
    original, converted = pair
    visible = mask_of(AttentionInputs(Case(mechanism="longformer", options={"window": WINDOW}, num_globals=1, length=length)))
    assert visible is not None
    index, zero = torch.arange(length), torch.zeros(1, 1, 1, 1, dtype=torch.long)
    dense = visible(zero, zero, index.view(1, 1, -1, 1), index.view(1, 1, 1, -1))
    expected = original(tokens(length), attention_mask=dense).last_hidden_state.float()
    return float((converted(tokens(length)).last_hidden_state.float() - expected).norm() / expected.norm())


@torch.inference_mode()
def time_pair(pair: tuple[nn.Module, nn.Module], length: int, seconds: float) -> list[tuple[float, float]]:
    """Milliseconds of processor time of the original and of the converted model, for every turn."""
    ids = tokens(length)
    for model in pair:
        model(ids)
    taken = in_turn(
        {"original": partial(pair[0], ids), "converted": partial(pair[1], ids)}, TURNS, clock=time.process_time, seconds=seconds
    )
    return list(zip(*taken.values(), strict=True))


def ratio(turns: Sequence[Sequence[float]]) -> float:
    """How many times as fast the converted model is: the median of the quotients within a turn."""
    return statistics.median(before / after for before, after in turns)


def ratios(record: dict[str, Any]) -> dict[str, dict[int, float]]:
    """Mode -> length -> how many times as fast the converted model is as its original."""
    return {mode: {int(n): ratio(turns) for n, turns in by_length.items()} for mode, by_length in record["milliseconds"].items()}


def fastest(record: dict[str, Any]) -> dict[int, str]:
    """Length -> the mode in which the converted model takes least time."""
    times: dict[int, dict[str, float]] = {}
    for mode, by_length in record["milliseconds"].items():
        for length, turns in by_length.items():
            times.setdefault(int(length), {})[mode] = statistics.median(after for _, after in turns)
    return {length: min(by_mode, key=by_mode.__getitem__) for length, by_mode in sorted(times.items())}


def markdown(record: dict[str, Any]) -> str:
    """The table of a document."""
    faster, best = ratios(record), fastest(record)
    rows = []
    for mode, by_length in faster.items():
        cells = []
        for length in best:
            turns = record["milliseconds"][mode].get(str(length))
            if turns is None:
                cells.append("–")
                continue
            before, after = (statistics.median(turn[index] for turn in turns) for index in (0, 1))
            shown = f"{by_length[length]:.2f} × ({before:,.0f} → {after:,.0f})"
            cells.append(f"**{shown}**" if mode == best[length] else shown)
        rows.append([mode, *cells])
    slower = [f"{mode} at {n:,} tokens ({value:.2f})" for mode, by in faster.items() for n, value in by.items() if value < SLOWER]
    verdict = f"Slower than its original by more than 3 %: {', '.join(slower)}." if slower else "Nowhere is it slower by more than 3 %."
    differences = ", ".join(f"{mode}: {value:.0e}" for mode, value in record["differences"].items())
    return (
        f"Speed of a converted model (`longformer`, window {WINDOW}) relative to its original in the same precision. In brackets: "
        f"processor time in ms, original → converted. The models have {record['layers']} layers of BERT-base's width, and read one "
        "sequence on one thread. *Optimised*: both after `optimize_for_inference`. Bold: the fastest precision at a length.\n\n"
        f"{markdown_table(['precision', *(f'{n:,} tokens' for n in best)], rows)}\n\n{verdict}\n\n"
        f"Largest differences from the original with a dense mask, before timing, relative: {differences}.\n\n"
        + f"*{where(record['machine'])}*\n"
    )


def measure(record: dict[str, Any], lengths: Sequence[int], seconds: float) -> str | None:
    """Fill ``record``; return a sentence if outputs differ."""
    models = build(record["layers"])
    for mode in MODES:
        pair = in_mode(models[0], mode), in_mode(models[1], mode)
        record["differences"][mode] = error = difference(pair)
        if not error <= (most := TOLERANCE[mode.partition(",")[0]]):
            return f"{mode}: outputs differ by {error:.1e} and not at most {most:.0e}, so nothing was timed."
        for length in lengths:
            by_length = record["milliseconds"].setdefault(mode, {})
            by_length[str(length)] = time_pair(pair, length, seconds)
            print(f"{mode}, {length:,} tokens: {ratio(by_length[str(length)]):.3f}", file=sys.stderr, flush=True)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = study_parser(__doc__, OUTPUT, "inputs of up to 1,536 tokens and fewer turns").parse_args(arguments)
    torch.set_num_threads(1)
    record: dict[str, Any] = {"machine": machine(), "mechanism": MECHANISM, "layers": LAYERS, "differences": {}, "milliseconds": {}}
    wrong = measure(record, QUICK_LENGTHS if options.quick else LENGTHS, QUICK_SECONDS if options.quick else SECONDS)
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 1
    finish_study(output_of(options, OUTPUT), record, markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
