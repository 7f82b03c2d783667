"""Searches for models of sound: as for texts and images, by recordings at the duration of the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hf_longattn
from hf_longattn.conversion import plan_conversion
from hf_longattn.data.sources import DataError
from hf_longattn.errors import CheckpointError, InputError, LongAttentionError, OptionError
from hf_longattn.inspect import Candidate
from hf_longattn.search import choose_mechanisms, search_design
from hf_longattn.search.costs import LayerCost, LayerCosts
from hf_longattn.search.design import unsuitable, usual_candidates

from ..modeling.audio_models import recording, saved, with_extractor

CTC = "Wav2Vec2ForCTC"
CANDIDATES = ["window:left=8,right=8", "window:left=64,right=64", "segmented:block_size=16,integration=previous", "full"]
COSTS = dict(zip(CANDIDATES, (0.1, 0.2, 0.15, 1.0), strict=True))


@pytest.fixture(autouse=True)
def _priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs that do not depend on the machine."""

    def measure(self: LayerCosts, candidates: Any, progress: Any = None, memory: bool = False) -> dict[str, LayerCost]:
        return {str(candidate): LayerCost(COSTS.get(str(candidate), 0.5)) for candidate in candidates}

    monkeypatch.setattr(LayerCosts, "measure", measure)


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "wav2vec2"
    with_extractor("wav2vec2", CTC, folder)
    return folder


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talks")
    for number in range(3):
        recording(folder / f"{number}.wav", 3 + number, number)
    return folder


@pytest.mark.thorough
def test_auto_for_sound_chooses_by_recordings_and_says_why(wav2vec2: Path, talks: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "mechanism": "auto",
        "audio_seconds": 16,
        "budget": "0.6",
        "search_input": recording(tmp_path / "a.wav", 17),
    }
    report = hf_longattn.convert_checkpoint(wav2vec2, tmp_path / "long", choose=choose_mechanisms, **settings)
    assert report.verified
    choice = json.loads((tmp_path / "long" / "conversion_report.json").read_text(encoding="utf-8"))["plan"]["choice"]
    assert (choice["sounds"], choice["compared_audio_seconds"], choice["compared_at"]) == ("a.wav", 16, 799)
    model = hf_longattn.LongWav2Vec2ForCTC.from_pretrained(tmp_path / "long")
    assert model.config.long_audio_seconds == 16


def test_usual_candidates_for_sound_suit_it(wav2vec2: Path) -> None:
    sizes = plan_conversion(wav2vec2).inputs
    usual = usual_candidates(sizes)
    assert {"window", "full", "longformer"} <= {candidate.mechanism for candidate in usual}
    assert all(unsuitable(candidate, False, sizes) == "" for candidate in usual)
    assert "a sound is one line" in unsuitable(Candidate("window2d"), False, sizes)


def test_a_search_reads_a_recording_of_the_duration_asked_for(wav2vec2: Path, talks: Path) -> None:
    """All have three seconds."""
    assert search_design(wav2vec2, talks, candidates=CANDIDATES[:1], compare_at=3, pieces=1, queries=4).rows


REFUSED: list[tuple[dict[str, Any], type[LongAttentionError], str]] = [
    ({"text": "words " * 99}, OptionError, "reads recordings; give a file or a folder of recordings"),
    ({"text": Path("missing")}, DataError, "does not exist; give a file, or a folder"),
    ({"length": 512}, OptionError, "reads sounds; leave it out"),
    ({"image_size": 512}, OptionError, "reads sounds; leave it out"),
    ({"audio_seconds": 3}, InputError, "3 seconds are too few"),
    ({}, InputError, r"The longest recording has 5\.0 seconds, but 15 are needed"),
    ({"compare_at": 16}, InputError, "on sounds of up to 15 seconds, which the checkpoint reads, not of 16"),
    ({"candidates": ["window2d:window=16"], "compare_at": 2}, OptionError, "reads an image's patches"),
]


@pytest.mark.parametrize(("settings", "error", "sentence"), REFUSED, ids=[sentence for _, _, sentence in REFUSED])
def test_a_search_for_sound_refuses_inputs_and_options_that_do_not_fit(
    settings: dict[str, Any], error: type[LongAttentionError], sentence: str, wav2vec2: Path, talks: Path, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"text": talks, "output": tmp_path / "design.yaml", **settings}
    with pytest.raises(error, match=sentence):
        search_design(wav2vec2, **values)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_a_search_for_sound_needs_a_feature_extractor(talks: Path, tmp_path: Path) -> None:
    saved("wav2vec2", CTC, tmp_path)
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json, which says how it reads recordings"):
        search_design(tmp_path, talks)
    with pytest.raises(OptionError, match="--search-input"):
        plan_conversion(tmp_path, choose=choose_mechanisms, mechanism="auto")
