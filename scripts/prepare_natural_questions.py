"""Turn files of Natural Questions, original or simplified, into one for `longattn train qa --data`, with the Hub's columns."""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_longattn.data.qa_schemas import save_qa
from hf_longattn.errors import LongAttentionError
from hf_longattn.staging import check_new_file, staged_file


def row(example: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the release, which has ``document_tokens``, or of its simplified form, which has ``document_text``."""
    if "document_tokens" in example:
        words = [token["token"] for token in example["document_tokens"]]
        markup = [token["html_token"] for token in example["document_tokens"]]
    else:
        words = example["document_text"].split(" ")
        markup = [word.startswith("<") and word.endswith(">") for word in words]
    notes = example["annotations"]
    places = ("start_token", "end_token")
    return {
        "id": str(example["example_id"]),
        "question": {"text": example["question_text"]},
        "document": {"title": example.get("document_title", ""), "tokens": {"token": words, "is_html": markup}},
        "annotations": {
            "short_answers": [{place: [answer[place] for answer in note["short_answers"]] for place in places} for note in notes],
            "yes_no_answer": [note["yes_no_answer"] for note in notes],
        },
    }


def examples(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())


def main(arguments: list[str] | None = None) -> None:
    """Read the files line by line and write one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help=".jsonl or .jsonl.gz files as they were released")
    parser.add_argument("output", type=Path, help="the .jsonl file to write, which must not exist")
    options = parser.parse_args(arguments)
    try:
        check_new_file(options.output)
        with staged_file(options.output, overwrite=False) as stage:
            save_qa((row(example) for path in options.files for example in examples(path)), stage)
    except KeyError as error:
        parser.error(f"these are no files of Natural Questions: a line has no {error}")
    except (LongAttentionError, OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
