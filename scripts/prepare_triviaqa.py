"""Write TriviaQA in the common schema of `longattn train qa --data`: one JSON line for each document of a question.

python scripts/prepare_triviaqa.py mandarjoshi/trivia_qa:rc.wikipedia train.jsonl --split train
python scripts/prepare_triviaqa.py qa/web-dev.json dev.jsonl --evidence evidence
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_longattn.data.qa_schemas import normalised_alias, occurrences
from hf_longattn.data.sources import read_table
from hf_longattn.errors import LongAttentionError
from hf_longattn.files import check_new_file, staged_file

COLUMNS = {
    "EntityPages": ("entity_pages", "wiki_context", "wikipedia"),
    "SearchResults": ("search_results", "search_context", "web"),
}
"""Entries of the release: their column on the Hub, that of their texts, and the folder of ``evidence``."""


def examples(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """An example for each document of a question in the Hub's columns. Every occurrence of an alias is an answer.
    Scores compare with the normalised aliases, as in the official script."""
    answer = row["answer"]
    normalised, aliases = (list(answer.get(name) or []) for name in ("normalized_aliases", "aliases"))
    texts = list(dict.fromkeys(str(text) for text in (answer.get("value"), *aliases, *normalised) if text))
    gold = list(dict.fromkeys(text for text in normalised or map(normalised_alias, texts) if text))
    known = {"id": row["question_id"], "question": row["question"], "gold": gold, "kind": "span" if gold else "none"}
    for column, contexts, _ in COLUMNS.values():
        pages = row.get(column) or {}
        names = pages.get("filename") or []
        for place, text in enumerate(pages.get(contexts) or []):
            if text:
                name = names[place] if place < len(names) and names[place] else f"{column}-{place}"
                yield {
                    **known,
                    "context": text,
                    "document": name,
                    "answers": occurrences(text, texts, normalised=True),
                }


def rows(release: Mapping[str, Any], evidence: Path) -> Iterator[dict[str, Any]]:
    """The questions of a release in the Hub's columns. A release with verified answers has those questions, and on the
    Web those documents, that the official evaluation takes.

    Raises:
        OSError: a document is not there.
    """
    verified = bool(release.get("VerifiedEval"))
    for question in release["Data"]:
        if verified and not question["QuestionPartOfVerifiedEval"]:
            continue
        answer = question.get("Answer", {})
        people = list(answer.get("HumanAnswers", []))
        row: dict[str, Any] = {
            "question": question["Question"],
            "question_id": question["QuestionId"],
            "answer": {
                "value": answer.get("Value"),
                "aliases": [*answer.get("Aliases", []), *people],
                "normalized_aliases": [*answer.get("NormalizedAliases", []), *map(normalised_alias, people)],
            },
        }
        for name, (column, texts, folder) in COLUMNS.items():
            pages = question.get(name, [])
            if verified and release.get("Domain") == "Web":
                pages = [page for page in pages if page["DocPartOfVerifiedEval"]]
            names = [page["Filename"] for page in pages]
            row[column] = {
                "filename": names,
                texts: [inside(evidence / folder, each).read_text(encoding="utf-8") for each in names],
            }
        yield row


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of a folder.

    Raises:
        ValueError: the name leads out of it.
    """
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"the document {name!r} is outside of {folder}")
    return file


def main(arguments: list[str] | None = None) -> None:
    """Read the questions and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", help="the dataset's name on the Hub, or a file of the release's folder qa")
    parser.add_argument("output", type=Path, help="the .jsonl file to write, which must not exist")
    parser.add_argument("--split", default="train", help="of the dataset on the Hub")
    parser.add_argument(
        "--evidence", type=Path, help="the release's folder evidence, which contains wikipedia and web"
    )
    options = parser.parse_args(arguments)
    try:
        check_new_file(options.output)
        if options.evidence is None:
            questions: Any = read_table(options.questions, options.split)
        else:
            questions = rows(json.loads(Path(options.questions).read_text(encoding="utf-8")), options.evidence)
        with staged_file(options.output) as stage, stage.open("w", encoding="utf-8") as file:
            for row in questions:
                file.writelines(json.dumps(example, ensure_ascii=False) + "\n" for example in examples(row))
    except KeyError as error:
        parser.error(f"{options.questions} is not TriviaQA: it has no {error}")
    except (LongAttentionError, OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
