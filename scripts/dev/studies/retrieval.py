"""Retrieval with long inputs: recall@k of passages embedded alone, of late chunking, and of one embedding for a whole document.

    python -m scripts.dev.studies.retrieval --work-dir work          # some 25 minutes of one core, resumable

Two tasks without any download. *Code search*: the docstring of a function asks for it among all functions of a package that no model
has seen; all docstrings are taken out of the code. *Needles*: each of many long files hides one sentence, and a question asks which.
The reference encoder is compared at 512 tokens (each chunk or function alone) and converted to 8,192 tokens (a window in every layer,
copied positions): late chunking, and one average over the whole file. It was pre-trained on masked tokens only, so it is measured
three times: as it is; after contrastive training on docstrings and functions of the training packages with `longattn train embed`,
converted afterwards; and after a second training with equal tokens, of the short model on further functions, of the long one on files.
Beside them: BM25, and chance. Everything that is complete in the work folder is used. Writes OUTPUT.json and OUTPUT.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import shutil
import statistics
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import hf_longattn
from hf_longattn.errors import needs_extra
from hf_longattn.evaluation.late_chunking import late_chunks
from hf_longattn.staging import write_text
from hf_longattn.training import finetune_embeddings
from hf_longattn.training.args import build_arguments
from hf_longattn.training.tasks.embed import EMBED
from scripts.dev.benchmarks.report import machine, markdown_table, one_sentence_errors, store_study
from scripts.dev.studies.adaptation import PARTIAL, paired, standard_error
from scripts.dev.studies.corpus import TEST_PACKAGES, iter_modules, without_near_duplicates
from scripts.dev.studies.retrieval_data import (
    CodeSearch,
    code_search,
    long_texts,
    needle_documents,
    needles,
    normal,
    texts_of,
    training_pairs,
)

AT = (1, 5, 10)
CHUNK, SMALL = 510, 128
"""Tokens of a chunk: what the short model reads beside its two special tokens; and a quarter, for sentences in long files."""
LINES = 0
"""In place of a number of tokens."""
WINDOW = 512
FUNCTION_TOKENS, FILE_TOKENS, FILE_CHARACTERS = 192, 2048, 6000
"""At which functions and files are cut in training; a token of code has some three characters."""
FUNCTION_PAIRS, FILE_PAIRS, VALIDATION_PAIRS = 4_445, 800, 200
"""Pairs to train on: twice as many functions, for the second training of the short model; and of the validation packages."""
SHORT_BATCH, LONG_BATCH = 64, 8
"""Pairs of a step; each is told from the others."""
PRETRAINED, TRAINED, FURTHER = "pre-trained", "trained on functions", "trained further"
STAGES = (PRETRAINED, TRAINED, FURTHER)
MEASURES = (*(f"recall_at_{k}" for k in AT), "mrr")
TASKS = ("code_alone", "code_late", "needles_alone", "needles_late", "lines_alone", "lines_late", "sentence_alone")
"""Methods of the study; what ends in late is read by the long model."""
CHANCE, BM25 = "chance", "BM25"
BASELINE = "without a model"
LATE = "late chunking, "


@dataclass(frozen=True)
class Ranks:
    """For each query, how many answers have a higher score than the right one, and how many have its score, itself included."""

    better: tuple[int, ...]
    tied: tuple[int, ...]

    @staticmethod
    def of(scores: Tensor, right: Sequence[int]) -> Ranks:
        """``scores (queries, answers)``, and the number of each query's right answer."""
        wanted = scores.gather(1, torch.tensor(right)[:, None])
        better, tied = (scores > wanted).sum(1), (scores == wanted).sum(1)
        return Ranks(tuple(better.tolist()), tuple(tied.tolist()))

    def recall(self, k: int) -> list[float]:
        """For each query, the probability that the right answer is among the first ``k``, where equal scores are in random order."""
        return [min(1.0, max(0.0, (k - better) / tied)) for better, tied in zip(self.better, self.tied, strict=True)]

    def reciprocal(self) -> list[float]:
        """For each query, the expected 1/rank."""
        return [sum(1 / rank for rank in range(b + 1, b + t + 1)) / t for b, t in zip(self.better, self.tied, strict=True)]


def best_of(scores: Tensor, answers: Tensor, units: Tensor, count: int) -> Tensor:
    """Scores ``(queries, count)`` of answers: of the units of each, the best one.

    Args:
        scores: of embedded units, ``(queries, units)``.
        answers, units: pairs; an answer may have several units, and a unit several answers.
        count: of answers; those without a unit come last.
    """
    found = scores.new_full((scores.shape[0], count), -math.inf)
    return found.scatter_reduce(1, answers.expand(scores.shape[0], -1), scores[:, units], "amax")


def words(text: str) -> list[str]:
    """The words of prose and of identifiers in lower case: ``read_csvFile`` has read, csv and file."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", text)]


def bm25(queries: Sequence[str], documents: Sequence[str], k1: float = 1.5, b: float = 0.75) -> Tensor:
    """Scores ``(queries, documents)`` of Okapi BM25 (Robertson et al. 1994) with the inverse document frequency of Lucene."""
    counts = [Counter(words(document)) for document in documents]
    sizes = torch.tensor([sum(count.values()) for count in counts], dtype=torch.float64)
    usual = float(sizes.mean())
    where: dict[str, dict[int, int]] = {}
    for number, count in enumerate(counts):
        for word, times in count.items():
            where.setdefault(word, {})[number] = times

    @cache
    def part(word: str) -> tuple[Tensor, Tensor]:
        """The documents with a word, and what it adds to their scores."""
        found = where.get(word, {})
        there, times = torch.tensor([*found], dtype=torch.long), torch.tensor([*found.values()], dtype=torch.float64)
        rarity = math.log(1 + (len(documents) - len(found) + 0.5) / (len(found) + 0.5))
        return there, rarity * times * (k1 + 1) / (times + k1 * (1 - b + b * sizes[there] / usual))

    scores = torch.zeros(len(queries), len(documents), dtype=torch.float64)
    for row, query in zip(scores, queries, strict=True):
        for word in words(query):
            row.index_add_(0, *part(word))
    return scores


def chunk_spans(tokenizer: PreTrainedTokenizerBase, text: str, size: int) -> list[tuple[int, int]]:
    """The characters of consecutive passages of ``size`` tokens; together the whole text."""
    starts = [start for start, _ in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]]
    return list(pairwise([0, *starts[size::size], len(text)]))


def line_spans(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    """The characters of every line in which a token starts and that is not blank."""
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    starts = [start for start, _ in read]
    lines = [(match.start(), match.end()) for match in re.finditer(r"[^\n]*\S[^\n]*", text)]
    return [(start, end) for start, end in lines if bisect_left(starts, start) < bisect_left(starts, end)]


Span = tuple[int, int]


class Encoder:
    """A sentence-transformers model: texts alone, or passages of documents that it reads whole. In bf16, as it was trained."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
        self.tokenizer = tokenizer

    def alone(self, texts: Sequence[str]) -> Tensor:
        """Embeddings ``(texts, width)``; texts are cut to the short model's length."""
        self.model.max_seq_length = WINDOW
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = self.model.encode(list(texts), batch_size=32, convert_to_tensor=True, show_progress_bar=False)
        return F.normalize(found.float(), dim=-1)

    def late(self, documents: Sequence[str], spans: Sequence[Sequence[Span]], length: int) -> Tensor:
        """Embeddings of the passages of all documents, in order, each document read in one pass (in windows beyond ``length``)."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model, overlap = self.model[0].auto_model, min(128, length // 4)
            found = late_chunks(model, self.tokenizer, documents, spans=spans, max_length=length, overlap=overlap)
        return torch.stack([chunk.embedding for document in found for chunk in document])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work-dir", type=Path, required=True, help="folder of data, models and measured cells; kept between runs")
    add("--model", type=Path, default=Path("model_cards/bert-python-512"), help="folder of the reference encoder")
    add("--packages", nargs="+", default=["networkx"], choices=sorted(TEST_PACKAGES), help="packages to search (default: networkx)")
    add("--lengths", type=int, nargs="+", default=[512, 2048, 8192], help="tokens of files with needles (default: 512 2048 8192)")
    add("--documents", type=int, default=48, help="files with a needle at each length (default: 48)")
    add("--max-length", type=int, default=8192, help="tokens of the converted model (default: 8,192)")
    add("--tokens", type=int, default=400_000, help="tokens of the first training (default: 400,000)")
    add("--further-tokens", type=int, default=200_000, help="tokens of each second training (default: 200,000)")
    add("--learning-rate", type=float, default=5e-4, help="highest learning rate of all trainings (default: 5e-4)")
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="what to measure (default: all)")
    add("--measured", action="store_true", help="train and measure nothing; write the tables of what is complete")
    add("--threads", type=int, default=0, help="processor threads (default: torch's)")
    add("--seed", type=int, default=0, help="seed of data and training")
    add(
        "--output",
        type=Path,
        default=Path("scripts/dev/results/retrieval"),
        help="path without suffix (default: %(default)s)",
    )
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Training:
    """One run of `longattn train embed`.

    file, pairs: its data, and how many pairs they are.
    tokens_of_pair: in the mean, cut to ``length``.
    steps, batch: steps of so many pairs.
    length: tokens at which texts are cut.
    """

    file: Path
    pairs: int
    tokens_of_pair: float
    steps: int
    batch: int
    length: int


class Study:
    """One run of the command: the models of a work folder and the cells that were measured there."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(options.model)
        trained = [
            *options.packages,
            options.max_length,
            options.tokens,
            options.further_tokens,
            f"{options.learning_rate:g}",
            options.seed,
        ]
        self.work: Path = options.work_dir / "-".join(map(str, trained))  # other settings of the training share nothing
        self.work.mkdir(parents=True, exist_ok=True)
        self.cells_file = self.work / f"cells-{'-'.join(map(str, [options.documents, *options.lengths]))}.json"
        self.cells: dict[str, Any] = json.loads(self.cells_file.read_text(encoding="utf-8")) if self.cells_file.exists() else {}

    @cached_property
    def search(self) -> CodeSearch:
        """Functions and docstrings of the packages."""
        return code_search(iter_modules("test", self.options.packages))

    @cached_property
    def hidden(self) -> dict[int, list[str]]:
        """Documents with needles by length; the same files and needles at every length."""
        options = self.options
        texts = long_texts(iter_modules("test"), self.tokenizer, max(options.lengths), options.documents, options.seed)
        found = needles(options.documents, options.seed)
        return {length: needle_documents(texts, self.tokenizer, length, found) for length in options.lengths}

    # ---- training

    def pairs(self) -> dict[str, list[dict[str, str]]]:
        """Pairs of functions, of further functions, of files and of the validation packages; made once for all trainings."""
        options, names = self.options, ("functions", "further", "files", "validation")
        folder: Path = options.work_dir / "-".join(["pairs", *options.packages, str(options.seed)])
        if not folder.exists():
            modules = [module for module in iter_modules("train") if len(module.text) < 100_000]
            random.Random(options.seed).shuffle(modules)
            held_out = [module for split in ("validation", "test") for module in iter_modules(split)]
            fresh, avoid = without_near_duplicates(modules, held_out), texts_of(self.search)
            rows = []
            for count, whole in ((FUNCTION_PAIRS, False), (FUNCTION_PAIRS, False), (FILE_PAIRS, True)):
                part: dict[str, Any] = {"characters": FILE_CHARACTERS, "per_file": 1} if whole else {"per_file": 6}
                rows.append(training_pairs(fresh, count, avoid=avoid, seed=options.seed, **part))
                avoid.update(normal(row["anchor"]) for row in rows[-1])
            rows.append(training_pairs(iter_modules("validation"), VALIDATION_PAIRS, avoid=avoid, seed=options.seed))
            unfinished = folder.with_name(folder.name + PARTIAL)
            unfinished.mkdir(exist_ok=True)
            for name, some in zip(names, rows, strict=True):
                (unfinished / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
            unfinished.replace(folder)
        files = {name: folder / f"{name}.jsonl" for name in names}
        self.files = files
        return {name: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for name, file in files.items()}

    @cached_property
    def trainings(self) -> dict[str, Training]:
        """By the name of the model that they make."""
        options, pairs = self.options, self.pairs()
        shapes = {
            "short-1": ("functions", options.tokens, SHORT_BATCH, FUNCTION_TOKENS),
            "short-2": ("further", options.further_tokens, SHORT_BATCH, FUNCTION_TOKENS),
            "long-2": ("files", options.further_tokens, LONG_BATCH, FILE_TOKENS),
        }
        made = {}
        for model, (name, tokens, batch, length) in shapes.items():
            of_pair = self.tokens_of(pairs[name], length)
            made[model] = Training(self.files[name], len(pairs[name]), of_pair, max(1, round(tokens / (batch * of_pair))), batch, length)
        return made

    def tokens_of(self, rows: Sequence[dict[str, str]], length: int) -> float:
        """Tokens that a training reads of a pair, in the mean."""
        sizes = [[len(ids) for ids in self.tokenizer([row[name] for row in rows], verbose=False)["input_ids"]] for name in rows[0]]
        return statistics.fmean(sum(min(size, length) for size in both) for both in zip(*sizes, strict=True))

    def trained(self, name: str, source: Path) -> Path:
        """A model that `longattn train embed` wrote; done once."""
        target = self.work / name
        if not target.exists():
            training, unfinished = self.trainings[name], target.with_name(target.name + PARTIAL)
            shutil.rmtree(unfinished, ignore_errors=True)
            settings: dict[str, Any] = {
                "data": [str(training.file)], "validation": str(self.files["validation"]), "max_length": training.length,
                "max_steps": training.steps, "per_device_train_batch_size": training.batch, "per_device_eval_batch_size": 16,
                "mini_batch_size": max(1, 2048 // training.length), "learning_rate": self.options.learning_rate,
                "seed": self.options.seed, "report_to": "none", "disable_tqdm": True,
            }  # fmt: skip
            started = time.process_time()
            finetune_embeddings(*build_arguments(EMBED, model=str(source), output_dir=str(unfinished), **settings))
            (unfinished / "seconds.json").write_text(json.dumps(time.process_time() - started), encoding="utf-8")
            unfinished.replace(target)
        return target

    def converted(self, name: str, source: Path) -> Path:
        """A window in every layer and positions copied; done once."""
        target = self.work / name
        if not target.exists():
            hf_longattn.convert_checkpoint(
                source, target, mechanism="window", window=WINDOW, max_length=self.options.max_length, positions="tile", verify=False
            )
        return target

    def models(self, stage: str) -> tuple[Path, Path]:
        """The short and the long model of a stage, trained and converted if they are not there."""
        original = self.options.model
        if stage == PRETRAINED:
            return original, self.converted("long-0", original)
        short = self.trained("short-1", original)
        long = self.converted("long-1", short)
        return (short, long) if stage == TRAINED else (self.trained("short-2", short), self.trained("long-2", long))

    # ---- measuring

    def run(self) -> None:
        """Everything that is missing."""
        self.baselines()
        for stage in self.options.stages:
            tasks = [getattr(self, name) for name in (TASKS if self.options.lengths else TASKS[:2])]
            if not all(f"{stage}: {task.__name__}" in self.cells for task in tasks):
                short, long = (Encoder(folder, self.tokenizer) for folder in self.models(stage))
                for task in tasks:
                    self.measure(f"{stage}: {task.__name__}", task, long if task.__name__.endswith("late") else short)

    def measure(self, key: str, task: Callable[..., dict[str, Ranks]], *given: Any) -> None:
        """One cell of the work folder: what a task finds, by row and level."""
        if key in self.cells:
            return
        started = time.process_time()
        found = {name: {"better": ranks.better, "tied": ranks.tied} for name, ranks in task(*given).items()}
        self.cells[key] = {"seconds": time.process_time() - started, "ranks": found}
        write_text(self.cells_file, json.dumps(self.cells))
        first = {name: f"{100 * statistics.fmean(Ranks(**ranks).recall(10)):.1f}" for name, ranks in found.items()}
        print(f"{key}: recall@10 {first}, {self.cells[key]['seconds']:.0f} s", file=sys.stderr, flush=True)

    def ranked(self, name: str, scores: Tensor) -> dict[str, Ranks]:
        """Of functions, and of files by their best function."""
        files = torch.tensor(self.search.file_of)
        right = [query.function for query in self.search.queries]
        by_file = best_of(scores, files, torch.arange(len(files)), len(self.search.files))
        return {f"function: {name}": Ranks.of(scores, right), f"file: {name}": Ranks.of(by_file, files[right].tolist())}

    def baselines(self) -> None:
        """Chance and BM25; of needles BM25 only, since chance is known."""
        search, texts = self.search, [query.text for query in self.search.queries]
        files = search.file_of
        right = [files[query.function] for query in search.queries]

        def code() -> dict[str, Ranks]:
            found = self.ranked(CHANCE, torch.zeros(len(texts), len(files)))
            found |= self.ranked(BM25, bm25(texts, [function.code for function in search.functions]))
            return found | {f"file: {BM25}, whole": Ranks.of(bm25(texts, [file.text for file in search.files]), right)}

        def hidden() -> dict[str, Ranks]:
            asked = [needle.question for needle in needles(self.options.documents, self.options.seed)]
            numbers = range(len(asked))
            found = {f"{length}: {CHANCE}": Ranks.of(torch.zeros(len(asked), len(asked)), numbers) for length in self.hidden}
            return found | {f"{length}: {BM25}": Ranks.of(bm25(asked, documents), numbers) for length, documents in self.hidden.items()}

        self.measure(f"{BASELINE}: code", code)
        if self.options.lengths:
            self.measure(f"{BASELINE}: needles", hidden)

    def code_alone(self, model: Encoder) -> dict[str, Ranks]:
        """Functions, and chunks of 512 tokens, each embedded by itself."""
        search = self.search
        queries = model.alone([query.text for query in search.queries])
        found = self.ranked("functions alone", queries @ model.alone([function.code for function in search.functions]).T)
        spans = [chunk_spans(self.tokenizer, file.text, CHUNK) for file in search.files]
        chunks = [file.text[start:end] for file, some in zip(search.files, spans, strict=True) for start, end in some]
        answers, units = overlaps(search, spans)
        scores = best_of(queries @ model.alone(chunks).T, answers, units, len(search.functions))
        return found | self.ranked("512-token chunks alone", scores)

    def code_late(self, model: Encoder) -> dict[str, Ranks]:
        """The same passages and whole files, from one pass over each file."""
        search = self.search
        queries = model.alone([query.text for query in search.queries])
        chunks = [chunk_spans(self.tokenizer, file.text, CHUNK) for file in search.files]
        inside = [[(function.start, function.end) for function in file.functions] for file in search.files]
        given, kind, _ = by_document(inside, chunks, [[(0, len(file.text))] for file in search.files])
        scores = queries @ model.late([file.text for file in search.files], given, self.options.max_length).T
        answers, units = overlaps(search, chunks)
        by_chunk = best_of(scores[:, kind == 1], answers, units, len(search.functions))
        whole = scores[:, kind == 2][:, search.file_of]  # every function of a file has its score
        return {
            **self.ranked(f"{LATE}functions", scores[:, kind == 0]),
            **self.ranked(f"{LATE}512-token chunks", by_chunk),
            **self.ranked("one embedding per file", whole),
        }

    def needles_alone(self, model: Encoder) -> dict[str, Ranks]:
        """Chunks of 512 and of 128 tokens, each embedded by itself; a document has the score of its best chunk."""
        return self._needles(model, partial(passages, model), {"512-token chunks alone": CHUNK, "128-token chunks alone": SMALL})

    def needles_late(self, model: Encoder) -> dict[str, Ranks]:
        """The same chunks and whole documents, from one pass over each document."""
        ways = {f"{LATE}512-token chunks": CHUNK, f"{LATE}128-token chunks": SMALL, "one embedding per document": None}
        return self._needles(model, lambda documents, spans: model.late(documents, spans, self.options.max_length), ways)

    def lines_alone(self, model: Encoder) -> dict[str, Ranks]:
        """Every line of a document by itself."""
        return self._needles(model, partial(passages, model), {"lines alone": LINES})

    def lines_late(self, model: Encoder) -> dict[str, Ranks]:
        """Every line, from one pass over its document."""
        return self._needles(model, lambda documents, spans: model.late(documents, spans, self.options.max_length), {f"{LATE}lines": LINES})

    def sentence_alone(self, model: Encoder) -> dict[str, Ranks]:
        """The hidden sentences without their documents: what the encoder knows of them at best."""
        hidden = needles(self.options.documents, self.options.seed)
        scores = model.alone([needle.question for needle in hidden]) @ model.alone([needle.line for needle in hidden]).T
        return {"sentence: without documents": Ranks.of(scores, range(len(hidden)))}

    def _needles(
        self, model: Encoder, embed: Callable[[list[str], list[list[Span]]], Tensor], ways: dict[str, int | None]
    ) -> dict[str, Ranks]:
        """``ways``: rows by the tokens of their chunks, 0 for lines, None for whole documents."""
        asked = model.alone([needle.question for needle in needles(self.options.documents, self.options.seed)])
        found = {}
        for length, documents in self.hidden.items():
            cut = [
                [
                    line_spans(self.tokenizer, one) if size == LINES else chunk_spans(self.tokenizer, one, length if size is None else size)
                    for one in documents
                ]
                for size in ways.values()
            ]
            given, kind, owner = by_document(*cut)
            scores = asked @ embed(documents, given).T
            for number, name in enumerate(ways):
                units = (kind == number).nonzero().flatten()
                found[f"{length}: {name}"] = Ranks.of(best_of(scores, owner[units], units, len(documents)), range(len(documents)))
        return found

    # ---- tables

    def record(self) -> dict[str, Any]:
        """What is stored: a summary of every row that is measured."""
        options, rows = self.options, []
        for key, cell in self.cells.items():
            stage = key.partition(": ")[0]
            for name, ranks in cell["ranks"].items():
                level, _, way = name.partition(": ")
                rows.append({"stage": stage, "level": level, "way": way, **summary(Ranks(**ranks))})
        done = [name for name in ("short-1", "short-2", "long-2") if (self.work / name / "seconds.json").exists()]
        trainings = {}
        for name in done:
            training, folder = self.trainings[name], self.work / name
            told = {each: value for each, value in asdict(training).items() if each != "file"}
            seconds = json.loads((folder / "seconds.json").read_text(encoding="utf-8"))
            log = json.loads((folder / "training_log.json").read_text(encoding="utf-8"))
            trainings[name] = {"data": training.file.stem, **told, "seconds": seconds, "held_out": log["held_out"]}
        about = {
            **machine(), "model": options.model.as_posix(), "packages": options.packages, "files": len(self.search.files),
            "functions": len(self.search.functions), "documents": options.documents, "max_length": options.max_length, "window": WINDOW,
            "dtype": "bf16 autocast", "tokens": options.tokens, "further_tokens": options.further_tokens,
            "learning_rate": options.learning_rate,
            "trainings": trainings,
            "seconds": {key: cell["seconds"] for key, cell in self.cells.items()}, "seed": options.seed,
        }  # fmt: skip
        known = [f"{stage}: {task}" for stage in STAGES for task in TASKS]
        missing = [key.replace("_", " ") for key in known if key not in self.cells]
        return {"about": about, "table": rows, "late_against_alone": self.differences(), "missing": missing}

    def differences(self) -> list[dict[str, Any]]:
        """Late chunking against the same passages alone, on the same queries."""
        found = []
        for stage, task in product(STAGES, ("code", "needles", "lines")):
            alone, late = (self.cells.get(f"{stage}: {task}_{way}", {}).get("ranks", {}) for way in ("alone", "late"))
            for name, ranks in late.items():
                level, _, way = name.partition(": ")
                other = alone.get(f"{level}: {way.removeprefix(LATE)} alone")
                if other is not None:
                    told = {}
                    for k in AT:
                        mean, error = paired(Ranks(**ranks).recall(k), Ranks(**other).recall(k))
                        told[f"recall_at_{k}"] = {"mean": 100 * mean, "se": 100 * error}
                    found.append({"stage": stage, "level": level, "passages": way.removeprefix(LATE), **told})
        return found


def passages(model: Encoder, documents: Sequence[str], spans: Sequence[Sequence[Span]]) -> Tensor:
    """Embeddings of the passages of all documents, in order, each by itself."""
    return model.alone([one[start:end] for one, some in zip(documents, spans, strict=True) for start, end in some])


def by_document(*kinds: Sequence[Sequence[Span]]) -> tuple[list[list[Span]], Tensor, Tensor]:
    """Spans of several kinds together: for each document those of all kinds; and the kind and the document of every span in that order."""
    documents = list(zip(*kinds, strict=True))
    given = [[span for some in of_document for span in some] for of_document in documents]
    kind = [number for of_document in documents for number, some in enumerate(of_document) for _ in some]
    return given, torch.tensor(kind), torch.tensor([number for number, some in enumerate(given) for _ in some])


def overlaps(search: CodeSearch, spans: Sequence[Sequence[Span]]) -> tuple[Tensor, Tensor]:
    """Pairs of functions and of the chunks of their files that hold a part of them, each numbered over all files."""
    answers, units, function, unit = [], [], 0, 0
    for file, some in zip(search.files, spans, strict=True):
        for one in file.functions:
            inside = [unit + number for number, (start, end) in enumerate(some) if start < one.end and one.start < end]
            answers += [function] * len(inside)
            units += inside
            function += 1
        unit += len(some)
    return torch.tensor(answers), torch.tensor(units)


def summary(ranks: Ranks) -> dict[str, Any]:
    """Recall at 1, 5 and 10 and the mean reciprocal rank, in per cent, with standard errors."""
    values = dict(zip(MEASURES, [*(ranks.recall(k) for k in AT), ranks.reciprocal()], strict=True))
    told = {name: {"mean": 100 * statistics.fmean(some), "se": 100 * standard_error(some)} for name, some in values.items()}
    return {"n": len(ranks.better), **told}


def shown(cell: dict[str, float], sign: str = "") -> str:
    """A score in a table, or with the sign "+" a difference."""
    return f"{cell['mean']:{sign}.1f} ± {cell['se']:.1f}"


def markdown(record: dict[str, Any]) -> str:
    """The tables of a document: code search, needles by length, and what was done."""
    about, table = record["about"], record["table"]
    header = ["", *(f"recall@{k}" for k in AT), "MRR", "file: recall@1", "recall@10"]
    cells = {(row["stage"], row["way"], row["level"]): row for row in table}
    rows = []
    for stage, way in dict.fromkeys((row["stage"], row["way"]) for row in table if row["level"] in ("function", "file")):
        function, file = cells.get((stage, way, "function")), cells[stage, way, "file"]
        of_function = [shown(function[name]) for name in MEASURES] if function else ["–"] * len(MEASURES)
        rows.append([title(stage, way), *of_function, shown(file["recall_at_1"]), shown(file["recall_at_10"])])
    n = next(row["n"] for row in table if row["level"] == "function")
    parts = [
        f"**Code search**: {n:,} docstrings, {about['functions']:,} functions in {about['files']} files of "
        f"{', '.join(about['packages'])}; %\n\n{markdown_table(header, rows)}"
    ]
    lengths = sorted({int(row["level"]) for row in table if row["level"].isdigit()})
    if lengths:
        ways = dict.fromkeys((row["stage"], row["way"]) for row in table if row["level"].isdigit())
        header = ["", *(f"{length:,}: {name}" for length in lengths for name in ("recall@1", "recall@10", "MRR"))]
        needle_rows = [
            [
                title(stage, way),
                *(shown(cells[stage, way, str(n)][name]) for n in lengths for name in ("recall_at_1", "recall_at_10", "mrr")),
            ]
            for stage, way in ways
        ]
        alone = [f"{row['stage']} {shown(row['recall_at_1'])} %" for row in table if row["level"] == "sentence"]
        told = f" Recall@1 of the sentences without their documents: {', '.join(alone)}." if alone else ""
        parts.append(f"**Needles** in {about['documents']} documents of so many tokens; %.{told}\n\n{markdown_table(header, needle_rows)}")
    compared = [
        [f"{one['stage']}: {one['passages']}", *(shown(one[f"recall_at_{k}"], "+") for k in AT)]
        for one in record["late_against_alone"]
        if one["level"] == "function"
    ]
    if compared:
        header = ["", *(f"recall@{k}" for k in AT)]
        parts.append(f"**Late chunking − the same passages alone**, for the same docstrings; points\n\n{markdown_table(header, compared)}")
    if record["missing"]:
        parts.append(f"Not measured: {'; '.join(record['missing'])}.")
    trainings = [
        f"{name}, {one['steps']} steps of {one['batch']} pairs in {one['seconds'] / 60:.1f} minutes"
        for name, one in about["trainings"].items()
    ]
    parts.append(
        f"*± standard error over queries; equal scores count as in random order. Trainings: {'; '.join(trainings) or 'none'}; learning "
        f"rate {about['learning_rate']:g}. {about['processor']}, {about['threads']} thread, torch {about['torch']}, {about['date']}*"
    )
    return "\n\n".join(parts) + "\n"


def title(stage: str, way: str) -> str:
    """The first column."""
    return way if stage == BASELINE else f"{stage}: {way}"


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    with needs_extra("sentence"):
        import sentence_transformers  # noqa: F401
    study = Study(options)
    if not options.measured:
        study.run()
    record = study.record()
    store_study(options.output, record, markdown(record))
    print(markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
