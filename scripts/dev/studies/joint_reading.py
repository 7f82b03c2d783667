"""What long attention is for, on a real checkpoint: answers that must be put together from two far places of a page.

    python -m scripts.dev.studies.joint_reading --work runs/joint             three seeds; resumes what was interrupted
    python -m scripts.dev.studies.joint_reading --work runs/quick --quick     one seed, a minute of each training, few questions

all-MiniLM-L6-v2 gets a question-answering head and is trained on excerpts of :mod:`reference_pages` of less than 512 tokens. From there
on, with equal minutes of training on the same whole pages and longer excerpts: windows of 512 tokens that share 128; the same with the
title in front of each; and the model converted to 4,096 tokens. All trainings but one (:mod:`varied_windows`) and
all conversions are the commands of users, which are printed.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hf_longattn.files import read_json_object, write_json
from scripts.dev.benchmarks.report import finish_study, footnote, machine, markdown_table, one_sentence_errors, output_of, study_parser
from scripts.dev.real import real_checkpoint
from scripts.dev.studies.reference_pages import (
    FAR,
    KINDS,
    LENGTHS,
    PACKAGES,
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

OUTPUT = Path("scripts/dev/results/joint_reading")
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
    """Write the questions: excerpts and whole pages to train on, held-out pages, and the test."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work / "minilm")
    for split, packages in PACKAGES.items():
        names = packages.split()[: 3 if quick else None]
        pages = [page for name in names for page in pages_of(name)]
        if split == "train":
            for name, budget in EXCERPTS.items():
                some = pages[:: 3 if name == "longer" else 1]
                write(work / f"{name}.jsonl", excerpts(some, budget, natural=name == "first"), titled=name == "longer")
            counts = {"two places": 300, "one place": 250, "none": 200}
            write(work / "pages.jsonl", chosen(pages, tokenizer, counts, far=0), titled=True)
        elif split == "validation":
            write(work / "validation.jsonl", chosen(pages, tokenizer, dict.fromkeys(KINDS, 40), far=0), titled=True)
        else:
            counts = {kind: count // (10 if quick else 1) for kind, count in TEST.items()}
            found = chosen(pages, tokenizer, counts, far=FAR, nearest=Nearest(work / "minilm"))
            write(work / "test.jsonl", found + exchanged(pages, tokenizer, counts["names exchanged"]), titled=True)


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


def train(work: Path, seed: int, minutes: Minutes, quick: bool) -> None:
    """Train the reader of excerpts that all share, and from it the three readers of pages, on the same data."""
    few = f"--max-eval-samples {12 if quick else 100} --warmup-steps 50 --tokens-per-batch 2048 --learning-rate"
    fine_tune(work, "first", "minilm", "first", minutes.first, seed, f"{few} 2e-4")
    fine_tune(work, "second", "first", "second", minutes.second, seed, f"{few} 1.5e-4", program=("scripts.dev.studies.varied_windows",))
    fine_tune(work, "reader", "second", "second", minutes.third, seed + 1, f"{few} 1e-4")
    if not (work / "converted").exists():
        run("hf_longattn", "convert", work / "reader", work / "converted", "--mechanism", "longformer", "--max-length", LONG, *LAYOUT)
    same = "--tokens-per-batch 4096" + " --max-eval-samples 12" * quick
    for name, model in (("windows", "reader"), ("long", "converted")):
        more = f"{same} --warmup-steps 50 --learning-rate 1e-4"
        fine_tune(work, name, model, "longer pages", minutes.pages, seed, more, held_out="validation")
    for name, titled in (("windows", ""), ("titled", "-titled"), ("long", "")):
        model, data = "long" if name == "long" else "windows", f"longer{titled} pages{titled}"
        more = f"{same} --learning-rate 5e-5"
        fine_tune(work, f"{name}-{seed}", model, data, minutes.seed, seed, more, held_out=f"validation{titled}")


def fine_tune(
    work: Path, name: str, model: str, data: str, minutes: float, seed: int, more: str, *, held_out: str = "",
    program: Sequence[str] = ("hf_longattn", "train", "qa"),
) -> None:  # fmt: skip
    """Train a model of ``work`` on files of it as users do, with the options ``more``; a trained one is kept, a stopped one goes on."""
    if not (work / name / "model.safetensors").exists():
        again = "--resume" if any((work / name).glob("checkpoint-*")) else "--overwrite"
        files = [work / f"{file}.jsonl" for file in data.split()]
        validation = ("--validation", work / f"{held_out}.jsonl") if held_out else ()
        run(*program, "--model", work / model, "--data", *files, "--max-minutes", minutes, "--seed", seed,
            "--gradient-accumulation-steps", "1", "--no-eval-on-start", "--logging-steps", "50", *validation, *more.split(),
            "--output", work / name, again)  # fmt: skip


def windows_of(asked: str, text: str, tokenizer: Any, size: int = SHORT, stride: int = STRIDE) -> list[tuple[int, str]]:
    """Parts of a text that fit behind what is asked in ``size`` tokens and share ``stride``, with their first characters."""
    encoded = tokenizer(
        asked, text, truncation="only_second", max_length=size, stride=stride, return_overflowing_tokens=True, return_offsets_mapping=True
    )
    parts = []
    for window, offsets in enumerate(encoded["offset_mapping"]):
        places = [place for place, part in zip(offsets, encoded.sequence_ids(window), strict=True) if part == 1]
        parts.append((places[0][0], text[places[0][0] : places[-1][1]]))
    return parts


def run(*words: object) -> None:
    """Run a module with these words, after printing them."""
    print(f"\n$ python -m {shlex.join(map(str, words))}", flush=True)
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True)


def score(work: Path, seeds: Sequence[int]) -> list[Answer]:
    """Ask every rule and every reader every question."""
    records, answers = read(work / "test.jsonl"), list[Answer]()
    pages = {context: f"page {number}" for number, context in enumerate(dict.fromkeys(record["context"] for record in records))}
    answers += [scored(name, None, record, pages, rule(record), 0.0) for record in records for name, rule in RULES.items()]
    for seed in seeds:
        file = work / f"answers-{seed}.json"
        if not file.exists():
            file.write_text(json.dumps(list(on_every_core(partial(answers_of, work, seed, pages)))), encoding="utf-8")
        answers += [Answer(*row) for row in json.loads(file.read_text(encoding="utf-8"))]
    return answers


def on_every_core(read: Callable[[int, int], Iterable[Answer]]) -> Iterator[Answer]:
    """Yield what ``read(step, first)`` finds in every ``step``-th item, in as many processes as cores, each with one thread."""
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for found in pool.map(partial(read, cores), range(cores)):
            yield from found


def answers_of(work: Path, seed: int, pages: Mapping[str, str], step: int, first: int) -> list[Answer]:
    """Ask the readers of a seed every ``step``-th question, reader after reader, so that all meet the same conditions."""
    from hf_longattn.evaluation.qa_reader import QAReader
    from hf_longattn.training import load_qa_model

    readers, answers = {}, list[Answer]()
    for name in READERS:
        model, tokenizer = load_qa_model(str(work / f"{name}-{seed}"))
        readers[name] = QAReader(model, tokenizer, LONG if name == "long" else SHORT, STRIDE, name=name)
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
            if system in READERS:
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
    rows = [
        [label, *exact(measured[name]), f"{seconds:.2f}" if (seconds := measured[name]["seconds"]) else "–"] for name, label in ROWS.items()
    ]
    header = ["exact match, %", *(f"{kind} ({counts[kind]})" for kind in TEST), "seconds a page, one thread"]
    table = markdown_table(header, rows)
    more = "; ".join("{} {:+.0f} [{:+.0f}, {:+.0f}]".format(kind, *measured["long"][f"{kind}, more than windows"]) for kind in TEST)
    minutes, seeds = Minutes(*record["minutes"]), ", ".join(map(str, record["seeds"]))
    return (
        f"# Joint reading: all-MiniLM-L6-v2 on reference pages\n\n"
        f"{table}\n\nThe converted model minus windows, in points: {more}.\n\n"
        f"{counts['pages']} pages of {counts['shortest']:,} to {counts['longest']:,} tokens (median {counts['median']:,}); seeds {seeds}; "
        f"95 % intervals by bootstrap over pages. All readers share {sum(minutes[:3]):g} minutes of training on excerpts of less than "
        f"{SHORT} tokens; then each was trained for {minutes.pages:g} minutes on whole pages and longer excerpts, and for {minutes.seed:g} "
        "more once for each seed.\n\n"
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
    parser = study_parser(__doc__, OUTPUT, "one seed, a minute of each training, a tenth of the questions")
    add, usual = parser.add_argument, list(Minutes())
    add("--work", type=Path, required=True, help="folder of models and answers (about 4 GB); what is there is not made again")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the trainings (default: 0 1 2)")
    names, shown = tuple(name.upper() for name in Minutes._fields), " ".join(f"{minutes:g}" for minutes in usual)
    what = f"minutes of training on excerpts, thrice; on pages; for each seed (default: {shown})"
    add("--minutes", type=float, nargs=len(usual), default=usual, metavar=names, help=what)
    options = parser.parse_args(arguments)
    work, seeds, minutes = options.work, options.seeds, Minutes(*options.minutes)
    if options.quick:
        seeds, minutes = [0], Minutes(*[1.0] * len(usual))
    prepare(work)
    if not (work / "test.jsonl").exists():
        build(work, options.quick)
    for seed in seeds:
        train(work, seed, minutes, options.quick)
    test, table = about_test(read(work / "test.jsonl")), summary(score(work, seeds))
    record = {"test": test, "seeds": seeds, "minutes": minutes, "table": table, "machine": machine()}
    finish_study(output_of(options, OUTPUT), record, markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
