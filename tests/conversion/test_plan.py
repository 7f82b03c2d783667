"""A plan is made from the config and the headers, and says what the conversion then does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_longattn import LongAttentionConfig
from hf_longattn.conversion import convert_checkpoint, plan_conversion, tensor_files
from hf_longattn.errors import DestinationExistsError, OptionError

from .conftest import CLASSES, LENGTH

Built = Callable[[str], Path]


@pytest.mark.parametrize("name", CLASSES)
def test_a_plan_reads_no_tensor(name: str, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(header: object) -> None:
        raise AssertionError(f"{header} was read")

    monkeypatch.setattr(tensor_files, "read_tensor", read)
    plan = plan_conversion(built(name), mechanism="window", window=16, max_length=256)
    assert (plan.old_length, plan.new_length) == (LENGTH, 256)
    both_stacks = name in ("BartForQuestionAnswering", "BartForSequenceClassification")  # their decoder reads the whole text
    tables = [table for tensor in plan.tensors if (table := plan.architecture.family.table(tensor.name)) is not None]
    alone = name == "BartForCausalLM"
    assert plan.counts()["extended"] == sum(both_stacks or table.decoder == alone for table in tables)
    rotary = plan.architecture.family.rotary(plan.architecture.source_config)
    assert bool(tables) == (not rotary and not name.startswith(("Marian", "DebertaV2")))  # which save no computed tables, and need none
    assert plan.counts()["dropped"] == plan.counts()["added"] == 0


def test_what_is_planned_is_what_is_written(built: Built, tmp_path: Path) -> None:
    arguments = {"mechanism": "window", "window": 16, "max_length": 256, "dtype": "bf16"}
    plan = plan_conversion(built("RobertaForMaskedLM"), **arguments)
    report = convert_checkpoint(built("RobertaForMaskedLM"), tmp_path / "long", verify=False, **arguments)
    assert report.plan == plan.to_dict()
    header_bytes = (tmp_path / "long" / "model.safetensors").stat().st_size - plan.total_bytes
    assert 0 < header_bytes < 10_000


def test_without_a_length_the_sources_is_kept(built: Built) -> None:
    plan = plan_conversion(built("BertModel"))
    assert plan.new_length == LENGTH
    assert plan.counts()["extended"] == 0
    assert plan.attention == LongAttentionConfig()


def test_a_whole_configuration_may_be_given_instead_of_options(built: Built) -> None:
    config = LongAttentionConfig("window", window=32, layers={0: {"mechanism": "full"}})
    assert plan_conversion(built("BertModel"), long_attention=config).attention == config
    assert plan_conversion(built("BertModel"), long_attention=config.to_dict()).attention == config
    with pytest.raises(OptionError, match="given together with mechanism, window"):
        plan_conversion(built("BertModel"), long_attention=config, mechanism="window", window=3)


def test_a_destination_is_checked_as_by_the_conversion(built: Built, tmp_path: Path) -> None:
    with pytest.raises(DestinationExistsError):
        plan_conversion(built("BertModel"), tmp_path)


def test_costs_follow_the_mechanism(built: Built) -> None:
    window = plan_conversion(built("LlamaForCausalLM"), mechanism="window", window=16, max_length=1024).costs
    full = plan_conversion(built("LlamaForCausalLM"), mechanism="full", max_length=1024).costs
    assert [cost.length for cost in window] == [64, 128, 256, 512, 1024]
    assert window[-1].attention_flops / window[-2].attention_flops == pytest.approx(2, rel=0.05)
    assert full[-1].attention_flops / full[-2].attention_flops == pytest.approx(4, rel=0.05)
    assert all(cost.attention_flops == cost.full_attention_flops for cost in full)
    assert window[-1].cache_bytes == window[0].cache_bytes == 2 * 2 * 8 * 4 * (16 + 16)
    assert full[-1].cache_bytes == 64 * window[-1].cache_bytes


def test_whole_model_arithmetic_matches_what_torch_counts(built: Built) -> None:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModel

    cost = plan_conversion(built("BertModel"), mechanism="full").costs[0]
    model = AutoModel.from_pretrained(built("BertModel"), attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, LENGTH, dtype=torch.long))
    # the plan counts the pooler for every token; it runs on one
    assert cost.total_flops == pytest.approx(counter.get_total_flops(), rel=0.15)
