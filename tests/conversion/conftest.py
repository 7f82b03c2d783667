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

SHARED: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
BERT = {**SHARED, "vocab_size": 30522, "max_position_embeddings": LENGTH}
ROBERTA = {
    **SHARED,
    "vocab_size": 50265,
    "max_position_embeddings": LENGTH + 2,
    "pad_token_id": 1,
    "type_vocab_size": 1,
}
GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 50257, "n_positions": LENGTH}
LLAMA = {**SHARED, "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": LENGTH}

XLM_ROBERTA = {**SHARED, "vocab_size": 1000, "max_position_embeddings": LENGTH + 2}
ALBERT = {**SHARED, "vocab_size": 1000, "max_position_embeddings": LENGTH, "embedding_size": 20}
ESM = {
    **SHARED,
    "vocab_size": 33,
    "max_position_embeddings": LENGTH + 2,
    "pad_token_id": 1,
    "mask_token_id": 32,
    "token_dropout": True,
}
DEBERTA = {
    **SHARED,
    "vocab_size": 1000,
    "max_position_embeddings": LENGTH,
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "position_buckets": 16,
    "share_att_key": True,
    "type_vocab_size": 0,
}
MODERNBERT = {
    **SHARED,
    "vocab_size": 1000,
    "max_position_embeddings": LENGTH,
    "num_hidden_layers": 3,
    "local_attention": 10,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
ELECTRA = {**SHARED, "vocab_size": 1000, "max_position_embeddings": LENGTH, "embedding_size": 20}
DISTILBERT = {
    "n_layers": 2,
    "n_heads": 4,
    "dim": 32,
    "hidden_dim": 48,
    "vocab_size": 1000,
    "max_position_embeddings": LENGTH,
}

ROTARY = {
    **SHARED,
    "vocab_size": 1000,
    "max_position_embeddings": LENGTH,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**ROTARY, "num_key_value_heads": 2}
SLIDING = {**GROUPED, "sliding_window": 24}
LAST_SLIDES = {**SLIDING, "use_sliding_window": True, "max_window_layers": 1}
GEMMA = {**SLIDING, "head_dim": 16, "query_pre_attn_scalar": 20}
OPT = {**ROTARY, "ffn_dim": 48, "word_embed_proj_dim": 16}
SMOLLM3 = {**SLIDING, "use_sliding_window": True, "no_rope_layers": [1, 0]}

STACKS: dict[str, Any] = {
    **{
        f"{stack}_{name}": value
        for stack in ("encoder", "decoder")
        for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
    },
    "d_model": 32,
    "max_position_embeddings": LENGTH,
}
BART = {**STACKS, "vocab_size": 50265, "forced_eos_token_id": None}
MARIAN = {
    **STACKS,
    "vocab_size": 1000,
    "decoder_start_token_id": 58,
    "pad_token_id": 58,
    "eos_token_id": 0,
    "forced_eos_token_id": None,
}
PEGASUS = {**STACKS, "vocab_size": 50257, "forced_eos_token_id": None}

CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "BertForQuestionAnswering": ("BertConfig", BERT),
    "BertForMaskedLM": ("BertConfig", BERT),
    "BertForMultipleChoice": ("BertConfig", BERT),
    "BertModel": ("BertConfig", BERT),
    "RobertaForMaskedLM": ("RobertaConfig", ROBERTA),
    "RobertaForSequenceClassification": ("RobertaConfig", ROBERTA),
    "XLMRobertaForSequenceClassification": ("XLMRobertaConfig", XLM_ROBERTA),
    "CamembertForMaskedLM": ("CamembertConfig", XLM_ROBERTA),
    "AlbertForMaskedLM": ("AlbertConfig", ALBERT),
    "EsmForMaskedLM": ("EsmConfig", ESM),
    "EsmForTokenClassification": ("EsmConfig", {**ESM, "position_embedding_type": "rotary"}),
    "MPNetForMaskedLM": ("MPNetConfig", XLM_ROBERTA),
    "DebertaV2ForTokenClassification": ("DebertaV2Config", DEBERTA),
    "ModernBertForMaskedLM": ("ModernBertConfig", MODERNBERT),
    "ModernBertForSequenceClassification": ("ModernBertConfig", {**MODERNBERT, "classifier_pooling": "mean"}),
    "ElectraForPreTraining": ("ElectraConfig", ELECTRA),
    "DistilBertForQuestionAnswering": ("DistilBertConfig", DISTILBERT),
    "GPT2LMHeadModel": ("GPT2Config", GPT2),
    "LlamaForCausalLM": ("LlamaConfig", LLAMA),
    "BartForConditionalGeneration": ("BartConfig", BART),
    "BartForQuestionAnswering": ("BartConfig", BART),
    "BartForSequenceClassification": ("BartConfig", BART),
    "BartForCausalLM": ("BartConfig", BART),
    "PegasusForConditionalGeneration": ("PegasusConfig", PEGASUS),
    "MBartForConditionalGeneration": ("MBartConfig", {**STACKS, "vocab_size": 1000, "forced_eos_token_id": None}),
    "MarianMTModel": ("MarianConfig", MARIAN),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", ROTARY),
    "OPTForCausalLM": ("OPTConfig", OPT),
    "MistralForCausalLM": ("MistralConfig", SLIDING),
    "Qwen2ForCausalLM": ("Qwen2Config", LAST_SLIDES),
    "Qwen3ForCausalLM": ("Qwen3Config", {**LAST_SLIDES, "head_dim": 16}),
    "GemmaForCausalLM": ("GemmaConfig", {**GROUPED, "head_dim": 16}),
    "Gemma2ForCausalLM": ("Gemma2Config", {**GEMMA, "attn_logit_softcapping": 2.0}),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]}),
    "PhiForCausalLM": ("PhiConfig", ROTARY),
    "Phi3ForCausalLM": ("Phi3Config", GROUPED),
    "SmolLM3ForCausalLM": ("SmolLM3Config", SMOLLM3),
}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """built("BertForMaskedLM") -> the folder of that checkpoint, shared by the session: do not write into it."""
    made: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in made:
            config_class, values = CLASSES[name]
            torch.manual_seed(0)
            model = getattr(transformers, name)(getattr(transformers, config_class)(**values))
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
