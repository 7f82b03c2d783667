"""Turn TriviaQA's release into one file for `longattn train qa --data`: the Hub's columns, with the documents in them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_longattn.data.answers import normalised_alias
from hf_longattn.data.qa_schemas import save_qa
from hf_longattn.errors import LongAttentionError
from hf_longattn.staging import check_new_file, staged_file

COLUMNS = {"EntityPages": ("entity_pages", "wiki_context", "wikipedia"), "SearchResults": ("search_results", "search_context", "web")}
"""Entries of the release: their column, that of their texts, and the folder of ``evidence``."""


def rows(release: Mapping[str, Any], evidence: Path) -> Iterator[dict[str, Any]]:
    """The questions of a release; of one with verified answers those questions, and on the Web those documents, that the official
    evaluation takes.

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
            row[column] = {"filename": names, texts: [inside(evidence / folder, each).read_text(encoding="utf-8") for each in names]}
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
    """Read the release and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("questions", type=Path, help="a file of the folder qa")
    parser.add_argument("evidence", type=Path, help="the folder evidence, which contains wikipedia and web")
    parser.add_argument("output", type=Path, help="the .jsonl file to write, which must not exist")
    options = parser.parse_args(arguments)
    try:
        check_new_file(options.output)
        release = json.loads(options.questions.read_text(encoding="utf-8"))
        with staged_file(options.output, overwrite=False) as stage:
            save_qa(rows(release, options.evidence), stage)
    except KeyError as error:
        parser.error(f"{options.questions} is not a file of TriviaQA's release: it has no {error}")
    except (LongAttentionError, OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
