"""The way back: a plain checkpoint that loads without this package, with the tensors that a conversion began from."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import Tensor

from hf_longattn.cli import main
from hf_longattn.conversion import convert_checkpoint, revert_checkpoint, writing
from hf_longattn.errors import CheckpointError, LengthError, LongAttentionError, PositionError
from hf_longattn.families import FAMILIES
from hf_longattn.positions.rope import ROPE_KINDS
from hf_longattn.positions.tables import DROPPED, STRATEGIES, moves_rows
from scripts.dev.tools.small_models import TEXT_FAMILIES
from tests.alike import code_of_family
from tests.cells import every_cell
from tests.grids import grid

from ..warm import run_fresh
from .conftest import LENGTH, ROBERTA, damaged
from .every_family import NOT_AS_IT_IS, Short, head_of
from .stranger import load_and_describe

Built = Callable[[str], Path]
Checkpoint = Callable[..., Path]
WINDOW = {"mechanism": "window", "window": 16}

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{beginning}:UserWarning")
    for beginning in (
        "The plain model attends",
        "The rotary positions change",
        r"The (interpolated|stretched) position table is solved back",
    )
]


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.mark.thorough
def test_the_card_keeps_the_licence_and_says_where_it_comes_from(built: Built, tmp_path: Path) -> None:
    short = built("BertForMaskedLM")
    (short / "README.md").write_text("---\nlicense: mit\nlanguage: de\ntags: [letters]\n---\n# Short\n")
    convert_checkpoint(short, tmp_path / "long", **WINDOW, max_length=200)
    revert_checkpoint(tmp_path / "long", tmp_path / "back")
    card = ModelCard.load(tmp_path / "back" / "README.md")
    assert (card.data.license, card.data.language, card.data.tags) == ("mit", "de", ["letters"])
    assert "made by `longattn revert` from a local folder." in card.text
    report = json.loads((tmp_path / "long" / "conversion_report.json").read_text())
    report["plan"]["source"] = "some/bert"
    (tmp_path / "long" / "conversion_report.json").write_text(json.dumps(report))
    revert_checkpoint(tmp_path / "long", tmp_path / "again")
    known = ModelCard.load(tmp_path / "again" / "README.md").text
    assert "made by `longattn revert` from a local folder, which was converted from `some/bert`." in known
    assert "equal to the long model with full attention" in card.text


def what_matters(folder: Path) -> dict[str, Any]:
    return {name: value for name, value in config(folder).items() if name not in ("transformers_version", "_name_or_path")}


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@every_cell(
    ("name", "positions"),
    [
        *(
            (name, "auto")
            for name in ("BertForQuestionAnswering", "RobertaForMaskedLM", "GPT2LMHeadModel", "DistilBertForQuestionAnswering")
        ),
        *((name, "interpolate") for name in ("BertForQuestionAnswering", "BartForSequenceClassification")),
        *((name, "auto") for name in ("BartForSequenceClassification", "PegasusForConditionalGeneration", "ElectraForPreTraining")),
        *(("LlamaForCausalLM", positions) for positions in ("auto", "rope:yarn", "rope:dynamic")),
    ],
    of=4,
    alike=lambda name, positions: (positions, name.startswith(("Bart", "Pegasus"))),
)
def test_there_and_back(name: str, positions: str, built: Built, tmp_path: Path) -> None:
    source = built(name)
    convert_checkpoint(source, tmp_path / "long", **WINDOW, max_length=200, positions=positions, verify=False)
    report = revert_checkpoint(tmp_path / "long", tmp_path / "back")
    assert report.passed
    expected, found = tensors(source), tensors(tmp_path / "back")
    if positions == "interpolate":
        tables = {one for one in expected if "position" in one or "wpe" in one}
        expected, found = ({one: value for one, value in both.items() if one not in tables} for both in (expected, found))
    assert same(found, expected)
    assert what_matters(tmp_path / "back") == what_matters(source)


TABLES = ("BertForMaskedLM", "GPT2LMHeadModel", "RobertaForMaskedLM", "BartForConditionalGeneration")
TABLE_RULES = (*STRATEGIES, "stretch:20", *DROPPED)
EVERY_WAY = [
    *((name, positions) for name in TABLES for positions in TABLE_RULES),
    *(("LlamaForCausalLM", f"rope:{kind}" + ":50000" * (kind == "base")) for kind in ROPE_KINDS if kind != "longrope"),
]
"""A family with a table, with offsets in it, with two stacks, and a rotary one; every kind of positions that each can have."""


def quick_way(name: str, positions: str) -> bool:
    """Every kind with BERT, with another family in turn, and with rotary positions."""
    return name not in TABLES[1:] or name == TABLES[1 + TABLE_RULES.index(positions) % 3]


SOLVED_BACK = ("interpolate", "stretch:20")
RELATIVE_RULES = ("rope:self-extend", "rope:dual-chunk", "rope:drop")
CHANGED = {
    **dict.fromkeys(SOLVED_BACK, "is solved back to the 64 positions"),
    **dict.fromkeys(DROPPED, "The conversion dropped the position table"),
    **dict.fromkeys(RELATIVE_RULES, "Its relative positions ("),
}


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:Its relative positions:UserWarning")
@every_cell(
    ("name", "positions"),
    grid(EVERY_WAY, quick_way),
    of=4,
    alike=lambda name, positions: (name, positions in DROPPED, positions in SOLVED_BACK),
)
def test_every_kind_of_positions_comes_back_or_is_said_to_be_lost(
    name: str, positions: str, built: Built, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    source = built(name)
    attention = {"mechanism": "full"} if positions in RELATIVE_RULES[:2] else WINDOW
    convert_checkpoint(source, tmp_path / "long", **attention, max_length=200, positions=positions, verify=False)
    report = revert_checkpoint(tmp_path / "long", tmp_path / "back")
    expected, found = tensors(source), tensors(tmp_path / "back")
    largest = max(float((found[one] - value).abs().max()) for one, value in expected.items())
    lost = positions in DROPPED
    assert (largest > 0.1) == lost
    assert largest == 0 or lost or (positions in SOLVED_BACK and largest < 1e-5)
    assert what_matters(tmp_path / "back") == what_matters(source)

    said = " ".join(str(one.message) for one in recwarn)
    scaled = positions.startswith("rope:") and positions not in ("rope:none", *RELATIVE_RULES)
    sentence = "The rotary positions change from" if scaled else CHANGED.get(positions, "")
    assert sentence in said
    assert sentence in " ".join(report.plan["warnings"])
    checks = {check.name: check.status for check in report.checks}
    of_tables = checks.get("positions of the model that was converted")
    assert of_tables == (None if name.startswith("Llama") else "measured" if lost else "passed")
    assert checks.get("equal to the model that was converted, with these weights") == ("passed" if scaled else None)

    kind = getattr(transformers, name)
    torch.manual_seed(0)
    ids = torch.randint(5, 900, (2, 50))
    with torch.no_grad():
        before, after = (kind.from_pretrained(folder).eval()(ids).logits for folder in (source, tmp_path / "back"))
    assert torch.allclose(before, after, atol=1e-3 if positions in SOLVED_BACK else 0) != lost


@pytest.mark.thorough
def test_positions_of_a_model_trained_further_are_said_to_be_no_longer_the_sources(built: Built, tmp_path: Path) -> None:
    convert_checkpoint(built("BertForMaskedLM"), tmp_path / "long", **WINDOW, max_length=200, positions="interpolate", verify=False)
    trained(tmp_path / "long", tmp_path / "trained")
    report = revert_checkpoint(tmp_path / "trained", tmp_path / "back")
    found = next(check for check in report.checks if check.name == "positions of the model that was converted")
    assert (found.status, "it was trained further" in found.detail) == ("measured", True)


@pytest.mark.parametrize(
    ("name", "positions", "arguments", "sentence"),
    [
        ("BertForMaskedLM", "interpolate", {"positions": "truncate"}, "are not those of the model .* --positions auto solves them back"),
        ("BertForMaskedLM", "interpolate", {"max_length": 100}, "first 100 rows of an interpolated position table"),
        ("BertForMaskedLM", "stretch:20", {"positions": "truncate"}, "first 64 rows of a stretched position table"),
        ("BertForMaskedLM", "tile", {"positions": "interpolate"}, "is interpolated to fewer positions"),
        ("LlamaForCausalLM", "rope:yarn", {"max_length": 100}, "The rotary positions stay 'yarn'"),
    ],
)
def test_what_is_asked_for_beside_the_source_is_said(
    name: str, positions: str, arguments: dict[str, Any], sentence: str, built: Built, tmp_path: Path
) -> None:
    convert_checkpoint(built(name), tmp_path / "long", **WINDOW, max_length=200, positions=positions, verify=False)
    with pytest.warns(UserWarning, match=sentence):
        revert_checkpoint(tmp_path / "long", tmp_path / "back", **arguments)


@pytest.mark.thorough
@pytest.mark.parametrize("length", [LENGTH, 40])
def test_an_interpolated_table_cut_to_fewer_tokens_has_the_sources_rows(length: int, built: Built, tmp_path: Path) -> None:
    source = built("RobertaForMaskedLM")
    convert_checkpoint(source, tmp_path / "long", **WINDOW, max_length=200, positions="interpolate", verify=False)
    revert_checkpoint(tmp_path / "long", tmp_path / "back", max_length=length)
    table = "roberta.embeddings.position_embeddings.weight"
    assert torch.allclose(tensors(tmp_path / "back")[table], tensors(source)[table][: length + 2], atol=1e-5)


@every_cell(
    ("base", "head"),
    grid(
        [
            *((base, "") for base in TEXT_FAMILIES if base not in NOT_AS_IT_IS),
            *((base, "ForCausalLM") for base, family in TEXT_FAMILIES.items() if family.two_stacks),
        ],
        lambda base, head: head or [*TEXT_FAMILIES].index(base) % 2 == 1,  # test_on_the_fly has the others
    ),
    of=4,
    alike=code_of_family,
)
def test_every_family_there_and_back(base: str, head: str, short: Short, tmp_path: Path) -> None:
    source = short(base, head_of(base, head))
    positions = "rope:none" if FAMILIES[base].rope else "auto"
    convert_checkpoint(source, tmp_path / "long", **WINDOW, max_length=200, positions=positions, verify=False)
    report = revert_checkpoint(tmp_path / "long", tmp_path / "back")
    restored = moves_rows(FAMILIES[base].config_class.default_extension)
    checks = {check.name: check.status for check in report.checks}
    assert [status for name, status in checks.items() if "full attention" in name] == ["measured" if restored else "passed"]
    assert not restored or checks["positions of the model that was converted"] == "passed"
    before, after = tensors(source), tensors(tmp_path / "back")
    for name in [name for name in before if restored and FAMILIES[base].table(name)]:
        assert torch.allclose(after.pop(name), before.pop(name), rtol=0, atol=1e-6)
    assert same(after, before)
    assert what_matters(tmp_path / "back") == what_matters(source)


@pytest.mark.thorough
def test_the_result_loads_without_this_package(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("GPT2LMHeadModel", tokenizer="gpt2")
    convert_checkpoint(source, tmp_path / "long", **WINDOW, max_length=200, verify=False)
    revert_checkpoint(tmp_path / "long", tmp_path / "back")
    done = run_fresh(load_and_describe, tmp_path / "back", cwd=tmp_path)
    assert done.stdout.split() == [
        "GPT2LMHeadModel",
        type(transformers.AutoTokenizer.from_pretrained(source)).__name__,
        "64",
        "64",
        "50257",
    ], done.stderr[-3000:]


def trained(folder: Path, to: Path) -> None:
    """Load a long model, change every weight, and save it as a trainer does."""
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.02)
    model.save_pretrained(to)


@pytest.mark.thorough
@pytest.mark.parametrize(("length", "positions"), [(None, "truncate"), (40, "truncate"), (200, "truncate"), (LENGTH, "interpolate")])
def test_a_model_trained_further(length: int | None, positions: str, built: Built, tmp_path: Path) -> None:
    convert_checkpoint(built("BertForMaskedLM"), tmp_path / "long", **WINDOW, max_length=200, verify=False)
    trained(tmp_path / "long", tmp_path / "trained")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The position table, which was not interpolated")
        report = revert_checkpoint(tmp_path / "trained", tmp_path / "back", max_length=length, positions=positions)
    before, after = tensors(tmp_path / "trained"), tensors(tmp_path / "back")
    table = "bert.embeddings.position_embeddings.weight"
    long_table, short_table = before.pop(table), after.pop(table)
    assert same(before, after)
    assert len(short_table) == config(tmp_path / "back")["max_position_embeddings"] == (length or LENGTH)
    if positions == "truncate":
        assert torch.equal(short_table, long_table[: len(short_table)])
        assert next(check.status for check in report.checks if "full attention" in check.name) == "passed"
    else:
        assert torch.equal(short_table[[0, -1]], long_table[[0, -1]])
        assert "its positions are interpolated" in next(check.detail for check in report.checks if "full attention" in check.name)


@pytest.mark.parametrize(("length", "limit"), [(None, 40), (LENGTH, 40), (LENGTH + 1, LENGTH + 1)])
def test_a_tokenizer_below_its_model_is_as_before(length: int | None, limit: int, checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("BertForMaskedLM", tokenizer="bert")
    values = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**values, "model_max_length": 40}))
    convert_checkpoint(source, tmp_path / "long", **WINDOW, max_length=200, verify=False)
    revert_checkpoint(tmp_path / "long", tmp_path / "back", max_length=length, verify=False)
    assert [transformers.AutoTokenizer.from_pretrained(tmp_path / name).model_max_length for name in ("long", "back")] == [200, limit]


def test_a_model_extended_while_loading(built: Built, tmp_path: Path) -> None:
    import hf_longattn

    source = built("RobertaForMaskedLM")
    longer = hf_longattn.LongRobertaConfig.from_pretrained(source, max_position_embeddings=202, long_attention=WINDOW)
    transformers.AutoModelForMaskedLM.from_pretrained(source, config=longer).save_pretrained(tmp_path / "long")
    revert_checkpoint(tmp_path / "long", tmp_path / "back")
    assert same(tensors(tmp_path / "back"), tensors(source))


def test_what_a_mechanism_learned_is_left_out_with_a_warning(built: Built, tmp_path: Path) -> None:
    source = built("BertForMaskedLM")
    convert_checkpoint(source, tmp_path / "long", mechanism="linformer", rank=8, max_length=128, verify=False)
    with pytest.warns(UserWarning, match=r"parameters of the mechanism are dropped \(bert\."):
        report = revert_checkpoint(tmp_path / "long", tmp_path / "back")
    assert report.plan["tensor_counts"]["dropped"] > 0
    assert same(tensors(tmp_path / "back"), tensors(source))


@pytest.mark.filterwarnings("ignore:The conversion dropped the position table:UserWarning")
def test_dropped_positions_stay_dropped_and_alibi_is_warned_of(built: Built, tmp_path: Path) -> None:
    convert_checkpoint(built("BertModel"), tmp_path / "long", **WINDOW, max_length=128, positions="alibi", verify=False)
    with pytest.warns(UserWarning, match=r"relative positions \(alibi\) are dropped"):
        revert_checkpoint(tmp_path / "long", tmp_path / "back")
    table = tensors(tmp_path / "back")["embeddings.position_embeddings.weight"]
    assert torch.equal(table, table[:1].expand_as(table))


def test_an_adopted_model_becomes_the_plain_base(tmp_path: Path) -> None:
    shape = {**ROBERTA, "vocab_size": 99, "attention_window": 16}
    transformers.LongformerForMaskedLM(transformers.LongformerConfig(**shape)).save_pretrained(tmp_path / "longformer")
    convert_checkpoint(tmp_path / "longformer", tmp_path / "long", verify=False)
    with pytest.warns(UserWarning, match="parameters of the mechanism are dropped"):
        report = revert_checkpoint(tmp_path / "long", tmp_path / "back")
    assert (report.passed, config(tmp_path / "back")["model_type"]) == (True, "roberta")
    assert type(transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "back")).__name__ == "RobertaForMaskedLM"


def test_a_base_that_needs_more_than_the_long_model_has_is_refused(tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99}
    plain = transformers.NystromformerConfig(**shape, max_position_embeddings=64, segment_means_seq_len=64, num_landmarks=8)
    transformers.NystromformerModel(plain).save_pretrained(tmp_path / "nystromformer")
    convert_checkpoint(tmp_path / "nystromformer", tmp_path / "long", verify=False)
    with pytest.raises(CheckpointError, match="cannot be reverted: a plain NystromformerModel needs"):
        revert_checkpoint(tmp_path / "long", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_one_length_for_encoder_and_decoder(built: Built, tmp_path: Path) -> None:
    convert_checkpoint(built("BartForConditionalGeneration"), tmp_path / "long", **WINDOW, max_length=200, verify=False)
    with pytest.raises(LengthError, match="has 64 positions, fewer than"):
        revert_checkpoint(tmp_path / "long", tmp_path / "back", max_length=100)
    revert_checkpoint(tmp_path / "long", tmp_path / "back", max_length=50)
    assert {len(value) for name, value in tensors(tmp_path / "back").items() if "embed_positions" in name} == {52}


def test_an_adapter_is_left_out_with_a_warning(built: Built, tmp_path: Path) -> None:
    convert_checkpoint(built("BertModel"), tmp_path / "long", **WINDOW, max_length=128, verify=False)
    (tmp_path / "long" / "adapter").mkdir()
    with pytest.warns(UserWarning, match="The adapter in .* is not copied"):
        revert_checkpoint(tmp_path / "long", tmp_path / "back")


def test_dtype_and_shards(built: Built, tmp_path: Path) -> None:
    convert_checkpoint(built("BertModel"), tmp_path / "long", **WINDOW, max_length=128, verify=False)
    revert_checkpoint(tmp_path / "long", tmp_path / "back", dtype="bf16", max_shard_size="1MB")
    assert {value.dtype for value in tensors(tmp_path / "back").values()} == {torch.bfloat16}
    assert (tmp_path / "back" / "model.safetensors.index.json").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"max_length": 201}, LengthError, "takes 200 tokens; --max-length is 201, but must be between 1 and 200"),
        ({"max_length": 0}, LengthError, "between 1"),
        ({"positions": "tile"}, PositionError, "'tile' is not a way to shorten positions"),
        ({"dtype": "float13"}, CheckpointError, "Unknown dtype"),
    ],
)
def test_what_cannot_be_had_is_refused(
    arguments: dict[str, Any], error: type[Exception], sentence: str, built: Built, tmp_path: Path
) -> None:
    convert_checkpoint(built("BertModel"), tmp_path / "long", **WINDOW, max_length=200, verify=False)
    with pytest.raises(error, match=sentence):
        revert_checkpoint(tmp_path / "long", tmp_path / "back", **arguments)
    assert os.listdir(tmp_path) == ["long"]


def test_a_plain_checkpoint_is_refused(built: Built, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a long checkpoint"):
        revert_checkpoint(built("BertModel"), tmp_path / "back")


def test_a_wrong_result_leaves_nothing(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert_checkpoint(built("BertModel"), tmp_path / "long", **WINDOW, max_length=200, verify=False)
    monkeypatch.setattr(writing, "write_weights", damaged(writing.write_weights))
    with pytest.raises(LongAttentionError, match="Verification failed, so nothing was kept"):
        revert_checkpoint(tmp_path / "long", tmp_path / "back")
    assert os.listdir(tmp_path) == ["long"]


def test_the_command(built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert_checkpoint(built("BertModel"), tmp_path / "long", **WINDOW, max_length=200, verify=False)
    for code, expected in ((0, "Verified in"), (1, "already exists")):
        with pytest.raises(SystemExit) as ended:
            main(["revert", str(tmp_path / "long"), str(tmp_path / "back")])
        captured = capsys.readouterr()
        assert ended.value.code == code
        assert expected in captured.out + captured.err
    assert json.loads((tmp_path / "back" / "revert_report.json").read_text())["passed"]
