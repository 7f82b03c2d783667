"""Five minutes of speech in one pass and in chunks: word errors of all words, and of those near the seams of chunks.

:mod:`~scripts.dev.studies.speech_seams_page` says what is compared. Models and results are kept in ``--save``, so that a study may be run
in parts: ``--models`` names those of a run.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
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
from hf_longattn.errors import OptionError
from hf_longattn.evaluation.transcription import START_OF_WORD, Transcript, transcribe
from scripts.dev import RESULTS
from scripts.dev.benchmarks.memory import in_a_new_process
from scripts.dev.benchmarks.report import machine, store_study
from scripts.dev.studies.speech_seams_page import (
    COUNTS,
    FRAME_SECONDS,
    LONGEST,
    MODELS,
    NEAR,
    SHORT,
    STOCK,
    STRETCH,
    STRIDE,
    SYSTEMS,
    UTTERANCES,
    WIDTHS,
    WINDOW,
    Further,
    System,
    markdown,
    rate_in_words,
    rows_of,
)
from scripts.dev.studies.speech_synthesis import DIGITS, HELD_OUT, RATE, TRAINED, Recording, Spoken, digits, long_digits, say

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
LOG, SCORES, COSTS, SETTINGS = "training.json", "results.json", "costs.json", "settings.json"
COSTS_MODULE = "scripts.dev.studies.speech_seams_costs"
SECONDS_A_BATCH = 16.0
BY_FRAMES = 0.5
"""The share of the training in which the model learns what each frame is, from the times of words; then it learns by CTC, which from
random weights takes many times as long to leave the blank."""
WARMUP, FURTHER_WARMUP = 100, 10
"""Steps in which the rate rises."""
KINDS = {"equal": 0, "substitute": 1, "delete": 2, "insert": 3}
"""jiwer's kinds of alignment -> the place in :data:`COUNTS` of what is wrong; 0 of what is right."""


class Stage(NamedTuple):
    """A part of the further training: how long its recordings are, and how many, one at each step."""

    seconds: float
    recordings: int


def stage(text: str) -> Stage:
    """``SECONDS:RECORDINGS`` as a stage."""
    seconds, recordings = text.split(":")
    return Stage(float(seconds), int(recordings))


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
    return inputs_of(recordings, hearing, tokenizer), recordings


def inputs_of(recordings: Sequence[Recording], hearing: Hearing, tokenizer: Any) -> dict[str, Tensor]:
    """The arguments of a model for recordings, with their labels."""
    ids = [torch.tensor(labels_of(recording, tokenizer)) for recording in recordings]
    labels = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=IGNORED)
    return {**hearing.inputs([recording.samples for recording in recordings]), "labels": labels}


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


def trained_further(short: ParakeetForCTC, processor: Wav2Vec2Processor, further: Further, args: argparse.Namespace, seed: int) -> Any:
    """Train a copy of the small model on the recordings of ``args.stages``, one at each step, with their words as the only labels.

    Returns:
        The model, in transformers' class, and its log: steps, seconds of the processor and the mean loss of the last steps.
    """
    model = with_attention(short, further.attention).train()
    hearing, random = Hearing(processor.feature_extractor), np.random.default_rng(2_000_000 + seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.further_rate, betas=(0.9, 0.98), weight_decay=0.01)
    lengths = [part.seconds for part in args.stages for _ in range(part.recordings)]
    losses: list[float] = []
    spent = 0.0
    for step, seconds in enumerate(lengths):
        recording = long_digits(random, TRAINED, seconds)
        begun = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = args.further_rate * min(1.0, (step + 1) / FURTHER_WARMUP) * (1 - step / len(lengths))
        parts = [recording] if further.piece is None else list(pieces(recording, further.piece))
        loss = model(**inputs_of(parts, hearing, processor.tokenizer)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        spent += time.process_time() - begun
        if (step + 1) % 10 == 0:
            print(f"{step + 1} of {len(lengths)} recordings, {spent:.0f} s: loss {np.mean(losses[-10:]):.3f}", flush=True)
    result = ParakeetForCTC(short.config)
    result.load_state_dict(model.state_dict())
    return result.eval(), {"steps": len(losses), "seconds": spent, "loss": float(np.mean(losses[-10:]))}


def pieces(recording: Recording, seconds: float) -> Iterator[Recording]:
    """A recording, cut in the last pause before every so many seconds."""
    start, words = 0.0, list[Spoken]()
    for number, word in enumerate(recording.words):
        words.append(word)
        following = recording.words[number + 1] if number + 1 < len(recording.words) else None
        if following is not None and following.end - start <= seconds:
            continue
        end = len(recording.samples) / RATE if following is None else (word.end + following.start) / 2
        samples = recording.samples[round(start * RATE) : round(end * RATE)]
        yield Recording(samples, tuple(Spoken(word.text, word.start - start, word.end - start) for word in words))
        start, words = end, []


def with_attention(model: ParakeetForCTC, attention: Mapping[str, Any]) -> PreTrainedModel:
    """A long model with a copy of the same weights."""
    long_class = getattr(hf_longattn, f"Long{type(model).__name__}")
    config = long_class.config_class.from_dict({**model.config.to_dict(), "long_attention": dict(attention)})
    long_model = long_class(config)
    long_model.load_state_dict(model.state_dict())
    return long_model.eval()


def read_by(system: System, model: ParakeetForCTC) -> PreTrainedModel:
    """The model itself, or the same weights with the mechanism of a system."""
    return model if system.attention is None else with_attention(model, system.attention)


def mistakes(transcript: Transcript, recording: Recording) -> list[tuple[float, int]]:
    """(seconds, kind of :data:`KINDS`) of every word of a recording and every word that was only heard, by jiwer's alignment."""
    [alignment] = process_words(recording.text, " ".join(word.text for word in transcript.words)).alignments
    units: list[tuple[float, int]] = []
    for chunk in alignment:
        if chunk.type == "insert":
            words: Sequence[Any] = transcript.words[chunk.hyp_start_idx : chunk.hyp_end_idx]
        else:
            words = recording.words[chunk.ref_start_idx : chunk.ref_end_idx]
        units += [((word.start + word.end) / 2, KINDS[chunk.type]) for word in words]
    return units


def measured(model: PreTrainedModel, processor: Any, system: System, recordings: Sequence[Recording]) -> dict[str, Any]:
    """What a system has read of recordings.

    Returns:
        ``stretches``, a row for every :data:`STRETCH` seconds: the recording's number, the stretch's, and the :data:`COUNTS` of words near
        seams and elsewhere (one pass has no seams: those of :data:`CHUNKS`); ``seconds`` of the processor for a recording, the median.
    """
    counts: dict[tuple[int, int], list[list[int]]] = {}
    seconds = []
    for number, recording in enumerate(recordings):
        begun = time.process_time()
        transcript = transcribe(model, processor, recording.samples, **system.settings)
        seconds.append(time.process_time() - begun)
        seams = transcript.seams or tuple(np.arange(STRETCH + STRIDE, transcript.seconds - STRIDE, STRETCH))
        for place, kind in mistakes(transcript, recording):
            is_far = not any(abs(place - seam) < NEAR for seam in seams)
            row = counts.setdefault((number, int(place // STRETCH)), [[0] * len(COUNTS), [0] * len(COUNTS)])[is_far]
            row[0] += kind != KINDS["insert"]
            if kind:
                row[kind] += 1
    stretches = [[*place, *near, *far] for place, (near, far) in sorted(counts.items())]
    return {"stretches": stretches, "seconds": round(float(np.median(seconds)), 3)}


def model_of(name: str, args: argparse.Namespace, seed: int) -> tuple[ParakeetForCTC, Wav2Vec2Processor]:
    """A model of :data:`MODELS`, trained unless it is in its folder, and its processor."""
    place, further = folder_of(name, args, seed), MODELS[name]
    model, processor = small_model(seed)
    if (place / LOG).is_file():
        return ParakeetForCTC.from_pretrained(place).eval(), processor
    if further is None:
        log = trained(model, processor, args, seed)
    else:
        model, log = trained_further(model_of(SHORT, args, seed)[0], processor, further, args, seed)
    model.save_pretrained(place)
    processor.save_pretrained(place)
    (place / LOG).write_text(json.dumps(log), encoding="utf-8")
    return model, processor


def folder_of(name: str, args: argparse.Namespace, seed: int) -> Path:
    """Where a model is kept with what its systems have measured."""
    return Path(args.save) / str(seed) / name


def stored_in(file: Path) -> dict[str, Any]:
    """What a file holds; empty if there is none."""
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def systems_of(name: str) -> dict[str, System]:
    """The systems that read with a model: those of the table, for the small model also those of the other windows and of utterances."""
    systems = {system_name: system for system_name, system in SYSTEMS.items() if system.model == name}
    if name == SHORT:
        systems[UTTERANCES] = System(f"utterances of {LONGEST} digits", SHORT, None, {})
        for width in WIDTHS:
            systems[f"window {width}"] = System("window, one pass", SHORT, {**WINDOW, "left": width, "right": width}, {})
    return systems


def run(name: str, args: argparse.Namespace, seed: int) -> None:
    """Train a model of :data:`MODELS` and read recordings by its systems; what is kept is not done again."""
    model, processor = model_of(name, args, seed)
    file = folder_of(name, args, seed) / SCORES
    scores = stored_in(file)
    random = np.random.default_rng(1_000_000 + seed)
    recordings = [long_digits(random, HELD_OUT, args.seconds) for _ in range(args.recordings)]
    short = [digits(random, HELD_OUT, LONGEST) for _ in range(args.recordings * 25)]
    for system_name, system in systems_of(name).items():
        if system_name not in scores:
            scores[system_name] = measured(read_by(system, model), processor, system, short if system_name == UTTERANCES else recordings)
            file.write_text(json.dumps(scores), encoding="utf-8")
            print(seed, system_name, rate_in_words([rows_of(scores[system_name])]), scores[system_name]["seconds"], flush=True)


def keep_settings(args: argparse.Namespace) -> None:
    """Write the settings next to what is made with them.

    Raises:
        OptionError: what is there was made with others.
    """
    settings = {name: getattr(args, name) for name in ("minutes", "rate", "seconds", "recordings", "further_rate", "stages")}
    settings, file = json.loads(json.dumps(settings)), Path(args.save) / SETTINGS
    if stored_in(file) not in ({}, settings):
        raise OptionError(f"{args.save} holds models and results of other settings ({SETTINGS}); give another --save")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings), encoding="utf-8")


def collected(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is kept in ``args.save`` of the seeds, and what each system costs."""
    runs = []
    for seed in args.seeds:
        places = [folder_of(name, args, seed) for name in MODELS]
        training = {place.name: stored_in(place / LOG) for place in places if (place / LOG).is_file()}
        results = {name: result for place in places for name, result in stored_in(place / SCORES).items()}
        runs.append({"seed": seed, "training": training, "results": results})
    file = Path(args.save) / COSTS
    costs = stored_in(file)
    for name in (*SYSTEMS, STOCK):
        if name not in costs and args.costs:
            costs[name] = in_a_new_process(COSTS_MODULE, {"name": name, "seconds": args.seconds}, f"the memory of {name}")
            file.write_text(json.dumps(costs), encoding="utf-8")
    return {"machine": machine(), **stored_in(Path(args.save) / SETTINGS), "costs": costs, "runs": runs}


def in_lines(text: str) -> str:
    """JSON with each list of numbers, or of such lists, on one line."""
    return re.sub(r"\[[-+.\de,\s\[\]]+\]", lambda match: " ".join(match[0].split()).replace("[ ", "[").replace(" ]", "]"), text)


def main() -> None:
    """Run the study, or parts of it, and store its page."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), help="those that are trained and read with in this run"
    )
    parser.add_argument("--minutes", type=float, default=2.5, help="of the processor, for the training of each small model")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--stages", type=stage, nargs="+", default=[Stage(60.0, 96), Stage(300.0, 10)], metavar="SECONDS:RECORDINGS",
                        help="of the further training")  # fmt: skip
    parser.add_argument("--further-rate", type=float, default=3e-4)
    parser.add_argument("--seconds", type=float, default=300.0, help="of a recording")
    parser.add_argument("--recordings", type=int, default=8)
    parser.add_argument("--costs", action=argparse.BooleanOptionalAction, default=True, help="measure the memory of each system")
    parser.add_argument("--save", type=Path, help="a folder for models and results; those that are there are not made again")
    parser.add_argument("--output", type=Path, default=RESULTS / "speech_seams.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        args.save = args.save or Path(folder)
        keep_settings(args)
        for seed in args.seeds:
            for name in args.models:
                run(name, args, seed)
        stored = collected(args)
    store_study(args.output, stored, markdown(stored))
    file = args.output.with_suffix(".json")
    file.write_text(in_lines(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
