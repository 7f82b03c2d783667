"""Every command on a long model takes a Hub id whose weights are not in the cache yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from hf_longattn.cli import main
from tests.grids import quickly
from tests.hub_state import Hub
from tests.stock_cases import save_long

REPO = "someone/long-llama"
COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "inspect": lambda out: ["inspect", REPO],
    "torch": lambda out: ["export", REPO, str(out), "--format", "torch"],
    "native": lambda out: ["export", REPO, str(out), "--format", "native"],
    "compress": lambda out: ["compress", REPO, str(out), "--method", "bf16", "--length", "64"],
}


@pytest.mark.thorough
@pytest.mark.parametrize("command", quickly(COMMANDS, {*COMMANDS} - {"torch"}))  # the program of a graph takes as long as all others
def test_commands_download_a_long_model_of_the_hub(
    command: str, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_long(tmp_path / "long", "llama", {"mechanism": "full"}, num_hidden_layers=1, max_position_embeddings=128)
    server.add(REPO, tmp_path / "long")
    assert not Path(constants.HF_HUB_CACHE).exists()
    with pytest.raises(SystemExit) as ended:
        main(COMMANDS[command](tmp_path / "out"))
    assert ended.value.code == 0, capsys.readouterr().err
