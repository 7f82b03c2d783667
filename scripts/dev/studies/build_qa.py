"""Write the questions of one task and split as SQuAD-shaped data (.jsonl), to be read by `longattn train qa` or anyone.

python -m scripts.dev.studies.build_qa argument --split test --output argument-test.jsonl
python -m scripts.dev.studies.build_qa import --split train --per-file 8 --limit 8000 --min-distance 0 --output import-train.jsonl
python -m scripts.dev.studies.build_qa base --split train --short 64 430 --variants 3 --output base-short-train.jsonl
python -m scripts.dev.studies.build_qa lookup --split test --output lookup-test.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from transformers import AutoTokenizer

from hf_longattn.data.qa_schemas import save_qa
from scripts.dev.benchmarks.report import one_sentence_errors
from scripts.dev.studies.code_qa import SPLITS, TASKS, build_code_qa
from scripts.dev.studies.variable_tracking import build_variable_tracking


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("task", choices=(*TASKS, "lookup"), help="which questions")
    add(
        "--tokenizer",
        default="model_cards/bert-python-512",
        help="folder or Hub name; it measures the documents (default: the committed one)",
    )
    add(
        "--split",
        default="train",
        choices=SPLITS,
        help="packages to take; stdlib: held out as well (default: train)",
    )
    add("--output", type=Path, required=True, help="a .jsonl file")
    add("--min-tokens", type=int, default=1000, help="shortest document (default: 1000)")
    add("--max-tokens", type=int, default=8000, help="longest document (default: 8000)")
    add("--min-distance", type=int, default=512, help="fewest tokens between the question's words and the answer (default: 512)")
    add("--per-file", type=int, default=6, help="most questions per file (default: 6)")
    add("--limit", type=int, help="most questions (default: all)")
    add("--short", type=int, nargs=2, metavar=("LEAST", "MOST"), help="ask over excerpts of so many tokens, of documents of any length")
    add("--variants", type=int, default=1, help="excerpts per question (default: 1)")
    add("--lengths", type=int, nargs="+", default=[480, 1024, 2048, 4096, 8192], help="lengths of lookup documents")
    add("--documents", type=int, default=50, help="lookup documents per length (default: 50)")
    add("--seed", type=int, default=0, help="decides every choice")
    options = parser.parse_args(arguments)
    left_out: Counter[str] = Counter()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    if options.task == "lookup":
        records = build_variable_tracking(
            options.split, tokenizer, lengths=options.lengths, documents=options.documents, seed=options.seed
        ).to_list()
    else:
        records = build_code_qa(
            options.task,
            options.split,
            tokenizer,
            min_tokens=options.min_tokens,
            max_tokens=options.max_tokens,
            min_distance=options.min_distance,
            per_file=options.per_file,
            limit=options.limit,
            short=options.short,
            variants=options.variants,
            seed=options.seed,
            left_out=left_out,
        )
    save_qa(records, options.output)
    files = {record["title"].partition(" ")[0] for record in records}
    print(json.dumps({"questions": len(records), "files": len(files), "left out": dict(left_out.most_common())}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
