"""Values that a result begins with where the source has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from hf_longattn import convert_checkpoint


@pytest.mark.parametrize(("name", "prefix"), [("BertForMaskedLM", "bert."), ("LlamaForCausalLM", "model.")])
def test_memory_tokens_are_in_the_file_and_the_same_on_every_run(
    name: str, prefix: str, built: Callable[[str], Path], tmp_path: Path
) -> None:
    options = {"mechanism": "recurrent_memory", "segment_length": 12, "num_memory_tokens": 2, "max_length": 200}
    found = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        report = convert_checkpoint(built(name), folder, **options, verify=False)
        assert report.plan["tensor_counts"]["added"] == 1
        found.append(load_file(folder / "model.safetensors")[f"{prefix}long_memory.tokens"])
    assert torch.equal(*found)
    assert 0 < found[0].std() < 0.1
    loaded, info = AutoModel.from_pretrained(tmp_path / "one", output_loading_info=True)
    assert not [key for key in info["missing_keys"] if "memory" in key]
    assert torch.equal(loaded.long_memory.tokens, found[0])
