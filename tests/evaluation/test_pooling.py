"""Pooling as sentence-transformers computes it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from hf_longattn.errors import CheckpointError
from hf_longattn.evaluation.pooling import OLD_KEYS, SentencePooling, sentence_pooling, write_for_servers
from tests.cases import every_case

st = pytest.importorskip("sentence_transformers.sentence_transformer.modules")


@every_case("left", [False, True])
@every_case("mode", [*OLD_KEYS, ("cls", "mean")], ids=str)
def test_pooling_is_that_of_sentence_transformers(mode: str | tuple[str, ...], left: bool, tmp_path: Path) -> None:
    theirs = st.Pooling(8, mode)
    for name, module in (("1_Pooling", theirs), ("2_Normalize", st.Normalize())):
        (tmp_path / name).mkdir()
        module.save(str(tmp_path / name))
    modules = [
        {"path": "", "type": "x.Transformer"},
        {"path": "1_Pooling", "type": "x.Pooling"},
        {"path": "2_Normalize", "type": "x.Normalize"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    ours = sentence_pooling(tmp_path)
    assert isinstance(ours, SentencePooling)
    states, mask = torch.randn(3, 10, 8), torch.ones(3, 10, dtype=torch.long)
    mask[1, 4:], mask[2, 1:] = 0, 0
    mask = mask.flip(1) if left else mask
    features = {"token_embeddings": states, "attention_mask": mask}
    expected = st.Normalize()(theirs(features))["sentence_embedding"]
    torch.testing.assert_close(ours(states, mask), expected)
    (tmp_path / "modules.json").write_text(json.dumps(modules[:2]))
    assert not sentence_pooling(tmp_path).normalize  # type: ignore[union-attr]


def test_pooling_reads_old_files_and_none_of_other_modules(tmp_path: Path) -> None:
    assert sentence_pooling(tmp_path) is None
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert sentence_pooling(tmp_path) is None
    (tmp_path / "1_Pooling").mkdir()
    settings = tmp_path / "1_Pooling" / "config.json"
    settings.write_text(json.dumps({"word_embedding_dimension": 8, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}))
    assert sentence_pooling(tmp_path).modes == ("cls", "mean")  # type: ignore[union-attr]
    settings.write_text(json.dumps({"pooling_mode": "mean", "include_prompt": False}))
    assert sentence_pooling(tmp_path) is None
    (tmp_path / "modules.json").write_text(json.dumps([*modules, {"path": "2_Dense", "type": "x.Dense"}]))
    assert sentence_pooling(tmp_path) is None
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(CheckpointError):
        sentence_pooling(tmp_path)


@pytest.mark.parametrize("mode", ["mean", ("cls", "max")], ids=str)
def test_pooling_files_for_servers_have_the_old_form(mode: str | tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    st.Pooling(8, mode).save(str(tmp_path / "1_Pooling"))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    settings = tmp_path / "sentence_bert_config.json"
    settings.write_text(json.dumps({"transformer_task": "feature-extraction", "do_lower_case": True, "modality_config": {}}))
    write_for_servers(tmp_path, 4096)
    assert json.loads(settings.read_text()) == {"max_seq_length": 4096, "do_lower_case": True}
    written = json.loads((tmp_path / "modules.json").read_text())
    assert [one["type"] for one in written] == ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    values = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert (values["word_embedding_dimension"], values["pooling_mode_mean_tokens"]) == (8, mode == "mean")
    assert sum(value for name, value in values.items() if name.startswith("pooling_mode")) == (1 if mode == "mean" else 2)
    again = sentence_pooling(tmp_path)
    assert again is not None
    assert set(again.modes) == ({mode} if isinstance(mode, str) else set(mode))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = st.Pooling.load(str(tmp_path / "1_Pooling"))
    assert loaded.get_embedding_dimension() == 8 * len(again.modes)


def test_pooling_files_for_servers_keep_the_task_of_a_cross_encoder(tmp_path: Path) -> None:
    write_for_servers(tmp_path, 64)
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "", "type": "a.Transformer"}]))
    settings = tmp_path / "sentence_bert_config.json"
    settings.write_text(json.dumps({"transformer_task": "sequence-classification"}))
    write_for_servers(tmp_path, 64)
    assert json.loads(settings.read_text()) == {"max_seq_length": 64, "transformer_task": "sequence-classification"}
    assert json.loads((tmp_path / "modules.json").read_text()) == [{"path": "", "type": "a.Transformer"}]
