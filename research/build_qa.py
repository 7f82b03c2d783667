"""Write the docstring or lookup questions of one split as SQuAD-shaped data, to be read by train_qa.py or anyone.

python -m research.build_qa docstring --tokenizer assets/bert-python-512 --split train --output runs/docstring-train
python -m research.build_qa lookup --tokenizer assets/bert-python-512 --split test --output lookup.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

from hf_longattn.errors import LongAttentionError
from hf_longattn.training.qa_data import save_qa
from research.docstring_qa import Rejections, build_docstring_qa
from research.variable_tracking import build_variable_tracking


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("kind", choices=("docstring", "lookup"), help="which questions")
    add("--tokenizer", required=True, help="folder or Hub name; it measures the documents")
    add("--split", default="train", choices=("train", "validation", "test"), help="packages to take (default: train)")
    add("--output", type=Path, required=True, help="a .jsonl file, or a folder for datasets")
    add("--min-tokens", type=int, default=500, help="shortest docstring document (default: 500)")
    add("--max-tokens", type=int, default=8000, help="longest docstring document (default: 8000)")
    add("--questions-per-module", type=int, default=4, help="most docstring questions per module (default: 4)")
    add("--lengths", type=int, nargs="+", default=[480, 1024, 2048, 4096, 8192], help="lengths of lookup documents")
    add("--documents", type=int, default=50, help="lookup documents per length (default: 50)")
    add("--seed", type=int, default=0, help="decides the choice")
    options = parser.parse_args(arguments)
    rejections = Rejections()
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
        if options.kind == "lookup":
            data = build_variable_tracking(
                options.split, tokenizer, lengths=options.lengths, documents=options.documents, seed=options.seed
            )
        else:
            data = build_docstring_qa(
                options.split,
                tokenizer=tokenizer,
                min_tokens=options.min_tokens,
                max_tokens=options.max_tokens,
                questions_per_module=options.questions_per_module,
                seed=options.seed,
                rejections=rejections,
            )
    except LongAttentionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.output.suffix == ".jsonl":
        save_qa(data, options.output)
    else:
        data.save_to_disk(str(options.output))
    counts = rejections.to_dict() if options.kind == "docstring" else {}
    print(json.dumps({"questions": len(data), "documents": len(set(data["context"])), "left out": counts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
