"""Parameters that all layers of a model share: one tensor in memory, in the file, after loading, copying, training and converting."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from hf_longattn import LongBertConfig, convert_checkpoint, enable_long_attention
from hf_longattn.families import LongBertForMaskedLM
from tests.ranks import PAIR
from tests.reports import tensor_counts

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
SHARED = {"mechanism": "linformer", "rank": 16, "sharing": "layerwise"}


def projections(model: Any) -> list[torch.nn.Parameter]:
    return [module.key_projection for module in model.modules() if hasattr(module, "key_projection")]


def assert_one(model: Any) -> torch.nn.Parameter:
    found = projections(model)
    assert len(found) == 3
    assert all(one is found[0] for one in found)
    return found[0]


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return LongBertForMaskedLM(LongBertConfig(**SIZES, long_attention=SHARED)).eval()


@pytest.mark.thorough
@pytest.mark.parametrize("tied_words", [True, False])
def test_a_shared_projection_is_saved_once_and_shared_after_loading(tied_words: bool, tmp_path: Path) -> None:
    config = LongBertConfig(**SIZES, tie_word_embeddings=tied_words, long_attention=SHARED)
    model = LongBertForMaskedLM(config).eval()
    model.save_pretrained(tmp_path)
    assert sum("long_attention" in name for name in load_file(tmp_path / "model.safetensors")) == 1
    ids = torch.randint(5, 100, (2, 100))
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(assert_one(loaded), assert_one(model))
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    words = loaded.bert.embeddings.word_embeddings.weight
    assert (loaded.cls.predictions.decoder.weight is words) == tied_words
    assert_one(AutoModel.from_pretrained(tmp_path))


def test_a_copied_model_shares_a_projection_of_its_own(model: Any) -> None:
    assert assert_one(copy.deepcopy(model)) is not assert_one(model)


def test_a_short_checkpoint_begins_with_one_shared_projection(tmp_path: Path) -> None:
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(tmp_path / "short")
    config = LongBertConfig.from_pretrained(tmp_path / "short", long_attention=SHARED)
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "short", config=config, output_loading_info=True)
    assert 0.05 < assert_one(loaded).std() < 0.15
    assert {name for name in info["missing_keys"] if "long_attention" in name} == {
        "bert.encoder.layer.0.attention.self.long_attention.key_projection"
    }
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", max_length=256, **SHARED)
    assert report.verified
    assert tensor_counts(report)["new"] == 1
    assert assert_one(AutoModelForMaskedLM.from_pretrained(tmp_path / "long")).shape == (1, 256, 16)


def test_layers_with_other_options_share_no_projection() -> None:
    config = LongBertConfig(**SIZES, long_attention={**SHARED, "layers": {"1": {"rank": 8}}})
    first, second, third = projections(LongBertForMaskedLM(config))
    assert first is third
    assert second.shape == (1, 128, 8)


def test_enable_long_attention_shares_one_projection() -> None:
    assert_one(enable_long_attention(BertForMaskedLM(BertConfig(**SIZES)), SHARED))


def projection_after_a_step() -> list[float]:
    model = LongBertForMaskedLM(LongBertConfig(**SIZES, long_attention=SHARED)).train()
    before = assert_one(model).detach().clone()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    ids = torch.randint(5, 100, (2, 60))[dist.get_rank() :][:1]
    for _ in range(2):  # a parameter without a gradient would stop the second step
        parallel(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(parallel.parameters(), lr=1.0).step()
    after = assert_one(model).detach()
    assert not torch.equal(after, before)
    return after.flatten().tolist()


def test_a_shared_projection_trains_in_distributed_data_parallel() -> None:
    first, second = PAIR.run(projection_after_a_step)
    assert first == second
