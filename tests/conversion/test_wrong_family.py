"""A family's entry that contradicts a sound checkpoint is named, not the checkpoint."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_longattn.conversion import plan_conversion
from hf_longattn.conversion.architectures import find_architecture
from hf_longattn.errors import CheckpointError
from hf_longattn.families.bert import FAMILY
from hf_longattn.modeling.family.definition import PositionTable

TABLE = r"position_embeddings\.weight$"
CASES = {
    "rows": (
        PositionTable(TABLE, offset=2, counted=False),
        r"has 64 rows, as a BertForMaskedLM with .*=64 does, but PositionTable\(.* of the family 'bert' says 66; correct",
    ),
    "pattern": (
        PositionTable("no_such_table"),
        r"No tensor matches PositionTable\(r\"no_such_table\"\) of the family 'bert'; if '.*position_emb.*' is that table, correct",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_entry_of_family_is_named_not_checkpoint(case: str, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    table, sentence = CASES[case]
    source = checkpoint("BertForMaskedLM")
    wrong = copy.copy(FAMILY)  # not registered
    vars(wrong)["position_tables"] = (table,)
    monkeypatch.setattr(
        "hf_longattn.conversion.plan.find_architecture", lambda opened: dataclasses.replace(find_architecture(opened), family=wrong)
    )
    with pytest.raises(CheckpointError, match=sentence):
        plan_conversion(source, mechanism="window", window=16, max_length=200)
