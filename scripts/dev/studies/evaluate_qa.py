"""Compare ways to read long documents, on the same questions and in one interleaved run.

    python scripts/evaluate_qa.py --short model_cards/bert-python-512-qa --convert --mechanism longformer window bigbird lsg hybrid \\
        --work runs/qa
    python scripts/evaluate_qa.py --data my_squad_shaped.json --long "longformer, fine-tuned=runs/longformer-0@0"

Rows: a random candidate, the lexical rule, a program written for the task, the short model on the first 512 tokens and on windows,
and any converted models. Several seeds of one row are averaged. Writes OUTPUT.json, .md, .svg and .png.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

import hf_longattn
from hf_longattn.errors import OptionError
from hf_longattn.evaluation.qa_reader import QAReader, truncated, whole, windows
from hf_longattn.hub import write_model_card
from hf_longattn.training import load_qa_model, longest_input
from hf_longattn.training.tasks.qa import describe_qa_training
from scripts.dev.benchmarks.report import machine, one_sentence_errors
from scripts.dev.studies.code_qa import TASKS
from scripts.dev.studies.qa_baselines import LexicalRule, Program, RandomCandidate
from scripts.dev.studies.qa_run import Reader, ScoredAnswer, StoredAnswers, evaluation_set, run_readers, source_name
from scripts.dev.studies.qa_table import both_markdown, card_results, read_answers, write_report

BUILT = (*TASKS, "lookup")
"""Tasks that are built from the installed packages; their questions have answers."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", nargs="+", default=list(BUILT), help="'argument', 'import', 'base', 'lookup', or SQuAD-shaped data")
    add("--split", default="test", help="split to score on (default: test)")
    add("--short", help="short QA model: rows for truncation and for windows")
    add("--convert", action="store_true", help="also convert --short, once with random positions as a control, and score that")
    add("--long", action="append", default=[], metavar="ROW=PATH[@SEED]", help="a converted model and the name of its row")
    add("--mechanism", nargs="+", default=["longformer"], help="mechanisms for --convert, a row each (default: longformer)")
    add("--work", type=Path, help="keep models and answers in this folder: the same command resumes a run that was interrupted")
    add("--window", type=int, default=256, help="its window (default: 256)")
    add("--max-length", type=int, help="tokens that long models read (default: what each takes; --convert: 8192)")
    add("--short-length", type=int, default=512, help="tokens that the short model reads (default: 512)")
    add("--stride", type=int, default=128, help="tokens that consecutive windows share, as in run_qa (default: 128)")
    add("--max-question-tokens", type=int, default=64, help="of a longer question the rest is cut off, with a warning (default: 64)")
    add(
        "--null-threshold",
        type=float,
        help='answer "" where the best span scores less than this above "no answer" (default: 0 on files with unanswerable questions, '
        "otherwise always answer)",
    )
    add("--lengths", type=int, nargs="+", default=[480, 1024, 2048, 4096, 8192], help="lengths of lookup documents")
    add("--per-length", type=int, default=100, help="questions per length (default: 100)")
    add("--no-baselines", action="store_true", help="leave the random candidate, the lexical rule and the program out")
    add("--bf16", action="store_true", help="run all models under bfloat16 autocast")
    add("--threads", type=int, default=0, help="processor threads (default: torch's)")
    add("--seed", type=int, default=0, help="seed of the choice of questions")
    add("--merge", type=Path, nargs="+", default=[], help="put the answers stored in these .json results into the same tables")
    add("--card", action="append", default=[], metavar="ROW=FOLDER", help="write the row's results into the card of this model")
    add("--output", default="scripts/dev/results/qa", help="path without suffix (default: %(default)s)")
    return parser.parse_args(arguments)


def short_readers(options: argparse.Namespace) -> list[Reader]:
    """Truncation and windows with the short model."""
    model, tokenizer = load_qa_model(options.short)
    dtype = torch.bfloat16 if options.bf16 else None
    length, stride, question = options.short_length, options.stride, options.max_question_tokens
    check_length(options.short, longest_input(model, tokenizer), length, "--short-length")
    return [
        QAReader(f"first {length} tokens", model, tokenizer, truncated(length, question), dtype=dtype),
        QAReader(f"windows of {length}, stride {stride}", model, tokenizer, windows(length, stride, question), dtype=dtype),
    ]


def converted_readers(options: argparse.Namespace, folder: Path) -> list[Reader]:
    """The short model converted to each mechanism with tiled positions, and to the first with random ones (negative control)."""
    rows = [("converted, random positions (control)", options.mechanism[0], "random")]
    rows += [(f"converted to {mechanism}", mechanism, "tile") for mechanism in options.mechanism]
    readers: list[Reader] = []
    for row, mechanism, positions in rows:
        destination = folder / f"{mechanism}-{positions}"
        if not destination.exists():  # of an interrupted run
            hf_longattn.convert_checkpoint(
                options.short,
                destination,
                mechanism=mechanism,
                **window_options(mechanism, options.window),
                max_length=options.max_length or 8192,
                positions=positions,
            )
        readers.append(long_reader(row, str(destination), options, None))
    return readers


def window_options(mechanism: str, window: int) -> dict[str, Any]:
    """The mechanism's own option for about the same window: three blocks of half of it in mechanisms that work in blocks."""
    return {"block_size": window // 2} if mechanism in ("bigbird", "lsg") else {"window": window}


def long_reader(row: str, path: str, options: argparse.Namespace, seed: int | None) -> Reader:
    """A converted model that reads the whole document."""
    model, tokenizer = load_qa_model(path)
    dtype = torch.bfloat16 if options.bf16 else None
    longest = longest_input(model, tokenizer)
    if options.max_length is not None:
        check_length(path, longest, options.max_length, "--max-length")
    form = whole(options.max_length or longest, options.stride, options.max_question_tokens)
    return QAReader(row, model, tokenizer, form, seed=seed, batch_size=1, dtype=dtype)


def check_length(path: str, longest: int, length: int, option: str) -> None:
    """Refuse a length that the model does not take, before anything is run."""
    if length > longest:
        raise OptionError(f"{option} is {length}, but {path!r} takes {longest} tokens; give at most that")


def named_models(texts: list[str]) -> list[tuple[str, str, int | None]]:
    """Parse ROW=PATH[@SEED]."""
    models = []
    for text in texts:
        row, equals, rest = text.partition("=")
        path, _, seed = rest.rpartition("@") if "@" in rest else (rest, "", "")
        if not equals or not path or (seed and not seed.isdigit()):
            raise OptionError(f"--long takes ROW=PATH or ROW=PATH@SEED, not {text!r}")
        models.append((row, path, int(seed) if seed else None))
    return models


def build_readers(options: argparse.Namespace, folder: Path) -> list[Reader]:
    """All rows without training."""
    readers: list[Reader] = [] if options.no_baselines else [RandomCandidate(), LexicalRule(), Program()]
    if options.short:
        readers += short_readers(options)
        if options.convert:
            readers += converted_readers(options, folder)
    elif options.convert:
        raise OptionError("--convert needs the short model to convert: add --short PATH")
    readers += [long_reader(row, path, options, seed) for row, path, seed in named_models(options.long)]
    if not any(isinstance(reader, QAReader) for reader in readers):
        if options.merge:
            return []
        raise OptionError("nothing to score: give --short PATH or --long ROW=PATH")
    return readers


def score(readers: list[Reader], options: argparse.Namespace, stored: StoredAnswers | None) -> list[ScoredAnswer]:
    """Ask all questions."""
    answers: list[ScoredAnswer] = []
    tokenizer = next((reader.tokenizer for reader in readers if isinstance(reader, QAReader)), None)
    for name in options.data if tokenizer else ():
        records = evaluation_set(
            name,
            tokenizer,
            split=options.split,
            per_length=options.per_length,
            lengths=options.lengths,
            seed=options.seed,
        )
        unanswerable = name not in BUILT and any(not record["answers"]["text"] for record in records)
        for reader in readers:
            if isinstance(reader, QAReader):
                reader.null_threshold = 0.0 if options.null_threshold is None and unanswerable else options.null_threshold
        with Progress() as progress:
            task = progress.add_task(f"{source_name(name)}: {len(records)} questions", total=len(records))
            done = lambda count, task=task, bar=progress: bar.update(task, completed=count)  # noqa: E731
            answers += run_readers(readers, records, source_name(name), done, stored)
    return answers


def about(options: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to place the numbers."""
    merged = {"from earlier runs": ", ".join(path.stem for path in options.merge)} if options.merge else {}
    return {
        "data": f"{', '.join(map(source_name, options.data))}; split {options.split}, at most {options.per_length} questions per length",
        "windows": f"{options.short_length} tokens, {options.stride} shared by consecutive windows (run_qa's doc_stride)",
        "precision": "bfloat16 autocast" if options.bf16 else "float32",
        **merged,
        "timing": "text to answer, one document at a time, all systems interleaved in one run on the same machine",
        "machine": ", ".join(f"{key} {value}" for key, value in machine().items()),
    }


def write_cards(options: argparse.Namespace, table: dict[str, Any]) -> None:
    """Write the model cards asked for, with the training that their folder tells about."""
    for row, folder, _ in named_models(options.card):
        log = Path(folder, "training_log.json")
        training = describe_qa_training(json.loads(log.read_text(encoding="utf-8"))) if log.is_file() else ""
        write_model_card(folder, results=card_results(table, row), training=training, license="apache-2.0")


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    with nullcontext(options.work) if options.work else tempfile.TemporaryDirectory() as folder:
        stored = StoredAnswers(options.work / "answers.jsonl") if options.work else None
        answers = score(build_readers(options, Path(folder)), options, stored)
        answers += [answer for path in options.merge for answer in read_answers(path)]
    table = write_report(options.output, answers, about(options), "Long question answering")
    write_cards(options, table)
    print(both_markdown(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
