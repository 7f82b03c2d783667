"""transformers' pipeline for questions about pages gives of a Long model what it gives of the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutomaticSpeechRecognitionPipeline,
    BertTokenizer,
    LayoutLMConfig,
    LayoutLMForQuestionAnswering,
    Wav2Vec2FeatureExtractor,
    pipeline,
)
from transformers.models.auto import modeling_auto

from hf_longattn import convert_checkpoint
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.attach.global_mask import carry_question
from hf_longattn.modeling.pipelines import SpeechRecognitionPipeline
from hf_longattn.training import load_qa_model
from tests.families.test_whisper import save as save_whisper
from tests.modeling.audio_models import small_model, whisper_processor

RECOGNISERS = {
    *modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES.values(), *modeling_auto.MODEL_FOR_TDT_MAPPING_NAMES.values(),
    *modeling_auto.MODEL_FOR_RNNT_MAPPING_NAMES.values(),
    *modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES.values(),
}  # fmt: skip
QUESTION = "which key ?"
WORDS = [f"{first}{second}" for first in "abcdefgh" for second in "klmnopqrst"]
SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "initializer_range": 0.3,
}  # fmt: skip


def layoutlm(folder: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *QUESTION.split(), *WORDS]
    BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, model_max_length=512).save_pretrained(folder)
    LayoutLMForQuestionAnswering(LayoutLMConfig(vocab_size=len(pieces), **SHAPE)).save_pretrained(folder)


def page(count: int) -> list[tuple[str, list[int]]]:
    """Words with their boxes, as the pipeline takes them."""
    return [(WORDS[7 * n % 80], [90 * (n % 10), 9 * (n // 10) % 900, 90 * (n % 10) + 80, 9 * (n // 10) % 900 + 8]) for n in range(count)]


def test_answers_about_a_page_are_those_of_the_base(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layoutlm(tmp_path / "short")
    convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="longformer", window=1024, max_length=2048, verify=False)
    model, tokenizer = load_qa_model(str(tmp_path / "long"))
    carry_question(model, tokenizer)  # as a training leaves it, so that the model itself makes the question global
    model.save_pretrained(tmp_path / "long")
    base, long = (pipeline("document-question-answering", model=str(tmp_path / name), device="cpu") for name in ("short", "long"))
    assert long.model.config.model_type == "long_layoutlm"
    expected, answers = (answer({"question": QUESTION, "word_boxes": page(100)}, top_k=5) for answer in (base, long))
    assert [answer["answer"] for answer in answers] == [answer["answer"] for answer in expected]
    assert [answer["score"] for answer in answers] == pytest.approx([answer["score"] for answer in expected], rel=1e-3)


@pytest.mark.thorough
def test_chunks_of_a_long_whisper_are_merged_as_those_of_the_base(tmp_path: Path) -> None:
    """Of other encoder-decoders, transformers puts the texts of overlapping chunks one after the other."""
    save_whisper(tmp_path / "short")
    whisper_processor(16, 1).save_pretrained(tmp_path / "short")
    convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="full", verify=False)
    sound = torch.randn(40_000, generator=torch.Generator().manual_seed(0)).numpy()
    heard = {}
    for name in ("short", "long"):
        recognise = pipeline("automatic-speech-recognition", model=str(tmp_path / name), chunk_length_s=1, device="cpu")
        heard[name] = (recognise.type, recognise({"raw": sound.copy(), "sampling_rate": 16_000}, generate_kwargs={"max_new_tokens": 12}))
    assert heard["long"] == heard["short"]
    assert heard["long"][0] == "seq2seq_whisper"


@pytest.mark.parametrize("base", [base for base, family in FAMILIES.items() if family.spec.reads == "sound"])
def test_recognisers_decode_as_their_bases(base: str) -> None:
    """transformers knows those that write by ``generate`` by their model type, and reads others as CTC."""
    family = FAMILIES[base]
    for head in {*family.model_classes} & RECOGNISERS:
        model = small_model(base, head)
        long = family.model_class(head)(family.config_class.from_dict({**model.config.to_dict(), "model_type": f"long_{base}"}))
        found, expected = (recogniser(of, feature_extractor=Wav2Vec2FeatureExtractor()).type for recogniser, of in (
            (SpeechRecognitionPipeline, long), (AutomaticSpeechRecognitionPipeline, model),
        ))  # fmt: skip
        assert (found, long.config.model_type) == (expected, f"long_{base}")
