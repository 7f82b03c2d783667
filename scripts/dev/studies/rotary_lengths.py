"""Rules for rotary positions beyond the trained length: loss and needles of a small Llama at 1 to 8 times that length.

    python -m scripts.dev.studies.rotary_lengths --work runs/rotary     # about 15 minutes on one core; complete steps are kept

A Llama of two layers learns to continue texts of 128 tokens: Python source with lines such as ``# lookup alpha blue``, half of which
repeat an earlier line of the document. It is converted to 1,024 tokens by every rule, and every result is trained by `longattn train clm`
on inputs of 1,024 tokens, for the same number of steps. Then each model reads held-out documents:

- loss: the first 1,024 tokens of documents, in inputs of each length. All columns predict the same tokens.
- needles: one line at a random depth, among others, is to be repeated: ``# lookup alpha`` must be followed by the value as the likeliest
  of all tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, ByteLevelBPETokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import hf_longattn
from hf_longattn.cli import main as longattn
from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import finish_study, footnote, machine, markdown_table, output_of, study_parser
from scripts.dev.studies.corpus import iter_modules
from scripts.dev.studies.variable_tracking import MARKER, NAMES, VALUES

NAMES, VALUES = NAMES[::4], VALUES[::2]

OUTPUT = RESULTS / "rotary_lengths"
TRAINED, LONGEST = 128, 1024
LENGTHS = (128, 256, 512, 1024)
HEAD_DIM = 32
END = "<end>"
NTK = round(10_000 * (LONGEST / TRAINED) ** (HEAD_DIM / (HEAD_DIM - 2)))
"""The base of the NTK-aware rule: the slowest frequency is interpolated, the fastest one unchanged."""
RULES = {
    "none": "rope:none",
    "interpolation": "rope:linear",
    "NTK": f"rope:base:{NTK}",
    "YaRN": "rope:yarn",
    "Self-Extend": "rope:self-extend",
    "dual chunk": "rope:dual-chunk",
    "dropped (DroPE)": "rope:drop",
}
"""Rows of the table -> ``--positions``."""
RATE, BATCH = 2e-3, 16


def documents(split: str, count: int, lines: int, seed: int) -> Iterator[str]:
    """Source files of a split, in random order, with lookups between their lines."""
    rng, found = random.Random(seed), 0
    modules = [module.text for module in iter_modules(split)]
    rng.shuffle(modules)
    for text in modules:
        code = [line for line in text.splitlines() if line.strip() and len(line) < 100]
        if len(code) < lines:
            continue
        start = rng.randrange(len(code) - lines + 1)
        yield "".join(with_lookups(code[start : start + lines], rng))
        found += 1
        if found == count:
            return


def with_lookups(code: list[str], rng: random.Random) -> Iterator[str]:
    """Lines of code, with as many lookups between them. Half of these repeat one of the last eight, or any earlier one."""
    unused, known = rng.sample(NAMES, len(NAMES)), dict[str, str]()
    for line in code:
        yield line + "\n"
        if not unused or (known and rng.random() < 0.5):
            name = rng.choice([*known][-8:] if rng.random() < 0.7 else [*known])
        else:
            name = unused.pop()
            known[name] = rng.choice(VALUES)
        yield f"{MARKER} {name} {known[name]}\n"


def prepare(work: Path, seed: int) -> None:
    """The texts, the tokenizer, and the random model."""
    for number, (name, split, count) in enumerate((("train", "train", 3_000), ("further", "train", 100), ("test", "test", 100))):
        texts = documents(split, count, 100, seed + number)
        (work / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    bpe = ByteLevelBPETokenizer()
    with (work / "further.jsonl").open(encoding="utf-8") as lines:
        bpe.train_from_iterator((json.loads(line)["text"] for line in lines), vocab_size=512, special_tokens=[END])
    bpe.add_tokens([AddedToken(f" {word}") for word in dict.fromkeys((*NAMES, *VALUES))])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=END, eos_token=END, pad_token=END)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=344, num_hidden_layers=2, num_attention_heads=4, head_dim=HEAD_DIM,
        num_key_value_heads=4, max_position_embeddings=TRAINED, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    for part in (tokenizer, LlamaForCausalLM(config)):
        part.save_pretrained(work / "random")


def pretrain(work: Path, steps: int, seed: int) -> Path:
    """The source: the random model, trained on pieces of :data:`TRAINED` tokens."""
    target = work / "source"
    if not (target / "config.json").exists():
        tokenizer, model = AutoTokenizer.from_pretrained(work / "random"), AutoModelForCausalLM.from_pretrained(work / "random").train()
        texts = [json.loads(line)["text"] for line in (work / "train.jsonl").open(encoding="utf-8")]
        ids = torch.cat([torch.tensor(tokenizer(text)["input_ids"]) for text in texts])
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
        for step in range(steps):
            starts = torch.randint(len(ids) - TRAINED, (BATCH, 1), generator=generator)
            rows = ids[starts + torch.arange(TRAINED)]
            loss = model(rows, labels=rows).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % 100 == 0:
                print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
        for part in (tokenizer, model):
            part.save_pretrained(target)
    return target


def train(model: Path, target: Path, text: Path, steps: int, seed: int) -> Path:
    """The result of `longattn train clm` on inputs of :data:`LONGEST` tokens, as many in a step as in pre-training."""
    if not (target / "config.json").exists():
        settings = {
            "model": model, "text": text, "output": target, "max-length": LONGEST, "max-steps": steps, "seed": seed,
            "batch-size": BATCH * TRAINED // LONGEST, "learning-rate": RATE / 4, "report-to": "none",
        }  # fmt: skip
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        try:
            longattn(["train", "clm", *flags, "--no-eval-before-training", "--overwrite"])
        except SystemExit as end:
            if end.code:
                raise
    return target


@torch.inference_mode()
def losses(model: Any, ids: Tensor, length: int) -> list[float]:
    """The mean loss of each document ``ids (documents, N)``, in nats per token, read in inputs of ``length`` tokens."""
    found = []
    for document in ids:
        pieces = document[: len(document) // length * length].view(-1, length)
        logits = torch.cat([model(piece).logits for piece in pieces.split(max(1, 2048 // length))])
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), pieces[:, 1:].flatten(), reduction="none").view(len(pieces), -1)
        found.append(float(loss.mean()))
    return found


def needle(tokenizer: Any, code: list[str], length: int, rng: random.Random) -> tuple[list[int], int]:
    """The ids of a prompt of ``length`` tokens, and the id that must follow it."""
    names, answers = rng.sample(NAMES, 9), [rng.choice(VALUES) for _ in range(9)]
    lookups = [tokenizer(f"{MARKER} {name} {value}\n")["input_ids"] for name, value in zip(names, answers, strict=True)]
    question, answer = tokenizer(f"{MARKER} {names[0]}")["input_ids"], tokenizer(f" {answers[0]}")["input_ids"]
    room, lines = length - len(question) - sum(map(len, lookups)), list[list[int]]()
    start = rng.randrange(len(code))
    while room > 0:
        line = tokenizer(code[start % len(code)] + "\n")["input_ids"][:room]
        lines.append(line)
        room, start = room - len(line), start + 1
    for lookup in lookups:
        lines.insert(rng.randrange(len(lines) + 1), lookup)
    return [*(token for line in lines for token in line), *question], answer[0]


@torch.inference_mode()
def needles(model: Any, prompts: list[tuple[list[int], int]]) -> list[bool]:
    """Whether each prompt is followed by its answer."""
    found = []
    for start in range(0, len(prompts), 8):
        some = prompts[start : start + 8]
        likeliest = model(torch.tensor([ids for ids, _ in some]), logits_to_keep=1).logits[:, -1].argmax(-1).tolist()
        found += [guess == answer for guess, (_, answer) in zip(likeliest, some, strict=True)]
    return found


def measured(folder: Path, file: Path, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Losses and needles of a model at every length, from ``file`` if they are there."""
    if file.exists():
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return stored
    tokenizer = AutoTokenizer.from_pretrained(work / "random")
    texts = [json.loads(line)["text"] for line in (work / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    held_out = torch.tensor([tokens[:LONGEST] for tokens in ids if len(tokens) >= LONGEST][: options.documents])
    code = [line for text in texts for line in text.splitlines() if not line.startswith(MARKER)]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found: dict[str, Any] = {"loss": {}, "needles": {}}
    for length in LENGTHS:
        rng = random.Random(f"{options.seed} {length}")
        found["loss"][str(length)] = losses(model, held_out, length)
        found["needles"][str(length)] = needles(model, [needle(tokenizer, code, length, rng) for _ in range(options.needles)])
    file.write_text(json.dumps(found), encoding="utf-8")
    print(file.stem, {name: {at: round(float(np.mean(values)), 3) for at, values in of.items()} for name, of in found.items()}, flush=True)
    return found


def interval(correct: list[bool]) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share."""
    n, share, z = len(correct), sum(correct) / len(correct), 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def page(record: dict[str, Any]) -> str:
    """The tables."""
    rows, first = [], np.array(record["cells"]["none"]["loss"][str(TRAINED)])
    header = ["positions", *(f"loss, {length:,}" for length in LENGTHS), *(f"needles, {length:,}" for length in LENGTHS)]
    for name, cell in record["cells"].items():
        shown = [name]
        for length in LENGTHS:
            change = np.array(cell["loss"][str(length)]) - first
            shown.append(f"{first.mean() + change.mean():.2f} ± {change.std(ddof=1) / math.sqrt(len(change)):.2f}")
        for length in LENGTHS:
            correct = cell["needles"][str(length)]
            low, high = interval(correct)
            shown.append(f"{100 * sum(correct) / len(correct):.0f} % ({100 * low:.0f}–{100 * high:.0f})")
        rows.append(shown)
    settings = record["settings"]
    more = (
        f"{settings['documents']} held-out documents, ± standard error of the difference from the source at {TRAINED} tokens; "
        f"{settings['needles']} needles a length, with intervals of 95 %; pre-training of {settings['pretraining_steps']} steps, further "
        f"training of {settings['steps']} steps, of {BATCH * TRAINED:,} tokens each"
    )
    return markdown_table(header, rows) + "\n" + footnote(record["machine"], more) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = study_parser(__doc__, OUTPUT, "a few steps of everything, to see that it runs")
    parser.add_argument("--work", type=Path, required=True, help="folder of texts, models and measured cells, kept between runs")
    parser.add_argument("--pretraining-steps", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=50, help="steps of further training (default: 50)")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--needles", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.quick:
        options.pretraining_steps, options.steps, options.documents, options.needles = 3, 1, 2, 4
    work, cells = options.work, dict[str, Any]()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "random" / "config.json").exists():
        prepare(work, options.seed)
    source = pretrain(work, options.pretraining_steps, options.seed)
    for trained in (False, True):
        for name, positions in RULES.items():
            folder = work / positions.replace(":", "-")
            if not (folder / "config.json").exists():
                hf_longattn.convert_checkpoint(source, folder, mechanism="full", max_length=LONGEST, positions=positions, verify=False)
            if trained:
                folder = train(folder, work / f"{folder.name}-trained", work / "further.jsonl", options.steps, options.seed)
            cells[f"{name}{', trained' * trained}"] = measured(folder, work / f"{folder.name}.json", options, work)
    settings = {name: getattr(options, name) for name in ("pretraining_steps", "steps", "documents", "needles", "seed")}
    record = {"machine": machine(), "settings": {**settings, "rate": RATE, "rules": RULES}, "cells": cells}
    finish_study(output_of(options, OUTPUT), record, page(record))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
