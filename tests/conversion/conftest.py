"""Small checkpoints as transformers itself saves them, one per family and head, made once per session."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hf_longattn.families import FAMILIES
from hf_longattn.positions import tables
from scripts.dev.tools.small_models import (
    Shape,
    language_model,
    small_audio_config,
    small_config,
    small_image_config,
    small_towers_config,
    small_values,
)
from tests.trained import tokenizer_of

Short = Callable[[str, str], Path]
TOKENS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "decoder_start_token_id": 2}


@pytest.fixture
def random_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the checks: ``positions="random"`` gives a table new rows as before training."""

    def extend(old: torch.Tensor, rows: int) -> torch.Tensor:
        drawn = (
            torch.randn(rows - len(old), old.shape[1], generator=torch.Generator().manual_seed(0)) * old.float().std()
        )
        return torch.cat([old, drawn.to(old.dtype)])

    monkeypatch.setitem(tables.STRATEGIES, "random", extend)


def config_of(base: str) -> Any:
    """A small config with fewer keys than queries, where the architecture has that, and with full attention."""
    return small_config(base, num_key_value_heads=2, attention_type="original_full", **TOKENS)


def source_config(base: str) -> Any:
    """A small config of any base, of texts, of images, of sound or of several towers."""
    if FAMILIES[base].towers:
        return small_towers_config(base, Shape(layers=2))
    if FAMILIES[base].spec.reads == "sound":
        return small_audio_config(base, Shape(layers=2))
    return small_image_config(base, Shape(layers=4)) if FAMILIES[base].spec.reads == "grid" else config_of(base)


def head_of(base: str, ending: str = "") -> str:
    """The class with this ending, or else the one that predicts tokens."""
    return next(
        (head for head in FAMILIES[base].model_classes if ending and head.endswith(ending)), language_model(base)
    )


LENGTH = 64

ROBERTA = {"vocab_size": 50265, "pad_token_id": 1, "type_vocab_size": 1}
NARROW = {"embedding_size": 20}
ESM = {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "token_dropout": True}
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "position_buckets": 16,
    "share_att_key": True,
    "type_vocab_size": 0,
}
MODERNBERT = {
    "num_hidden_layers": 3,
    "local_attention": 10,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
BERT, GPT2, LLAMA = {"vocab_size": 30522}, {"vocab_size": 50257}, {"num_key_value_heads": 2}

ROTARY = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = {**ROTARY, **LLAMA}
SLIDING = {**GROUPED, "sliding_window": 24}
LAST_SLIDES = {**SLIDING, "use_sliding_window": True, "max_window_layers": 1}
GEMMA = {**SLIDING, "head_dim": 16, "query_pre_attn_scalar": 20}

ENDLESS: dict[str, Any] = {"forced_eos_token_id": None}
BART = {**ENDLESS, "vocab_size": 50265}

CLASSES: dict[str, dict[str, Any]] = {
    "BertForQuestionAnswering": BERT,
    "BertForMaskedLM": BERT,
    "BertForMultipleChoice": BERT,
    "BertModel": BERT,
    "RobertaForMaskedLM": ROBERTA,
    "RobertaForSequenceClassification": ROBERTA,
    "XLMRobertaForSequenceClassification": {},
    "CamembertForMaskedLM": {},
    "AlbertForMaskedLM": NARROW,
    "EsmForMaskedLM": ESM,
    "EsmForTokenClassification": {**ESM, "position_embedding_type": "rotary"},
    "MPNetForMaskedLM": {},
    "DebertaV2ForTokenClassification": DEBERTA,
    "ModernBertForMaskedLM": MODERNBERT,
    "ModernBertForSequenceClassification": {**MODERNBERT, "classifier_pooling": "mean"},
    "ElectraForPreTraining": NARROW,
    "DistilBertForQuestionAnswering": {},
    "GPT2LMHeadModel": GPT2,
    "LlamaForCausalLM": LLAMA,
    "BartForConditionalGeneration": BART,
    "BartForQuestionAnswering": BART,
    "BartForSequenceClassification": BART,
    "BartForCausalLM": BART,
    "PegasusForConditionalGeneration": {**ENDLESS, **GPT2},
    "MBartForConditionalGeneration": ENDLESS,
    "MarianMTModel": {**ENDLESS, "decoder_start_token_id": 58, "pad_token_id": 58, "eos_token_id": 0},
    "GPTNeoXForCausalLM": ROTARY,
    "OPTForCausalLM": {**ROTARY, "word_embed_proj_dim": 16},
    "MistralForCausalLM": SLIDING,
    "Qwen2ForCausalLM": LAST_SLIDES,
    "Qwen3ForCausalLM": {**LAST_SLIDES, "head_dim": 16},
    "GemmaForCausalLM": {**GROUPED, "head_dim": 16},
    "Gemma2ForCausalLM": {**GEMMA, "attn_logit_softcapping": 2.0},
    "Gemma3ForCausalLM": {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
    "PhiForCausalLM": ROTARY,
    "Phi3ForCausalLM": GROUPED,
    "SmolLM3ForCausalLM": {**SLIDING, "use_sliding_window": True, "no_rope_layers": [1, 0]},
}
"""What the small config of a class has beside its sizes."""


def drawn(name: str, **changes: Any) -> Any:
    """A model of the class of this name, with random weights."""
    model_class = getattr(transformers, name)
    sizes = small_values(model_class.config_class.model_type, Shape(vocabulary=1000))
    torch.manual_seed(0)
    return model_class(model_class.config_class(**{**sizes, **CLASSES.get(name, {}), **changes}))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """built("BertForMaskedLM") -> the folder of that checkpoint, shared by the session: do not write into it."""
    made: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in made:
            model = drawn(name)
            with torch.no_grad():  # the usual initial values hardly let attention show in the outputs
                for parameter in model.parameters():
                    if parameter.ndim == 2 and parameter.requires_grad:
                        parameter.mul_(8)
            made[name] = tmp_path_factory.mktemp("checkpoints") / name
            model.save_pretrained(made[name])
        return made[name]

    return build


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Short:
    """short("bert", "BertForMaskedLM") -> the folder of a small checkpoint of any family, shared by the session: do
    not write into it."""

    @cache
    def make(base: str, head: str) -> Path:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(base) / "short"
        getattr(transformers, head)(config_of(base)).save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def checkpoint(built: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """checkpoint("BertForMaskedLM") -> a copy of the test's own, with a tokenizer if asked for."""

    def copy(name: str, *, tokenizer: str | None = None) -> Path:
        folder = tmp_path / "source"
        if folder.exists():  # of another cell of the test
            folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "source"
        shutil.copytree(built(name), folder)
        if tokenizer is not None:
            tokenizer_of(tokenizer, LENGTH).save_pretrained(folder)
        return folder

    return copy


def damaged(save: Callable[..., None]) -> Callable[..., None]:
    """``save``, after which one byte of the file is another."""

    def damage(tensors: Any, path: str, *arguments: Any, **more: Any) -> None:
        save(tensors, path, *arguments, **more)
        with open(path, "r+b") as file:
            file.seek(-5, os.SEEK_END)
            file.write(b"\x7f")

    return damage
