"""Every code block of the documentation runs as a reader types it, in a clone and with an installed package."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.dev.real import NAME as REAL
from tests.hub_state import WRITER, Hub
from tests.not_typed import NOT_TYPED
from tests.pages import KINDS, ROOT, Here, blocks, commands, follow, matches, pages_with_blocks, run_in_shell
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
    """The list holds nothing that is gone, and its length is written down, so that it does not grow unseen."""
    for page, listed in NOT_TYPED.items():
        found = list(blocks((ROOT / page).read_text(encoding="utf-8")))
        typed = [line for block in found if block.kind in ("bash", "console") for line, _ in commands(block)]
        typed += [block.content for block in found if block.kind == "python"]
        assert [beginning for beginning in listed if not any(one.startswith(beginning) for one in typed)] == [], page
    assert sum(map(len, NOT_TYPED.values())) == 32


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


pytestmark = pytest.mark.slow

WORKER = """
import contextlib, io, json, sys, traceback

names, answers = {}, sys.stdout
for line in sys.stdin:
    printed, worked = io.StringIO(), True
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(json.loads(line), "page", "exec"), names)
        except BaseException:
            printed.write(traceback.format_exc())
            worked = False
    print("\\0" + json.dumps([worked, printed.getvalue()]), file=answers, flush=True)
"""
"""Python that runs what it is sent, one JSON string a line, with the names of what ran before."""
OURS = re.compile(r"(?:hf-longattn|(?:\./)?hf_longattn|\.)(\[[\w,]+\])?")
"""How pages name this package after ``pip install``."""

Environment = Callable[[tuple[str, ...]], Path]


def installs(page: str) -> tuple[str, ...]:
    """The lines of a page that install packages."""
    found = [block for block in blocks((ROOT / page).read_text(encoding="utf-8")) if block.kind in ("bash", "console")]
    return tuple(line for block in found for line, _ in commands(block) if line.startswith("pip install"))


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """environment(lines of ``pip install``) -> the folder of an environment with the package, and then what they
    install.

    Packages are linked from uv's cache, in the versions of ``constraints.txt``; torch is what this environment has.
    """
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("environments")
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    made: dict[tuple[str, ...], Path] = {}

    def make(lines: tuple[str, ...]) -> Path:
        if lines not in made:
            place = folder / str(len(list(folder.iterdir())))
            _run(sys.executable, "-m", "uv", "venv", "-q", "--python", sys.executable, str(place))
            for line in ("pip install .", *lines):
                _install(line, place, wheel)
            _drop_unfit_torchvision(place)
            made[lines] = place
        return made[lines]

    return make


def _install(line: str, place: Path, wheel: Path) -> None:
    """``pip install …`` of a page; the package itself is the wheel's, and torch's small build is there."""
    wanted = []
    for word in shlex.split(line, comments=True)[2:]:
        ours = OURS.fullmatch(word)
        wanted.append(f"hf-longattn{ours[1] or ''} @ {wheel.as_uri()}" if ours else word)
    if "--index-url" in wanted:
        return
    pip_install("--python", str(place / "bin" / "python"), *wanted)


def pip_install(*arguments: str) -> None:
    """``pip install`` from where pip is told to look, in the versions of ``constraints.txt``, with uv's cache."""
    constraints = ("-c", str(ROOT / "constraints.txt"), "--index-strategy", "unsafe-best-match", *_indices())
    _run(sys.executable, "-m", "uv", "pip", "install", "-q", *constraints, *arguments)


def _drop_unfit_torchvision(place: Path) -> None:
    """Remove PyPI's torchvision beside a CPU build of torch, with which it does not work: pages take both from the
    index of CPU builds."""
    python = str(place / "bin" / "python")
    if subprocess.run(
        [python, "-c", "import importlib.util as u; u.find_spec('torchvision') and __import__('torchvision')"],
        capture_output=True,
    ).returncode:
        _run(sys.executable, "-m", "uv", "pip", "uninstall", "-q", "--python", python, "torchvision")


def _indices() -> Iterator[str]:
    """Where pip is told to look, for uv."""
    flags = {"find-links": "--find-links", "index-url": "--index-url", "extra-index-url": "--extra-index-url"}
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    for key, places in re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", told, flags=re.M):
        for place in places.split() if key in flags else ():
            yield from (flags[key], place)


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"


class Installed:
    """A reader in an environment of his own, with the programs of a clone beside the working directory."""

    only_ours = False

    def __init__(self, environment: Path, hub: Hub, home: Path) -> None:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_", "VIRTUAL_ENV"))
        }
        self.bin = environment / "bin"
        self.env = {
            **kept,
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "400",
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": WRITER,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
        }
        self.worker: subprocess.Popen[str] | None = None

    def longattn(self, arguments: list[str]) -> str:
        return run_in_shell(shlex.join([str(self.bin / "longattn"), *arguments]), self.env)

    def python(self, source: str) -> str:
        if not source:
            return ""
        if self.worker is None:
            self.worker = subprocess.Popen(
                [self.bin / "python", "-c", WORKER],
                env=self.env,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        print(json.dumps(source), file=self.worker.stdin, flush=True)
        answer = next(line for line in self.worker.stdout if line.startswith("\0"))
        worked, printed = json.loads(answer[1:])
        assert worked, f"{source}\n{printed}"
        return str(printed)

    def shell(self, line: str) -> str:
        return run_in_shell(line, self.env)

    def install(self, line: str) -> None:
        """Done when the environment was made."""

    def close(self) -> None:
        if self.worker is not None:
            self.worker.communicate()


@pytest.mark.parametrize("page", pages_with_blocks())
def test_a_page_names_all_packages_that_its_code_blocks_need(
    page: str,
    environment: Environment,
    stand_ins: StandIns,
    server: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = environment(installs(page))
    desk = tmp_path / "desk"
    desk.mkdir()
    monkeypatch.chdir(desk)
    for folder in ("examples", "model_cards", "scripts"):  # of the clone
        (desk / folder).symlink_to(ROOT / folder)
    server.users[WRITER] = ("my-name", "write")
    reader = Installed(place, server, tmp_path / "home")
    try:
        follow(page, reader, stand_ins)
    finally:
        reader.close()
