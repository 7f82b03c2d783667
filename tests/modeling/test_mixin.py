"""Long classes: what they add to their base, and what they leave to it."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutomaticSpeechRecognitionPipeline,
    AutoModel,
    BertTokenizer,
    LayoutLMConfig,
    LayoutLMForQuestionAnswering,
    Wav2Vec2FeatureExtractor,
    pipeline,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.auto import modeling_auto

import hf_longattn.families as families
from hf_longattn import convert_checkpoint
from hf_longattn.errors import BackendError, InputError
from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms.common.base import Mechanism
from hf_longattn.modeling.attach.global_mask import carry_question
from hf_longattn.modeling.pipelines import SpeechRecognitionPipeline
from hf_longattn.training import load_qa_model
from scripts.dev.tools.small_models import TEXT_FAMILIES, small_values
from tests.cases import every_case
from tests.grids import alternately, grid
from tests.modeling.audio_models import small_model
from tests.reference import small_models
from tests.reference.small_models import (
    BASES,
    HEADS,
    base_class,
    checkpoint_activations,
    head_inputs,
    is_quick_head,
    plain_model,
    tokens,
)
from tests.samples import sample_of
from tests.shared_code import kind_of_family

LONGFORMER = {"mechanism": "longformer", "window": 16}


def long_model(base: str, head: str | None = None, long_attention: Any = None, **changes: Any) -> Any:
    return small_models.long_model(base, head, long_attention or LONGFORMER, **changes)


@every_case(("base", "head"), grid(HEADS, is_quick_head), of=9, code=kind_of_family, ids=[head for _, head in HEADS])
class TestEveryHead:
    def test_the_signature_shows_the_added_arguments(self, base: str, head: str) -> None:
        plain = base_class(base, head)
        longer = families.FAMILIES[base].model_class(head)
        added = [
            name
            for name in inspect.signature(longer.forward).parameters
            if name not in inspect.signature(plain.forward).parameters
        ]
        assert added == ["global_attention_mask", "documents", "memory", "memory_reset"]

    @pytest.mark.thorough
    def test_global_attention_mask_reaches_the_mechanism(self, base: str, head: str) -> None:
        model = long_model(base, head)
        inputs = head_inputs(head)
        is_global = torch.zeros_like(inputs["input_ids"])
        is_global[..., 40] = 1
        with torch.no_grad():
            without = model(**inputs, output_hidden_states=True).hidden_states[-1]
            found = model(**inputs, output_hidden_states=True, global_attention_mask=is_global).hidden_states[-1]
        assert (found - without).abs().max() > 1e-3

    def test_the_base_model_inside_is_a_long_class(self, base: str, head: str) -> None:
        model = long_model(base, head)
        inner = getattr(model, model.base_model_prefix, model)
        assert type(inner) is families.FAMILIES[base].long_class_of(base_class(base))
        assert sum(isinstance(m, Mechanism) for m in model.modules()) == 3


@every_case("base", BASES, of=9, code=kind_of_family)
class TestEveryBase:
    def test_attentions_are_those_of_the_mechanism(self, base: str) -> None:
        model = long_model(base, long_attention={"mechanism": "window", "window": 8})
        with torch.no_grad():
            out = model(tokens(2, 30), output_attentions=True)
            again = model(tokens(2, 30))
        assert [w.shape for w in out.attentions] == [(2, 4, 30, 30)] * 3
        for weights in out.attentions:
            assert torch.allclose(weights.sum(-1), torch.ones(()))
            assert weights[0, 0, 29, :20].max() == 0
        assert again.attentions is None
        assert torch.equal(out.last_hidden_state, again.last_hidden_state)

    def test_a_global_mask_of_the_wrong_shape_is_refused(self, base: str) -> None:
        with pytest.raises(InputError, match=r"global_attention_mask has shape \(2, 29\), but must be .* \(2, 30\)"):
            long_model(base)(tokens(2, 30), global_attention_mask=torch.zeros(2, 29))

    @pytest.mark.thorough
    def test_a_copied_and_a_pickled_model_give_the_same(self, base: str) -> None:
        model = long_model(base)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(twin) is type(model)
            with torch.no_grad():
                assert torch.equal(twin(tokens()).last_hidden_state, model(tokens()).last_hidden_state)


@every_case(("base", "reentrant"), alternately(BASES), of=9, code=kind_of_family)
def test_gradient_checkpointing_changes_no_gradient(base: str, reentrant: bool) -> None:
    if not base_class(base).supports_gradient_checkpointing:
        with pytest.raises(ValueError, match="does not support"):
            checkpoint_activations(long_model(base))
        return
    gradients = []
    for checkpointing in (False, True):
        model = long_model(
            base,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        ).train()
        if checkpointing:
            checkpoint_activations(model, use_reentrant=reentrant)
            model.enable_input_require_grads()
        is_global = torch.zeros(2, 40)
        is_global[:, 3] = 1
        model(tokens(2, 40), global_attention_mask=is_global).last_hidden_state.square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


@every_case("name", ["bigbird", "hybrid", "longformer", "nystrom", "window", "full"])
def test_positions_of_an_encoder_begin_after_left_padding(name: str) -> None:
    """Of one that never computes its source's attention. Full attention keeps the source's positions, which count
    padding."""
    model = long_model("bert", None, sample_of(name)).eval()
    ids = tokens(2, 60)
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[0, :23] = 0
    with torch.no_grad():
        alone = model(ids[:1, 23:]).last_hidden_state[0]
        padded = model(ids, attention_mask=mask).last_hidden_state[0, 23:]
    assert torch.allclose(padded, alone, atol=1e-5) == (name != "full")


def test_an_encoder_with_base_attention_has_the_positions_of_its_source() -> None:
    model = long_model("bert", None, {"mechanism": "window", "window": 8}).eval()
    ids = tokens(1, 40)
    mask = torch.ones(1, 40)
    mask[0, :9] = 0
    plain = plain_model("bert").eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    model.use_base_attention()
    with torch.no_grad():
        found, expected = (one(ids, attention_mask=mask).last_hidden_state[:, 9:] for one in (model, plain))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


WINDOW = {"mechanism": "window", "window": 6}
IDS = torch.randint(5, 90, (2, 40), generator=torch.Generator().manual_seed(0))
STRANGERS = ("mine", "mine_with_mask")
REFUSED = (*STRANGERS, "flex_attention", "paged|sdpa", "paged|flash_attention_2")


@pytest.fixture(autouse=True)
def strangers() -> Iterator[None]:
    """Functions that a serving engine registers, with and without a mask function."""
    AttentionInterface.register("mine", sdpa_attention_forward)
    AttentionInterface.register("mine_with_mask", sdpa_attention_forward)
    AttentionMaskInterface.register("mine_with_mask", sdpa_mask)
    yield
    for name in STRANGERS:
        AttentionInterface._global_mapping.pop(name)
    AttentionMaskInterface._global_mapping.pop("mine_with_mask")


def config_of(base: str, **changes: Any) -> Any:
    values = {
        **small_values(base, pad_token_id=1, init_std=0.3, initializer_range=0.3),
        "long_attention": WINDOW,
        **changes,
    }
    return FAMILIES[base].config_class(**values)


def built(base: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return AutoModel.from_config(config_of(base, **changes)).eval()


def hidden(model: Any) -> torch.Tensor:
    """Of the last layer that runs ``long_attention``."""
    decoded = {"decoder_input_ids": IDS[:, :5]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        outputs = model(IDS, **decoded)
    return outputs.encoder_last_hidden_state if decoded else outputs.last_hidden_state


@every_case("base", TEXT_FAMILIES, of=24, code=kind_of_family)
class TestEveryFamily:
    @pytest.mark.thorough
    def test_sdpa_and_eager_by_default_run_the_mechanism(self, base: str, tmp_path: Path) -> None:
        model = built(base)
        expected = hidden(model)
        model.save_pretrained(tmp_path)
        for implementation in ("sdpa", "eager"):
            read = AutoModel.from_pretrained(tmp_path, attn_implementation=implementation).eval()
            assert read.config._attn_implementation == "longattn"
            assert torch.equal(hidden(read), expected)
            model.set_attn_implementation(implementation)
            assert torch.equal(hidden(model), expected)
            model.config._attn_implementation = implementation
            assert torch.equal(hidden(model), expected)

    @pytest.mark.thorough
    def test_other_implementations_are_refused_and_nothing_changes(self, base: str, tmp_path: Path) -> None:
        model = built(base)
        expected = hidden(model)
        model.save_pretrained(tmp_path)
        for implementation in REFUSED:
            says = f"'{implementation.replace('|', '.')}' does not compute the mechanism 'window'.*use_base_attention"
            for ask in (
                lambda name: AutoModel.from_pretrained(tmp_path, attn_implementation=name),
                lambda name: AutoModel.from_config(config_of(base), attn_implementation=name),
                lambda name: model.set_attn_implementation(name),
                lambda name: model.set_attn_implementation({"": name}),
                lambda name: setattr(model.config, "_attn_implementation", name),
            ):
                with pytest.raises(BackendError, match=says):
                    ask(implementation)
        assert torch.equal(hidden(model), expected)

    def test_use_base_attention_runs_the_base_and_is_not_saved(self, base: str, tmp_path: Path) -> None:
        model = built(base)
        expected = hidden(model)
        model.use_base_attention()
        other = hidden(model)
        assert (other - expected).abs().max() > 1e-3
        model.save_pretrained(tmp_path)
        assert torch.equal(hidden(AutoModel.from_pretrained(tmp_path).eval()), expected), "the choice is not saved"
        model.use_base_attention("eager")
        torch.testing.assert_close(hidden(model), other, atol=1e-4, rtol=0)
        model.set_attn_implementation("longattn")
        assert torch.equal(hidden(model), expected)
        with pytest.raises(BackendError, match="'mine' does not compute"):
            model.set_attn_implementation("mine")
        with pytest.raises(ValueError, match="nonsense"):
            model.use_base_attention("nonsense")
        model.set_attn_implementation("sdpa")
        assert torch.equal(hidden(model), expected), "a base that cannot run was not chosen"


def test_a_registered_implementation_runs_full_attention() -> None:
    model = built("gpt2", long_attention={"mechanism": "full"})
    expected = hidden(model)
    model.set_attn_implementation("mine_with_mask")
    assert model.config._attn_implementation == "mine_with_mask"
    torch.testing.assert_close(hidden(model), expected, atol=1e-5, rtol=0)
    with pytest.raises(BackendError, match="'mine_with_mask' does not compute the mechanism 'window'"):
        model.config.long_attention = WINDOW


@every_case(
    ("base", "attention"),
    [
        ("gpt2", {"long_attention": {"mechanism": "full", "relative": "alibi"}}),
        ("gpt2", {"long_attention": {"mechanism": "full", "layers": {1: WINDOW}}}),
        ("gpt2", {"long_attention": {"mechanism": "window", "window": 10**6}}),
        ("bart", {"long_attention": {"mechanism": "full"}, "decoder_long_attention": WINDOW}),
    ],
)
def test_one_other_layer_or_a_relative_term_refuses_implementations(base: str, attention: dict[str, Any]) -> None:
    with pytest.raises(BackendError, match="'mine' does not compute"):
        config_of(base, **attention, attn_implementation="mine")


def test_layers_with_windows_of_the_base_take_its_implementation() -> None:
    model = built("mistral", sliding_window=8, long_attention=None)
    expected = hidden(model)
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(hidden(model), expected, atol=1e-4, rtol=0)
    with pytest.raises(BackendError, match="'mine' does not compute the mechanism 'full'"):
        config_of("mistral", sliding_window=8, long_attention={"mechanism": "full"}, attn_implementation="mine")


def test_an_implementation_named_in_a_config_file_is_refused(tmp_path: Path) -> None:
    model = built("bert")
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        text.replace('"architectures"', '"_attn_implementation": "mine",\n  "architectures"')
    )
    with pytest.raises(BackendError, match="'mine' does not compute"):
        AutoModel.from_pretrained(tmp_path)


def test_a_plain_class_with_a_long_config_is_refused() -> None:
    from transformers import BertModel

    model = BertModel(config_of("bert")).eval()
    with pytest.raises(BackendError, match="carries no mechanism"):
        hidden(model)


RECOGNISERS = {
    *modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES.values(),
    *modeling_auto.MODEL_FOR_TDT_MAPPING_NAMES.values(),
    *modeling_auto.MODEL_FOR_RNNT_MAPPING_NAMES.values(),
    *modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES.values(),
}
QUESTION = "which key ?"
WORDS = [f"{first}{second}" for first in "abcdefgh" for second in "klmnopqrst"]
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}


def layoutlm(folder: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *QUESTION.split(), *WORDS]
    BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, model_max_length=512).save_pretrained(
        folder
    )
    LayoutLMForQuestionAnswering(LayoutLMConfig(vocab_size=len(pieces), **SHAPE)).save_pretrained(folder)


def page(count: int) -> list[tuple[str, list[int]]]:
    """Words with their boxes, as the pipeline takes them."""
    return [
        (WORDS[7 * n % 80], [90 * (n % 10), 9 * (n // 10) % 900, 90 * (n % 10) + 80, 9 * (n // 10) % 900 + 8])
        for n in range(count)
    ]


def test_answers_about_a_page_are_those_of_the_base(tmp_path: Path) -> None:
    layoutlm(tmp_path / "short")
    convert_checkpoint(
        tmp_path / "short", tmp_path / "long", mechanism="longformer", window=1024, max_length=2048, verify=False
    )
    model, tokenizer = load_qa_model(str(tmp_path / "long"))
    carry_question(model, tokenizer)  # as a training leaves it, so that the model itself makes the question global
    model.save_pretrained(tmp_path / "long")
    base, long = (
        pipeline("document-question-answering", model=str(tmp_path / name), device="cpu") for name in ("short", "long")
    )
    assert long.model.config.model_type == "long_layoutlm"
    expected, answers = (answer({"question": QUESTION, "word_boxes": page(100)}, top_k=5) for answer in (base, long))
    assert [answer["answer"] for answer in answers] == [answer["answer"] for answer in expected]
    assert [answer["score"] for answer in answers] == pytest.approx([answer["score"] for answer in expected], rel=1e-3)


@pytest.mark.parametrize("base", [base for base, family in FAMILIES.items() if family.spec.reads == "sound"])
def test_recognisers_decode_as_their_bases(base: str) -> None:
    """transformers knows those that write by ``generate`` by their model type, and reads others as CTC."""
    family = FAMILIES[base]
    for head in {*family.model_classes} & RECOGNISERS:
        model = small_model(base, head)
        long = family.model_class(head)(
            family.config_class.from_dict({**model.config.to_dict(), "model_type": f"long_{base}"})
        )
        found, expected = (
            recogniser(of, feature_extractor=Wav2Vec2FeatureExtractor()).type
            for recogniser, of in (
                (SpeechRecognitionPipeline, long),
                (AutomaticSpeechRecognitionPipeline, model),
            )
        )
        assert (found, long.config.model_type) == (expected, f"long_{base}")
