"""A source on the Hub: its files are downloaded, a plan fetches no weights, and what cannot be had is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.conversion.source_models import open_source
from hf_longattn.errors import CheckpointError

from ...hub_server import serve
from ...hub_state import Hub

REPO = "someone/small-bert"


def test_plan_of_a_hub_source_fetches_no_weights_and_a_conversion_all_files(
    built: Callable[[str], Path], hub: Callable[[str], None], tmp_path: Path
) -> None:
    weights = (built("BertForMaskedLM") / "model.safetensors").stat().st_size
    server = Hub()
    server.add(REPO, built("BertForMaskedLM"))
    with serve(server):
        hub(server.endpoint)
        plan = plan_conversion(REPO, mechanism="window", window=16, max_length=128)
        assert plan.parameters > 0
        assert sum(int(line.split()[-1]) for line in server.requests if line.startswith("GET")) < weights / 2
        report = convert_checkpoint(REPO, tmp_path / "long", mechanism="window", window=16, max_length=128)
        assert report.verified
        assert report.plan == {**plan.to_dict(), "source": REPO}


@pytest.mark.parametrize(
    ("name", "revision", "sentence"),
    [
        ("someone/else", None, "is not a folder, and it cannot be downloaded: .*Repository Not Found"),
        (REPO, "v9", "Revision Not Found"),
    ],
)
def test_conversion_refuses_a_repository_or_revision_that_the_hub_lacks(
    name: str, revision: str | None, sentence: str, built: Callable[[str], Path], hub: Callable[[str], None], tmp_path: Path
) -> None:
    server = Hub()
    server.add(REPO, built("BertForMaskedLM"))
    with serve(server):
        hub(server.endpoint)
        with pytest.raises(CheckpointError, match=sentence):
            convert_checkpoint(name, tmp_path / "long", revision=revision)
    assert not (tmp_path / "long").exists()


def test_conversion_refuses_a_hub_repository_without_safetensors(hub: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "config.json").write_text('{"model_type": "bert"}')
    server = Hub()
    server.add(REPO, tmp_path / "repository")
    with serve(server):
        hub(server.endpoint)
        with pytest.raises(CheckpointError, match=r"'someone/small-bert' has no weights, or .* give a folder with model"):
            convert_checkpoint(REPO, tmp_path / "long")
        (tmp_path / "repository" / "pytorch_model.bin").write_text("")
        server.add("someone/pickled", tmp_path / "repository")
        with pytest.raises(CheckpointError, match=r"'someone/pickled' has no weights, or .*add --allow-pickle"):
            open_source("someone/pickled")


def test_refusal_of_an_unknown_token_does_not_show_it(built: Callable[[str], Path], hub: Callable[[str], None]) -> None:
    server, token = Hub(), "hf_" + "x" * 34
    server.add(REPO, built("BertForMaskedLM"))
    with serve(server):
        hub(server.endpoint)
        with pytest.raises(CheckpointError, match="cannot be downloaded") as refused:
            plan_conversion(REPO, token=token)
    assert token not in str(refused.value)


def test_plan_of_a_hub_source_without_a_connection_is_one_sentence(hub: Callable[[str], None]) -> None:
    hub("http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="it cannot be downloaded"):
        plan_conversion(REPO)
