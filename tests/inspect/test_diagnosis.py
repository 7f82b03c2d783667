"""What follows from the numbers: the chosen mechanism, the front, the sentences."""

from __future__ import annotations

import pytest
import torch

from hf_longattn.cli.inspect import diagnosis_report
from hf_longattn.cli.terminal import show
from hf_longattn.errors import OptionError
from hf_longattn.inspect import Candidate, Diagnosis, LayerDiagnosis, LengthDiagnosis
from hf_longattn.inspect.candidates import usual_candidates
from hf_longattn.inspect.layer_attention import MEANS, distance_bins
from hf_longattn.inspect.texts import DURATIONS, read_lengths, read_numbers
from hf_longattn.mechanisms.common.layout import full_pairs

NAMES = ("window:window=16", "window:window=64", "top_k:num_keys=8", "full", "linear")


def at(length: int, kept: tuple[float, ...], costs: tuple[float, ...], effective: float) -> LengthDiagnosis:
    """Two layers of two heads; layer 1 spreads twice as far and keeps a tenth less."""
    bins, everything = tuple(distance_bins(length - 1)), full_pairs(length, False)
    layers = tuple(
        LayerDiagnosis(
            f"layer.{number}",
            "full",
            {name: torch.full((2,), effective * (1 + number) if name == "effective_tokens" else 0.5).double() for name in MEANS},
            torch.full((2, len(bins)), 1 / len(bins)).double(),
            torch.tensor([[*(one * (1 - 0.1 * number) for one in kept), torch.nan]] * 2).double(),
        )
        for number in range(2)
    )
    pairs = (*(round(one * everything) for one in costs), everything)
    return LengthDiagnosis(length, 10, bins, layers, pairs, everything, 1.0)


def diagnosis(*lengths: LengthDiagnosis, **changes: object) -> Diagnosis:
    values = {"model": "short", "model_class": "BertModel", "text": "text", "device": "CPU", "causal": False,
              "is_long": False, "reasons": {"linear": "is no softmax."}, **changes}  # fmt: skip
    return Diagnosis(candidates=tuple(map(Candidate.read, NAMES)), lengths=lengths, **values)  # type: ignore[arg-type]


def chosen(report: Diagnosis) -> str:
    number = report.chosen()
    return "" if number is None else str(report.candidates[number])


COSTS = (0.1, 0.3, 1.0, 1.0)


def test_the_cheapest_candidate_that_keeps_enough_is_chosen() -> None:
    report = diagnosis(at(256, (0.96, 0.99, 0.97, 1.0), COSTS, 20))
    assert chosen(report) == "window:window=16"
    assert report.mass(0) == pytest.approx(0.96 * 0.95)
    row, *_ = report.candidate_rows()
    assert (row.least, row.least_layer, row.chosen) == (pytest.approx(0.96 * 0.9), 1, True)
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


def test_what_keeps_most_for_half_the_cost_is_chosen_if_no_candidate_keeps_enough(capsys: pytest.CaptureFixture[str]) -> None:
    report = diagnosis(at(256, (0.2, 0.6, 0.97, 1.0), COSTS, 20), is_long=True)
    assert chosen(report) == "window:window=64"
    show(report.to_dict(), diagnosis_report(report))
    assert "To convert the checkpoint that this model was made from so, add to longattn convert:" in capsys.readouterr().out


def test_no_candidate_is_chosen_if_none_is_cheaper_than_full_attention(capsys: pytest.CaptureFixture[str]) -> None:
    report = diagnosis(at(256, (0.2, 0.6, 0.97, 1.0), (1.0, 1.0, 1.0, 1.0), 20))
    assert report.chosen() is None
    assert report.conclusion() == "At 256 tokens the heads of layer 1 spread over 40 tokens, those of layer 0 over 20 tokens."
    show(report.to_dict(), diagnosis_report(report))
    assert "longattn convert" not in capsys.readouterr().out
    even = diagnosis(at(4096, (0.2, 0.6, 0.97, 1.0), (1.0, 1.0, 1.0, 1.0), 2047.5))
    assert even.conclusion() == "At 4,096 tokens the heads of layer 1 spread over 4,096 tokens, those of layer 0 over 2,000 tokens."


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


def test_typed_lengths_and_durations_are_read() -> None:
    assert read_lengths(["512", "2K", "1k", "512"]) == [512, 1024, 2048]
    assert read_numbers("7.5,30", DURATIONS) == [7.5, 30.0]
    for text in ("", "x", "-1", "1.5", "9" * 20, "٣"):
        with pytest.raises(OptionError):
            read_lengths([text])
    with pytest.raises(OptionError, match="are not seconds"):
        read_numbers("1;2", DURATIONS)


def test_a_candidate_is_written_as_it_is_read() -> None:
    for text in ("window:window=512", "union:of=[window:window=64+strided:stride=8]", "full"):
        assert Candidate.read(str(Candidate.read(text))) == Candidate.read(text)
