"""The diagnosis of a model: sums of rows, lengths and candidates, what follows from the numbers, and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hf_longattn
from hf_longattn.cli.inspect import diagnosis_report
from hf_longattn.cli.terminal import show
from hf_longattn.engines.call import AttentionCall
from hf_longattn.errors import BackendError, CheckpointError, InputError, OptionError
from hf_longattn.inspect import (
    Candidate,
    Diagnosis,
    LayerDiagnosis,
    LengthDiagnosis,
    captured_mass,
    diagnose,
    layer_attention,
)
from hf_longattn.inspect.candidates import usual_candidates
from hf_longattn.inspect.layer_attention import MEANS, LayerAttention, RowSums, distance_bins, sampled_rows
from hf_longattn.inspect.texts import read_lengths
from hf_longattn.mechanisms import list_mechanisms
from hf_longattn.mechanisms.common.layout import full_pairs
from scripts.dev.tools.small_models import small_config
from tests.cases import every_case
from tests.largest_tensor import LargestTensor
from tests.reference.small_models import long_model
from tests.saved import change_json

HEADS, WIDTH = 4, 8


def layer(length: int, causal: bool = False, **call: object) -> LayerAttention:
    torch.manual_seed(length)
    q = torch.randn(1, HEADS, length, WIDTH)
    k = torch.randn(1, HEADS // 2, length, WIDTH)
    return LayerAttention(q, k, AttentionCall.of(causal=causal, **call))


def assert_equal(left: LayerDiagnosis, right: LayerDiagnosis) -> None:
    tensors = [(layer.numbers, layer.distance, layer.captured) for layer in (left, right)]
    torch.testing.assert_close(*tensors, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_the_size_of_blocks_of_scores_changes_no_sum(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = layer(90, causal)
    means = []
    for cells in (1, 5000, 1 << 22):
        monkeypatch.setattr(layer_attention, "SCORES_IN_MEMORY", cells)
        sums = RowSums(attention, 1)
        sums.add(attention, torch.arange(90), [lambda rows, scores: rows[:, None] - torch.arange(90) < 8])
        means.append(sums.mean())
    for blocked in means[1:]:
        assert_equal(blocked, means[0])


def test_padding_is_neither_query_nor_key() -> None:
    whole = layer(50)
    mask = torch.arange(60)[None] < 50
    padded = LayerAttention(
        *(torch.nn.functional.pad(x, (0, 0, 0, 10), value=3.0) for x in (whole.q, whole.k)),
        AttentionCall.of(padding_mask=mask),
    )
    sums = [RowSums(whole, 0), RowSums(padded, 0)]
    for total, attention in zip(sums, (whole, padded), strict=True):
        total.add(attention, torch.arange(attention.length), [])
    assert_equal(sums[0].mean(), sums[1].mean())


def test_sampled_queries_are_spread_and_repeatable() -> None:
    assert torch.equal(sampled_rows(10, 20), torch.arange(10))
    drawn = sampled_rows(10_000, 100)
    assert torch.equal(drawn, sampled_rows(10_000, 100))
    assert torch.equal(drawn // 100, torch.arange(100)), "one from each part"
    assert len({int(one) % 100 for one in drawn}) > 40, "not always at the same place of a part"


NAMES = ("window:window=16", "window:window=64", "top_k:num_keys=8", "full", "linear")


def at(length: int, kept: tuple[float, ...], costs: tuple[float, ...], effective: float) -> LengthDiagnosis:
    """Two layers of two heads; layer 1 spreads twice as far and keeps a tenth less."""
    bins = tuple(distance_bins(length - 1))
    everything = full_pairs(length, False)
    layers = tuple(
        LayerDiagnosis(
            f"layer.{number}",
            "full",
            {
                name: torch.full((2,), effective * (1 + number) if name == "effective_tokens" else 0.5).double()
                for name in MEANS
            },
            torch.full((2, len(bins)), 1 / len(bins)).double(),
            torch.tensor([[*(one * (1 - 0.1 * number) for one in kept), torch.nan]] * 2).double(),
        )
        for number in range(2)
    )
    pairs = (*(round(one * everything) for one in costs), everything)
    return LengthDiagnosis(length, 10, bins, layers, pairs, everything, 1.0)


def diagnosis(*lengths: LengthDiagnosis, **changes: object) -> Diagnosis:
    values = {
        "model": "short",
        "model_class": "BertModel",
        "text": "text",
        "device": "CPU",
        "causal": False,
        "is_long": False,
        "reasons": {"linear": "is no softmax."},
        **changes,
    }
    return Diagnosis(candidates=tuple(map(Candidate.read, NAMES)), lengths=lengths, **values)  # type: ignore[arg-type]


def chosen(report: Diagnosis) -> str:
    number = report.chosen()
    return "" if number is None else str(report.candidates[number])


COSTS = (0.1, 0.3, 1.0, 1.0)


def test_the_cheapest_candidate_that_keeps_enough_is_chosen() -> None:
    report = diagnosis(at(256, (0.96, 0.99, 0.97, 1.0), COSTS, 20))
    assert chosen(report) == "window:window=16"
    assert report.mass(0) == pytest.approx(0.96 * 0.95)
    assert report.least(0) == (pytest.approx(0.96 * 0.9), 1)
    assert report.to_dict()["chosen"]["flags"] == ["--mechanism", "window", "--option", "window=16"]


def test_of_candidates_that_cost_the_same_the_one_that_keeps_more_is_chosen() -> None:
    assert chosen(diagnosis(at(256, (0.96, 0.99, 0.97, 1.0), (0.121, 0.124, 1.0, 1.0), 20))) == "window:window=64"


def test_sinks_are_compared_in_causal_layers_only() -> None:
    """Encoders have longformer, whose global token does what sinks do."""
    for causal in (False, True):
        with_sinks = [candidate for candidate in usual_candidates(causal) if "num_sinks" in candidate.options]
        assert [str(candidate) for candidate in with_sinks] == [
            f"window:window={window},num_sinks=4" for window in (256, 512, 1024)
        ] * causal


def test_what_keeps_most_for_half_the_cost_is_chosen_if_no_candidate_keeps_enough(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = diagnosis(at(256, (0.2, 0.6, 0.97, 1.0), COSTS, 20), is_long=True)
    assert chosen(report) == "window:window=64"
    show(report.to_dict(), diagnosis_report(report))
    assert (
        "To convert the checkpoint that this model was made from so, add to longattn convert:"
        in capsys.readouterr().out
    )


def test_no_candidate_is_chosen_if_none_is_cheaper_than_full_attention(capsys: pytest.CaptureFixture[str]) -> None:
    report = diagnosis(at(256, (0.2, 0.6, 0.97, 1.0), (1.0, 1.0, 1.0, 1.0), 20))
    assert report.chosen() is None
    assert (
        report.conclusion()
        == "At 256 tokens the heads of layer 1 spread over 40 tokens, those of layer 0 over 20 tokens."
    )
    show(report.to_dict(), diagnosis_report(report))
    assert "longattn convert" not in capsys.readouterr().out
    even = diagnosis(at(4096, (0.2, 0.6, 0.97, 1.0), (1.0, 1.0, 1.0, 1.0), 2047.5))
    assert (
        even.conclusion()
        == "At 4,096 tokens the heads of layer 1 spread over 4,096 tokens, those of layer 0 over 2,000 tokens."
    )


def test_dilution_is_described_as_growth() -> None:
    sentences = {}
    for last in (10.5, 30.0, 79.0):
        sentences[last] = diagnosis(at(64, (1.0,) * 4, COSTS, 10), at(512, (1.0,) * 4, COSTS, last)).dilution()
    assert "hardly grows" in sentences[10.5]
    assert "more slowly than the text" in sentences[30.0]
    assert "almost as fast as the text" in sentences[79.0]
    assert diagnosis(at(64, (1.0,) * 4, COSTS, 10)).dilution() == ""


def test_typed_lengths_are_read() -> None:
    assert read_lengths("512,2K,1k,512") == [512, 1024, 2048]
    for text in ("", "x", "-1", "1.5", "9" * 20, "٣"):
        with pytest.raises(OptionError):
            read_lengths(text)


Make = Callable[[str], Path]


def test_a_diagnosis_has_every_length_layer_head_and_candidate(diagnosis: Diagnosis) -> None:
    assert [row.length for row in diagnosis.lengths] == [64, 128, 256]
    for report in diagnosis.lengths:
        assert report.captured().shape == (3, 4, 6)
        assert report.number("effective_tokens").shape == (3, 4)
        assert len(report.layers[0].distance[0]) == len(report.bins)
        for layer in report.layers:
            torch.testing.assert_close(layer.distance.sum(-1), torch.ones(4).double(), atol=1e-5, rtol=0)
    assert list(diagnosis.reasons) == ["linear"]
    assert "not a softmax over some of the keys" in diagnosis.reasons["linear"]
    assert diagnosis.last.captured()[..., 5].isnan().all()
    full = [str(candidate) for candidate in diagnosis.candidates].index("full")
    torch.testing.assert_close(diagnosis.last.captured()[..., full], torch.ones(3, 4).double(), atol=1e-5, rtol=0)


def test_the_json_of_a_diagnosis_is_complete_and_strict(diagnosis: Diagnosis) -> None:
    values = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert values["format"] == 3
    layer = values["lengths"][-1]["layers"][0]
    assert len(layer["captured"]["window:window=32"]) == 4
    assert "linear" not in layer["captured"]
    assert values["candidates"][-1]["not_applicable"]
    assert values["chosen"]["flags"][0] == "--mechanism"


def test_captured_mass_has_a_number_for_every_layer_head_and_candidate(checkpoint: Make) -> None:
    model = transformers.AutoModel.from_pretrained(checkpoint("llama"))
    ids = torch.randint(5, 300, (128,))
    report = captured_mass(
        model, ids, ["window:window=16", Candidate("longformer", {"window": "16"}), "linformer"], queries=50
    )
    assert report.mass.shape == (3, 4, 3)
    assert list(report.reasons) == ["linformer"]
    assert report.mass[..., 2].isnan().all()
    assert bool((report.mass[..., 0] <= report.mass[..., 1] + 1e-6).all())


def test_a_diagnosis_of_a_model_that_trains_has_no_dropout() -> None:
    longer = long_model("bert", None, {"mechanism": "window"}, hidden_dropout_prob=0.5)
    ids = torch.randint(5, 99, (64,))
    report = [
        diagnose(longer.train(mode), ids, lengths=[48], candidates=["full"]).last.number("effective_tokens")
        for mode in (True, False)
    ]
    assert torch.equal(*report)
    assert not longer.training


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_every_mechanism_is_compared_or_says_why_not(base: str, checkpoint: Make, text: Path) -> None:
    report = diagnose(checkpoint(base), text, lengths=[64])
    assert {candidate.mechanism for candidate in report.candidates} == set(list_mechanisms(grid=False))
    assert all(reason.endswith(".") for reason in report.reasons.values())
    assert len(report.applicable()) > 15
    assert report.last.full_pairs == {"bert": 64 * 64, "llama": 64 * 65 // 2}[base]
    assert [str(candidate) for candidate in usual_candidates(base == "llama")] == [
        str(candidate) for candidate in report.candidates
    ]
    assert all(Candidate.read(str(candidate)).options == candidate.options for candidate in report.candidates)


def test_a_diagnosis_of_a_model_in_memory_leaves_it_unchanged(checkpoint: Make, text: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model = AutoModelForMaskedLM.from_pretrained(checkpoint("bert"))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("bert"))
    ids = torch.randint(5, 500, (1, 200))
    before = model.eval()(ids).logits
    found = [
        diagnose(model, text, processor=tokenizer, lengths=[256], candidates=["window:window=64"]),
        diagnose(checkpoint("bert"), text, lengths=[256], candidates=["window:window=64"]),
    ]
    assert found[0].mass(0) == pytest.approx(found[1].mass(0), rel=1e-5)
    assert torch.equal(model(ids).logits, before)


def test_lengths_of_a_diagnosis_end_where_the_model_ends(checkpoint: Make, text: Path, tmp_path: Path) -> None:
    report = diagnose(checkpoint("bert"), text, candidates=["full"])
    assert [row.length for row in report.lengths] == [256]
    assert report.notes == ("The model ends at 256 tokens; convert it to see its attention in longer texts.",)


REFUSED = {
    "a text that is too short": (
        {"lengths": [128], "text": "three short words"},
        InputError,
        "has .* tokens, but 128 are needed",
    ),
    "an empty text": ({"text": " \n"}, CheckpointError, "is empty"),
    "a missing text": (
        {"text": Path("/nowhere/text.txt")},
        CheckpointError,
        "The text '/nowhere/text.txt' cannot be read",
    ),
    "a length beyond the model": ({"lengths": [512]}, InputError, "ends at 256 tokens.*convert it first"),
    "a length that is too small": ({"lengths": [3]}, InputError, "start at 16"),
    "an unknown mechanism": ({"candidates": ["windw"]}, OptionError, "Did you mean 'window'"),
    "an unknown option": ({"candidates": ["window:widht=3"]}, OptionError, "has no option"),
    "a file's name as the text": ({"text": __file__}, OptionError, r"give Path\("),
    "no queries": ({"queries": 0}, OptionError, "at least 1 query"),
    "an unknown device": ({"device": "toaster"}, OptionError, "There is no device 'toaster'"),
}


@every_case("case", REFUSED)
def test_a_diagnosis_refuses_texts_lengths_and_options_that_do_not_fit(
    case: str, checkpoint: Make, text: Path
) -> None:
    settings, kind, sentence = REFUSED[case]
    arguments = {"text": text, "lengths": [64], **settings}
    with pytest.raises(kind, match=sentence) as refused:
        diagnose(checkpoint("bert"), **arguments)
    assert "\n" not in str(refused.value)


def test_a_diagnosis_of_a_quantised_checkpoint_is_refused(checkpoint: Make, text: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("bert"), tmp_path / "quantised")
    change_json(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match="quantised weights"):
        diagnose(folder, text, lengths=[64])


SMALL = {
    "vocab_size": 99,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
MEMORY = {"mechanism": "recurrent_memory", "segment_length": 16, "num_memory_tokens": 2}
UNSUITABLE: dict[str, tuple[Any, str]] = {
    "LongformerModel": (
        transformers.LongformerConfig(**SMALL, attention_window=[4]),
        "does not take its attention from transformers' AttentionInterface",
    ),
    "ViTModel": (
        transformers.ViTConfig(**SMALL),
        "reads images, but attention is measured on texts alone",
    ),
    "LongLlamaModel": (hf_longattn.LongLlamaConfig(**SMALL, long_attention=MEMORY), "segment by segment"),
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_a_diagnosis_refuses_models_whose_attention_to_a_text_cannot_be_watched(name: str) -> None:
    config, sentence = UNSUITABLE[name]
    with pytest.raises(BackendError, match=sentence):
        diagnose(
            getattr(hf_longattn if name.startswith("LongLlama") else transformers, name)(config),
            torch.arange(5, 50),
            lengths=[32],
        )


def test_a_diagnosis_makes_no_tensor_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all candidates: twice the tokens make no tensor more than about twice as large."""
    monkeypatch.setattr(layer_attention, "SCORES_IN_MEMORY", 1 << 14)
    model = transformers.BertModel(transformers.BertConfig(**SMALL, max_position_embeddings=2048)).eval()
    largest = []
    for length in (1024, 2048):
        with LargestTensor() as mode:
            diagnose(model, torch.randint(5, 99, (length,)), lengths=[length], queries=16)
        largest.append(mode.elements)
    assert largest[1] < 2.1 * largest[0], largest


def test_a_refused_diagnosis_leaves_the_model_unchanged() -> None:
    model = transformers.BertModel(small_config("bert")).train()
    before = {name for name, _ in model.named_modules()}
    with pytest.raises(OptionError):
        diagnose(
            model,
            torch.arange(5, 50),
            lengths=[32],
            candidates=["lsh:num_buckets=4,shared_qk=1", "window:dilation=1+2+3"],
        )
    assert {name for name, _ in model.named_modules()} == before
    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_layers_with_different_numbers_of_heads_are_diagnosed(capsys: pytest.CaptureFixture[str]) -> None:
    model = long_model("bert", None, {"mechanism": "window", "window": 16}, kept_heads={"0": 1})
    ids = torch.randint(5, 99, (128,))
    report = diagnose(model, ids, lengths=[64, 128], candidates=["window:window=16"], queries=16)
    assert (~report.last.number("effective_tokens").isnan()).sum(1).tolist() == [1, 4, 4]
    assert report.mass(0) == pytest.approx(
        float(torch.cat([layer.captured[:, 0] for layer in report.last.layers]).mean())
    )
    show(report.to_dict(), diagnosis_report(report))
    assert "nan" not in capsys.readouterr().out
    assert "nan" not in (report.conclusion() + report.dilution() + json.dumps(report.to_dict())).lower()
