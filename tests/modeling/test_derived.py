"""Families that follow from transformers alone: what is derived, against what was written by hand, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from hf_longattn.errors import CheckpointError
from hf_longattn.modeling.derived import FACTS, derive
from hf_longattn.modeling.family.definition import PositionTable

AFTER_PADDING = {"offset": "padding", "skips_padding": True}
AFTER_TWO = {"offset": 2, "counted": False}
ROTARY = {
    "LongConfig": "gemma gemma2 gemma3_text gpt_neox granite llama mistral mixtral olmo2 phi phi3 qwen2 qwen3 qwen3_moe smollm3 starcoder2",
    "LongEncoderConfig": "eurobert gte modernbert nomic_bert",
}
"""Kind of config -> the families that were written by hand with rotary positions."""
TABLES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    **dict.fromkeys(("bert", "electra", "gpt2", "gpt_bigcode"), ("LongConfig", [{}])),
    **dict.fromkeys(("albert", "distilbert", "layoutlm"), ("LongEncoderConfig", [{}])),
    **dict.fromkeys(
        ("camembert", "esm", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"), ("LongConfig", [AFTER_PADDING])
    ),
    "markuplm": ("LongEncoderConfig", [AFTER_PADDING]),
    "opt": ("LongConfig", [{**AFTER_TWO, "added": True, "skips_padding": True}]),
    **dict.fromkeys(("bart", "mbart"), ("LongEncoderDecoderConfig", [AFTER_TWO, {**AFTER_TWO, "decoder": True}])),
    "bigbird_pegasus": ("LongEncoderDecoderConfig", [{}, {"decoder": True}]),
    **dict.fromkeys(("marian", "pegasus"), ("LongEncoderDecoderConfig", [{"learned": False}, {"learned": False, "decoder": True}])),
}
"""Family -> kind of config and position tables, as they were written by hand."""
REST: dict[str, dict[str, Any]] = {
    "gemma2": {"attributes": {"score_cap": "attn_logit_softcapping"}},
    "gemma3_text": {"classes": ["Gemma3ForCausalLM", "Gemma3TextForSequenceClassification", "Gemma3TextModel"]},
    "gpt_neox": {"attributes": {"always_causal": True}},
    "mixtral": {"attributes": {"writes_head_dim": True}},
    "opt": {"inner": ["OPTDecoder"]},
    **FACTS,
}
"""Family -> the facts beside them; the rows of :data:`FACTS` are what no probe sees."""
WRITTEN = {base: (kind, [], True) for kind, bases in ROTARY.items() for base in bases.split()} | {
    base: (kind, tables, False) for base, (kind, tables) in TABLES.items()
}


@pytest.mark.parametrize("base", sorted(WRITTEN))
def test_what_is_derived_is_what_was_written_by_hand(base: str) -> None:
    kind, tables, rope = WRITTEN[base]
    facts = derive(base)
    assert facts.pop("kind") == kind
    assert facts.pop("rope", False) == rope
    found = facts.pop("position_tables", [])
    assert [{name: value for name, value in table.items() if name != "pattern"} for table in found] == tables
    assert all(PositionTable(**table).matches(table["pattern"].replace("\\", "").rstrip("$")) for table in found)
    assert facts == {"attributes": {}, **REST.get(base, {})}


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("gpt_oss", r"sinks.*s_aux"),
        ("bloom", "its attention is its own"),
        ("gemma3", "no model of texts alone"),
        ("t5", "neither a position table nor rotary positions"),
        ("siglip_text_model", "no single model class without a head"),
        ("lama", r"no model type 'lama'; expected one such as 'llama'"),
    ],
)
def test_a_base_without_a_family_is_refused_with_the_reason(base: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        derive(base)
