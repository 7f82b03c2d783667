"""Write Natural Questions in the common schema of `longattn train qa --data`: one JSON line for each question.

python scripts/prepare_natural_questions.py google-research-datasets/natural_questions train.jsonl --split train
python scripts/prepare_natural_questions.py simplified-nq-train.jsonl.gz train.jsonl
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from hf_longattn.data.sources import read_table
from hf_longattn.errors import LongAttentionError
from hf_longattn.files import check_new_file, staged_file

YES_NO: dict[Any, str] = {0: "no", 1: "yes", "NO": "no", "YES": "yes"}
"""How the data say yes and no."""
PLACES = ("start_token", "end_token")


def example(row: Mapping[str, Any]) -> dict[str, Any]:
    """The example of a row in the Hub's columns. Answers are ranges of tokens; the context is the tokens that are no
    markup."""
    document, notes = row["document"], row["annotations"]
    words, markup = (list(document["tokens"][name]) for name in ("token", "is_html"))
    shown = ["" if hidden else f"{word} " for word, hidden in zip(words, markup, strict=True)]
    places = list(accumulate(map(len, shown), initial=0))
    shorts = {
        span for answer in notes["short_answers"] for span in zip(*(answer[place] for place in PLACES), strict=True)
    }
    spans = [
        (places[start], text) for start, end in sorted(shorts) if (text := "".join(shown[start:end]).removesuffix(" "))
    ]
    verdict = next((YES_NO[kind] for kind in notes.get("yes_no_answer") or [] if kind in YES_NO), None)
    gold = [text for _, text in spans] or [verdict or ""]
    return {
        "id": str(row["id"]),
        "title": document.get("title") or "",
        "question": row["question"]["text"],
        "context": "".join(shown).removesuffix(" "),
        "answers": {"text": [text for _, text in spans], "answer_start": [start for start, _ in spans]},
        "gold": [text for text in gold if text],
        "kind": "span" if spans else verdict or "none",
    }


def row(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the release, which has ``document_tokens``, or of its simplified form, which has ``document_text``, in
    the Hub's columns."""
    if "document_tokens" in line:
        words = [token["token"] for token in line["document_tokens"]]
        markup = [token["html_token"] for token in line["document_tokens"]]
    else:
        words = line["document_text"].split(" ")
        markup = [word.startswith("<") and word.endswith(">") for word in words]
    notes = line["annotations"]
    return {
        "id": line["example_id"],
        "question": {"text": line["question_text"]},
        "document": {"title": line.get("document_title", ""), "tokens": {"token": words, "is_html": markup}},
        "annotations": {
            "short_answers": [
                {place: [answer[place] for answer in note["short_answers"]] for place in PLACES} for note in notes
            ],
            "yes_no_answer": [note["yes_no_answer"] for note in notes],
        },
    }


def rows(source: str, split: str) -> Iterator[Mapping[str, Any]]:
    """The questions of a source in the Hub's columns."""
    if not source.endswith((".jsonl", ".jsonl.gz")):
        yield from read_table(source, split)
        return
    with (
        gzip.open(source, "rt", encoding="utf-8") if source.endswith(".gz") else open(source, encoding="utf-8") as file
    ):
        yield from (row(json.loads(line)) for line in file if line.strip())


def main(arguments: list[str] | None = None) -> None:
    """Read the questions one after the other and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sources", nargs="+", help="the dataset's name on the Hub, or .jsonl or .jsonl.gz files as they were released"
    )
    parser.add_argument("output", type=Path, help="the .jsonl file to write, which must not exist")
    parser.add_argument("--split", default="train", help="of the dataset on the Hub")
    options = parser.parse_args(arguments)
    try:
        check_new_file(options.output)
        with staged_file(options.output) as stage, stage.open("w", encoding="utf-8") as file:
            for source in options.sources:
                file.writelines(
                    json.dumps(example(each), ensure_ascii=False) + "\n" for each in rows(source, options.split)
                )
    except KeyError as error:
        parser.error(f"this is not Natural Questions: a question has no {error}")
    except (LongAttentionError, OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
