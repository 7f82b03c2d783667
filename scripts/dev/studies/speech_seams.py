"""Five minutes of speech in one pass and in chunks: word errors of all words, and of those near the seams of chunks.

A small Parakeet (log-mel features, frames of 40 ms) learns to write digits that espeak-ng says in many voices, from utterances of one to
eight digits: first what each frame is, from the times of words, then by CTC. Then it reads recordings of five minutes by voices that it
has not heard: in one pass with full attention, in one pass with a window that is converted from it without further training, and in
chunks with and without strides.

It is trained anew in each run, from a seed and for a fixed time of the processor; only the table is stored.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jiwer import process_words
from torch import Tensor, nn
from transformers import ParakeetCTCConfig, ParakeetFeatureExtractor, ParakeetForCTC, PreTrainedModel, Wav2Vec2Processor

import hf_longattn
from hf_longattn.data.audio import Hearing
from hf_longattn.data.transcripts import ctc_tokenizer
from hf_longattn.evaluation.summaries import ratio_and_error
from hf_longattn.evaluation.transcription import START_OF_WORD, Transcript, transcribe
from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import machine, markdown_table
from scripts.dev.studies.speech_synthesis import DIGITS, HELD_OUT, RATE, TRAINED, Recording, digits, long_digits, say

TOKENS = [f"{START_OF_WORD}{digit}" for digit in DIGITS]
"""A token for each digit, as a word of its own."""
IGNORED = -100
FEATURES = {"feature_size": 40, "sampling_rate": RATE, "hop_length": 80, "n_fft": 256, "win_length": 200}
"""Log-mel features of 10 ms, of sound of telephones."""
SHAPE = {
    "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 384, "conv_kernel_size": 9,
    "subsampling_conv_channels": 32, "subsampling_factor": 4, "num_mel_bins": 40, "dropout": 0.0, "attention_dropout": 0.0,
    "activation_dropout": 0.0, "layerdrop": 0.0, "dropout_positions": 0.0, "scale_input": False,
}  # fmt: skip
LONGEST = 8
"""Digits of the longest utterance of the training."""
LOG = "training.json"
SECONDS_A_BATCH = 16.0
BY_FRAMES = 0.5
"""The share of the training in which the model learns what each frame is, from the times of words; then it learns by CTC, which from
random weights takes many times as long to leave the blank."""
FRAME_SECONDS = 0.04
WARMUP = 100
"""Steps in which the rate rises."""
NEAR = 1.0
"""Seconds from a seam within which a word is near it."""
WINDOW = {"mechanism": "window", "left": 64, "right": 64}
"""The window of the converted model, in frames: 2.6 seconds to either side, as much as an utterance of the training."""
STRETCH = 20.0
"""Seconds whose words are counted together: the step of chunks of 30 seconds with strides of 5."""


class System(NamedTuple):
    """A way to read a long recording.

    attention: of the converted model; ``None`` = the short model itself.
    settings: of :func:`transcribe`.
    """

    attention: Mapping[str, Any] | None
    settings: Mapping[str, Any]


SYSTEMS = {
    "full attention, one pass": System(None, {}),
    "window, one pass": System(WINDOW, {}),
    "chunks of 30 s, stride 5 s": System(None, {"chunk_seconds": 30.0, "stride_seconds": 5.0}),
    "chunks of 20 s, no stride": System(None, {"chunk_seconds": 20.0, "stride_seconds": 0.0}),
}


def small_model(seed: int) -> tuple[ParakeetForCTC, Wav2Vec2Processor]:
    """A Parakeet with random weights, and its processor."""
    torch.manual_seed(seed)
    tokenizer = ctc_tokenizer(TOKENS)
    config = ParakeetCTCConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, ctc_loss_reduction="mean", encoder_config=SHAPE
    )
    return ParakeetForCTC(config), Wav2Vec2Processor(ParakeetFeatureExtractor(**FEATURES), tokenizer)


def batch(hearing: Hearing, tokenizer: Any, random: np.random.Generator) -> tuple[dict[str, Tensor], list[Recording]]:
    """Utterances of one to :data:`LONGEST` digits in voices of the training with their labels, and the recordings."""
    recordings: list[Recording] = []
    while sum(len(recording.samples) for recording in recordings) < SECONDS_A_BATCH * RATE:
        recordings.append(digits(random, TRAINED, int(random.integers(1, LONGEST + 1))))
    labels = torch.full((len(recordings), LONGEST), IGNORED)
    for row, recording in zip(labels, recordings, strict=True):
        ids = labels_of(recording, tokenizer)
        row[: len(ids)] = torch.tensor(ids)
    return {**hearing.inputs([recording.samples for recording in recordings]), "labels": labels}, recordings


def labels_of(recording: Recording, tokenizer: Any) -> list[int]:
    """The label of each word."""
    return [tokenizer.convert_tokens_to_ids(START_OF_WORD + word.text) for word in recording.words]


def frame_labels(recordings: Sequence[Recording], tokenizer: Any, frames: int) -> Tensor:
    """(recordings, frames): a word's label in the middle half of its time, else the blank; padding is ignored."""
    times = (torch.arange(frames) + 0.5) * FRAME_SECONDS
    labels = torch.full((len(recordings), frames), tokenizer.pad_token_id)
    for row, recording in zip(labels, recordings, strict=True):
        for word, label in zip(recording.words, labels_of(recording, tokenizer), strict=True):
            quarter = (word.end - word.start) / 4
            row[(times > word.start + quarter) & (times < word.end - quarter)] = label
        row[times > len(recording.samples) / RATE] = IGNORED
    return labels


def trained(model: ParakeetForCTC, processor: Wav2Vec2Processor, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train for ``args.minutes`` of the processor, first on frames and then by CTC.

    Returns:
        Steps, minutes and the mean loss of the last steps.
    """
    hearing, random = Hearing(processor.feature_extractor), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01)
    for voice in TRAINED:  # outside the time
        for word in DIGITS.values():
            say(word, voice)
    losses: list[float] = []
    begun = time.process_time()
    model.train()
    while (share := (time.process_time() - begun) / (60 * args.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1.0, (len(losses) + 1) / WARMUP) * (1 - share)
        inputs, recordings = batch(hearing, processor.tokenizer, random)
        outputs = model(**inputs)
        if share < BY_FRAMES:
            targets = frame_labels(recordings, processor.tokenizer, outputs.logits.shape[1])
            loss = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        else:
            loss = outputs.loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) % 50 == 0:
            print(f"{len(losses)} steps, {100 * share:.0f} %: loss {np.mean(losses[-50:]):.3f}", flush=True)
    model.eval()
    return {"steps": len(losses), "minutes": args.minutes, "loss": float(np.mean(losses[-50:]))}


def read_by(system: System, model: ParakeetForCTC) -> PreTrainedModel:
    """The short model, or the same weights with the mechanism of a system."""
    if system.attention is None:
        return model
    long_class = getattr(hf_longattn, f"Long{type(model).__name__}")
    config = long_class.config_class.from_dict({**model.config.to_dict(), "long_attention": dict(system.attention)})
    long_model = long_class(config)
    long_model.load_state_dict(model.state_dict())
    return long_model.eval()


def mistakes(transcript: Transcript, recording: Recording) -> list[tuple[float, int, int]]:
    """(seconds, errors, words) of every word of a recording and every word that was only heard, by jiwer's alignment."""
    [alignment] = process_words(recording.text, " ".join(word.text for word in transcript.words)).alignments
    units: list[tuple[float, int, int]] = []
    for chunk in alignment:
        if chunk.type == "insert":
            heard = transcript.words[chunk.hyp_start_idx : chunk.hyp_end_idx]
            units += [((word.start + word.end) / 2, 1, 0) for word in heard]
        else:
            said = recording.words[chunk.ref_start_idx : chunk.ref_end_idx]
            units += [((word.start + word.end) / 2, int(chunk.type != "equal"), 1) for word in said]
    return units


def measured(model: PreTrainedModel, processor: Any, system: System, recordings: Sequence[Recording]) -> dict[str, Any]:
    """Word error rates with their standard errors over stretches of :data:`STRETCH` seconds, of all words and of those near the seams
    (of one pass: near the ends of such stretches), and seconds of the processor for a recording."""
    pairs: dict[str, dict[tuple[int, int], list[int]]] = {"all": {}, "near": {}, "elsewhere": {}}
    seconds = []
    for number, recording in enumerate(recordings):
        begun = time.process_time()
        transcript = transcribe(model, processor, recording.samples, **system.settings)
        seconds.append(time.process_time() - begun)
        seams = transcript.seams or tuple(np.arange(STRETCH, transcript.seconds, STRETCH))
        for place, errors, words in mistakes(transcript, recording):
            is_near = any(abs(place - seam) < NEAR for seam in seams)
            for kind in ("all", "near" if is_near else "elsewhere"):
                counts = pairs[kind].setdefault((number, int(place // STRETCH)), [0, 0])
                counts[0], counts[1] = counts[0] + errors, counts[1] + words
    rates = {}
    for kind, stretches in pairs.items():
        rate, error = ratio_and_error([(errors, words) for errors, words in stretches.values()])
        rates[kind] = {"wer": 100 * rate, "standard_error": 100 * error, "words": sum(words for _, words in stretches.values())}
    return {**rates, "seconds": float(np.median(seconds))}


def run(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train a small model and read long recordings by every system."""
    model, processor = small_model(seed)
    place = None if args.save is None else args.save / str(seed)
    if place is not None and (place / LOG).is_file():
        model, log = ParakeetForCTC.from_pretrained(place).eval(), json.loads((place / LOG).read_text(encoding="utf-8"))
    else:
        log = trained(model, processor, args, seed)
    if place is not None:
        model.save_pretrained(place)
        processor.save_pretrained(place)
        (place / LOG).write_text(json.dumps(log), encoding="utf-8")
    random = np.random.default_rng(1_000_000 + seed)
    recordings = [long_digits(random, HELD_OUT, args.seconds) for _ in range(args.recordings)]
    short = [digits(random, HELD_OUT, LONGEST) for _ in range(args.recordings * 25)]
    results = {"utterances of eight digits": measured(model, processor, System(None, {}), short)}
    for name, system in SYSTEMS.items():
        results[name] = measured(read_by(system, model), processor, system, recordings)
        print(name, {kind: round(results[name][kind]["wer"], 2) for kind in ("all", "near", "elsewhere")}, flush=True)
    return {"seed": seed, "training": log, "results": results}


def markdown(stored: Mapping[str, Any]) -> str:
    """The table of a stored result, the means over seeds."""
    heads = ["", "word error rate", f"within {NEAR:g} s of a seam", "elsewhere", "processor seconds"]
    rows = []
    for name in stored["runs"][0]["results"]:
        results = [run["results"][name] for run in stored["runs"]]
        cells = [rate_in_words([result[kind] for result in results]) for kind in ("all", "near", "elsewhere")]
        if name not in SYSTEMS:
            cells[1:] = ["", ""]
        rows.append([name, *cells, f"{np.mean([result['seconds'] for result in results]):,.2f}"])
    about, seeds = stored["machine"], len(stored["runs"])
    return (
        f"# Speech: seams\n\n{' '.join(str(__doc__).split(chr(10) * 2)[1].split())}\n\n{markdown_table(heads, rows)}\n\n"
        f"*{seeds} {'seed' if seeds == 1 else 'seeds'}, {stored['recordings']} recordings of {stored['seconds']:g} seconds each; in one "
        f'pass, "seams" are places every {STRETCH:g} seconds. Errors are standard errors over stretches of {STRETCH:g} seconds. '
        f"{stored['minutes']:g} minutes of training on one core of {about['processor']}; PyTorch {about['torch']}, {about['date']}.*\n"
    )


def rate_in_words(rates: Sequence[Mapping[str, float]]) -> str:
    """ "2.1 ± 0.3 %", the mean of several seeds."""
    mean = np.mean([rate["wer"] for rate in rates])
    error = math.sqrt(sum(rate["standard_error"] ** 2 for rate in rates)) / len(rates)
    return f"{mean:.1f} ± {error:.1f} %"


def main() -> None:
    """Run the study and store its table."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=2.5, help="of the processor, for the training of each seed")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seconds", type=float, default=300.0, help="of a recording")
    parser.add_argument("--recordings", type=int, default=4)
    parser.add_argument("--save", type=Path, help="a folder for the small models; one that is there is not trained again")
    parser.add_argument("--output", type=Path, default=RESULTS / "speech_seams.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = [run(args, seed) for seed in args.seeds]
    settings = {name: getattr(args, name) for name in ("minutes", "rate", "seconds", "recordings")}
    stored = {"machine": machine(), **settings, "runs": runs}
    args.output.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    args.output.with_suffix(".md").write_text(markdown(stored), encoding="utf-8")


if __name__ == "__main__":
    main()
