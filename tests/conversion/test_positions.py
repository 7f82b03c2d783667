"""Positions of a result: where a family counts from its padding token, and where positions move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

import hf_longattn
from hf_longattn import LongLlamaForCausalLM
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import CheckpointError, InputError, LongAttentionError
from hf_longattn.inspect import inspect_checkpoint
from hf_longattn.modeling.family.definition import FAMILIES, longest_input
from scripts.dev.tools.small_models import IN_FULL, Shape, small_config, small_values
from tests.cases import every_case
from tests.grids import quickly
from tests.reference.small_models import plain_model, tokens
from tests.reports import check_of
from tests.saved import change_json, read_json
from tests.stock_cases import long_attention

OLD, NEW = 64, 200
PADS = (0, 1, 3)
SHAPE = Shape(tokens=OLD, vocabulary=90)
FULL, WINDOW = {"mechanism": "full"}, {"mechanism": "window", "window": 16}
BASES = tuple(base for base in IN_FULL if any(table.offset == "padding" for table in FAMILIES[base].position_tables))
TABLE = "embeddings.position_embeddings.weight"


def head_of(base: str) -> str:
    """The ending of the class that has logits of every token."""
    return "ForTokenClassification" if base == "markuplm" else "ForMaskedLM"


def saved(folder: Path, base: str, pad: int, **values: Any) -> Path:
    """A short checkpoint of ``base`` whose padding token has the id ``pad``."""
    config = small_config(base, SHAPE, pad_token_id=pad, mask_token_id=4, **values)
    torch.manual_seed(0)
    model = getattr(transformers, next(name for name in FAMILIES[base].model_classes if name.endswith(head_of(base))))(
        config
    )
    with torch.no_grad():  # the usual initial values hardly let positions show in the outputs
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(20 if name.endswith(TABLE) else 8)
    model.save_pretrained(folder)
    return folder


def padded(length: int, pad: int) -> dict[str, Tensor]:
    """Three texts: whole, with padding on the right, and on the left."""
    ids = torch.randint(5, 90, (3, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, -20:] = mask[2, :20] = 0
    return {"input_ids": torch.where(mask.bool(), ids, pad), "attention_mask": mask}


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.eval()(**inputs).logits
    return out[inputs["attention_mask"].bool()]


def table(folder: Path) -> Tensor:
    return next(tensor for name, tensor in load_file(folder / "model.safetensors").items() if name.endswith(TABLE))


@every_case(
    ("base", "pad", "positions"),
    [
        *(("roberta", pad, "auto") for pad in PADS),
        ("roberta", 3, "interpolate"),
        ("roberta", 0, "interpolate"),
        *((base, 3, "auto") for base in BASES if base != "roberta"),
        ("esm", 0, "rotary"),
    ],
    of=4,
    code=lambda base, pad, positions: (base == "roberta", positions),
)
def test_positions_after_any_padding_id_are_extended_and_read_as_before(
    base: str, pad: int, positions: str, tmp_path: Path
) -> None:
    rotary = {"position_embedding_type": "rotary"} if positions == "rotary" else {}
    source = saved(tmp_path / "short", base, pad, **rotary)
    how = {"positions": "auto" if rotary else positions}
    report = convert_checkpoint(source, tmp_path / "long", **FULL, max_length=NEW, **how)
    assert (report.plan["old_length"], report.plan["new_length"]) == (OLD, NEW)
    assert inspect_checkpoint(tmp_path / "long").max_length == NEW
    values = read_json(tmp_path / "long")
    assert values["max_position_embeddings"] == NEW + pad + 1

    auto_class = getattr(transformers, f"AutoModel{head_of(base)}")
    short, long = (auto_class.from_pretrained(folder) for folder in (source, tmp_path / "long"))
    inputs = padded(OLD, pad)
    if positions != "interpolate":
        torch.testing.assert_close(logits(long, inputs), logits(short, inputs), atol=1e-4, rtol=1e-4)
    if not rotary:
        old, new = (table(folder) for folder in (source, tmp_path / "long"))
        assert len(new) == NEW + pad + 1
        assert torch.equal(new[: pad + 1], old[: pad + 1])
        if positions == "auto":
            assert torch.equal(new[pad + 1 :], old[pad + 1 :].repeat(NEW // OLD + 1, 1)[:NEW])

    inputs = padded(NEW, pad)
    assert logits(long, inputs).isfinite().all()
    if not rotary:
        too_long = torch.cat([inputs["input_ids"][:1], torch.full((1, 1), 5)], 1)
        with pytest.raises(InputError, match=f"needs {NEW + 1} positions, but this model has {NEW};"):
            long(too_long)
        logits(
            long,
            {
                "input_ids": torch.cat([inputs["input_ids"], torch.full((3, 7), pad)], 1),
                "attention_mask": torch.cat([inputs["attention_mask"], torch.zeros(3, 7, dtype=torch.long)], 1),
            },
        )


@pytest.mark.thorough
@pytest.mark.parametrize("pad", PADS)
def test_positions_after_any_padding_id_are_extended_on_loading(pad: int, tmp_path: Path) -> None:
    source = saved(tmp_path / "short", "roberta", pad)
    convert_checkpoint(source, tmp_path / "long", **WINDOW, max_length=NEW, verify=False)
    config = hf_longattn.LongRobertaConfig.from_pretrained(
        source, max_position_embeddings=NEW + pad + 1, long_attention=WINDOW
    )
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(source, config=config)
    assert torch.equal(loaded.get_parameter(f"roberta.{TABLE}"), table(tmp_path / "long"))
    assert longest_input(loaded.config) == NEW
    enabled = hf_longattn.enable_long_attention(transformers.AutoModelForMaskedLM.from_pretrained(source), FULL)
    inputs = padded(OLD, pad)
    short = transformers.AutoModelForMaskedLM.from_pretrained(source)
    torch.testing.assert_close(logits(enabled, inputs), logits(short, inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pad", quickly(PADS, (0, 3)))
def test_stock_checkpoints_of_roberta_with_any_padding_id(pad: int, tmp_path: Path) -> None:
    source = saved(tmp_path / "short", "roberta", pad)
    for mechanism, stock in (
        ({"mechanism": "window", "window": 6}, "LongformerForMaskedLM"),
        (long_attention("bigbird"), "BigBirdForMaskedLM"),
        (FULL, "RobertaForMaskedLM"),
    ):
        convert_checkpoint(source, tmp_path / stock, **mechanism, max_length=NEW, exact_length=0, verify=False)
        report = hf_longattn.export_native(tmp_path / stock, tmp_path / f"{stock}-stock")
        assert report.plan["class"] == stock


@pytest.mark.thorough
@pytest.mark.parametrize("pad", [0, 3])
def test_longformer_with_any_padding_id_is_adopted(pad: int, tmp_path: Path) -> None:
    values = small_values("roberta", SHAPE, pad_token_id=pad)
    model = transformers.LongformerForMaskedLM(transformers.LongformerConfig(**values, attention_window=[8, 16]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(20 if name.endswith(TABLE) else 8)
    model.save_pretrained(tmp_path / "short")
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", max_length=NEW)
    assert (report.plan["old_length"], report.needs_training) == (OLD, False)
    long = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "long")
    inputs = padded(OLD, pad)
    torch.testing.assert_close(logits(long, inputs), logits(model, inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pad", [None, 65, 500, -2])
def test_conversion_refuses_a_padding_id_after_which_no_position_follows(pad: int | None, tmp_path: Path) -> None:
    source = saved(tmp_path / "short", "roberta", 1)
    change_json(source, pad_token_id=pad)
    with pytest.raises(
        CheckpointError, match=f"says pad_token_id={pad}, after which a RobertaForMaskedLM counts its positions"
    ):
        convert_checkpoint(source, tmp_path / "long", **WINDOW, max_length=NEW)
    assert not (tmp_path / "long").exists()


TRAINED, EXTENDED = 64, 256
WRITTEN = {
    "rope:self-extend": ("self_extend:window=16,group=6", 16),
    "rope:self-extend:window=8": ("self_extend:window=8,group=5", 8),
    "rope:self-extend:window=8,group=20": ("self_extend:window=8,group=20", 8),
}
"""`--positions` -> the option of the layers, and the longest text that is read as by the source."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rotary") / "source"
    plain_model("llama", "LlamaForCausalLM", num_hidden_layers=2, max_position_embeddings=TRAINED).save_pretrained(
        folder
    )
    return folder


def converted(source: Path, target: Path, positions: str, **settings: Any) -> Any:
    return convert_checkpoint(
        source, target, **{"mechanism": "full", "max_length": EXTENDED, "positions": positions, **settings}
    )


@pytest.mark.thorough
@every_case("positions", WRITTEN)
def test_self_extend_reads_short_texts_as_its_source_and_generates_as_it_reads(
    source: Path, tmp_path: Path, positions: str
) -> None:
    relative, unchanged = WRITTEN[positions]
    target = tmp_path / positions.replace(":", "-")
    converted(source, target, positions)
    model, plain = LongLlamaForCausalLM.from_pretrained(target).eval(), LlamaForCausalLM.from_pretrained(source).eval()
    assert model.config.rope_parameters == plain.config.rope_parameters
    assert model.config.max_position_embeddings == EXTENDED
    assert [layer["relative"] for layer in inspect_checkpoint(target).to_dict()["layers"]] == [relative] * 2
    ids = tokens(2, 100)
    with torch.no_grad():
        found, expected = model(ids).logits, plain(ids).logits
        torch.testing.assert_close(found[:, :unchanged], expected[:, :unchanged], atol=1e-4, rtol=0)
        assert not torch.allclose(found[:, -10:], expected[:, -10:], atol=1e-2)
        text = ids[:, :60]
        for _ in range(20):
            text = torch.cat([text, model(text, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    arguments: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": 20,
        "eos_token_id": None,
        "disable_compile": True,
    }
    for cache in ("dynamic", "static"):
        assert torch.equal(model.generate(ids[:, :60], cache_implementation=cache, **arguments), text)


@pytest.mark.thorough
@every_case("positions", ["rope:self-extend"])
def test_compiled_self_extend_equals_the_model(source: Path, tmp_path: Path, positions: str) -> None:
    target = tmp_path / positions.replace(":", "-")
    converted(source, target, positions, verify=False)
    torch.compiler.reset()
    model = LongLlamaForCausalLM.from_pretrained(target).eval()
    compiled = torch.compile(model, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for length in (TRAINED // 2, EXTENDED):
            ids = tokens(2, length)
            torch.testing.assert_close(
                compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits, atol=1e-5, rtol=0
            )


def test_self_extend_keeps_the_scaling_of_its_source(source: Path, tmp_path: Path) -> None:
    scaled = LlamaForCausalLM.from_pretrained(source)
    scaled.config.rope_parameters = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
    scaled.save_pretrained(tmp_path / "scaled")
    assert converted(tmp_path / "scaled", tmp_path / "longer", "rope:self-extend").verified
    assert LongLlamaForCausalLM.from_pretrained(tmp_path / "longer").config.rope_parameters["rope_type"] == "linear"


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a window of all distances": (
        "rope:self-extend:window=64",
        {},
        r"trained for distances below 64; type a smaller window",
    ),
    "a group of none": (
        "rope:self-extend:group=0",
        {},
        "Setting 'group' of relative positions 'self_extend' is 0, but must be at least 1",
    ),
    "too small a group": (
        "rope:self-extend:group=2",
        {},
        r"distances of up to 135 at 256 tokens, .* type group=6 or more",
    ),
    "no setting": (
        "rope:self-extend:groups=2",
        {},
        "have no setting 'groups'; settings are: window, group. Did you mean 'group'",
    ),
    "no number": ("rope:self-extend:window=many", {}, "'many', but must be a whole number"),
    "no full layer": (
        "rope:self-extend",
        {"mechanism": "window", "window": 32},
        "in full attention, but no layer has that",
    ),
    "a far layer": (
        "rope:self-extend",
        {"layers": {0: {"mechanism": "bigbird"}}},
        "but mechanism 'bigbird' sees beyond the 64 tokens",
    ),
    "another term": ("rope:self-extend", {"relative": "alibi"}, "contradicts relative='alibi'; leave out one of them"),
    "another mechanism": (
        "rope:none",
        {"mechanism": "window", "relative": "self_extend"},
        "needs mechanism 'full', but the mechanism is 'window'",
    ),
}


@every_case("case", REFUSED)
def test_self_extend_refuses_settings_that_cannot_be(source: Path, tmp_path: Path, case: str) -> None:
    positions, settings, message = REFUSED[case]
    with pytest.raises(LongAttentionError, match=message):
        converted(source, tmp_path / "refused", positions, **settings)


def test_self_extend_leaves_layers_with_near_windows_alone(source: Path, tmp_path: Path) -> None:
    settings = {"layers": {0: {"mechanism": "window", "window": 32}}}
    converted(source, tmp_path / "mixed", "rope:self-extend", verify=False, **settings)
    attention = LongLlamaForCausalLM.from_pretrained(tmp_path / "mixed").config.long_attention
    assert [attention.for_layer(layer)[1].get("relative") for layer in range(2)] == [
        None,
        "self_extend:window=16,group=6",
    ]


def test_a_rotary_decoder_of_windows_and_sinks_has_no_end(
    checkpoint: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its config stays the source's, nothing limits its tokenizer, and `generate` says nothing of the trained
    length."""
    folder, settings = (
        checkpoint("LlamaForCausalLM", tokenizer="gpt2"),
        {"mechanism": "window", "window": 16, "num_sinks": 4},
    )
    report = convert_checkpoint(folder, tmp_path / "long", **settings)
    assert report.plan["short_texts"] == "of any length: no query looks back more than 20 positions, its own included"
    assert check_of(report, "equal where the mechanism covers the input").values["length"] == 20
    assert (
        "- Its texts may be of any length: no query looks back more than 20 positions"
        in (tmp_path / "long" / "README.md").read_text()
    )
    model, plain = LongLlamaForCausalLM.from_pretrained(tmp_path / "long"), LlamaForCausalLM.from_pretrained(folder)
    for field in ("rope_parameters", "max_position_embeddings"):
        assert getattr(model.config, field) == getattr(plain.config, field)
    limits = [transformers.AutoTokenizer.from_pretrained(tmp_path / "long").model_max_length]
    transformers.utils.logging.warning_once.cache_clear()
    text, arguments = tokens(1, 100), {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert model.generate(text, **arguments).shape == (1, 120), "20 new tokens, transformers' default"
    assert not [record for record in caplog.records if "maximum length" in record.message]
    with pytest.raises(ValueError, match="`max_length` is set to 64"):
        plain.generate(text, **arguments)
    plain.generate(text, max_new_tokens=2, **arguments)
    assert [record for record in caplog.records if "maximum length" in record.message]
    assert (
        convert_checkpoint(folder, tmp_path / "longer", **settings, max_length=EXTENDED).plan["positions"]
        == "rope:none"
    )
    limits.append(transformers.AutoTokenizer.from_pretrained(tmp_path / "longer").model_max_length)
    assert limits == [VERY_LARGE_INTEGER, EXTENDED]
