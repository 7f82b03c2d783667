"""transformers' LongT5 with local attention is adopted and proved equal, and written as such again; transient-global is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hf_longattn import convert_checkpoint, plan_conversion
from hf_longattn.conversion.long_models.base import decoder_start
from hf_longattn.errors import CheckpointError

SIZES: dict[str, Any] = {
    "vocab_size": 211, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "local_radius": 7,
    "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0, "relative_attention_max_distance": 20,
}  # fmt: skip


def saved(folder: Path, head: str = "ForConditionalGeneration", **changes: Any) -> Path:
    torch.manual_seed(0)
    getattr(transformers, f"LongT5{head}")(transformers.LongT5Config(**{**SIZES, **changes})).save_pretrained(folder)
    return folder


@pytest.mark.thorough
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("head", ["ForConditionalGeneration", "Model", "EncoderModel"])
def test_every_head(head: str, scaled: bool, tmp_path: Path) -> None:
    report = convert_checkpoint(saved(tmp_path / "theirs", head, tie_word_embeddings=scaled, n_positions=200), tmp_path / "long")
    assert report.passed
    assert not report.needs_training
    assert report.plan["long_class"] == f"LongAttentionT5{head}"
    assert report.plan["long_attention"] == {"mechanism": "window", "window": 14}
    assert report.plan["old_length"] == 200
    assert [check.status for check in report.checks if check.name.startswith("equal to the source")] == ["passed"]
    assert report.plan["tensor_counts"]["added"] == report.plan["tensor_counts"]["dropped"] == 0


def test_transient_global_attention_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "theirs", encoder_attention_type="transient-global")
    with pytest.raises(CheckpointError, match="has encoder_attention_type='transient-global': its tokens also see the averages of blocks"):
        plan_conversion(source)


def test_a_config_may_lack_the_decoder_s_first_token() -> None:
    config = transformers.LongT5Config()
    assert not hasattr(config, "decoder_start_token_id")
    assert decoder_start(config) == config.eos_token_id
