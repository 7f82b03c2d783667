"""What long attention is for, on a real checkpoint: answers that must be put together from two far places of a page.

    python -m scripts.dev.studies.joint_reading --work runs/joint             three seeds; resumes what was interrupted
    python -m scripts.dev.studies.joint_reading --work runs/quick --quick     one seed, five minutes of training, few questions
    python -m scripts.dev.studies.joint_reading --work runs/joint --prepare   checkpoint and pages for a GPU: runs/joint.tar.xz
    python -m scripts.dev.studies.joint_reading --work runs/joint --device cuda --budget 480     there, after unpacking into runs/

all-MiniLM-L6-v2 gets a question-answering head and is trained on excerpts of :mod:`reference_pages` of less than 512 tokens. From there
on, with equal minutes of training on the same whole pages and longer excerpts: windows of 512 tokens that share 128; the same with the
title in front of each; and the model converted to 4,096 tokens. All trainings but one (:mod:`varied_windows`) and
all conversions are the commands of users, which are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from hf_longattn.files import read_json_object, write_json
from scripts.dev import ROOT
from scripts.dev.benchmarks.report import finish_study, footnote, machine, markdown_table, one_sentence_errors, output_of, study_parser
from scripts.dev.real import WEIGHTS, real_checkpoint
from scripts.dev.studies.reference_pages import (
    FAR,
    KINDS,
    LENGTHS,
    PACKAGES,
    Entry,
    Page,
    Question,
    any_sentence,
    excerpt,
    halfway,
    most_words,
    pages_of,
    program,
    questions_of,
    rewired,
)

OUTPUT = {"cpu": Path("scripts/dev/results/joint_reading"), "cuda": Path("scripts/dev/results/joint_reading_cuda")}
SHORT, LONG, STRIDE = 512, 4096, 128
EXCERPTS = {"first": (90, 250), "second": (100, 440), "longer": (100, 3600)}
"""Tokens of the excerpts, fewest and most."""
LAYOUT = ("--option", "window=128", "--layers", "2=full")
"""Windows of 128, and full attention in one layer, where equal names see each other anywhere on the page.

Of the six layers, this one found most before any training, on pages that are not of the test."""
TEST = {"one place": 110, "two places": 140, "names exchanged": 110, "none": 70}
"""Questions of each kind, at most; "names exchanged" are of two places, with another class's name in the first one."""
RULES = {"random": any_sentence, "lexical": most_words, "program": program}
READERS = ("windows", "titled", "long")
ROUNDS = {"cpu": 1, "cuda": 4}
"""How often questions to train on are drawn from the same pages. A GPU reads one drawing in seconds. Untuned."""
GPU = "--tokens-per-batch 65536 --batch-size 32 --dataloader-num-workers 12 --save-strategy no --include-num-input-tokens-seen true"
"""Options of every training on a GPU: 16 times the batch of a CPU, at the same learning rates. Untuned."""
ROWS = {
    "random": "a random first sentence of the page",
    "lexical": "the first sentence of the entry that shares most words with the question",
    "program": "a program written for the questions",
    "windows": "original, windows of 512, stride 128",
    "titled": "original, windows of 512, each with the title",
    "long": "converted to 4,096 tokens (windows of 128, one layer full)",
}


def prepare(work: Path) -> None:
    """Copy the checkpoint without dropout, and with all of its 512 tokens read, not 256.

    Dropout only slows these short trainings down.
    """
    if not (work / "minilm").exists():
        work.mkdir(parents=True, exist_ok=True)
        shutil.copytree(real_checkpoint(), work / "minilm", copy_function=shutil.copyfile)
        without = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
        for name, changes in (("config", without), ("sentence_bert_config", {"max_seq_length": SHORT})):
            file = work / "minilm" / f"{name}.json"
            write_json(file, read_json_object(file) | changes)


class Minutes(NamedTuple):
    """Minutes of training: three times on excerpts, which all readers share; on pages and longer excerpts, and there for every seed."""

    first: float = 9.0
    second: float = 16.0
    third: float = 16.0
    pages: float = 12.0
    seed: float = 2.5


class Answer(NamedTuple):
    """One system's answer to one question of the test; ``seed`` is None where nothing is trained."""

    system: str
    seed: int | None
    id: str
    kind: str
    page: str
    text: str
    exact: float
    f1: float
    seconds: float


def build(work: Path, quick: bool) -> None:
    """Write the pages to train on, the questions about held-out pages, and the test."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work / "minilm")
    for split, packages in PACKAGES.items():
        names = packages.split()[: 3 if quick else None]
        pages = [page for name in names for page in pages_of(name)]
        if split == "train":
            write_json(work / "pages.json", [asdict(page) for page in pages])
        elif split == "validation":
            write(work / "validation.jsonl", chosen(pages, tokenizer, dict.fromkeys(KINDS, 4 if quick else 40), far=0), titled=True)
        else:
            counts = {kind: count // (10 if quick else 1) for kind, count in TEST.items()}
            found = chosen(pages, tokenizer, counts, far=FAR, nearest=Nearest(work / "minilm"))
            write(work / "test.jsonl", found + exchanged(pages, tokenizer, counts["names exchanged"]), titled=True)


def stored_pages(work: Path) -> list[Page]:
    """The pages to train on, as :func:`build` wrote them."""
    pages = json.loads((work / "pages.json").read_text(encoding="utf-8"))
    return [Page(page["title"], page["text"], [Entry(**entry) for entry in page["entries"]]) for page in pages]


def draw(work: Path, rounds: int, step: int, first: int) -> list[Answer]:
    """Write the questions to train on, about excerpts and whole pages: every ``step``-th round of drawing; no answers yet."""
    from transformers import AutoTokenizer

    tokenizer, pages = AutoTokenizer.from_pretrained(work / "minilm"), stored_pages(work)
    for seed in range(rounds)[first::step]:
        (folder := work / f"round-{seed}").mkdir(exist_ok=True)
        for name, budget in EXCERPTS.items():
            some = pages[:: 3 if name == "longer" else 1]
            write(folder / f"{name}.jsonl", excerpts(some, budget, seed, natural=name == "first"), titled=name == "longer")
        counts = {"two places": 300, "one place": 250, "none": 200}
        write(folder / "pages.jsonl", chosen(pages, tokenizer, counts, far=0, seed=seed), titled=True)
    return []


def pack(work: Path) -> float:
    """Pack the checkpoint in fp16, the pages and the commit into ``WORK.tar.xz``; return its MiB with the code.

    Rows of the word table are zero where no page has their token: they compress to nothing, and nothing looks them up.
    """
    from transformers import AutoTokenizer

    tokenizer, used, names = AutoTokenizer.from_pretrained(work / "minilm"), set[int](), ("validation-titled", "test-titled")
    questions = [record for name in names for record in read(work / f"{name}.jsonl")]
    for text in [page.text for page in stored_pages(work)] + [record[part] for record in questions for part in ("question", "context")]:
        used.update(tokenizer(text, verbose=False)["input_ids"])
    weights = {name: tensor.half() for name, tensor in load_file(work / "minilm" / WEIGHTS).items() if tensor.is_floating_point()}
    table = weights["embeddings.word_embeddings.weight"]
    table[[row for row in range(len(table)) if row not in used | {*tokenizer.all_special_ids}]] = 0
    save_file(weights, work / "minilm" / WEIGHTS, {"format": "pt"})
    commit = subprocess.check_output(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=9"], text=True).strip()
    write_json(work / "prepared.json", {"commit": commit})
    with tarfile.open(archive := Path(f"{work}.tar.xz"), "w:xz") as file:
        for path in (work / "minilm", *work.glob("*.json*")):
            file.add(path, f"{work.name}/{path.name}")
    code = [path for folder in ("hf_longattn", "scripts") for path in (ROOT / folder).rglob("*.py")]
    packed, whole = (sum(path.stat().st_size for path in paths) / 2**20 for paths in ([archive], [archive, *code]))
    print(f"{archive}: {packed:.1f} MiB, with the code {whole:.1f}; commit {commit}; {len(used):,} of {len(table):,} tokens occur")
    return whole


def write(path: Path, records: Sequence[Mapping[str, Any]], titled: bool = False) -> None:
    """Write a file of questions, and one in whose questions the page's title stands in front."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    if titled:
        in_front = [{**record, "question": f"{record['title']}: {record['question']}"} for record in records]
        write(path.with_stem(f"{path.stem}-titled"), in_front)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def elsewhere(pages: Sequence[Page], rng: random.Random) -> list[str]:
    """Names of entries of any page, to ask for where they are not."""
    return [entry.name for page in rng.sample(pages, min(3, len(pages))) for entry in rng.sample(page.entries, 1)]


def excerpts(pages: Sequence[Page], budget: tuple[int, int], seed: int = 0, *, natural: bool = False) -> list[dict[str, Any]]:
    """Questions over excerpts; see :func:`short_pages`.

    Unless they are ``natural``, half of those of two places also ask what stands halfway.
    """
    rng = random.Random(seed)
    found = []
    for page, question in short_pages(pages, budget, rng, natural=natural):
        half = halfway(question) if not natural and rng.random() < 0.5 else None
        found += [(page, one) for one in (question, half) if one is not None]
    records = [{**asked.record(page), "id": str(number)} for number, (page, asked) in enumerate(found)]
    rng.shuffle(records)
    return records


def short_pages(
    pages: Sequence[Page], budget: tuple[int, int], rng: random.Random, *, natural: bool = False
) -> Iterator[tuple[Page, Question]]:
    """Yield excerpts of so many tokens with a question, most of two places. Few pages have these by nature; so names of other classes are
    put in their place, and half of the excerpts have their docstrings dealt out anew: what is left to learn is to go from a name to the
    next.

    Args:
        natural: leave names as they are, and ask most questions of one place or none, which must be learned first.
    """
    for page in pages:
        by_kind = defaultdict(list)
        for question in questions_of(page, elsewhere(pages, rng)):
            by_kind[question.kind].append(question)
        taken = [(question, not natural and rng.random() < 0.5) for question in by_kind["two places"] for _ in range(2)]
        others = max(1, len(taken) // 3) if natural else 1
        if not natural:
            leading = [question for question in by_kind["none"] if question.leads_to]
            taken += [(question, True) for question in rng.sample(leading, min(5, len(leading)))]
        for kind in ("one place", "none"):
            taken += [(question, False) for question in rng.sample(by_kind[kind], min(others, len(by_kind[kind])))]
        for question, renamed in taken:
            size = tokens_of(budget, rng)
            short = excerpt(page, question, size, rng, mixed=rng.random() < 0.5, whole=size > SHORT)
            made = rewired(*short, rng) if renamed else short
            if made is not None and answered_once(*made):
                yield made


def answered_once(page: Page, question: Question) -> bool:
    """Whether the answer, if there is one, stands nowhere else on the page."""
    return question.target is None or page.text.count(question.target.answer) == 1


def tokens_of(budget: tuple[int, int], rng: random.Random) -> int:
    """Tokens of an excerpt, the longer the rarer (as length ** -1.5), since a join is learned from many examples."""
    fewest, most = budget
    return round(rng.uniform(fewest**-0.5, most**-0.5) ** -2)


def chosen(
    pages: Sequence[Page], tokenizer: Any, counts: Mapping[str, int], *, far: int, nearest: Nearest | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Questions about whole pages, with different answers: at most two of a kind and page, of two places three.

    Args:
        counts: how many of each kind.
        far: fewest tokens between two places.
        nearest: leave out the questions of two places that it answers, which need no join.
    """
    rng = random.Random(seed)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for page in rng.sample(pages, len(pages)):
        by_kind: dict[str, dict[str, Question]] = defaultdict(dict)
        for question in questions_of(page, elsewhere(pages, rng)):
            if question.kind != "two places" or not question.near(far):
                by_kind[question.kind].setdefault(question.target.answer if question.target else question.text, question)
        if nearest is not None:
            by_kind["two places"] = {key: one for key, one in by_kind["two places"].items() if not nearest.finds(page, one)}
        for kind, questions in by_kind.items():
            if len(found[kind]) < 2 * counts[kind]:
                for question in rng.sample(list(questions.values()), min(3 if kind == "two places" else 2, len(questions))):
                    record = question.measured(page, tokenizer)
                    if fits(record) and (kind != "two places" or record["distance"] >= far):
                        found[kind].append(record)
    return [record for kind in KINDS for record in rng.sample(found[kind], min(counts[kind], len(found[kind])))]


def fits(record: Mapping[str, Any]) -> bool:
    """Whether a page is long enough, and leaves room for its question in :data:`LONG` tokens."""
    return LENGTHS[0] <= record["tokens"] <= LONG - 96


def exchanged(pages: Sequence[Page], tokenizer: Any, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions of two far places, one a page, whose first place got another class's name: similar names no longer give the answer away."""
    rng, found = random.Random(seed), []
    for page in rng.sample(pages, len(pages)):
        leading = [question for question in questions_of(page) if question.leads_to]
        for question in rng.sample(leading, len(leading)):
            made = rewired(page, question, rng)
            if made is not None and not made[1].near(FAR) and answered_once(*made):
                record = {**made[1].measured(made[0], tokenizer), "places": "names exchanged"}
                if fits(record) and record["distance"] >= FAR:
                    found.append(record)
                    break
    return rng.sample(found, min(count, len(found)))


class Nearest:
    """Guesses the class of a question of two places by the vectors of the original: the description nearest to the question, with the
    class's name before it or without."""

    def __init__(self, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(folder), device="cpu")
        self.vectors: dict[str, Any] = {}

    def embed(self, texts: Sequence[str]) -> Any:
        """Vectors ``(texts, width)`` of length 1, each text read once."""
        new = [text for text in dict.fromkeys(texts) if text not in self.vectors]
        self.vectors |= dict(zip(new, self.model.encode(new, normalize_embeddings=True), strict=True)) if new else {}
        return np.stack([self.vectors[text] for text in texts])

    def finds(self, page: Page, question: Question) -> bool:
        """Whether one of its two guesses is right."""
        classes = [entry for entry in page.entries if entry.answer and entry.is_class and entry != question.asked]
        (asked,) = self.embed([question.text])
        texts = [f"{entry.name}: {entry.answer}" for entry in classes], [entry.answer for entry in classes]
        return any(classes[int((self.embed(one) @ asked).argmax())] == question.target for one in texts)


def train(options: argparse.Namespace, seed: int) -> None:
    """Train the reader of excerpts that all share, and from it the readers of pages, on the same data."""
    work, minutes = options.work, options.minutes
    few = "--max-eval-samples 100 --warmup-steps 50 --tokens-per-batch 2048 --learning-rate"
    fine_tune(options, "first", "minilm", "first", minutes.first, seed, f"{few} 2e-4")
    fine_tune(options, "second", "first", "second", minutes.second, seed, f"{few} 1.5e-4", program=("scripts.dev.studies.varied_windows",))
    fine_tune(options, "reader", "second", "second", minutes.third, seed + 1, f"{few} 1e-4")
    if "long" in options.arms and not (work / "converted").exists() and (work / "reader" / WEIGHTS).exists():
        run("hf_longattn", "convert", work / "reader", work / "converted", "--mechanism", "longformer", "--max-length", LONG, *LAYOUT)
    same = "--tokens-per-batch 4096"
    for name, model in (("windows", "reader"), ("long", "converted")):
        if {name, name.replace("windows", "titled")} & {*options.arms}:  # titled starts from windows
            more = f"{same} --warmup-steps 50 --learning-rate 1e-4"
            fine_tune(options, name, model, "longer pages", minutes.pages, seed, more, held_out="validation")
    for name in options.arms:
        titled, model, more = "-titled" * (name == "titled"), "long" if name == "long" else "windows", f"{same} --learning-rate 5e-5"
        data, held_out = f"longer{titled} pages{titled}", f"validation{titled}"
        fine_tune(options, f"{name}-{seed}", model, data, minutes.seed, seed, more, held_out=held_out)


def fine_tune(
    options: argparse.Namespace, name: str, model: str, data: str, minutes: float, seed: int, more: str, *, held_out: str = "",
    program: Sequence[str] = ("hf_longattn", "train", "qa"),
) -> None:  # fmt: skip
    """Train a model as users do, with the options ``more``, once its start is there and if time is left; a stopped training goes on."""
    work = options.work
    if (work / name / WEIGHTS).exists() or not (work / model / WEIGHTS).exists():
        return
    if time.monotonic() + 60 * minutes + 30 > options.ends:  # half a minute for reading data and for the scores
        print(f"no time is left for {name}; the same command trains it next time", flush=True)
        return
    again = "--resume" if any((work / name).glob("checkpoint-*")) else "--overwrite"
    files = [path for file in data.split() for path in sorted(work.glob(f"round-*/{file}.jsonl"))]
    validation = ("--validation", work / f"{held_out}.jsonl") if held_out else ()
    run(*program, "--model", work / model, "--data", *files, "--max-minutes", f"{minutes:.4g}", "--seed", seed,
        "--gradient-accumulation-steps", "1", "--no-eval-on-start", "--logging-steps", "50", *validation, *more.split(),
        *(GPU.split() if options.device == "cuda" else ()), "--output", work / name, again)  # fmt: skip


def run(module: str, *words: object) -> None:
    """Run a module with these words in this process, after printing them. A new process would take as long as some trainings on a GPU."""
    command = [module, *map(str, words)]
    print(f"\n$ python -m {shlex.join(command)}", flush=True)
    with patch.object(sys, "argv", command):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:
                raise


def score(options: argparse.Namespace, seeds: Sequence[int]) -> list[Answer]:
    """Ask every rule and every trained reader every question."""
    work, records, answers = options.work, read(options.work / "test.jsonl"), list[Answer]()
    pages = {context: f"page {number}" for number, context in enumerate(dict.fromkeys(record["context"] for record in records))}
    answers += [scored(name, None, record, pages, rule(record), 0.0) for record in records for name, rule in RULES.items()]
    for seed in seeds:
        files = {name: work / f"answers-{name}-{seed}.json" for name in options.arms}
        new = [name for name, file in files.items() if not file.exists() and (work / f"{name}-{seed}" / WEIGHTS).exists()]
        ask = partial(answers_of, work, options.device, seed, new, pages)
        found = [] if not new else ask(1, 0) if options.device == "cuda" else list(on_every_core(ask))
        for name in new:
            write_json(files[name], [answer for answer in found if answer.system == name])
        answers += [Answer(*row) for file in files.values() if file.exists() for row in json.loads(file.read_text(encoding="utf-8"))]
    return answers


def on_every_core(read: Callable[[int, int], Iterable[Answer]]) -> Iterator[Answer]:
    """Yield what ``read(step, first)`` finds in every ``step``-th item, in as many processes as cores, each with one thread."""
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for found in pool.map(partial(read, cores), range(cores)):
            yield from found


def answers_of(work: Path, device: str, seed: int, names: Sequence[str], pages: Mapping[str, str], step: int, first: int) -> list[Answer]:
    """Ask readers of a seed every ``step``-th question, reader after reader, so that all meet the same conditions."""
    from hf_longattn.evaluation.qa_reader import QAReader
    from hf_longattn.training import load_qa_model

    readers, answers = {}, list[Answer]()
    for name in names:
        model, tokenizer = load_qa_model(str(work / f"{name}-{seed}"))
        model.to(torch.device(device))
        dtype = torch.bfloat16 if device == "cuda" else None  # as in training
        readers[name] = QAReader(model, tokenizer, LONG if name == "long" else SHORT, STRIDE, dtype=dtype, name=name)
    questions = (read(work / f"{name}.jsonl")[first::step] for name in ("test", "test-titled"))
    for plain, titled in zip(*questions, strict=True):
        for name, reader in readers.items():
            started = time.perf_counter()
            text = reader.answer(titled if name == "titled" else plain)
            answers.append(scored(name, seed, plain, pages, text, time.perf_counter() - started))
    return answers


def scored(system: str, seed: int | None, record: Mapping[str, Any], pages: Mapping[str, str], text: str, seconds: float) -> Answer:
    """An answer with its scores; ``pages`` are the names of the pages by their texts."""
    from hf_longattn.evaluation.metrics.long_qa import score_answer

    exact, f1 = score_answer(text, record["answers"]["text"])
    return Answer(system, seed, record["id"], record["places"], pages[record["context"]], text, exact, f1, seconds)


def interval(values: Mapping[str, Sequence[float]], rounds: int = 2000) -> tuple[float, float, float]:
    """Mean in per cent, with a 95 % interval by bootstrap over pages."""
    sums = np.array([[sum(page), len(page)] for page in values.values()], dtype=float)
    draws = np.random.default_rng(0).integers(len(sums), size=(rounds, len(sums)))
    means = 100 * sums[draws, 0].sum(1) / sums[draws, 1].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return 100 * float(sums[:, 0].sum() / sums[:, 1].sum()), float(low), float(high)


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Exact match, F1 and seconds of every system by kind, and differences to windows question by question."""
    table: dict[str, Any] = {}
    by_question: dict[str, dict[tuple[str, str, str], list[Answer]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        by_question[answer.system][answer.kind, answer.page, answer.id].append(answer)

    def mean(found: Sequence[Answer], value: str) -> float:
        return sum(getattr(answer, value) for answer in found) / len(found)

    for system, questions in by_question.items():
        table[system] = {"seeds": len({answer.seed for found in questions.values() for answer in found})}
        for kind in TEST:
            of_kind = {key: found for key, found in questions.items() if key[0] == kind}
            for value in ("exact", "f1"):
                table[system][f"{kind}, {value}"] = over_pages({key[1:]: mean(found, value) for key, found in of_kind.items()})
            if system in READERS and "windows" in by_question:
                more = {key[1:]: mean(found, "exact") - mean(by_question["windows"][key], "exact") for key, found in of_kind.items()}
                table[system][f"{kind}, more than windows"] = over_pages(more)
        table[system]["seconds"] = round(float(np.median([answer.seconds for found in questions.values() for answer in found])), 3)
    return table


def over_pages(values: Mapping[tuple[str, str], float]) -> list[float]:
    """The mean of ``values`` by (page, question) in per cent, with its interval."""
    pages = defaultdict(list)
    for (page, _), value in values.items():
        pages[page].append(value)
    return [round(number, 1) for number in interval(pages)]


def exact(row: Mapping[str, Any]) -> list[str]:
    """Exact match of a system by kind, with its interval."""
    return ["{:.0f} [{:.0f}, {:.0f}]".format(*row[f"{kind}, exact"]) for kind in TEST]


def markdown(record: Mapping[str, Any]) -> str:
    """Exact match and seconds of every system, and how they were measured."""
    counts, measured = record["test"], record["table"]
    rows = [[ROWS[name], *exact(row), f"{row['seconds']:.2f}" if row["seconds"] else "–"] for name, row in measured.items()]
    gpu = record["machine"].get("gpu")
    header = ["exact match, %", *(f"{kind} ({counts[kind]})" for kind in TEST), f"seconds a page, {'GPU' if gpu else 'one thread'}"]
    more = ""
    if "long" in measured and "windows" in measured:
        points = ("{} {:+.0f} [{:+.0f}, {:+.0f}]".format(kind, *measured["long"][f"{kind}, more than windows"]) for kind in TEST)
        more = f"The converted model minus windows, in points: {'; '.join(points)}.\n\n"
    if gpu:
        seen = "; ".join(f"{name} {steps:,} and {tokens / 1e6:,.1f} million" for name, (steps, tokens) in record["trained"].items())
        more += f"On one {gpu}, in bf16, commit {record.get('commit', 'unknown')}. Steps and tokens, with padding: {seen}.\n\n"
    minutes, seeds = Minutes(*record["minutes"]), ", ".join(map(str, record["seeds"]))
    return (
        f"# Joint reading: all-MiniLM-L6-v2 on reference pages{' (GPU)' if gpu else ''}\n\n"
        f"{markdown_table(header, rows)}\n\n{more}"
        f"{counts['pages']} pages of {counts['shortest']:,} to {counts['longest']:,} tokens (median {counts['median']:,}); seeds {seeds}; "
        f"95 % intervals by bootstrap over pages. All readers share {sum(minutes[:3]):.3g} minutes of training on excerpts of less than "
        f"{SHORT} tokens; then each was trained for {minutes.pages:.3g} minutes on whole pages and longer excerpts, and for "
        f"{minutes.seed:.3g} more once for each seed.\n\n"
        f"{footnote(record['machine'])}"
    )


def brief(record: Mapping[str, Any]) -> str:
    """Exact match of the readers, for README.md."""
    table, counts = record["table"], record["test"]
    rows = [[ROWS[name], *exact(table[name])] for name in READERS]
    note = f"{sum(counts[kind] for kind in TEST)} questions about {counts['pages']} pages of {counts['shortest']:,} to "
    note += f"{counts['longest']:,} tokens; 95 % intervals, {len(record['seeds'])} seeds. Converted with `--mechanism longformer --option "
    note += "window=128 --layers 2=full` ([how it was measured](docs/results/long_qa.md))."
    return f"{markdown_table(['exact match, %', *TEST], rows)}\n\n*{note}*"


def about_test(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How many questions of which kind, and about which pages."""
    records = list(records)
    lengths = sorted({record["context"]: record["tokens"] for record in records}.values())
    kinds = dict(Counter(record["places"] for record in records))
    return {**kinds, "pages": len(lengths), "shortest": lengths[0], "longest": lengths[-1], "median": lengths[len(lengths) // 2]}


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the study; return its exit code."""
    parser = study_parser(__doc__, OUTPUT["cpu"], "one seed, five minutes of training, a tenth of the questions")
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder of models and answers (about 4 GB); what is there is not made again")
    add("--seeds", type=int, nargs="+", help="seeds of the trainings (default: 0 1 2; on a GPU 0)")
    add("--minutes", type=float, help="minutes of training of each reader, with those that all share (default: 55.5; on a GPU 5)")
    add("--arms", nargs="+", choices=READERS, default=READERS, help="readers to train and to ask (default: all)")
    add("--device", choices=OUTPUT, default="cpu", help=f"cuda stores its result in {OUTPUT['cuda']}")
    add("--budget", type=float, default=float("inf"), help="seconds in which trainings end; asking takes another minute")
    add("--prepare", action="store_true", help="pack what a machine without the packages needs into WORK.tar.xz, and stop")
    options = parser.parse_args(arguments)
    work, few = options.work, options.quick or options.device == "cuda"
    seeds, total = options.seeds or ([0] if few else [0, 1, 2]), options.minutes or (5.0 if few else sum(Minutes()))
    options.minutes, options.ends = Minutes(*(total * part / sum(Minutes()) for part in Minutes())), time.monotonic() + options.budget
    prepare(work)
    if not (work / "test.jsonl").exists():
        build(work, options.quick)
    if options.prepare:
        return int(pack(work) > 60)  # a device takes little more
    if not (work / "round-0").exists():
        list(on_every_core(partial(draw, work, ROUNDS[options.device])))
    for seed in seeds:
        train(options, seed)
    test, table = about_test(read(work / "test.jsonl")), summary(score(options, seeds))
    logs = {file.parent.name: read_json_object(file)["history"] for file in sorted(work.glob("*/training_log.json"))}
    seen = {name: (log[-1]["step"], max(entry.get("num_input_tokens_seen", 0) for entry in log)) for name, log in logs.items()}
    record = {"test": test, "seeds": seeds, "minutes": options.minutes, "trained": seen, "table": table, "machine": machine()}
    record |= read_json_object(work / "prepared.json") if (work / "prepared.json").exists() else {}
    finish_study(output_of(options, OUTPUT[options.device]), record, markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
