"""Every code block of the documentation runs as a reader types it, in a clone and with an installed package."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts.dev.real import NAME as REAL
from tests.hub_server import WRITER, Hub
from tests.not_typed import NOT_TYPED
from tests.pages import KINDS, ROOT, Here, blocks, commands, follow, matches, pages_with_blocks
from tests.stand_ins import SETTINGS, StandIns, setting_of

PAGES = pages_with_blocks()


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a … c", "a b\nb c", True),
        ("a …", "a b", True),
        ("a b", "a\n b", True),
        ("a c", "a b c", False),
        ("a … d", "a b c", False),
        ("…b", "ab", True),
    ],
)
def test_matches_compares_output_with_ellipses(shown: str, printed: str, same: bool) -> None:
    assert matches(shown, printed) is same


def test_every_code_block_of_a_page_names_its_kind() -> None:
    assert {
        (page, block.kind)
        for page in PAGES
        for block in blocks((ROOT / page).read_text(encoding="utf-8"))
        if block.kind not in KINDS
    } == set()


def test_commands_listed_as_not_typed_are_on_the_pages() -> None:
    """The list holds nothing that is gone."""
    for page, listed in NOT_TYPED.items():
        found = list(blocks((ROOT / page).read_text(encoding="utf-8")))
        typed = [line for block in found if block.kind in ("bash", "console") for line, _ in commands(block)]
        typed += [block.content for block in found if block.kind == "python"]
        assert [beginning for beginning in listed if not any(one.startswith(beginning) for one in typed)] == [], page


def test_text_that_settings_shorten_is_on_the_pages() -> None:
    missing = {}
    for page in PAGES:
        typed = [
            block.content for block in blocks((ROOT / page).read_text(encoding="utf-8")) if block.kind == "python"
        ]
        typed += [
            line
            for block in blocks((ROOT / page).read_text(encoding="utf-8"))
            if block.kind in ("bash", "console")
            for line, _ in commands(block)
        ]
        missing[page] = [part for part in setting_of(page).instead if not any(part in one for one in typed)]
    assert {page: parts for page, parts in missing.items() if parts} == {}
    assert SETTINGS.keys() <= set(PAGES)


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> StandIns:
    """Checkpoints and data under the names that pages use."""
    return StandIns(tmp_path_factory.mktemp("stand_ins"))


@pytest.fixture
def desk(stand_ins: StandIns, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty working directory, and a Hub on which the reader's account has the name that pages use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of processes that a block of Python starts
    for folder in ("examples", "model_cards"):  # of the clone
        (tmp_path / folder).symlink_to(ROOT / folder)
    server.users[WRITER] = ("my-name", "write")
    return server


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if setting_of(page).slow else []) for page in PAGES]
)
def test_code_blocks_of_a_page_run(page: str, desk: Hub, stand_ins: StandIns) -> None:
    if page.endswith("gliner.md"):
        pytest.importorskip("gliner")
    reader = Here()
    follow(page, reader, stand_ins)
    if page == "README.md":
        assert reader.names["model"].max_seq_length == 4096
    if page in ("README.md", "docs/quickstart.md"):
        assert "my-name/minilm-4096-embed" in desk.repos


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_code_blocks_of_page_run_with_real_checkpoint(
    page: str, desk: Hub, stand_ins: StandIns, real_folder: Path, tmp_path: Path
) -> None:
    """Instead of the small stand-in under its name, which the quick tests convert."""
    shutil.copytree(real_folder, tmp_path / REAL)
    reader = Here()
    follow(page, reader, stand_ins)
    assert reader.names["vectors"].shape == (2, 384)
    if page == "docs/quickstart.md":
        assert reader.names["documents"][reader.names["scores"].argmax()].startswith("On Fridays farmers sell apples")
