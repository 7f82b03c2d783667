"""Settings of quick distillations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from hf_longattn.training.linearise.args import LineariseModelArguments, LineariseTrainingArguments
from hf_longattn.training.linearise.trainer import LineariseTrainer
from hf_longattn.training.old_lm import TextDataArguments
from hf_longattn.training.parsing import build_arguments
from hf_longattn.training.tasks import linearise
from hf_longattn.training.tasks.linearise import LINEARISE, linearise_attention
from tests.training.conftest import checkpoint

FAST: dict[str, Any] = {
    "bf16": False, "disable_tqdm": True, "threads": 1, "warmup_steps": 1, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1, "logging_steps": 2,
    "transfer_steps": 6, "finetune_steps": 6, "max_length": 64,
}  # fmt: skip
Kill = Callable[[int, Any], None]
Start = Callable[..., tuple[LineariseModelArguments, TextDataArguments, LineariseTrainingArguments]]


@pytest.fixture(autouse=True)
def few_held_out_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are measured on four inputs."""
    monkeypatch.setattr(linearise, "HELD_OUT_INPUTS", 4)


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Kill:
    """Run a distillation that is killed in the fourth step of a stage."""

    def run(stage: int, settings: Any) -> None:
        step = LineariseTrainer.training_step

        def killed(self: LineariseTrainer, *args: Any, **kwargs: Any) -> Any:
            if (self.stage, self.state.global_step) == (stage, 3):
                raise KeyboardInterrupt
            return step(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(LineariseTrainer, "training_step", killed)
            with pytest.raises(KeyboardInterrupt):
                linearise_attention(*settings)

    return run


@pytest.fixture
def start(tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase) -> Start:
    """Settings of a quick run from a tiny checkpoint that has something to attend to; with ``certain``, its predictions depend on it."""

    def settings(output: str = "out", kind: str = "mlm", certain: bool = False, **changes: Any) -> Any:
        folder = tmp_path / f"{kind}{'-certain' * certain}"
        if not folder.exists():
            checkpoint(kind, folder, tokenizer)
            scales = dict.fromkeys(("word_embeddings", "wte", "embed_tokens", "lm_head"), 20.0) if certain else {}
            scales |= dict.fromkeys(("attn", "attention"), 30.0 if certain else 8.0)
            model = load_file(folder / "model.safetensors")
            sharpened = {
                name: tensor * next((scale for part, scale in scales.items() if part in name), 1.0) for name, tensor in model.items()
            }
            save_file(sharpened, folder / "model.safetensors", metadata={"format": "pt"})
            config = json.loads((folder / "config.json").read_text())
            dropout = {name: 0.0 for name in config if certain and ("dropout" in name or name.endswith("pdrop"))}
            (folder / "config.json").write_text(json.dumps({**config, **dropout}))
        values = {"model": str(folder), "output_dir": str(tmp_path / output), "text": [texts], "mechanism": "hedgehog", **FAST, **changes}
        return build_arguments(LINEARISE, **values)

    return settings
