"""Every program of a checkout answers ``--help``."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.cases import every_case

SCRIPTS = Path(__file__).parents[2] / "scripts"


def modules() -> list[str]:
    """What can be run by ``python -m``."""
    programs = []
    for path in sorted(SCRIPTS.rglob("*.py")):
        code = path.read_text(encoding="utf-8")
        if path.stem == "__main__" or re.search(r"^if __name__ == ", code, flags=re.MULTILINE):
            programs.append(".".join(path.relative_to(SCRIPTS.parent).with_suffix("").parts).removesuffix(".__main__"))
    return programs


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@every_case("module", modules())
def test_every_script_answers_help(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__")
    assert end.value.code in (0, None)
    assert "usage: " in capsys.readouterr().out.lower()
