"""A Wav2Vec2 of base size over minutes of sound, with windows, and the stock model in one pass, in pieces and in chunks.

Outputs of full attention are compared first, on ten seconds. Every pass that is measured has a process of its own, whose peak memory on top
of weights and input is stored with the processor's seconds.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2Model

from hf_longattn import optimize_for_inference
from hf_longattn.errors import LongAttentionError
from hf_longattn.families import FAMILIES, LongWav2Vec2Config, LongWav2Vec2Model

from .memory import Memory, answer, exponent, growth, in_a_new_process
from .report import machine, markdown_table, store_study

MODEL = "wav2vec2"
WINDOW, FULL, STOCK = "window", "full", "stock"
PIECES, CHUNKS = "stock, convolutions in pieces", "stock, chunks of 30 s"
IMPLEMENTATIONS = (STOCK, PIECES, CHUNKS, FULL, WINDOW)
"""*Pieces*: one pass over the whole sound after ``optimize_for_inference(model, "fp32")``. *Chunks*: as the pipeline of transformers."""
CHUNK_SECONDS, STRIDE_SECONDS = 30, 5
"""Of a chunk, and of what it shares with the next one at each end: those of transformers' pipeline."""
CHECKED_SECONDS, TOLERANCE = 10.0, 1e-4
WARM_UP_SECONDS = 2.0


def build(implementation: str, layers: int | None, side: int | None = None, **changed: Any) -> Any:
    """The model with random weights, the same for every implementation.

    Args:
        side: frames that a window sees to each side, in place of the family's.
        changed: values of the config other than the defaults, which are wav2vec2-base's.
    """
    values = {**changed, **({} if layers is None else {"num_hidden_layers": layers})}
    torch.manual_seed(0)
    stock = Wav2Vec2Model(Wav2Vec2Config(**values)).eval().requires_grad_(False)
    if implementation in (STOCK, CHUNKS):
        return stock
    if implementation == PIECES:
        return optimize_for_inference(stock, "fp32")
    attention: dict[str, Any] = {} if implementation == WINDOW else {"long_attention": {"mechanism": "full"}}
    if implementation == WINDOW and side is not None:
        attention = {"long_attention": {"mechanism": "window", "left": side, "right": side}}
    with torch.device("meta"):
        model = LongWav2Vec2Model(LongWav2Vec2Config(**values, **attention))
    model.load_state_dict(stock.state_dict(), assign=True)
    for path, buffer in stock.named_buffers():  # also those that are in no checkpoint
        owner, _, key = path.rpartition(".")
        setattr(model.get_submodule(owner), key, buffer)
    return model.eval()


def sound_of(model: Any, seconds: float) -> Tensor:
    """Random sound, the same at every call."""
    rule: Any = FAMILIES[MODEL].rule
    return rule.seeded(model.config, seconds)


def states(model: Any, implementation: str, sound: Tensor, seconds: float) -> Tensor:
    """The last hidden states ``(1, frames, C)`` of ``seconds`` of sound; of chunks, each frame from the one in whose middle it lies."""
    if implementation != CHUNKS or seconds <= CHUNK_SECONDS:
        return model(sound).last_hidden_state
    rate = sound.shape[1] / seconds
    chunk, stride = round(CHUNK_SECONDS * rate), round(STRIDE_SECONDS * rate)
    parts = []
    for start in range(0, sound.shape[1] - 2 * stride, chunk - 2 * stride):
        piece = sound[:, start : start + chunk]
        read = model(piece).last_hidden_state
        shrunk = round(piece.shape[1] / read.shape[1])  # what a frame covers
        last = (chunk - stride) // shrunk if start + chunk < sound.shape[1] else None
        parts.append(read[:, stride // shrunk if start else 0 : last])
    return torch.cat(parts, 1)


def run_sound_models(
    minutes: Sequence[float], output: Path, *, base_up_to: float, full_up_to: float, layers: int | None = None,
    side: int | None = None, log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Compare and measure; ``output`` has what is known after every pass.

    Args:
        minutes: durations.
        base_up_to: minutes up to which the stock model is measured in one pass.
        full_up_to: minutes up to which full attention over the whole sound is measured, ours and the stock model's in pieces.
        layers: layers of the encoders, in place of the checkpoint's.
        side: frames that windows see to each side, in place of the family's.
    Returns:
        The record: seconds of the processor, MiB and frames by implementation, minutes and layers.
    Raises:
        LongAttentionError: outputs differ, or a pass failed.
    """
    about, rows = machine(), list[dict[str, Any]]()
    limits = {WINDOW: math.inf, CHUNKS: math.inf, FULL: full_up_to, PIECES: full_up_to, STOCK: base_up_to}
    log(f"outputs differ by {_check(layers):.1e}")
    for duration in minutes:
        for implementation in IMPLEMENTATIONS:
            count = Wav2Vec2Config().num_hidden_layers if layers is None else layers
            key = {"model": MODEL, "implementation": implementation, "minutes": duration, "layers": count}
            if implementation == WINDOW:
                key["side"] = LongWav2Vec2Config.context_frames if side is None else side
            if duration > limits[implementation]:
                continue
            rows.append({**key, **measured(implementation, duration * 60, layers, side)})
            log(str(rows[-1]))
            store_study(output, _record(about, rows), sound_table(_record(about, rows)))
    return _record(about, rows)


def _record(about: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"machine": about, "kind": "sound models", "clock": "processor", "results": rows}


@torch.no_grad()
def _check(layers: int | None) -> float:
    """The largest difference between the stock model's outputs and those of full attention, of the largest number."""
    outputs = []
    for implementation in (STOCK, FULL):
        model = build(implementation, min(2, layers or 2))
        outputs.append(model(sound_of(model, CHECKED_SECONDS)).last_hidden_state)
    error = float((outputs[1] - outputs[0]).abs().max() / outputs[0].abs().max())
    if not error <= TOLERANCE:
        raise LongAttentionError(f"The outputs differ by {error:.1e}, so nothing was timed; run tests/modeling/test_audio_models.py.")
    return error


def measured(implementation: str, duration: float, layers: int | None, side: int | None = None, **changed: Any) -> dict[str, Any]:
    """The processor's seconds, MiB and frames of a pass over ``duration`` seconds of sound, in a process of its own.

    Args:
        side, changed: as for :func:`build`.
    Raises:
        LongAttentionError: the pass failed.
    """
    request = {"implementation": implementation, "duration": duration, "layers": layers, "side": side, **changed}
    return in_a_new_process(__name__, request, f"{implementation} over {duration:g} seconds")


@torch.no_grad()
def _measured_here(implementation: str, duration: float, layers: int | None, **changed: Any) -> dict[str, Any]:
    model = build(implementation, layers, **changed)
    model(sound_of(model, WARM_UP_SECONDS))
    sound = sound_of(model, duration)
    gc.collect()
    frames: list[int] = []
    start = time.process_time()
    mebibytes = growth(lambda: frames.append(states(model, implementation, sound, duration).shape[1]))
    return {"seconds": round(time.process_time() - start, 2), "mebibytes": round(mebibytes), "frames": frames[0]}


def sound_table(record: dict[str, Any]) -> str:
    """A line for each duration and implementation, with how many times as fast as the stock model it is, by one pass and by chunks;
    and how the memory of windows grows."""
    header = ["model", "layers", "minutes", "frames", "read by", "s", "MiB", "× stock", "× chunks"]
    lines = []
    for row in record["results"]:
        seconds = {
            other["implementation"]: other["seconds"]
            for other in record["results"]
            if all(other[field] == row[field] for field in ("model", "layers", "minutes"))
        }
        read = f"{WINDOW}, {row['side']} frames to each side" if row["implementation"] == WINDOW else row["implementation"]
        faster = [f"{seconds[name] / row['seconds']:.1f}×" if name in seconds else "–" for name in (STOCK, CHUNKS)]
        size = f"{row['frames']:,}", read, f"{row['seconds']:,.1f}", f"{row['mebibytes']:,}"
        lines.append([row["model"], str(row["layers"]), f"{row['minutes']:g}", *size, *faster])
    return markdown_table(header, lines) + "\n" + _growth(record)


def _growth(record: dict[str, Any]) -> str:
    """A sentence about the memory of windows over the longest and the shortest sound."""
    rows = [row for row in record["results"] if row["implementation"] == WINDOW]
    peaks = [Memory(MODEL, row["frames"], 0, row["mebibytes"]) for row in sorted(rows, key=lambda row: row["frames"])]
    growth = exponent([peaks[0], peaks[-1]]) if len({peak.length for peak in peaks}) > 1 else None
    if growth is None:
        return ""
    return f"\n{MODEL}: from {peaks[0].length:,} to {peaks[-1].length:,} frames, memory of windows grows as frames^{growth:.2f}.\n"


if __name__ == "__main__":
    answer(_measured_here)
