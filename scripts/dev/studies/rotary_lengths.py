"""Rules for rotary positions beyond the trained length: loss and needles of a small Llama at 1 to 8 times that length.

    python -m scripts.dev.studies.rotary_lengths --work runs/rotary     # about an hour on one core; complete steps are kept

For each seed, two Llamas of two layers are trained on inputs of 128 tokens, and converted to 1,024 by every rule:

- loss: one learns to continue Python source with lines such as ``# lookup alpha blue``, half of which repeat an earlier line. It reads the
  first 1,024 tokens of held-out documents in inputs of each length, so that all columns predict the same tokens. Every result is also
  trained by `longattn train clm` on inputs of 1,024 tokens, for the same number of steps.
- needles: the other one learns to find eight needles in noise, and to answer a question about one of them at the end. Every result is
  also trained on haystacks of 1,024 tokens, for the same number of steps.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, ByteLevelBPETokenizer, Tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import hf_longattn
from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import finish_study, footnote, machine, markdown_table, output_of, study_parser
from scripts.dev.studies.corpus import iter_modules
from scripts.dev.studies.joint_reading import run
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
NOISE, KINDS, ANSWERS = 64, 8, 32
"""Tokens that say nothing, kinds of needles, and answers. A needle is of one kind and has one answer; a kind's token asks for it."""


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
    """The texts and the tokenizer."""
    for number, (name, split, count) in enumerate((("train", "train", 3_000), ("further", "train", 100), ("test", "test", 100))):
        texts = documents(split, count, 100, seed + number)
        (work / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    bpe = ByteLevelBPETokenizer()
    with (work / "further.jsonl").open(encoding="utf-8") as lines:
        bpe.train_from_iterator((json.loads(line)["text"] for line in lines), vocab_size=512, special_tokens=[END])
    bpe.add_tokens([AddedToken(f" {word}") for word in dict.fromkeys((*NAMES, *VALUES))])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(bpe.to_str()), bos_token=END, eos_token=END, pad_token=END)
    tokenizer.save_pretrained(work / "tokenizer")


def pretrain(work: Path, steps: int, seed: int) -> Path:
    """The model that continues texts, trained on pieces of :data:`TRAINED` tokens."""
    target = work / "source"
    if not (target / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
        texts = [json.loads(line)["text"] for line in (work / "train.jsonl").open(encoding="utf-8")]
        ids = torch.cat([torch.tensor(tokenizer(text)["input_ids"]) for text in texts])

        def pieces(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            rows = ids[torch.randint(len(ids) - TRAINED, (BATCH, 1), generator=generator) + torch.arange(TRAINED)]
            return rows, rows

        torch.manual_seed(seed)
        fit(small_llama(len(tokenizer), 4 * HEAD_DIM, 344, tie_word_embeddings=True), pieces, steps, RATE, seed, target)
        tokenizer.save_pretrained(target)
    return target


def train(model: Path, target: Path, text: Path, steps: int, seed: int) -> Path:
    """The result of `longattn train clm` on inputs of :data:`LONGEST` tokens, :data:`BATCH` of them in a step."""
    if not (target / "config.json").exists():
        settings = {
            "model": model, "text": text, "output": target, "max-length": LONGEST, "max-steps": steps, "seed": seed,
            "batch-size": 2, "total-batch-size": BATCH, "learning-rate": RATE / 4, "report-to": "none", "threads": torch.get_num_threads(),
        }  # fmt: skip
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        run("train", "clm", *flags, "--no-eval-before-training", "--overwrite", "--no-bf16")
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


def small_llama(vocabulary: int, width: int, inner: int, **more: Any) -> Any:
    """A Llama of two layers with random weights."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=2, num_attention_heads=width // HEAD_DIM,
        num_key_value_heads=width // HEAD_DIM, head_dim=HEAD_DIM, max_position_embeddings=TRAINED, bos_token_id=0, eos_token_id=0,
        pad_token_id=0, **more,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def haystack(generator: torch.Generator, rows: int, length: int, asked: int) -> tuple[Tensor, Tensor]:
    """Tokens and labels ``(rows, length)``: noise with a needle of every kind, then ``asked`` kinds, each followed by its answer.

    Only answers have labels.
    """
    ids, labels = torch.randint(NOISE, (rows, length), generator=generator), torch.full((rows, length), -100)
    answers = torch.randint(ANSWERS, (rows, KINDS), generator=generator)
    for row in range(rows):
        places = torch.randperm(length - 2 * asked, generator=generator)[:KINDS]
        kinds = torch.randperm(KINDS, generator=generator)[:asked]
        ids[row, places] = NOISE + KINDS + ANSWERS + torch.arange(KINDS) * ANSWERS + answers[row]
        ids[row, length - 2 * asked :: 2] = NOISE + kinds
        ids[row, length - 2 * asked + 1 :: 2] = labels[row, length - 2 * asked + 1 :: 2] = NOISE + KINDS + answers[row, kinds]
    return ids, labels


def fit(model: Any, batches: Callable[[torch.Generator], tuple[Tensor, Tensor]], steps: int, rate: float, seed: int, target: Path) -> None:
    """Train a model, and save it."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        ids, labels = batches(generator)
        loss = model(ids, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"{target.name}: step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(target)


def recall_source(work: Path, steps: int, seed: int) -> Path:
    """The model that finds needles."""
    target = work / "recall"
    if not (target / "config.json").exists():
        torch.manual_seed(seed)
        model = small_llama(NOISE + KINDS + ANSWERS + KINDS * ANSWERS, 3 * HEAD_DIM, 6 * HEAD_DIM)
        fit(model, lambda generator: haystack(generator, BATCH, TRAINED, KINDS), steps, RATE, seed, target)
    return target


def train_recall(model: Path, target: Path, steps: int, seed: int) -> Path:
    """The model that finds needles, trained further on haystacks of :data:`LONGEST` tokens."""
    if not (target / "config.json").exists():
        torch.manual_seed(seed)
        long = AutoModelForCausalLM.from_pretrained(model)
        fit(long, lambda generator: haystack(generator, BATCH, LONGEST, KINDS), steps, RATE / 4, seed + 1, target)
    return target


@torch.inference_mode()
def needles(model: Any, length: int, count: int, seed: int) -> list[bool]:
    """Whether the answer to one question is the likeliest token after ``length - 1`` tokens."""
    ids, labels = haystack(torch.Generator().manual_seed(seed + 2), count, length, 1)
    guesses = [model(some, logits_to_keep=1).logits[:, -1].argmax(-1) for some in ids[:, :-1].split(4)]
    correct: list[bool] = (torch.cat(guesses) == labels[:, -1]).tolist()
    return correct


def measured(folder: Path, file: Path, measure: Callable[[Any, int], list[Any]]) -> dict[str, list[Any]]:
    """``measure(model, length)`` at every length, from ``file`` if it is there."""
    if file.exists():
        stored: dict[str, list[Any]] = json.loads(file.read_text(encoding="utf-8"))
        return stored
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = {str(length): measure(model, length) for length in LENGTHS}
    file.write_text(json.dumps(found), encoding="utf-8")
    print(file.stem, {at: round(float(np.mean(values)), 3) for at, values in found.items()}, flush=True)
    return found


def held_out(work: Path, count: int) -> Tensor:
    """The first tokens of held-out documents, ``(count, LONGEST)``."""
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    texts = (json.loads(line)["text"] for line in (work / "test.jsonl").read_text(encoding="utf-8").splitlines())
    ids = [tokenizer(text)["input_ids"][:LONGEST] for text in texts]
    return torch.tensor([tokens for tokens in ids if len(tokens) == LONGEST][:count])


def interval(right: int, n: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for the share of ``right`` among ``n``."""
    share, z = right / n, 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def page(record: dict[str, Any]) -> str:
    """The tables: losses, and needles."""
    first, settings = np.array(record["loss"]["none"][str(TRAINED)]), record["settings"]
    lengths = [f"{length:,}" for length in LENGTHS]

    def loss(cell: dict[str, list[list[float]]], length: int) -> str:
        change = np.array(cell[str(length)]) - first
        return f"{first.mean() + change.mean():.2f} ± {change.std(ddof=1) / math.sqrt(change.size):.2f}"

    def share(right: list[int]) -> str:
        count = len(right) * settings["needles"]
        low, high = interval(sum(right), count)
        return f"{100 * sum(right) / count:.0f} % ({100 * low:.0f}–{100 * high:.0f})"

    pairs = {kind: {name: (record[kind][name], record[kind][f"{name}, trained"]) for name in RULES} for kind in ("loss", "needles")}
    losses = [[name, *(loss(cell, length) for cell in pair for length in LENGTHS)] for name, pair in pairs["loss"].items()]
    found = [[name, *(share(cell[str(length)]) for cell in pair for length in LENGTHS)] for name, pair in pairs["needles"].items()]
    more = (
        f"{len(settings['seeds'])} seeds, taken as given; {settings['documents']} held-out documents a seed, ± standard error of the "
        f"difference from the source at {TRAINED} tokens; {settings['needles']} needles a length and seed, intervals of 95 %, chance "
        f"{100 / ANSWERS:.0f} %; training of {settings['pretraining_steps']:,} and {settings['recall_steps']:,} steps of "
        f"{BATCH * TRAINED:,} tokens, further training of {settings['steps']} steps of {BATCH * LONGEST:,} tokens"
    )
    columns = [*lengths, *(f"{at}, trained" for at in lengths)]
    tables = markdown_table(["nats per token", *columns], losses), markdown_table(["needles", *columns], found)
    return "\n\n".join([*(table.strip() for table in tables), footnote(record["machine"], f"; {more}").strip()]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = study_parser(__doc__, OUTPUT, "a few steps of everything, to see that it runs")
    parser.add_argument("--work", type=Path, required=True, help="folder of texts, models and measured cells, kept between runs")
    parser.add_argument("--pretraining-steps", type=int, default=2_000)
    parser.add_argument("--recall-steps", type=int, default=1_000)
    parser.add_argument("--steps", type=int, default=15, help="steps of further training (default: 15)")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--needles", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the training data, first weights and test data")
    options = parser.parse_args(arguments)
    if options.quick:
        options.pretraining_steps, options.steps, options.documents, options.needles = 3, 1, 2, 4
        options.recall_steps = 3
    names = ("pretraining_steps", "recall_steps", "steps", "documents", "needles", "seeds")
    settings = {**{name: getattr(options, name) for name in names}, "rate": RATE, "rules": RULES}
    record: dict[str, Any] = {"machine": machine(), "settings": settings, "loss": {}, "needles": {}}
    for seed in options.seeds:
        for kind, label, cells in cells_of(options.work / f"seed{seed}", options, seed):
            row = record[kind].setdefault(label, {str(length): [] for length in LENGTHS})
            for length, values in cells.items():
                row[length].append(values if kind == "loss" else sum(values))
    finish_study(output_of(options, OUTPUT), record, page(record))
    return 0


def cells_of(work: Path, options: Any, seed: int) -> Iterator[tuple[str, str, dict[str, list[Any]]]]:
    """("loss" or "needles", a rule, what was measured at each length) of one seed."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer" / "tokenizer.json").exists():
        prepare(work, seed)
    sources = {"needles": recall_source(work, options.recall_steps, seed), "loss": pretrain(work, options.pretraining_steps, seed)}
    documents = held_out(work, options.documents)
    measures: dict[str, Callable[[Any, int], list[Any]]] = {
        "loss": lambda model, length: losses(model, documents, length),
        "needles": lambda model, length: needles(model, length, options.needles, seed),
    }
    for (kind, source), (name, positions) in itertools.product(sources.items(), RULES.items()):
        folder = work / f"{kind}-{positions.replace(':', '-')}"
        if not (folder / "config.json").exists():
            hf_longattn.convert_checkpoint(source, folder, mechanism="full", max_length=LONGEST, positions=positions, verify=False)
        yield kind, name, measured(folder, work / f"{folder.name}.json", measures[kind])
        target = work / f"{folder.name}-trained"
        if kind == "loss":
            train(folder, target, work / "further.jsonl", options.steps, seed)
        else:
            train_recall(folder, target, options.steps, seed)
        yield kind, f"{name}, trained", measured(target, work / f"{target.name}.json", measures[kind])


if __name__ == "__main__":
    raise SystemExit(main())
