"""Checkpoints whose positions start after the row of a padding token other than 1, as those of new vocabularies do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import hf_longattn
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import CheckpointError, InputError
from hf_longattn.inputs.modality import modality_in
from hf_longattn.inspect import inspect_checkpoint
from hf_longattn.modeling.family.definition import FAMILIES, longest_input
from scripts.dev.tools.small_models import IN_FULL
from tests.cases import every_case
from tests.grids import quickly
from tests.stock_cases import long_attention

OLD, NEW = 64, 200
PADS = (0, 1, 3)
SHAPE = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
OF_PAGES: dict[str, dict[str, Any]] = {"markuplm": {"max_depth": 4}}
"""Sizes of the places that they read of every token; they have no head over words."""
FULL, WINDOW = {"mechanism": "full"}, {"mechanism": "window", "window": 16}
BASES = tuple(base for base in IN_FULL if any(table.offset == "padding" for table in FAMILIES[base].position_tables))
TABLE = "embeddings.position_embeddings.weight"


def head_of(base: str) -> str:
    """The ending of the class that has logits of every token."""
    return "ForTokenClassification" if base in OF_PAGES else "ForMaskedLM"


def saved(folder: Path, base: str, pad: int, **values: Any) -> Path:
    """A short checkpoint of ``base`` whose padding token has the id ``pad``."""
    values = {**OF_PAGES.get(base, {}), **values}
    config = transformers.AutoConfig.for_model(
        base, **{**SHAPE, "max_position_embeddings": OLD + pad + 1, "pad_token_id": pad, "mask_token_id": 4, **values}
    )
    torch.manual_seed(0)
    model = getattr(transformers, next(name for name in FAMILIES[base].model_classes if name.endswith(head_of(base))))(config)
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


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def table(folder: Path) -> Tensor:
    return next(tensor for name, tensor in tensors(folder).items() if name.endswith(TABLE))


@every_case(
    ("base", "pad", "positions"),
    [
        *(("roberta", pad, "auto") for pad in PADS),
        ("roberta", 3, "interpolate"),
        ("roberta", 0, "random"),
        *((base, 3, "auto") for base in BASES if base != "roberta"),
        ("esm", 0, "rotary"),
    ],
    of=4,
    code=lambda base, pad, positions: (base == "roberta", positions),
)
def test_positions_after_any_padding_id_are_extended_and_read_as_before(base: str, pad: int, positions: str, tmp_path: Path) -> None:
    rotary = {"position_embedding_type": "rotary"} if positions == "rotary" else {}
    source = saved(tmp_path / "short", base, pad, **rotary)
    how = {"positions": "auto" if rotary else positions}
    report = convert_checkpoint(source, tmp_path / "long", **FULL, max_length=NEW, **how)
    assert (report.verified, report.plan["old_length"], report.plan["new_length"]) == (True, OLD, NEW)
    assert inspect_checkpoint(tmp_path / "long").max_length == NEW
    values = json.loads((tmp_path / "long" / "config.json").read_text())
    modality = modality_in(values)
    assert (values["max_position_embeddings"], modality.sizes(modality.config_of(values)).new.tokens) == (NEW + pad + 1, NEW)

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
        logits(long, {"input_ids": torch.cat([inputs["input_ids"], torch.full((3, 7), pad)], 1),
                      "attention_mask": torch.cat([inputs["attention_mask"], torch.zeros(3, 7, dtype=torch.long)], 1)})  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("pad", PADS)
def test_positions_after_any_padding_id_are_extended_on_loading(pad: int, tmp_path: Path) -> None:
    source = saved(tmp_path / "short", "roberta", pad)
    convert_checkpoint(source, tmp_path / "long", **WINDOW, max_length=NEW, verify=False)
    config = hf_longattn.LongRobertaConfig.from_pretrained(source, max_position_embeddings=NEW + pad + 1, long_attention=WINDOW)
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
        assert (report.plan["class"], report.verified) == (stock, True)


@pytest.mark.thorough
@pytest.mark.parametrize("pad", [0, 3])
def test_longformer_with_any_padding_id_is_adopted(pad: int, tmp_path: Path) -> None:
    values = {**SHAPE, "max_position_embeddings": OLD + pad + 1, "pad_token_id": pad, "attention_window": [8, 16]}
    torch.manual_seed(0)
    model = transformers.LongformerForMaskedLM(transformers.LongformerConfig(**values))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(20 if name.endswith(TABLE) else 8)
    model.save_pretrained(tmp_path / "short")
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", max_length=NEW)
    assert (report.verified, report.plan["old_length"], report.needs_training) == (True, OLD, False)
    long = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "long")
    inputs = padded(OLD, pad)
    torch.testing.assert_close(logits(long, inputs), logits(model, inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pad", [None, 65, 500, -2])
def test_conversion_refuses_a_padding_id_after_which_no_position_follows(pad: int | None, tmp_path: Path) -> None:
    source = saved(tmp_path / "short", "roberta", 1)
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**values, "pad_token_id": pad}))
    with pytest.raises(CheckpointError, match=f"says pad_token_id={pad}, after which a RobertaForMaskedLM counts its positions"):
        convert_checkpoint(source, tmp_path / "long", **WINDOW, max_length=NEW)
    assert not (tmp_path / "long").exists()
