"""BigBird and BigBirdPegasus checkpoints, adopted without another weight, equal transformers' own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import BigBirdConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdAttention, BigBirdModel

import hf_longattn.families as families
from hf_longattn import attend, build_mechanism
from hf_longattn.families import FAMILIES
from scripts.dev.tools.small_models import Shape, small_values
from tests.cases import every_case
from tests.grids import alternately
from tests.reference import summaries
from tests.reference.summaries import adopted as adopted_summarizer
from tests.reference.summaries import assert_same_summaries, assert_same_texts, real_texts

HEADS, DIM, BLOCK, RANDOM = 2, 8, 16, 2


def theirs(length: int, mask: Tensor, hidden: Tensor) -> tuple[Any, Tensor]:
    """transformers' attention module, and its output before the output projection."""
    config = BigBirdConfig(
        hidden_size=HEADS * DIM,
        num_attention_heads=HEADS,
        block_size=BLOCK,
        num_random_blocks=RANDOM,
        max_position_embeddings=4096,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    module = BigBirdAttention(config).eval()
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(mask.float(), BLOCK)
    return module.self, module.self(hidden, band, rows, columns, blocked, blocked)[0]


def ours(module: Any, mask: Tensor, hidden: Tensor, **options: Any) -> Tensor:
    mechanism = build_mechanism(
        "bigbird",
        num_heads=HEADS,
        head_dim=DIM,
        max_length=4096,
        block_size=BLOCK,
        num_random_blocks=RANDOM,
        blocks_over="input",
        **options,
    ).eval()
    q, k, v = (
        projection(hidden).unflatten(-1, (HEADS, DIM)).transpose(1, 2)
        for projection in (module.query, module.key, module.value)
    )
    return attend(q, k, v, mechanism, padding_mask=mask).transpose(1, 2).flatten(2)


@every_case("length", [160, 320, 1024])
def test_bigbird_equals_the_self_attention_of_transformers(length: int) -> None:
    mask = torch.ones(3, length, dtype=torch.bool)
    mask[1, length - 50 :] = False
    mask[2, : length // 2] = False
    hidden = torch.randn(3, length, HEADS * DIM, requires_grad=True)
    module, expected = theirs(length, mask, hidden)
    found = ours(module, mask, hidden, random_pattern="hf_eval")
    assert (expected - found)[mask].abs().max() < 1e-5
    weight = torch.randn_like(expected) * mask[..., None]
    wanted = torch.autograd.grad((expected * weight).sum(), (hidden, *module.parameters()))
    got = torch.autograd.grad((found * weight).sum(), (hidden, *module.parameters()))
    for a, b in zip(wanted, got, strict=True):
        assert (a - b).abs().max() < 1e-4


def test_bigbird_counts_the_first_block_as_transformers_does() -> None:
    mask, hidden = torch.ones(1, 320, dtype=torch.bool), torch.randn(1, 320, HEADS * DIM)
    module, expected = theirs(320, mask, hidden)
    assert (expected - ours(module, mask, hidden, random_pattern="hf_eval")).abs().max() < 1e-5
    assert (expected - ours(module, mask, hidden, random_pattern="seeded")).abs().max() > 1e-3


SETTINGS = {
    **small_values("big_bird", Shape(layers=3, heads=2, tokens=1024, vocabulary=200)),
    "block_size": BLOCK,
    "num_random_blocks": RANDOM,
    "initializer_range": 0.2,
    "sep_token_id": 3,
    "hidden_dropout_prob": 0.0,
}
HEADED = sorted(set(FAMILIES["big_bird"].model_classes) - {"BigBirdForCausalLM"})


def adopted(head: str, folder: Path, **changes: Any) -> tuple[Any, Any]:
    """A model of transformers, and the Long model read from its folder."""
    torch.manual_seed(0)
    model = getattr(transformers, head)(BigBirdConfig(**{**SETTINGS, **changes})).eval()
    model.save_pretrained(folder)
    return model, getattr(families, f"Long{head}").from_pretrained(folder).eval()


def texts(head: str, length: int = 200) -> dict[str, Tensor]:
    """Two texts with a separator, of which the second is padded."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, length - 55 :] = 0
    ids = torch.where(mask.bool(), torch.randint(5, 200, (2, length)), 0)
    ids[:, 12] = 3
    inputs = {"input_ids": ids, "attention_mask": mask}
    return {name: value[None] for name, value in inputs.items()} if head.endswith("MultipleChoice") else inputs


def labels(head: str, length: int = 200) -> dict[str, Tensor]:
    if head.endswith("QuestionAnswering"):
        return {"start_positions": torch.tensor([20, 30]), "end_positions": torch.tensor([22, 31])}
    if head.endswith(("SequenceClassification", "MultipleChoice")):
        return {"labels": torch.tensor([1, 0][: 1 if head.endswith("MultipleChoice") else 2])}
    given = {"labels": torch.randint(0, 2, (2, length))}
    given["labels"][1, length - 55 :] = -100
    return given | ({"next_sentence_label": torch.tensor([0, 1])} if head.endswith("PreTraining") else {})


@pytest.mark.parametrize(("head", "unusual"), alternately(HEADED))
def test_every_bigbird_head_equals_transformers_with_its_gradients(head: str, unusual: bool, tmp_path: Path) -> None:
    model, longer = adopted(
        head, tmp_path, **({"rescale_embeddings": True, "use_bias": False, "hidden_act": "relu"} if unusual else {})
    )
    inputs = texts(head)
    real = inputs["attention_mask"].bool()
    wanted = {} if head == "BigBirdModel" else labels(head)
    outputs = expected, found = [m.eval()(**inputs, **wanted) for m in (model, longer)]
    assert expected.keys() == found.keys()
    for name in expected:
        rows = real if expected[name].shape[: real.dim()] == real.shape else ...
        assert (expected[name] - found[name])[rows].abs().max() < 1e-4, name
    for m, out in zip((model, longer), outputs, strict=True):
        m.zero_grad()
        (out.loss if "loss" in out else out.last_hidden_state[real].square().sum() / 1000).backward()
    gradients = dict(longer.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert gradients[name].grad is None, name
        else:
            assert (parameter.grad - gradients[name].grad).abs().max() < 1e-4, name


def test_bigbird_reads_short_texts_fully_as_transformers_does(tmp_path: Path) -> None:
    longer = adopted("BigBirdModel", tmp_path)[1]
    for length in (9 * BLOCK - 1, 9 * BLOCK, 9 * BLOCK + 1):
        model = transformers.BigBirdModel.from_pretrained(
            tmp_path
        ).eval()  # a short input leaves its attention full for good
        inputs = texts("BigBirdModel", length)
        with torch.no_grad():
            expected, found = model(**inputs).last_hidden_state, longer(**inputs).last_hidden_state
        assert (expected - found)[inputs["attention_mask"].bool()].abs().max() < 1e-4


def test_bigbird_with_blocks_over_the_text_reads_a_padded_text_as_alone(tmp_path: Path) -> None:
    model = adopted("BigBirdModel", tmp_path)[0]
    attention = {
        "mechanism": "bigbird",
        "block_size": BLOCK,
        "num_random_blocks": RANDOM,
        "random_pattern": "hf_eval",
        "blocks_over": "text",
    }
    longer = families.LongBigBirdModel.from_pretrained(tmp_path, long_attention=attention).eval()
    inputs = texts("BigBirdModel", 300)
    with torch.no_grad():
        alone = model(inputs["input_ids"][1:, :245]).last_hidden_state
        padded, theirs_padded = (
            longer(**inputs).last_hidden_state[1:, :245],
            model(**inputs).last_hidden_state[1:, :245],
        )
    assert (alone - padded).abs().max() < 1e-4
    assert (alone - theirs_padded).abs().max() > 1e-2, "transformers' own output depends on the padding"


def test_a_bigbird_decoder_and_its_cross_attention_are_those_of_bert() -> None:
    """transformers' BigBird decoder loses its own tokens when it is given an encoder's states; BERT's does not."""
    settings = {"is_decoder": True, "add_cross_attention": True, "hidden_act": "gelu_new", "hidden_dropout_prob": 0.0}
    settings |= {name: value for name, value in SETTINGS.items() if name not in ("block_size", "num_random_blocks")}
    bert = transformers.BertLMHeadModel(transformers.BertConfig(**settings)).eval()
    longer = families.LongBigBirdForCausalLM(
        families.LongBigBirdConfig(**settings, long_attention={"mechanism": "full"})
    ).eval()
    lost = longer.load_state_dict(bert.state_dict(), strict=False)
    assert all("pooler" in name for name in (*lost.missing_keys, *lost.unexpected_keys))
    mask = torch.ones(2, 30)
    mask[1, 20:] = 0
    arguments = {**texts("", 100), "encoder_hidden_states": torch.randn(2, 30, 32), "encoder_attention_mask": mask}
    real = arguments["attention_mask"].bool()
    with torch.no_grad():
        expected = bert(**arguments, use_cache=False).logits
        assert (expected - longer(**arguments, use_cache=False).logits)[real].abs().max() < 1e-4
        assert (expected - longer(**arguments, use_cache=True).logits)[real].abs().max() < 1e-4


LENGTH, DECODED = 512, 48
SIZES: dict[str, Any] = {
    **summaries.SIZES,
    "max_position_embeddings": LENGTH,
    "block_size": 16,
    "num_random_blocks": 2,
}


@pytest.fixture(scope="module", params=[False, True], ids=["no bias", "bias"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """transformers' model, trained for a few steps and saved by transformers, and what it was converted to."""
    folder = tmp_path_factory.mktemp("bigbird_pegasus")
    torch.manual_seed(0)
    model = transformers.BigBirdPegasusForConditionalGeneration(
        transformers.BigBirdPegasusConfig(**SIZES, use_bias=request.param)
    )
    return adopted_summarizer(model, folder, LENGTH, DECODED, 16 * 12)


@pytest.mark.thorough
def test_bigbird_pegasus_states_logits_and_gradients_equal_transformers(both: tuple[Any, Any]) -> None:
    assert_same_summaries(both, real_texts(LENGTH - 51, DECODED, 0), lambda name, gradient: (name, gradient))


@pytest.mark.thorough
@every_case("beams", [1, 3])
def test_bigbird_pegasus_generates_the_text_of_transformers(both: tuple[Any, Any], beams: int) -> None:
    assert_same_texts(both, real_texts(LENGTH - 51, DECODED, 0), beams)


@pytest.mark.thorough
def test_bigbird_pegasus_reads_short_texts_fully(both: tuple[Any, Any]) -> None:
    inputs = real_texts(90, DECODED, 0)
    theirs = transformers.BigBirdPegasusForConditionalGeneration(both[0].config).eval()  # it switches for good
    theirs.load_state_dict(both[0].state_dict())
    with torch.no_grad():
        assert (theirs(**inputs).logits - both[1](**inputs).logits).abs().max() < 1e-4


@pytest.mark.thorough
@every_case("implementation", ["sdpa", "eager"])
def test_base_attention_of_bigbird_pegasus_is_full_attention(both: tuple[Any, Any], implementation: str) -> None:
    inputs = real_texts(200, DECODED, 0)
    theirs = transformers.BigBirdPegasusForConditionalGeneration(both[0].config)
    theirs.load_state_dict(both[0].state_dict())
    theirs.model.encoder.set_attention_type("original_full")
    ours = type(both[1])(copy.deepcopy(both[1].config))
    ours.load_state_dict(both[1].state_dict())
    ours.use_base_attention(implementation)
    with torch.no_grad():
        assert (theirs.eval()(**inputs).logits - ours.eval()(**inputs).logits).abs().max() < 1e-4
