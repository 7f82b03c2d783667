"""A plain checkpoint becomes long while `from_pretrained` reads it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import hf_longattn.families as families
from hf_longattn.modeling.family.registration import auto_class_name
from hf_longattn.positions.tables import extend_table
from tests.cases import every_case
from tests.grids import grid
from tests.reference.small_models import (
    BASES,
    HEADS,
    LANGUAGE_MODELS,
    SHAPE,
    head_inputs,
    is_quick_head,
    long_config,
    long_like,
    plain_config,
    plain_model,
    tokens,
)
from tests.shared_code import kind_of_family

HEAD = LANGUAGE_MODELS | {"bert": "BertForQuestionAnswering", "big_bird": "BigBirdForQuestionAnswering"}
TABLES = [base for base in BASES if families.FAMILIES[base].position_tables]
COVERING = {"mechanism": "window", "window": 2048}
LONGER = 700
"""Tokens, more than the plain models take."""


def converted(folder: Path, base: str, rows: int, **changes: Any) -> Any:
    config = families.FAMILIES[base].config_class.from_pretrained(
        folder, max_position_embeddings=rows, **{"long_attention": COVERING, **changes}
    )
    return auto_class(base).from_pretrained(folder, config=config)


def auto_class(base: str) -> Any:
    """The Auto class that gives the Long class of the head of ``HEAD``."""
    name = auto_class_name(long_config(base, None), families.FAMILIES[base].model_classes[HEAD[base]])
    assert name is not None
    return getattr(transformers, name)


def table_of(base: str) -> tuple[str, families.PositionTable]:
    """Name and description of the position table of the model that ``HEAD`` names."""
    family = families.FAMILIES[base]
    return next((name, table) for name in plain_model(base, HEAD[base]).state_dict() if (table := family.table(name)) is not None)


@every_case("base", BASES, of=9, code=kind_of_family)
def test_a_longer_model_equals_the_plain_one_up_to_the_old_length(base: str, tmp_path: Path) -> None:
    plain = plain_model(base, HEAD[base])
    plain.save_pretrained(tmp_path / "short")
    rows = plain.config.max_position_embeddings * 4
    rotary = getattr(plain.config, "rope_parameters", None)
    unscaled = {} if rotary is None else {"rope_parameters": rotary}
    longer = converted(tmp_path / "short", base, rows, position_extension="tile", **unscaled)
    assert type(longer).__name__ == f"Long{HEAD[base]}"
    inputs = head_inputs(HEAD[base], length=200, pad_token=plain.config.pad_token_id)
    real = inputs["attention_mask"].bool()
    if getattr(plain.config, "attn_logit_softcapping", None) is not None:
        plain.set_attn_implementation("eager")  # the sdpa of transformers 5.20 leaves out the caps
    with torch.no_grad():
        assert (plain(**inputs)[0] - longer(**inputs)[0])[real].abs().max() < 1e-5
        long_logits = longer(tokens(1, LONGER))[0]
    assert long_logits.isfinite().all()

    longer.save_pretrained(tmp_path / "long")
    again = auto_class(base).from_pretrained(tmp_path / "long")
    assert type(again) is type(longer)
    with torch.no_grad():
        assert torch.equal(again(tokens(1, LONGER))[0], long_logits)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "long" / "model.safetensors").read_bytes()


STRATEGIES = ("tile", "interpolate", "random")
EXTENSIONS = grid(
    itertools.product(TABLES, STRATEGIES),
    lambda base, strategy: base == "bert" or strategy == STRATEGIES[TABLES.index(base) % 3],
)
"""Every strategy on one base; on the others, the strategies in turn."""


@pytest.mark.thorough
@every_case(("base", "strategy"), EXTENSIONS)
def test_the_position_table_is_extended_by_the_strategy_of_the_config(base: str, strategy: str, tmp_path: Path) -> None:
    plain = plain_model(base, HEAD[base])
    plain.save_pretrained(tmp_path)
    longer = converted(tmp_path, base, 1200, position_extension=strategy)
    name, table = table_of(base)
    short, long = plain.state_dict(), longer.state_dict()
    expected = extend_table(short.pop(name), table.rows(longer.config), offset=table.offset_rows(longer.config), strategy=strategy)
    assert torch.equal(long[name], expected)
    assert all(torch.equal(long[name], value) for name, value in short.items())


@pytest.mark.thorough
@pytest.mark.parametrize("head", ["RobertaForMaskedLM", "RobertaModel"])
def test_a_tokenizer_s_padding_token_does_not_move_the_positions(head: str, tmp_path: Path) -> None:
    model, ids = long_like(plain_model("roberta", head), "roberta", {"mechanism": "window", "window": 16}), tokens(1, 50)
    with torch.no_grad():
        expected = model(ids)[0]
        model.config.pad_token_id = 0  # as Trainer does with a tokenizer that pads with it
        model.save_pretrained(tmp_path)
        assert model.config.pad_token_id == 0
        again = type(model).from_pretrained(tmp_path)
        assert again.config.pad_token_id == 1
        assert torch.equal(again(ids)[0], expected)


def test_buffers_of_a_longer_bert_have_the_new_length(tmp_path: Path) -> None:
    plain_model("bert").save_pretrained(tmp_path)
    config = families.LongBertConfig.from_pretrained(tmp_path, max_position_embeddings=1000)
    embeddings = families.LongBertModel.from_pretrained(tmp_path, config=config).embeddings
    assert torch.equal(embeddings.position_ids, torch.arange(1000)[None])
    assert torch.equal(embeddings.token_type_ids, torch.zeros(1, 1000, dtype=torch.long))


@pytest.mark.thorough
@every_case(("base", "head"), grid(HEADS, is_quick_head), of=9, code=kind_of_family, ids=[head for _, head in HEADS])
def test_a_headless_checkpoint_is_loaded_into_every_head(base: str, head: str, tmp_path: Path) -> None:
    plain = plain_model(base)
    plain.save_pretrained(tmp_path)
    family = families.FAMILIES[base]
    changes = {"position_extension": "tile", "long_attention": COVERING}
    config = family.config_class.from_pretrained(tmp_path, max_position_embeddings=700, **changes)
    model = family.model_class(head).from_pretrained(tmp_path, config=config)
    inner = getattr(model, model.base_model_prefix, model).state_dict()
    expected = {name: weight for name, weight in plain.state_dict().items() if "pooler" not in name and name in inner}
    for name, weight in expected.items():
        found = inner[name]
        assert torch.equal(found[: len(weight)], weight), name
        table = family.table(name)
        assert len(found) == (len(weight) if table is None else table.rows(config)), name


def test_a_sharded_checkpoint_in_half_precision_is_extended(tmp_path: Path) -> None:
    plain = plain_model("bert").half()
    plain.save_pretrained(tmp_path / "short", max_shard_size="40KB")
    config = families.LongBertConfig.from_pretrained(tmp_path / "short", max_position_embeddings=2048, long_attention=COVERING)
    longer = families.LongBertModel.from_pretrained(tmp_path / "short", config=config, dtype="auto")
    assert longer.dtype == torch.float16
    longer.save_pretrained(tmp_path / "long")
    saved = load_file(tmp_path / "long" / "model.safetensors")["embeddings.position_embeddings.weight"]
    assert torch.equal(saved, plain.embeddings.position_embeddings.weight.repeat(4, 1))


def test_rope_parameters_of_a_long_config_scale_as_in_the_plain_model(tmp_path: Path) -> None:
    plain_model("llama").save_pretrained(tmp_path)
    scaled = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    config = families.LongLlamaConfig.from_pretrained(
        tmp_path, max_position_embeddings=2048, rope_parameters=scaled, long_attention=COVERING
    )
    longer = families.LongLlamaModel.from_pretrained(tmp_path, config=config)
    plain_scaled = transformers.LlamaModel(plain_config("llama", max_position_embeddings=2048, rope_parameters=scaled)).eval()
    plain_scaled.load_state_dict(longer.state_dict())
    with torch.no_grad():
        assert (longer(tokens()).last_hidden_state - plain_scaled(tokens()).last_hidden_state).abs().max() < 1e-5
    assert len(longer.layers) == SHAPE.layers
