"""A sentence-transformers folder stays one: its modules come along, and it encodes up to the new length."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import CheckpointError

from ..conftest import LENGTH

Checkpoint = Callable[..., Path]
ARGUMENTS = {"mechanism": "window", "window": 32, "max_length": 4 * LENGTH}
SHORT = "Waiting, mostly."
TEXT = "Measuring is mostly waiting, said the keeper of the lighthouse. "


@pytest.fixture
def sentence_folder(checkpoint: Checkpoint, tmp_path: Path) -> Callable[[str], Path]:
    """sentence_folder(path) -> a folder as sentence-transformers saves it, its transformer in the subfolder `path`."""

    def build(path: str) -> Path:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Dense, Transformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

        torch.manual_seed(0)
        modules = [Transformer(str(checkpoint("BertModel", tokenizer="bert"))), Pooling(32), Dense(32, 16), Normalize()]
        folder = tmp_path / "sentences"
        SentenceTransformer(modules=modules).save(str(folder))
        settings = json.loads((folder / "sentence_bert_config.json").read_text())
        (folder / "sentence_bert_config.json").write_text(json.dumps({**settings, "max_seq_length": LENGTH // 2, "do_lower_case": False}))
        if path:
            listed = json.loads((folder / "modules.json").read_text())
            (folder / "modules.json").write_text(json.dumps([{**listed[0], "path": path}, *listed[1:]]))
            (folder / path).mkdir()
            for file in [file for file in folder.iterdir() if file.is_file()]:
                if file.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
                    shutil.move(file, folder / path / file.name)
        return folder

    return build


@pytest.mark.thorough
@pytest.mark.parametrize("path", ["", "0_Transformer"])
def test_converted_sentence_transformers_encode_longer_texts(path: str, sentence_folder: Callable[[str], Path], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    source = sentence_folder(path)
    words = next(source.rglob("tokenizer.json"))  # cut there for programs that read it without transformers, as all-MiniLM-L6-v2's
    cut = {"direction": "Right", "max_length": LENGTH // 4, "strategy": "LongestFirst", "stride": 0}
    words.write_text(json.dumps({**json.loads(words.read_text()), "truncation": cut}))
    report = convert_checkpoint(source, tmp_path / "long", **ARGUMENTS)
    assert report.verified
    assert re.match(r"longattn train embed --model \S+ --data YOUR_PAIRS\.jsonl --max-length \d+ --output ", report.train_command or "")
    card = (tmp_path / "long" / "README.md").read_text()
    exec(compile(re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0], "usage", "exec"), names := {})
    assert isinstance(names["model"], SentenceTransformer)
    assert (tmp_path / "long" / "modules.json").is_file()
    assert {"modules.json", "config_sentence_transformers.json", "1_Pooling", "2_Dense"} <= set(report.files)
    old, new = SentenceTransformer(str(source), device="cpu"), SentenceTransformer(str(tmp_path / "long"), device="cpu")
    assert (old.max_seq_length, new.max_seq_length) == (LENGTH // 2, 4 * LENGTH)
    assert [type(module) for module in new] == [type(module) for module in old]
    assert json.loads((tmp_path / "long" / "tokenizer.json").read_text())["truncation"] == {**cut, "max_length": 4 * LENGTH}
    assert new.encode(TEXT).shape == (16,)
    assert abs(old.encode(SHORT) - new.encode(SHORT)).max() < 1e-5  # the window covers so short a text
    beginning, whole = TEXT * 8, TEXT * 30
    assert LENGTH < len(new.tokenizer(beginning)["input_ids"]) < 4 * LENGTH < len(new.tokenizer(whole)["input_ids"])
    assert (old.encode(beginning) == old.encode(whole)).all()
    assert abs(new.encode(beginning) - new.encode(whole)).max() > 1e-5
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "long")).__name__ == "LongBertModel"


@pytest.mark.parametrize(
    ("modules", "sentence"),
    [
        ("[]", "must hold a list of modules"),
        ("{", "is not valid JSON"),
        ('[{"path": "../x", "type": "sentence_transformers.models.Transformer"}]', "lies outside of"),
        ('[{"path": "/etc", "type": "sentence_transformers.models.Transformer"}]', "lies outside of"),
        ('[{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}]', "begins with a"),
        ('[{"path": "missing", "type": "sentence_transformers.models.Transformer"}]', "config.json' cannot be read: No such file"),
    ],
)
def test_conversion_refuses_modules_of_sentence_transformers_it_cannot_follow(
    modules: str, sentence: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = checkpoint("BertModel")
    (source / "modules.json").write_text(modules)
    with pytest.raises(CheckpointError, match=sentence):
        convert_checkpoint(source, tmp_path / "long", **ARGUMENTS)
    assert not (tmp_path / "long").exists()
