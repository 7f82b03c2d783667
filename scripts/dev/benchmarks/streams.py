"""Models of sound over a live stream against one pass over the whole, on one thread: differences, delay, time and what a stream keeps.

    python -m scripts.dev.benchmarks.streams             # ten minutes; writes results/streams.json and .md
    python -m scripts.dev.benchmarks.streams --quick     # small models and a few seconds of sound; stores nothing

Weights and sound are random. The stream is fed a tenth of a second at a time. Before anything is stated, a stream that was stopped in the
middle, saved and loaded must give the bits of one that was not, and frames must equal those of one pass. Times are processor time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_longattn.families import (
    LongNemotronAsrStreamingEncoder,
    LongNemotronAsrStreamingEncoderConfig,
    LongParakeetCTCConfig,
    LongParakeetForCTC,
    LongWav2Vec2BertConfig,
    LongWav2Vec2BertForCTC,
    LongWav2Vec2Config,
    LongWav2Vec2ConformerConfig,
    LongWav2Vec2ConformerForCTC,
    LongWav2Vec2ForCTC,
    LongWavLMConfig,
    LongWavLMForCTC,
)
from hf_longattn.streaming import Stream
from scripts.dev.benchmarks.report import machine, markdown_table, store_study

OUTPUT = Path("scripts/dev/results/streams")
EARLY = 0.75
"""The part of the sound after which the size of the state is noted first, when everything that layers look back at is there."""
PIECE = 0.1
"""Seconds of a piece."""
TOLERANCE = 1e-4
"""Largest difference from one pass, of logits of about 1, in fp32."""
WAV2VEC2, PARAKEET = "Wav2Vec2, 12 layers of 768, frames of 20 ms", "Parakeet, 17 layers of 512, frames of 80 ms"
WAVLM, CONFORMER = "WavLM, 12 layers of 768, frames of 20 ms", "Wav2Vec2-Conformer, 12 layers of 768, frames of 20 ms"
W2V_BERT, NEMOTRON = "Wav2Vec2-BERT, 12 layers of 768, frames of 20 ms", "Nemotron's encoder, 17 layers of 512, frames of 80 ms"
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    WAV2VEC2: (LongWav2Vec2Config, LongWav2Vec2ForCTC, STABLE),
    WAVLM: (LongWavLMConfig, LongWavLMForCTC, STABLE),
    CONFORMER: (LongWav2Vec2ConformerConfig, LongWav2Vec2ConformerForCTC, {"feat_extract_norm": "layer", "vocab_size": 32}),
    W2V_BERT: (LongWav2Vec2BertConfig, LongWav2Vec2BertForCTC, {"vocab_size": 32}),
    PARAKEET: (LongParakeetCTCConfig, LongParakeetForCTC, {}),
    NEMOTRON: (LongNemotronAsrStreamingEncoderConfig, LongNemotronAsrStreamingEncoder, {}),
}
"""Config class, model class, and fields of the config besides sizes."""
SECONDS = {name: 40.0 if name in (PARAKEET, NEMOTRON) else 16.0 for name in MODELS}
QUICK_SECONDS = 4.0
SYSTEMS: tuple[tuple[str, dict[str, Any], int], ...] = (
    (WAV2VEC2, {"mechanism": "window", "left": 128, "right": 8}, 16),
    (WAV2VEC2, {"mechanism": "window", "left": 128, "right": 8}, 64),
    (WAV2VEC2, {"mechanism": "window", "left": 128, "right": 0}, 16),
    (WAV2VEC2, {"mechanism": "chunked", "chunk_size": 32, "left_chunks": 4}, 32),
    (WAVLM, {"mechanism": "window", "left": 128, "right": 8}, 16),
    (CONFORMER, {"mechanism": "window", "left": 128, "right": 8}, 16),
    (W2V_BERT, {"mechanism": "chunked", "chunk_size": 32, "left_chunks": 4}, 32),
    (PARAKEET, {"mechanism": "window", "left": 70, "right": 1}, 16),
    (PARAKEET, {"mechanism": "chunked", "chunk_size": 14, "left_chunks": 5}, 14),
    (NEMOTRON, {"mechanism": "chunked", "chunk_size": 14, "left_chunks": 5}, 14),
)
"""Model, mechanism of every layer, and frames of a chunk."""


def model_of(name: str, attention: dict[str, Any], quick: bool) -> Any:
    """The model with random weights."""
    torch.manual_seed(0)
    config_class, model_class, fields = MODELS[name]
    deep = name in (PARAKEET, NEMOTRON)
    width, layers = (48 if quick else 512 if deep else 768), (2 if quick else 17 if deep else 12)
    heads = 4 if quick else 8 if deep else 12
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }
    sizes = {"encoder_config": sizes} if name == PARAKEET else sizes
    return model_class(config_class(**fields, **sizes, long_attention=attention)).eval()


def frames_of(model: Any, sound: Tensor) -> Tensor:
    """The logits of one pass, or the last hidden state of an encoder."""
    outputs = model(sound)
    frames: Tensor = outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state
    return frames


def sound_for(model: Any, seconds: float) -> Tensor:
    """Random samples, or rows of features, of one sound."""
    rule = model.family.rule
    width = () if rule.features is None else (rule.features(model.config),)
    return torch.randn(1, rule.length(seconds), *width, generator=torch.Generator().manual_seed(0))


def bytes_kept(stream: Stream) -> int:
    """The size of a stream's state."""
    return sum(tensor.nbytes for tensor in stream.state_dict().values())


@torch.no_grad()
def measure(name: str, attention: dict[str, Any], frames: int, seconds: float, quick: bool) -> dict[str, Any]:
    """One system's row.

    Raises:
        SystemExit: the stream does not give what it has to.
    """
    model = model_of(name, attention, quick)
    x, rate = sound_for(model, seconds), model.family.rule.rate
    begun = time.process_time()
    expected = frames_of(model, x)
    one_pass = (time.process_time() - begun) / seconds
    stream = Stream(model)
    stream = Stream(model, chunk=frames * stream.stride)
    outs, sizes, size, begun = [], {}, round(PIECE * rate), time.process_time()
    for at in range(0, x.shape[1], size):
        outs.append(stream.feed(x[:, at : at + size], start=at))
        sizes[at] = bytes_kept(stream)
    outs.append(stream.finish())
    streamed = (time.process_time() - begun) / seconds
    out = torch.cat(outs, 1)
    difference = float((out - expected).abs().max())
    if out.shape != expected.shape or not difference <= TOLERANCE:
        sys.exit(
            f"{name} with {attention}: frames {tuple(out.shape)} of the stream differ by {difference:.1e} from {tuple(expected.shape)}."
        )
    if not torch.equal(resumed(model, stream.chunk, x), out):
        sys.exit(f"{name} with {attention}: a stream that was stopped and loaded gives other bits.")
    early = next(value for at, value in sizes.items() if at >= EARLY * x.shape[1])
    return {
        "model": name, "seconds": seconds, "attention": attention, "chunk": frames, "difference": difference, "lookahead": stream.lookahead,
        "delay": stream.delay, "stream_seconds": streamed, "one_pass_seconds": one_pass,
        "early_bytes": early, "late_bytes": max(sizes.values()),
    }  # fmt: skip


def resumed(model: Any, chunk: int, x: Tensor) -> Tensor:
    """The frames of a stream that was saved in the middle and loaded into another one."""
    middle = x.shape[1] // 2 + 1
    first, second = (Stream(model, chunk=chunk) for _ in range(2))
    out = first.feed(x[:, :middle])
    with tempfile.TemporaryDirectory() as folder:
        first.save(Path(folder) / "state.safetensors")
        second.load(Path(folder) / "state.safetensors")
    return torch.cat([out, second.feed(x[:, middle:]), second.finish()], 1)


def markdown(record: dict[str, Any]) -> str:
    """The table, and what its columns are."""
    header = (
        "model",
        "every layer",
        "chunk (frames)",
        "lookahead (frames)",
        "late",
        "s per s, stream",
        "s per s, one pass",
        "state",
        "difference",
    )
    rows = []
    for row in record["rows"]:
        options = dict(row["attention"])
        mechanism = f"`{options.pop('mechanism')} {' '.join(f'{option}={value}' for option, value in options.items())}`"
        rows.append(
            (row["model"], mechanism, str(row["chunk"]), str(row["lookahead"]), f"{row['delay']:.1f} s", f"{row['stream_seconds']:.2f}",
             f"{row['one_pass_seconds']:.2f}", f"{row['late_bytes'] / 1e6:.1f} MB", f"{row['difference']:.0e}")
        )  # fmt: skip
    grown = max(row["late_bytes"] / row["early_bytes"] for row in record["rows"])
    about, seconds = record["machine"], sorted({f"{row['seconds']:.0f}" for row in record["rows"]})
    return (
        f"{markdown_table(header, rows)}\n\n"
        f"{' and '.join(seconds)} s of random sound in fp32, fed {PIECE} s at a time, on one thread of {about['processor']}. Chunk and "
        "lookahead are in frames. *Late* is the longest time from a sample to the frame that starts with it. *s per s* is processor time "
        f"for a second of sound. In the last {1 - EARLY:.0%} of the sound the state, pieces of a chunk included, grew by "
        f"{grown - 1:.1%} at most. A stream that was saved in the middle and loaded gave the same bits.\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help=f"path without suffix (default: {OUTPUT}; with --quick, nothing is stored)"
    )
    parser.add_argument("--quick", action="store_true", help="small models and a few seconds of sound")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record: dict[str, Any] = {"machine": machine(), "rows": []}
    for name, attention, frames in SYSTEMS:
        seconds = QUICK_SECONDS if options.quick else SECONDS[name]
        record["rows"].append(measure(name, attention, frames, seconds, options.quick))
        print(record["rows"][-1], file=sys.stderr, flush=True)
    if not options.quick:
        store_study(options.output, record, markdown(record))
    print(markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
