"""One converted backbone that learns text, pictures and speech at once, next to three that learn one of them each.

    python -m scripts.dev.studies.one_backbone --work-dir work --text valid.txt test.txt    # of WikiText-2

Text: which of the eight longest articles of WikiText-2 a passage is from. Pictures: scikit-learn's handwritten digits. Speech: the digit
that a voice says, of voices that were not heard in training (espeak-ng). A small BERT with random weights is converted, gets embedders, and
is trained by `longattn train multitask` on all three, or by `longattn train classify` on each with as many batches of it. Every run is
stored as soon as it ends; a further call runs what is not stored yet.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.audio import resampled
from hf_longattn.modeling.multimodal import ImageInput
from hf_longattn.staging import staged_folder, write_text
from hf_longattn.training.modalities import load_multimodal_start
from hf_longattn.training.parsing import build_arguments
from hf_longattn.training.tasks.classify import CLASSIFICATION, finetune_classification
from hf_longattn.training.tasks.multitask import MULTITASK, finetune_multitask
from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import markdown_table
from scripts.dev.studies.far_drawing import TRAINING_DIGITS
from scripts.dev.studies.speech_synthesis import DIGITS, HELD_OUT, RATE, TRAINED, say

ARTICLES, WORDS_OF_PASSAGE = 8, 60
TITLE = re.compile(r"^ = [^=].* = $")
MODEL_RATE, SIDE, PATCH = 16_000, 32, 4
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
VOCABULARY, SHORT, LONG = 4_000, 64, 256
KINDS = {"article": "classify", "digit": "images", "word": "audio"}
CHANCE = {"article": 100 / ARTICLES, "digit": 10.0, "word": 10.0}
UNITS = {"article": "passages of WikiText-2, of 8 articles", "digit": "handwritten digits", "word": "spoken digits, of unheard voices"}
STEPS, BATCH, TEMPERATURE, LEARNING_RATE = 900, 16, 2.0, 1e-3
SEEDS = (0, 1, 2)


def passages(files: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Passages of the longest articles with the number of their article."""
    articles: list[list[str]] = []
    for file in files:
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            if TITLE.match(line):
                articles.append([])
            elif articles and not line.startswith(" ="):
                articles[-1] += line.split()
    for number, words in enumerate(sorted(articles, key=len, reverse=True)[:ARTICLES]):
        for first in range(0, len(words) - WORDS_OF_PASSAGE, WORDS_OF_PASSAGE):
            yield " ".join(words[first : first + WORDS_OF_PASSAGE]), f"article {number}"


def write_data(folder: Path, files: Sequence[str]) -> None:
    """Training and held-out data of the three tasks; the last fifth of every article is held out."""
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "held_out": []}
    rows = list(passages(files))
    for label in sorted({label for _, label in rows}):
        texts = [row for row in rows if row[1] == label]
        parts["train"] += texts[: len(texts) * 4 // 5]
        parts["held_out"] += texts[len(texts) * 4 // 5 + 1 :]
    digits = load_digits()
    for part, texts in parts.items():
        (folder / part).mkdir(parents=True)
        with (folder / part / "article.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *texts])
        for number, (picture, name) in enumerate(zip(digits.images, digits.target, strict=True)):
            if (number < TRAINING_DIGITS) == (part == "train"):
                (folder / part / "digit" / str(name)).mkdir(parents=True, exist_ok=True)
                Image.fromarray((15.9 * picture).astype(np.uint8)).save(folder / part / "digit" / str(name) / f"{number}.png")
        for word in DIGITS.values():
            (folder / part / "word" / word).mkdir(parents=True)
            for number, voice in enumerate(TRAINED if part == "train" else HELD_OUT):
                soundfile.write(folder / part / "word" / word / f"{number}.wav", resampled(say(word, voice), RATE, MODEL_RATE), MODEL_RATE)


def write_start(folder: Path, data: Path, seed: int) -> None:
    """A converted BERT with random weights and new embedders, for a seed."""
    text = [row["text"] for row in csv.DictReader((data / "train" / "article.csv").open(encoding="utf-8"))]
    trainer = BertWordPieceTokenizer()
    trainer.train_from_iterator(text, vocab_size=VOCABULARY, show_progress=False)
    (folder / "short").mkdir(parents=True)
    trainer.save_model(str(folder / "short"))
    tokenizer = BertTokenizer.from_pretrained(folder / "short", model_max_length=SHORT)
    torch.manual_seed(seed)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=SHORT, **SHAPE)).save_pretrained(folder / "short")
    tokenizer.save_pretrained(folder / "short")
    convert_checkpoint(folder / "short", folder / "long", mechanism="longformer", max_length=LONG, window=32, verify=False)
    torch.manual_seed(seed)
    start = load_multimodal_start(str(folder / "long"), set(KINDS.values()), ImageInput((SIDE, SIDE), PATCH, order="hilbert"), 40, 4)
    assert start.model is not None
    start.model.save_pretrained(folder / "start")
    start.processors.save_pretrained(folder / "start")


def shares(sizes: Mapping[str, int]) -> dict[str, float]:
    """The share of each task in mixed batches."""
    weights = {name: size ** (1 / TEMPERATURE) for name, size in sizes.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def settings(start: str, output: Path, steps: int, seed: int) -> dict[str, Any]:
    """What all runs share."""
    return {
        "model": start, "output_dir": str(output), "max_steps": steps, "seed": seed, "learning_rate": LEARNING_RATE, "threads": 1,
        "per_device_train_batch_size": BATCH, "per_device_eval_batch_size": 32, "gradient_accumulation_steps": 1, "bf16": False,
        "eval_before_training": False, "save_strategy": "no", "overwrite": True, "disable_tqdm": True, "warmup_steps": 0.1,
    }  # fmt: skip


def train_together(start: str, data: Path, output: Path, seed: int, steps: int) -> dict[str, Any]:
    """The scores of one backbone with three heads."""
    source = {name: "article.csv" if name == "article" else name for name in KINDS}
    entries: dict[str, dict[str, Any]] = {
        name: {"kind": kind, "data": str(data / "train" / source[name]), "validation": str(data / "held_out" / source[name])}
        for name, kind in KINDS.items()
    }
    entries["digit"]["augmentation"] = "none"
    write_text(output / "tasks.json", json.dumps(entries))
    values = {**settings(start, output / "together", steps, seed), "task_file": str(output / "tasks.json"), "temperature": TEMPERATURE}
    log = finetune_multitask(*build_arguments(MULTITASK, **values))
    scores: dict[str, Any] = log["held_out"]["after"]
    return scores


def train_alone(name: str, start: str, data: Path, output: Path, seed: int, steps: int) -> dict[str, Any]:
    """The scores of a backbone with one head."""
    source = "article.csv" if name == "article" else name
    kinds: dict[str, Any] = {
        "article": {"packing": False},
        "digit": {"images": True, "augmentation": "none"},
        "word": {"audio": True},
    }
    where = {"data": [str(data / "train" / source)], "validation": str(data / "held_out" / source)}
    log = finetune_classification(*build_arguments(CLASSIFICATION, **settings(start, output / name, steps, seed), **where, **kinds[name]))
    scores: dict[str, Any] = log["held_out"]["after"]
    return scores


def run_seed(seed: int, work: Path, files: Sequence[str], stored: dict[str, Any], store: Any, steps: int) -> None:
    """Train what is not stored of a seed."""
    runs = stored["seeds"].setdefault(str(seed), {})
    data, output = work / "data", work / f"seed-{seed}"
    if not data.exists():
        with staged_folder(data) as stage:
            write_data(stage, files)
    if not output.exists():
        with staged_folder(output) as stage:
            write_start(stage, data, seed)
    start = str(output / "start")
    sizes = {
        "article": len((data / "train" / "article.csv").read_text(encoding="utf-8").splitlines()) - 1,
        **{name: sum(1 for path in (data / "train" / name).rglob("*.*")) for name in ("digit", "word")},
    }
    stored["sizes"], stored["steps"] = sizes, {name: round(steps * share) for name, share in shares(sizes).items()}
    for name in ("together", *KINDS):
        if name in runs:
            continue
        before = time.process_time()
        if name == "together":
            scores = train_together(start, data, output, seed, steps)
        else:
            scores = {name: train_alone(name, start, data, output, seed, stored["steps"][name])}
        scores_by_task = {task: {"accuracy": of_task["accuracy"], "n": of_task["n"]} for task, of_task in scores.items()}
        runs[name] = {"scores": scores_by_task, "seconds": time.process_time() - before}
        store()
        print(seed, name, runs[name], flush=True)


def accuracy(stored: Mapping[str, Any], run: str, task: str) -> tuple[list[float], float, float]:
    """The accuracies of all seeds, their mean, and its standard error over inputs."""
    scores = [runs[run]["scores"][task] for runs in stored["seeds"].values() if run in runs]
    values = [score["accuracy"] for score in scores]
    mean, count = sum(values) / len(values), sum(score["n"] for score in scores)
    share = min(max(mean / 100, 0.5 / count), 1 - 0.5 / count)
    return values, mean, 100 * math.sqrt(share * (1 - share) / count)


def page(stored: Mapping[str, Any]) -> str:
    """The table in Markdown."""
    rows = []
    for task, unit in UNITS.items():
        (together, mean, error), (alone, alone_mean, alone_error) = accuracy(stored, "together", task), accuracy(stored, task, task)
        count = next(iter(stored["seeds"].values()))["together"]["scores"][task]["n"]
        cells = [
            f"{value:.1f} ± {error_of:.1f} ({', '.join(f'{one_seed:.1f}' for one_seed in values)})"
            for values, value, error_of in ((together, mean, error), (alone, alone_mean, alone_error))
        ]
        difference = f"{mean - alone_mean:+.1f} ± {math.hypot(error, alone_error):.1f}"
        above = f"{(mean - CHANCE[task]) / error:.0f}"
        rows.append([unit, f"{stored['sizes'][task]:,}", str(count), f"{CHANCE[task]:.1f}", *cells, difference, above])
    seconds = {name: [runs[name]["seconds"] for runs in stored["seeds"].values() if name in runs] for name in ("together", *KINDS)}
    means = {name: sum(values) / len(values) for name, values in seconds.items()}
    columns = ["task", "training inputs", "held out", "chance", "one backbone for all", "a backbone each", "difference"]
    columns += ["errors above chance"]
    steps = ", ".join(f"{count} {name}s" for name, count in stored["steps"].items())
    return "\n".join(
        [
            "# One backbone for text, pictures and speech",
            "",
            f"A BERT of {SHAPE['num_hidden_layers']} layers and width {SHAPE['hidden_size']} with random weights, converted from {SHORT} "
            f"to {LONG} tokens (longformer, window 32), with embedders of pictures ({SIDE} × {SIDE} pixels, patches of {PATCH} along a "
            "Hilbert curve) and of recordings (40 mel bins, a token for 40 ms). *One backbone for all*: `longattn train multitask`, "
            f"{STEPS} steps of {BATCH} inputs, batches drawn with temperature {TEMPERATURE:g}. *A backbone each*: `longattn train "
            f"classify` from the same start with as many batches of its task ({steps}). Accuracy on held-out inputs in per cent, mean of "
            f"{len(stored['seeds'])} seeds ± its standard error over inputs; in brackets each seed.",
            "",
            markdown_table(columns, rows),
            "",
            f"- Seconds of processor time of a run: {means['together']:.0f} for all three together, "
            f"{', '.join(f'{means[name]:.0f} for {name}s' for name in KINDS)}.",
            f"- Machine: x86_64, one thread, torch {stored['torch']}.",
            "- Command: `python -m scripts.dev.studies.one_backbone --work-dir work --text valid.txt test.txt` (of WikiText-2, raw)",
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", required=True, help="files of WikiText-2, raw")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="default %(default)s")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a run on all tasks, default %(default)s")
    parser.add_argument("--work-dir", type=Path, required=True, help="folder of data and starts, made where they are missing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of one_backbone.json and .md, default %(default)s")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    file = options.output / "one_backbone.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"seeds": {}}
    stored["torch"] = torch.__version__

    def store() -> None:
        write_text(file, json.dumps(stored, indent=1, sort_keys=True) + "\n")

    for seed in options.seeds:
        run_seed(seed, options.work_dir, options.text, stored, store, options.steps)
        write_text(file.with_suffix(".md"), page(stored))
    return 0


if __name__ == "__main__":
    sys.exit(main())
