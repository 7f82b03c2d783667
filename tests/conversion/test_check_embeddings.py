"""A sentence encoder is judged by its embeddings, computed as sentence-transformers computes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from hf_longattn.conversion import ConversionReport, check_texts, convert_checkpoint, plan_conversion
from hf_longattn.conversion.check_texts import Embeddings, choose_lengths
from hf_longattn.conversion.tokenizer import VerificationText, load_tokenizer
from hf_longattn.evaluation.pooling import SentencePooling
from hf_longattn.evaluation.token_loss import verification_text
from tests.cases import every_case
from tests.reports import check_of
from tests.saved import read_json
from tests.trained import tokenizer_of

from .conftest import LENGTH

NEW = 4 * LENGTH
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


@pytest.fixture(scope="module")
def encoder(built: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sentence encoder whose embeddings depend on the words, and more on where they are. Frequent words count
    little.

    Shared by the module: copy it before writing into it.
    """
    folder = Path(shutil.copytree(built("BertModel"), tmp_path_factory.mktemp("encoder") / "source"))
    tokenizer_of("bert", LENGTH).save_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder)
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.encoder.parameters():  # those of the checkpoint are not seeded
            if parameter.dim() > 1:
                parameter.normal_(0, model.config.initializer_range)
        model.embeddings.position_embeddings.weight.normal_(0, 1)
        words = model.embeddings.word_embeddings.weight.normal_(0, 1)
        words -= words[verification_of(folder).tokens(4000)[0]].mean(0)
    model.save_pretrained(folder)
    (folder / "modules.json").write_text(json.dumps(MODULES))
    (folder / "1_Pooling").mkdir()
    settings = {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    (folder / "2_Normalize").mkdir()
    return folder


def verification_of(folder: Path) -> VerificationText:
    return VerificationText(*verification_text(None), load_tokenizer(folder), 30522)


def measured(report: ConversionReport) -> dict[str, Any]:
    return check_of(report, Embeddings.name).values


HALF = LENGTH // 2
CUT = (
    f"of up to {HALF} tokens are embedded exactly as by the source; its encode cuts longer ones there, and the result "
    "reads on"
)
WHOLE = f"of up to {LENGTH} tokens are read exactly as by the source"
READERS: tuple[tuple[str | None, dict[str, Any], int | None, str], ...] = (
    ("SentenceTransformer", {"max_seq_length": HALF}, None, CUT),
    ("SentenceTransformer", {"max_seq_length": HALF, "do_lower_case": True}, LENGTH, CUT),
    ("SentenceTransformer", {"max_seq_length": LENGTH}, None, WHOLE),
    ("SentenceTransformer", {"max_seq_length": 2 * LENGTH}, None, WHOLE),
    ("SentenceTransformer", {"max_seq_length": LENGTH}, HALF, WHOLE),
    ("SentenceTransformer", {"max_seq_length": None}, HALF, CUT),
    ("SentenceTransformer", {}, HALF, CUT),
    ("SentenceTransformer", {}, LENGTH, WHOLE),
    ("SentenceTransformer", {}, None, WHOLE),
    ("SentenceTransformer", {"document_length": HALF}, None, WHOLE),
    ("CrossEncoder", {"max_seq_length": HALF}, None, CUT.replace("embedded", "scored").replace("encode", "predict")),
    ("CrossEncoder", {}, None, WHOLE),
    ("MultiVectorEncoder", {"document_length": HALF}, None, CUT.replace("encode", "encode_document")),
    ("MultiVectorEncoder", {"max_seq_length": HALF}, LENGTH, CUT.replace("encode", "encode_document")),
    (None, {"max_seq_length": HALF}, HALF, WHOLE),
)
"""The class that saved the source, its settings of the transformer, the tokenizer's limit, and the line of texts."""


def limited(encoder: Path, folder: Path, saved_by: str | None, settings: dict[str, Any], limit: int | None) -> Path:
    """A copy of the encoder with these settings and limits."""
    shutil.copytree(encoder, folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    tokenizer = read_json(folder, "tokenizer_config.json")
    tokenizer.pop("model_max_length", None)
    if limit is not None:
        tokenizer["model_max_length"] = limit
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    if saved_by is None:
        (folder / "modules.json").unlink()
    else:
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"model_type": saved_by}))
    return folder


@every_case("saved_by, settings, limit, words", READERS)
def test_plan_says_up_to_which_length_texts_are_read_as_by_sentence_transformers(
    saved_by: str | None, settings: dict[str, Any], limit: int | None, words: str, encoder: Path, tmp_path: Path
) -> None:
    source = limited(encoder, tmp_path / f"{saved_by}-{settings}-{limit}", saved_by, settings, limit)
    plan = plan_conversion(source, mechanism="window", window=16, max_length=NEW)
    assert plan.to_dict()["short_texts"] == words
    stretched = plan_conversion(source, mechanism="window", window=16, max_length=NEW, positions="interpolate")
    assert "not read exactly as by the source: interpolate changes" in stretched.to_dict()["short_texts"]


def test_encode_of_source_and_result_are_equal_up_to_the_cut(encoder: Path, tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    source = limited(encoder, tmp_path / "source", "SentenceTransformer", {"max_seq_length": HALF}, LENGTH)
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=NEW)
    assert [*measured(report)["cosines"]] == [str(HALF), str(LENGTH)]
    encoders = [st.SentenceTransformer(str(folder), device="cpu") for folder in (source, tmp_path / "long")]
    assert [each.max_seq_length for each in encoders] == [HALF, NEW]
    words = encoders[0].tokenizer.decode(verification_of(source).tokens(NEW)[0], skip_special_tokens=True).split()
    found = {}
    for count in (4, HALF // 2, *range(HALF - 6, HALF + 2), LENGTH - 4):
        text = " ".join(words[:count])
        tokens = len(encoders[0].tokenizer(text)["input_ids"])
        found[tokens] = float(encoders[0].encode(text) @ encoders[1].encode(text))
    assert all((cosine > 1 - 1e-5) == (tokens <= HALF) for tokens, cosine in found.items()), found


def test_converted_encoders_read_the_new_length_whatever_cut_them(encoder: Path, tmp_path: Path) -> None:
    for saved_by, settings in (
        ("SentenceTransformer", {"max_seq_length": HALF}),
        ("CrossEncoder", {"max_seq_length": HALF}),
        ("MultiVectorEncoder", {"max_seq_length": LENGTH, "document_length": HALF, "query_length": 8}),
    ):
        source = limited(encoder, tmp_path / saved_by, saved_by, settings, HALF)
        convert_checkpoint(
            source, tmp_path / f"{saved_by}-long", mechanism="window", window=16, max_length=NEW, verify=False
        )
        written = read_json(tmp_path / f"{saved_by}-long", "sentence_bert_config.json")
        expected = {name: 8 if name == "query_length" else NEW for name in settings}
        assert written == expected, saved_by


def test_report_asks_for_training_by_the_embeddings(encoder: Path, tmp_path: Path) -> None:
    """Outputs differ from the source's in all of them."""
    wrong = {}
    cases: dict[str, tuple[dict[str, Any], bool]] = {
        "longformer": ({"mechanism": "longformer", "options": {"window": LENGTH // 2}}, True),
        "full": ({"mechanism": "full"}, True),
        "fewer chunks than passages": ({"mechanism": "full", "max_length": 2 * LENGTH}, True),
        "none": ({"mechanism": "window", "options": {"window": LENGTH}, "positions": "none"}, False),
    }
    for name, (settings, ready) in cases.items():
        report = convert_checkpoint(encoder, tmp_path / name, **{"max_length": NEW, **settings})
        values = measured(report)
        cosines = [*values["cosines"].values(), values["document"]["cosine"]]
        enough = min(cosines[:-1]) >= values["least"] and cosines[-1] >= values["document"]["least"]
        facts = (report.verdict == "ready to use", not report.needs_training, report.train_command is None, enough)
        written = read_json(tmp_path / name, "conversion_report.json")
        read = (tmp_path / name / "README.md").read_text()
        facts += (written["verdict"] == "ready to use", "train it before use" not in read)
        if set(facts) != {ready}:
            wrong[name] = facts, values
        assert [*values["cosines"]] == ["16", str(LENGTH)][name == "longformer" :], (
            "texts that are read as by the source need no more"
        )
    assert not wrong


def test_encoder_with_another_embedding_of_document_needs_training(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all short passages have the source's."""
    monkeypatch.setattr(check_texts, "mean_cosine", lambda found, expected: 1.0 if len(found) > 1 else 0.5)
    report = convert_checkpoint(encoder, tmp_path / "long", mechanism="full", max_length=NEW)
    assert measured(report)["document"]["cosine"] == 0.5
    assert report.needs_training


@pytest.mark.thorough
@pytest.mark.parametrize("positions", ["tile", "interpolate"])
def test_encoder_that_does_not_tell_passages_apart_gets_no_verdict(
    positions: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Embeddings of an encoder with random weights hardly differ between texts, nor by other positions."""
    folder = checkpoint("BertModel", tokenizer="bert")
    (folder / "modules.json").write_text(json.dumps(MODULES[:2]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    )
    report = convert_checkpoint(
        folder, tmp_path / "long", mechanism="window", window=16, max_length=NEW, positions=positions
    )
    assert report.verdict == "cannot tell"
    assert report.needs_training == (positions == "interpolate")
    assert measured(report)["different_passages"] > 0.95
    assert "--verify-text FILE" in check_of(report, Embeddings.name).detail


@pytest.mark.thorough
@pytest.mark.parametrize(("positions", "ready"), [("tile", True), ("random", False)])
def test_embeddings_of_a_real_encoder_are_far_from_the_limit(
    positions: str, ready: bool, random_positions: None, real_folder: Path, tmp_path: Path
) -> None:
    """At twice its length, where half of a document has old positions, and with many chunks."""
    for length in (1024, 2048):
        settings: dict[str, Any] = {"mechanism": "longformer", "max_length": length, "positions": positions}
        document = measured(convert_checkpoint(real_folder, tmp_path / f"{length}", **settings))["document"]
        margin = document["cosine"] - document["least"]
        assert (margin > 0.05) if ready else (margin < -0.05), (length, document)


@pytest.mark.parametrize(("modes", "compared"), [(("mean",), 3), (("mean", "lasttoken"), 4)])
def test_embedding_check_leaves_out_the_first_chunk_of_a_mean(
    modes: tuple[str, ...], compared: int, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its positions are old, so it hides what new ones cost."""
    plan, text = plan_conversion(encoder, mechanism="full", max_length=NEW), verification_of(encoder)
    pooling, sizes, pooled = SentencePooling(modes, normalize=True), list[int](), SentencePooling.__call__
    check, model = Embeddings(plan, text, choose_lengths(plan, text), pooling), SimpleNamespace(base_model=None)
    monkeypatch.setattr(check_texts, "outputs", lambda base, ids: {"last_hidden_state": torch.randn(*ids.shape, 32)})
    monkeypatch.setattr(
        SentencePooling,
        "__call__",
        lambda check, states, mask: sizes.append(states.shape[1]) or pooled(check, states, mask),
    )
    check.measure(model, check.lengths.read)
    assert sizes[-1] == compared * LENGTH


def test_short_passages_alone_do_not_make_a_longer_encoder_ready(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document is measured for any growth; if it cannot be, the report says what would tell."""
    report = convert_checkpoint(encoder, tmp_path / "half", mechanism="full", max_length=LENGTH * 3 // 2)
    assert measured(report)["document"]["chunk"] == LENGTH * 3 // 4
    monkeypatch.setattr(check_texts, "MEASUREMENT", 1)
    monkeypatch.setattr(check_texts, "LEAST_MEASUREMENT", 1)
    costly = convert_checkpoint(encoder, tmp_path / "costly", mechanism="full", max_length=NEW)
    assert (costly.verdict, measured(costly)["would_tell"]) == (
        "cannot tell",
        "its scores in retrieval (longattn evaluate embed)",
    )
    (tmp_path / "short.txt").write_text(verification_text(None)[0][:300])
    short = convert_checkpoint(
        encoder, tmp_path / "short", mechanism="full", max_length=NEW, verify_text=tmp_path / "short.txt"
    )
    assert short.verdict == "cannot tell"
    assert "--verify-text FILE with a longer text" in measured(short)["would_tell"]


def test_embeddings_that_are_not_measured_say_why(encoder: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(encoder, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "vocab.txt"))
    report = convert_checkpoint(bare, tmp_path / "long", mechanism="window", window=16, max_length=NEW)
    check = check_of(report, Embeddings.name)
    assert check.status == "skipped"
    assert check.detail.startswith("the source has no tokenizer, and real text is needed, so this cannot tell")
    # texts that the source reads have its embeddings
    assert (report.verdict, report.needs_training) == ("cannot tell", False)
    assert report.train_command
