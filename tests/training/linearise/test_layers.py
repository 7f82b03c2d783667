"""Layers that keep softmax attention: which, how many, and what is saved."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

import hf_longattn  # noqa: F401 (registers the long models)
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import OptionError
from hf_longattn.training.linearise.layers import choose_layers, divergences, keep_softmax, number_of_layers, own_sites, with_softmax
from hf_longattn.training.linearise.stages import Stages
from hf_longattn.training.tasks.linearise import linearise_attention
from tests.grids import grid
from tests.training.conftest import checkpoint
from tests.training.linearise.conftest import Start


def test_choose_layers_takes_those_whose_softmax_gains_most() -> None:
    cost = {0: 1.0, 1: 5.0, 2: 0.5, 3: 3.0}
    found = choose_layers(lambda sets: [sum(cost[layer] for layer in cost if layer not in kept) for kept in sets], [0, 1, 2, 3], 2)
    assert found is not None
    assert found.kept == (1, 3)
    assert found.importance == cost
    assert found.compared == {
        "chosen": 1.5, "one after another": 1.5, "the most important alone": 1.5, "evenly spaced": 1.5, "the first": 3.5, "the last": 6.0,
        "none": 9.5,
    }  # fmt: skip
    assert choose_layers(lambda sets: [0.0 for _ in sets], [0, 1], 1) is None


def test_choose_layers_finds_a_layer_that_gains_only_after_another() -> None:
    """As measured in model_cards/bert-python-512 with hedgehog: wrong inputs from layer 0 hide what softmax attention gains in layer 1."""
    asked: list[frozenset[int]] = []

    def divergences(sets: Sequence[frozenset[int]]) -> list[float]:
        asked.extend(sets)
        return [0.09 if {0, 1} <= kept else 0.84 if 0 in kept else 2.9 if 1 in kept else 2.7 - 0.01 * len(kept) for kept in sets]

    found = choose_layers(divergences, [0, 1, 2, 3], 2)
    assert found is not None
    assert found.kept == (0, 1)
    assert found.importance[1] < 0 < found.importance[3]
    assert found.compared["the most important alone"] == 0.84
    assert len(asked) == len(set(asked)), "no set is measured twice"


def test_choose_layers_takes_the_best_of_the_choices_compared() -> None:
    """Two layers that gain only together are found if they are evenly spaced, first or last."""
    found = choose_layers(lambda sets: [0.1 if {2, 3} <= kept else 1.0 - 0.1 * (0 in kept) for kept in sets], [0, 1, 2, 3], 2)
    assert found is not None
    assert found.kept == (2, 3)
    assert found.compared["one after another"] == 0.9
    assert found.compared["chosen"] == found.compared["the last"] == found.divergence == 0.1


def test_softmax_layers_is_a_number_or_a_share_below_all_layers() -> None:
    for asked, count in ((1.0, 1), (3.0, 3), (0.25, 1), (0.5, 2), (0.01, 1), (0.74, 3)):
        assert number_of_layers(asked, 4, "softmax_layers") == count
    for asked in (4.0, 5.0, 0.9, 1.5):
        with pytest.raises(OptionError, match="so 1 to 3 of them can keep softmax attention; give softmax_layers 2"):
            number_of_layers(asked, 4, "softmax_layers")


def converted(folder: Path, tokenizer: PreTrainedTokenizerBase, mechanism: str, **options: Any) -> Any:
    """A model whose layer 1 attends sharply, so that its mechanism costs more than layer 0's."""
    plain = checkpoint("mlm", folder / "short", tokenizer)
    weights = load_file(folder / "short" / "model.safetensors")
    sharp = {
        name: value * (12 if "layer.1.attention" in name and "LayerNorm" not in name else 20 if "word_embeddings" in name else 1)
        for name, value in weights.items()
    }
    save_file(sharp, folder / "short" / "model.safetensors", metadata={"format": "pt"})
    convert_checkpoint(plain, folder / "long", mechanism=mechanism, verify=False, **options)
    return AutoModelForMaskedLM.from_pretrained(folder / "long").eval()


def held_out() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(10, 1000, (3, 64), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[2, 50:] = 0
    labels = ids.masked_fill((torch.arange(64) % 4 > 0) | (mask == 0), -100)
    return [{"input_ids": ids, "attention_mask": mask, "labels": labels}]


def test_divergence_of_layer_sets_is_the_kl_from_all_softmax_layers(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model, (batch,) = converted(tmp_path, tokenizer, "hedgehog"), held_out()
    nothing, one, both = divergences(model, [(), (1,), (0, 1)], [batch])
    original = AutoModelForMaskedLM.from_pretrained(tmp_path / "short").eval()
    read = {name: value for name, value in batch.items() if name != "labels"}
    at = batch["labels"] != -100
    with torch.no_grad():
        wanted, found = (each(**read).logits[at].double().log_softmax(-1) for each in (original, model))
    assert nothing == pytest.approx(float((wanted.exp() * (wanted - found)).sum(-1).mean()), rel=1e-3)
    assert abs(one) < 0.5 * nothing
    assert both == pytest.approx(0.0, abs=1e-6)


def test_keep_softmax_leaves_other_layers_as_learned_and_is_saved(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model, batches = converted(tmp_path, tokenizer, "hedgehog"), held_out()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "long_attention" in name:
                parameter.add_(0.1)
    learned = {name: value.clone() for name, value in own_sites(model)[0].mechanism.state_dict().items()}
    with torch.no_grad(), with_softmax(model, (1,)):
        expected = model(input_ids=batches[0]["input_ids"]).logits
    found = keep_softmax(model, 0.5, batches)
    assert found.kept == (1,)
    assert all(torch.equal(learned[name], value) for name, value in own_sites(model)[0].mechanism.state_dict().items())
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(again(input_ids=batches[0]["input_ids"]).logits, expected, atol=1e-5, rtol=1e-5)
    assert again.config.long_attention.to_dict() == {"mechanism": "hedgehog", "layers": {"1": {"mechanism": "full"}}}


def test_restored_softmax_layers_keep_tied_linformer_projections(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Linformer's projections may be one for all layers: the owner's layer may be the one that is restored."""
    model, batches = converted(tmp_path, tokenizer, "linformer", rank=8, sharing="layerwise"), held_out()
    with torch.no_grad(), with_softmax(model, (0,)):
        expected = model(input_ids=batches[0]["input_ids"]).logits
    from hf_longattn.training.linearise.layers import restore_softmax

    restore_softmax(model, (0,))
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(again(input_ids=batches[0]["input_ids"]).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "stage"), grid([("mlm", "both"), ("clm", "1"), ("llama", "2")], lambda kind, stage: stage == "both"))
def test_linearise_softmax_layers_keeps_one_layer_in_every_saved_model(kind: str, stage: str, start: Start, tmp_path: Path) -> None:
    report = linearise_attention(
        *start(kind=kind, certain=True, stage=stage, softmax_layers=1.0, finetune_loss="kl", transfer_steps=2, finetune_steps=2)
    )
    kept = report["softmax_layers"]["kept"]
    assert len(kept) == 1
    assert report["softmax_layers"]["layers"][kept[0]]["share"] < 1e-9
    for folder in [tmp_path / "out"] + [tmp_path / "out" / "stage1"] * (stage == "both"):
        config = json.loads((folder / "config.json").read_text())
        assert config["long_attention"]["layers"] == {str(kept[0]): {"mechanism": "full"}}
        assert len({name.split("long_attention")[0] for name in load_file(folder / "model.safetensors") if "long_attention" in name}) == 1
    page = (tmp_path / "out" / "distillation_report.md").read_text()
    assert f"Layer {kept[0]} keeps softmax attention" in page
    assert "with softmax layers" in page


def test_linearise_refuses_softmax_layers_that_do_not_fit(start: Start) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("the model has 2 layers, so 1 to 1 of them can keep", {"softmax_layers": 2.0}),
        ("must be a number of layers, or a share", {"softmax_layers": -1.0}),
        ("must be a number of layers, or a share", {"softmax_layers": 1.5}),
        ("1 of the layers have softmax attention already", {"softmax_layers": 1.0, "layers": "0=full"}),
        ("so no layer is more important", {"softmax_layers": 1.0, "mechanism": "window", "option": ["window=512"], "stage": "2"}),
    ]
    for words, changes in cases:
        with pytest.raises(OptionError, match=re.escape(words)):
            linearise_attention(*start(certain=True, transfer_steps=1, overwrite=True, **changes))


@pytest.mark.thorough
def test_linearise_refuses_too_many_softmax_layers_before_stage_1(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stages, "all_stages", lambda *given: pytest.fail("trained"))
    with pytest.raises(OptionError, match="1 to 1 of them can keep"):
        linearise_attention(*start(certain=True, softmax_layers=2.0))
