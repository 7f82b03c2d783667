"""Programs that never import the package read whole texts with a model that has the file of `--remote-code`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from hf_longattn.conversion import convert_checkpoint

from ..fresh_processes import run_fresh

pytestmark = pytest.mark.slow
TEXT = "The river runs past the old house on the hill. " * 190
PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
import sentence_transformers, transformers
assert "hf_longattn" not in sys.modules
folder, kind, name, text = {typed!r}
if kind == "pipeline":
    model = transformers.pipeline(name, model=folder, trust_remote_code=True)
    answer, used = model(text), model.model
else:
    model = getattr(sentence_transformers, name)(folder, trust_remote_code=True)
    answer = model.predict([("Where is the house?", text)]) if name == "CrossEncoder" else model.encode(text)
    used = model.transformers_model
assert type(used).__module__.startswith("hf_longattn."), type(used)
Path("answer.json").write_text(json.dumps(answer, default=lambda value: np.asarray(value).tolist()))
"""


@pytest.fixture(scope="module")
def converted(real_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """converted("BertForMaskedLM") -> all-MiniLM-L6-v2 with a new head, of 4,096 tokens, with the file of
    `--remote-code`."""

    def convert(head: str, **fields: Any) -> Path:
        folder, source = tmp_path_factory.mktemp(head), real_folder
        if head != "BertModel":
            torch.manual_seed(0)
            source = folder / "source"
            getattr(transformers, head).from_pretrained(real_folder, **fields).save_pretrained(source)
            transformers.AutoTokenizer.from_pretrained(real_folder).save_pretrained(source)
        settings: dict[str, Any] = {"mechanism": "window", "window": 256, "max_length": 4096, "verify": False}
        convert_checkpoint(source, folder / "long", remote_code=True, **settings)
        return folder / "long"

    return convert


def answered(folder: Path, place: Path, kind: str, name: str, text: str) -> Any:
    program = PROGRAM.format(typed=(str(folder), kind, name, text))
    done = run_fresh("-c", program, env={**os.environ, "HF_HUB_OFFLINE": "1"}, cwd=place)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((place / "answer.json").read_text())


def cosine(left: Any, right: Any) -> float:
    return float(np.dot(left, right) / np.linalg.norm(left) / np.linalg.norm(right))


def test_sentence_transformers_embeds_whole_texts_without_the_package(
    converted: Callable[..., Path], tmp_path: Path
) -> None:
    st = pytest.importorskip("sentence_transformers")
    folder = converted("BertModel")
    expected = st.SentenceTransformer(str(folder), device="cpu")
    assert len(expected.tokenizer(TEXT)["input_ids"]) > 2000
    assert (
        cosine(answered(folder, tmp_path, "sentences", "SentenceTransformer", TEXT), expected.encode(TEXT)) > 0.99999
    )


def test_a_reranker_scores_whole_texts_without_the_package(converted: Callable[..., Path], tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    folder = converted("BertForSequenceClassification", num_labels=1)
    expected = st.CrossEncoder(str(folder), device="cpu").predict([("Where is the house?", TEXT)])
    assert answered(folder, tmp_path, "sentences", "CrossEncoder", TEXT) == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("task", "head"),
    [
        ("text-classification", "BertForSequenceClassification"),
        ("token-classification", "BertForTokenClassification"),
        ("fill-mask", "BertForMaskedLM"),
    ],
)
def test_a_pipeline_reads_whole_texts_without_the_package(
    task: str, head: str, converted: Callable[..., Path], tmp_path: Path
) -> None:
    folder, text = converted(head), f"The house [MASK] on a hill. {TEXT}" if task == "fill-mask" else TEXT
    found, expected = (
        answered(folder, tmp_path, "pipeline", task, text),
        transformers.pipeline(task, model=str(folder))(text),
    )
    assert [sorted(entry) for entry in found] == [sorted(entry) for entry in expected]
    assert [entry["score"] for entry in found] == pytest.approx(
        [float(entry["score"]) for entry in expected], abs=1e-5
    )
