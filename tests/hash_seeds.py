"""What is drawn by seeds, as digests by name: `python -m tests.hash_seeds inputs|search FOLDER CHECKPOINT`.

Run with another PYTHONHASHSEED, in which strings in sets come in another order, the same digests must come out. The
checkpoint, a small BERT with its tokenizer, is given, since a tokenizer that is trained anew is another one.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def inputs(folder: Path, checkpoint: Path) -> dict[str, str]:
    """What embeddings and rerankers are trained and evaluated on."""
    from hf_longattn.data.rows import rows_of
    from hf_longattn.training.tasks.embed import labelled_pairs, relevant_texts, reranking, retrieval

    pairs = [{"anchor": f"question {number % 12}", "positive": f"answer {number}"} for number in range(15)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    roles = {"anchor": ("anchor",), "positive": ("positive",)}
    data = rows_of(str(folder / "pairs.jsonl"), "train", roles, {})
    relevant = relevant_texts(data)
    made: dict[str, Callable[[], Any]] = {
        "labelled pairs": lambda: labelled_pairs(data, relevant, 0).to_list(),
        "reranking": lambda: reranking(data, relevant, 0),
        "retrieval": lambda: retrieval(data, relevant)[:2],
    }
    return {name: digest(make()) for name, make in made.items()}


def search(folder: Path, checkpoint: Path) -> dict[str, str]:
    """The design of a search, with costs that do not depend on the machine."""
    from hf_longattn.search import search as module
    from hf_longattn.search import search_design
    from tests.trained import REAL_TEXT

    def layer_seconds(candidates: Any, *_: Any) -> Any:
        return {str(one): float(number + 1) for number, one in enumerate(candidates)}, {}

    module.layer_seconds = layer_seconds
    (folder / "text.txt").write_text(REAL_TEXT, encoding="utf-8")
    names = ["window:window=8", "window:window=16", "longformer:window=8", "full"]
    settings: dict[str, Any] = {"budget": "0.5", "length": 128, "candidates": names, "pieces": 2}
    found = search_design(checkpoint, folder / "text.txt", **settings)
    return {"chosen": digest(str(found.chosen)), "scores": digest(str(found.scores))}


if __name__ == "__main__":
    print(json.dumps({"inputs": inputs, "search": search}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))))
