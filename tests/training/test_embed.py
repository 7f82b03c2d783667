"""Embeddings and rerankers by sentence-transformers' trainers, from pairs in a file to a folder that it loads."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.rows import read_rows
from hf_longattn.data.sources import DataError
from hf_longattn.errors import OptionError
from hf_longattn.files import read_json
from hf_longattn.modeling.attach.global_mask import global_token_ids
from hf_longattn.training.tasks.embed import (
    EmbedDataArguments,
    labelled_pairs,
    prompts_of,
    relevant_texts,
    reranking,
    retrieval,
)
from scripts import prepare_longembed
from tests.grids import quickly
from tests.saved import change_json
from tests.training.conftest import checkpoint, converted, losses, quick, write_rows
from tests.training.test_options import DATA


@pytest.mark.slow
@pytest.mark.parametrize("kind", quickly(["embeddings", "reranker", "multi_vector"], ["multi_vector"]))
def test_converted_encoders_and_rerankers_learn_what_answers(
    kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    st = pytest.importorskip("sentence_transformers")
    choose, words = random.Random(0), ["tree", "file", "node", "path", "line", "code", "name", "type"]
    rows = [
        {"query": f"{word} {other}", "document": " ".join(choose.choices([word, other], k=choose.randint(20, 80)))}
        for word in words
        for other in words
        if word < other
    ]
    reranker = kind == "reranker"
    # wrong documents that can be known by their words alone, which so small a model learns in a few steps
    if reranker:
        rows = [{**row, "negative": "import return " * 20} for row in rows]
    model = converted("mlm", tmp_path, tokenizer, mechanism="longformer", window=16)
    data = write_rows(rows, tmp_path / "pairs.jsonl")
    run = {"max_steps": 20, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "max_length": 100}
    if reranker:
        run |= {"max_steps": 40, "learning_rate": 3e-2}
    if kind != "embeddings":
        run[kind] = True
    log = quick("embed", model, tmp_path / "out", data, **run)
    assert losses(log)[-1] < 0.8 * losses(log)[0]
    assert reranker or log["metrics"]["after"]["mrr"] >= log["metrics"]["before"]["mrr"]
    assert {*log["metrics"]["after"]} == {"mrr", "ndcg", "n", *([] if reranker else ["accuracy_at_1"])}
    loader = {"embeddings": "SentenceTransformer", "reranker": "CrossEncoder", "multi_vector": "MultiVectorEncoder"}[
        kind
    ]
    loaded = getattr(st, loader)(str(tmp_path / "out"), device="cpu")
    assert loaded.max_seq_length == 128
    pair = tokenizer("tree file", "path line", return_tensors="pt")
    rule = global_token_ids(loaded.transformers_model)
    assert (rule is None) == (not reranker)
    if rule is not None:  # the query is global
        marked = rule.mask(pair["input_ids"], pair["attention_mask"].bool()).sum()
        assert marked == pair["input_ids"][0].tolist().index(tokenizer.sep_token_id) + 1
    if kind == "multi_vector":  # the states of all tokens, scaled to length 1, without a projection
        (states,) = loaded.encode_document(["tree file"])
        read = loaded.transformers_model(**tokenizer("tree file", return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(states.cpu(), torch.nn.functional.normalize(read, dim=-1))
        again = quick("embed", tmp_path / "out", tmp_path / "b", data, **{**run, "max_steps": 1})
        assert again["metrics"]["before"] == log["metrics"]["after"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"import {loader}" in card
    assert "input length 128" in card


@pytest.mark.thorough
@pytest.mark.parametrize(("task", "length"), [("passkey", 256), ("needle", 1024)])
def test_prepare_longembed_makes_documents_that_differ_by_one_fact_each(
    task: str, length: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_longembed.main([task, str(length), str(tmp_path / "pairs.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert rows == list(prepare_longembed.pairs(task, length))
    texts = [row["positive"] for row in rows]
    assert {len(re.findall(r"\w+|[^\w\s]", text)) for text in texts} == {length}
    depths = []
    for row in rows:
        name = re.search(r"(?:for|was) the (\w+ \w+)", row["anchor"])
        assert name is not None
        assert [name[1] in text for text in texts].count(True) == 1
        depths.append(row["positive"].index(f"the {name[1]}") / len(row["positive"]))
    assert min(depths) < 0.2
    assert max(depths) > 0.8
    with pytest.raises(SystemExit):
        prepare_longembed.main([task, "8", str(tmp_path / "short.jsonl")])
    assert "at least 64 tokens, not 8" in capsys.readouterr().err


def lengths_of(folder: Path, reranker: bool) -> tuple[int, int, int]:
    """The config's positions, the limit of the tokenizer's file, and what sentence-transformers reads."""
    import sentence_transformers as st

    config, tokenizer = (read_json(folder / f"{name}.json") for name in ("config", "tokenizer_config"))
    loaded = (st.CrossEncoder if reranker else st.SentenceTransformer)(str(folder), device="cpu")
    return config["max_position_embeddings"], tokenizer["model_max_length"], loaded.max_seq_length


@pytest.mark.thorough
@pytest.mark.parametrize("reranker", [False, True])
@pytest.mark.filterwarnings("ignore:The plain model has the attention of")
def test_embedding_models_keep_the_converted_length_after_shorter_training(
    reranker: bool, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source reads 32 of 64 tokens, the converted model 128; the training inputs have 20."""
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Transformer

    lengths: dict[bool, set[int]] = {True: set(), False: set()}
    forward = Transformer.forward

    def noted(module: Any, features: Any, **kwargs: Any) -> Any:
        lengths[module.training].add(features["input_ids"].shape[1])
        return forward(module, features, **kwargs)

    monkeypatch.setattr(Transformer, "forward", noted)
    source, long, out = (tmp_path / name for name in ("source", "long", "out"))
    short = checkpoint("mlm", tmp_path / "short", tokenizer)
    (st.CrossEncoder(short, num_labels=1) if reranker else st.SentenceTransformer(short)).save_pretrained(str(source))
    for name, field, length in (("tokenizer", "model_max_length", 64), ("sentence_bert", "max_seq_length", 32)):
        change_json(source, f"{name}_config.json", **{field: length})
    convert_checkpoint(source, long, mechanism="window", max_length=128, window=16, verify=False)
    text = "def tree(node): return node.name " * 40
    data = write_rows(
        [{"query": f"node {number}", "document": f"{number} {text}"} for number in range(8)], tmp_path / "pairs.jsonl"
    )
    run = {"max_length": 20, "reranker": reranker, "max_steps": 1, "per_device_train_batch_size": 4}
    quick("embed", long, out, data, **run)
    assert max(lengths[True]) == 20
    assert max(lengths[False]) == 128
    lengths_by_folder = {"source": (64, 64, 32), "long": (128, 128, 128), "out": (128, 128, 128)}
    assert {name: lengths_of(tmp_path / name, reranker) for name in lengths_by_folder} == lengths_by_folder
    card = (out / "README.md").read_text()
    assert "input length 128" in card
    assert (read_json(out / "tokenizer.json")["truncation"] or {"max_length": 128})["max_length"] == 128


def test_embed_refuses_a_max_length_beyond_the_model(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    pytest.importorskip("sentence_transformers")
    short = checkpoint("mlm", tmp_path / "short", tokenizer)
    data = write_rows(DATA["embed"], tmp_path / "pairs.jsonl")
    for reranker in (False, True):
        with pytest.raises(
            OptionError, match=r"--max-length 65 exceeds the 64 tokens that the model takes; convert it"
        ):
            quick("embed", short, tmp_path / "out", data, max_length=65, reranker=reranker)


@pytest.mark.parametrize("reranker", [False, True])
def test_embed_trains_a_half_precision_checkpoint_in_float32(
    reranker: bool, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """In fp16, a step of 1e-6 would be rounded away. A reranker of a classifier gets a new head."""
    pytest.importorskip("sentence_transformers")
    folder = checkpoint("mlm", tmp_path / "short", tokenizer)
    head = {"num_labels": 3, "problem_type": "single_label_classification"} if reranker else {}
    loader = AutoModelForSequenceClassification if reranker else AutoModel
    loader.from_pretrained(folder, **head).half().save_pretrained(folder)
    data = write_rows(DATA["embed"], tmp_path / "pairs.jsonl")
    run = {"reranker": reranker, "max_steps": 3, "learning_rate": 1e-6, "per_device_train_batch_size": 4}
    quick("embed", folder, tmp_path / "out", data, **run)
    name = "encoder.layer.0.attention.self.query.weight"
    before, after = (
        AutoModel.from_pretrained(one, dtype="auto").get_parameter(name).detach() for one in (folder, tmp_path / "out")
    )
    assert (before.dtype, after.dtype) == (torch.float16, torch.float32)
    assert 0 < float((after - before).abs().max()) < 1e-5
    if reranker:
        config = AutoConfig.from_pretrained(tmp_path / "out")
        assert (config.num_labels, config.problem_type) == (1, None)


def pairs(*rows: tuple[str, ...], names: tuple[str, ...] = ("anchor", "positive")) -> Dataset:
    return Dataset.from_list([dict(zip(names, row, strict=True)) for row in rows])


def test_pairs_have_columns_in_the_order_of_the_losses(tmp_path: Path) -> None:
    rows = [{"negative": "c", "positive": "b", "other": 1, "anchor": "a"}]
    data_args = EmbedDataArguments(data=[write_rows(rows, tmp_path / "rows.jsonl")] * 2)
    assert read_rows(data_args, seed=0)[0].column_names == ["anchor", "positive", "negative"]


def test_retrieval_counts_all_positives_of_an_anchor_as_relevant() -> None:
    held = pairs(("a", "x", "n"), ("a", "y", "n"), ("b", "y", "m"), names=("anchor", "positive", "negative"))
    trained = pairs(("b", "x", "m"), ("c", "z", "m"), names=("anchor", "positive", "negative"))
    queries, documents, right = retrieval(held, relevant_texts(trained, held))
    found = {queries[key]: {documents[name] for name in names} for key, names in right.items()}
    assert found == {"a": {"x", "y"}, "b": {"y", "x"}}  # the latter belongs to b in the training data
    assert list(documents.values()) == ["x", "y", "n", "m"]


@pytest.mark.parametrize("count", [3, 50])
def test_reranker_negatives_belong_to_other_anchors(count: int) -> None:
    data = pairs(*[(f"a{number % 5}", f"text {number}") for number in range(count)])
    relevant = relevant_texts(data)
    rows = labelled_pairs(data, relevant, seed=0).to_list()
    assert [row["label"] for row in rows] == [1.0] * count + [0.0] * count
    assert all((row["positive"] in relevant[row["anchor"]]) == bool(row["label"]) for row in rows)
    samples = reranking(data.select(range(2)), relevant, seed=0)
    for sample in samples:
        assert not set(sample["negative"]) & set(relevant[sample["query"]])
        assert (
            len(sample["negative"]) == len(set(sample["negative"])) == min(9, count - len(relevant[sample["query"]]))
        )


def test_reranking_leaves_out_a_given_negative_that_is_right_elsewhere() -> None:
    held = pairs(("a", "x", "z"), ("a", "x", "n"), names=("anchor", "positive", "negative"))
    relevant = relevant_texts(pairs(("a", "z"), ("b", "m")), held)
    (sample,) = reranking(held, relevant, seed=0)
    assert sample["positive"] == ["x"]
    assert set(sample["negative"]) == {"n", "m"}


def test_reranker_refuses_data_of_a_single_anchor() -> None:
    data = pairs(("a", "x"), ("a", "y"), ("a", "x"))
    for make in (labelled_pairs, reranking):
        with pytest.raises(DataError, match="All texts belong to 'a'"):
            make(data, relevant_texts(data), 0)


@pytest.mark.thorough
def test_scored_pairs_are_evaluated_by_correlation(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Pairs that do not belong together are no right answers: they were counted as such once."""
    pytest.importorskip("sentence_transformers")
    folder = checkpoint("mlm", tmp_path / "short", tokenizer)
    words = ["tree", "file", "node", "path"]
    rows = [
        {"sentence1": f"{one} {two}", "sentence2": f"{one} {other}", "score": float(two == other)}
        for one in words
        for two in words
        for other in words
    ]
    data = write_rows(rows, tmp_path / "scored.jsonl")
    log = quick("embed", folder, tmp_path / "out", data, validation=data, max_steps=1)
    assert set(log["metrics"]["after"]) == {"spearman", "pearson", "n"}
    assert log["metrics"]["after"]["n"] == 64
    assert log["metrics"]["before"]["spearman"] > 50


@pytest.mark.parametrize(
    ("prompts", "scored", "expected"),
    [
        ({"query": "q: ", "document": "d: "}, False, {"anchor": "q: ", "positive": "d: ", "negative": "d: "}),
        ({"query": "q: "}, False, {"anchor": "q: "}),
        ({"plain": "p: "}, True, {"anchor": "p: ", "positive": "p: "}),
        ({}, False, None),
        ({}, True, None),
    ],
)
def test_embed_trains_with_the_prompts_of_inference(
    prompts: dict[str, str], scored: bool, expected: dict[str, str] | None
) -> None:
    model = SimpleNamespace(prompts=prompts, default_prompt_name="plain" if "plain" in prompts else None)
    assert prompts_of(model, scored) == expected


def test_embed_refuses_sources_of_different_columns(tmp_path: Path) -> None:
    pairs = [{"anchor": "a", "positive": "b"}]
    data = [write_rows(pairs, tmp_path / "1.jsonl"), write_rows([{**pairs[0], "score": 0.5}], tmp_path / "2.jsonl")]
    with pytest.raises(DataError, match=r"but .*2\.jsonl has anchor, positive, score"):
        read_rows(EmbedDataArguments(data=data), seed=0)


def test_reranker_refuses_scored_pairs(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    pytest.importorskip("sentence_transformers")
    folder = checkpoint("mlm", tmp_path / "short", tokenizer)
    data = write_rows([{**row, "score": 0.5} for row in DATA["embed"]], tmp_path / "p.jsonl")
    for kind in ("reranker", "multi_vector"):
        with pytest.raises(DataError, match=r"p\.jsonl has scores, but .*; leave out the scores"):
            quick("embed", folder, tmp_path / "out", data, **{kind: True})
