"""What follows from the numbers: the recommended mechanism, the front, the sentences."""

from __future__ import annotations

import pytest
import torch

from hf_longattn.diagnostics import Candidate, Diagnosis, LayerDiagnosis, LengthDiagnosis, html_page
from hf_longattn.diagnostics.candidates import usual_candidates
from hf_longattn.diagnostics.diagnosis import Target, percent
from hf_longattn.diagnostics.layer_attention import MEANS, distance_bins
from hf_longattn.diagnostics.texts import read_depths, read_lengths
from hf_longattn.errors import OptionError
from hf_longattn.evaluation.token_loss import LossChange
from hf_longattn.mechanisms.common.layout import full_pairs

NAMES = ("window:window=16", "window:window=64", "top_k:num_keys=8", "full", "linear")


def at(length: int, kept: tuple[float, ...], costs: tuple[float, ...], effective: float) -> LengthDiagnosis:
    """Two layers of two heads; layer 1 spreads twice as far and keeps a tenth less."""
    bins, everything = tuple(distance_bins(length)), full_pairs(length, False)
    layers = tuple(
        LayerDiagnosis(
            f"layer.{number}",
            "full",
            {name: torch.full((2,), effective * (1 + number) if name == "effective_tokens" else 0.5).double() for name in MEANS},
            torch.full((2, len(bins)), 1 / len(bins)).double(),
            torch.tensor([[*(one * (1 - 0.1 * number) for one in kept), torch.nan]] * 2).double(),
            torch.empty(2, 0).double(),
        )
        for number in range(2)
    )
    pairs = (*(round(one * everything) for one in costs), everything)
    return LengthDiagnosis(length, 10, bins, layers, pairs, everything, 0, 0.0, 1.0)


def diagnosis(*lengths: LengthDiagnosis, **changes: object) -> Diagnosis:
    values = {"model": "short", "model_class": "BertModel", "text": "text", "device": "CPU", "causal": False,
              "is_long": False, "trained_length": None, "within_mechanism": False, "needle": None,
              "target": Target("short", "short-256", 256), "reasons": {"linear": "is no softmax."}, **changes}  # fmt: skip
    return Diagnosis(candidates=tuple(map(Candidate.read, NAMES)), lengths=lengths, **values)  # type: ignore[arg-type]


COSTS = (0.1, 0.3, 1.0, 1.0)


def test_the_cheapest_that_keeps_enough_is_recommended() -> None:
    best = diagnosis(at(256, (0.96, 0.99, 0.97, 1.0), COSTS, 20)).recommend()
    assert best is not None
    assert (str(best.candidate), best.enough, best.judged_at) == ("window:window=16", True, 256)
    assert best.mass == pytest.approx(0.96 * 0.95)
    assert best.lowest == (pytest.approx(0.96 * 0.9), 1)
    assert best.command == "longattn convert short short-256 --mechanism window --option window=16 --max-length 256"


def test_of_two_that_cost_the_same_percent_the_one_that_keeps_more_is_recommended() -> None:
    best = diagnosis(at(256, (0.96, 0.99, 0.97, 1.0), (0.121, 0.124, 1.0, 1.0), 20)).recommend()
    assert best is not None
    assert str(best.candidate) == "window:window=64"


def test_sinks_are_compared_in_causal_layers_only() -> None:
    """Encoders have longformer, whose global token does what sinks do."""
    for causal in (False, True):
        with_sinks = [candidate for candidate in usual_candidates(causal) if "num_sinks" in candidate.options]
        assert [str(candidate) for candidate in with_sinks] == ["window:window=512,num_sinks=4"] * causal


def test_what_keeps_most_for_half_the_cost_is_recommended_where_nothing_keeps_enough() -> None:
    best = diagnosis(at(256, (0.2, 0.6, 0.97, 1.0), COSTS, 20), is_long=True, target=Target(None, "long", 512)).recommend()
    assert best is not None
    assert (str(best.candidate), best.enough) == ("window:window=64", False)
    assert best.command == "", "what the model was made from is not known"
    assert best.flags == ("--mechanism", "window", "--option", "window=64", "--max-length", "512")


def test_nothing_is_recommended_where_nothing_is_cheaper_than_full_attention() -> None:
    report = diagnosis(at(256, (0.2, 0.6, 0.97, 1.0), (1.0, 1.0, 1.0, 1.0), 20))
    assert report.recommend() is None
    assert report.conclusion() == "At 256 tokens the heads of layer 1 spread over 40 tokens, those of layer 0 over 20 tokens."
    assert "keep it, or diagnose longer texts" in html_page(report)
    even = diagnosis(at(4096, (0.2, 0.6, 0.97, 1.0), (1.0, 1.0, 1.0, 1.0), 2047.5))
    assert even.conclusion() == "At 4,096 tokens the heads of layer 1 spread over 4,096 tokens, those of layer 0 over 2,000 tokens."


def test_extended_models_are_judged_where_they_were_trained() -> None:
    lengths = at(64, (0.7, 0.99, 1.0, 1.0), (0.5, 0.9, 1.0, 1.0), 8), at(256, (0.1, 0.2, 0.99, 1.0), (0.1, 0.3, 0.2, 1.0), 30)
    untrained = {"top_k:num_keys=8": "sees keys at any distance.", "full": "sees keys at any distance."}
    report = diagnosis(*lengths, trained_length=64, untrained=untrained)
    assert report.judged.length == 64
    best = report.recommend()
    assert best is not None
    assert (str(best.candidate), best.judged_at) == ("window:window=64", 64)  # top_k is cheaper, but sees any distance
    assert best.cost == pytest.approx(0.3, rel=1e-3)
    assert "at the 64 tokens that it was trained for" in report.conclusion()
    assert "at distances that positions were trained for" in html_page(report)


def test_nothing_is_recommended_that_positions_do_not_hold_for() -> None:
    """Not even where it is all that was compared."""
    lengths = at(64, (0.7, 0.99, 1.0, 1.0), (0.5, 0.9, 1.0, 1.0), 8), at(256, (0.1, 0.2, 0.99, 1.0), (0.1, 0.3, 0.2, 1.0), 30)
    untrained = {name: "sees keys at any distance." for name in NAMES if name != "linear"}
    report = diagnosis(*lengths, trained_length=64, untrained=untrained)
    assert report.recommend() is None
    assert "keeps" not in report.conclusion()
    page = html_page(report)
    assert "longattn convert" not in page
    assert "sees only distances that positions were trained for" in page
    assert report.to_dict()["recommended"] is None
    assert [candidate["untrained_positions"] for candidate in report.to_dict()["candidates"]] == [*untrained.values(), None]


def test_a_measured_loss_decides_among_mechanisms_that_keep_enough() -> None:
    lengths = at(64, (0.97, 0.99, 1.0, 1.0), (0.5, 0.9, 1.0, 1.0), 8), at(256, (0.1, 0.2, 0.99, 1.0), (0.1, 0.3, 0.2, 1.0), 30)
    worse, equal = (LossChange(4.0, 4.0 + change, change, 0.02, 300) for change in (0.4, 0.01))
    for losses, chosen, sentence in (
        ({"window:window=16": worse, "window:window=64": equal}, "window:window=64", "is not worse: 4.000 → 4.010 nats per token"),
        (
            {"window:window=16": worse, "window:window=64": worse},
            "window:window=16",
            "is worse, so train after the conversion: 4.000 → 4.400",
        ),
        ({}, "window:window=16", "No loss was measured: the model predicts no tokens."),
    ):
        report = diagnosis(*lengths, trained_length=64, losses=losses, no_loss="" if losses else "the model predicts no tokens.")
        best = report.recommend()
        assert best is not None
        assert str(best.candidate) == chosen
        assert sentence in html_page(report)
        assert (sentence in report.conclusion()) == bool(losses)
        assert not losses or "compared with the model in chunks of 64 tokens" in report.conclusion()
        recommended = report.to_dict()["recommended"]
        assert recommended["loss"] == (losses[chosen].to_dict() if losses else None)


def test_the_front_has_no_candidate_that_another_beats() -> None:
    report = diagnosis(at(256, (0.5, 0.4, 0.9, 1.0), COSTS, 20))
    assert [str(report.candidates[number]) for number in report.front()] == ["window:window=16", "full"]
    assert [number for number in report.applicable() if number == 4] == []


def test_dilution_is_described_as_growth() -> None:
    sentences = {}
    for last in (10.5, 30.0, 79.0):
        sentences[last] = diagnosis(at(64, (1.0,) * 4, COSTS, 10), at(512, (1.0,) * 4, COSTS, last)).dilution()
    assert "hardly grows" in sentences[10.5]
    assert "more slowly than the text" in sentences[30.0]
    assert "almost as fast as the text" in sentences[79.0]
    assert diagnosis(at(64, (1.0,) * 4, COSTS, 10)).dilution() == ""


@pytest.mark.parametrize(("share", "text"), [(1.0, "100 %"), (0.714, "71 %"), (0.0523, "5.2 %"), (0.00041, "0.04 %"), (0.0, "0 %")])
def test_shares_are_written_briefly(share: float, text: str) -> None:
    assert percent(share) == text


def test_lengths_and_depths_are_read() -> None:
    assert read_lengths(["512", "2K", "1k", "512"]) == [512, 1024, 2048]
    assert read_depths("0,0.5,1") == (0.0, 0.5, 1.0)
    for text in ("", "x", "-1", "1.5", "9" * 20, "٣"):
        with pytest.raises(OptionError):
            read_lengths([text])
    for text in ("", "a", "nan", "0.1;0.2"):
        with pytest.raises(OptionError):
            read_depths(text)


def test_a_candidate_is_written_as_it_is_read() -> None:
    for text in ("window:window=512", "union:of=[window:window=64+strided:stride=8]", "full"):
        assert Candidate.read(str(Candidate.read(text))) == Candidate.read(text)
