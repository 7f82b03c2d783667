"""The documents and their site: made parts are up to date, links lead somewhere, code compiles, names and commands
exist."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers

from hf_longattn import attend, build_mechanism, list_mechanisms
from hf_longattn.errors import OptionError
from hf_longattn.functional import reference_attend
from hf_longattn.mechanisms import mechanism_class
from hf_longattn.mechanisms.common import registry
from hf_longattn.modeling.family.definition import FACTS_FILE
from hf_longattn.names import TESTED, release
from hf_longattn.reports import markdown_table
from scripts.dev.tools import derived, update_docs
from tests.cases import every_case
from tests.fresh_processes import run_fresh

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(path for folder in ("docs", "model_cards", "scripts") for path in sorted((ROOT / folder).rglob("*.md"))),
]


def check_documents() -> None:
    """Exit with 1 if a document is out of date. Derived families count as they are stored.

    The table of families is of the newest tested transformers; an older one has fewer.
    """
    derived.families_json = FACTS_FILE.read_text
    if release(transformers.__version__) < release(TESTED["transformers"][1]):
        page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
        (written,) = (text for _, block, text, _ in update_docs.MARKED.findall(page) if block == "families")
        update_docs.BLOCKS["families"] = written.removesuffix("\n").__str__
    raise SystemExit(update_docs.main(["--check"]))


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_generated_parts_of_documents_are_up_to_date(whole: bool, repository: Path) -> None:
    """The quick test derives no family anew; tests/modeling/test_derived.py does it for a sample."""
    command = ("-m", "scripts.dev.tools.update_docs", "--check") if whole else (check_documents,)
    done = run_fresh(*command, cwd=repository)
    assert done.returncode == 0, f"type: make docs\n{done.stdout}{done.stderr}"


@every_case("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_documents_lead_to_files(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


@every_case("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_documents_compiles(path: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL):
        ast.parse(code)


# CHANGELOG.md and stored results are not among them: they name what has been.
PRESENT = [path for path in DOCUMENTS if path.stem != "CHANGELOG" and path.parent.name != "results"]


@every_case("path", PRESENT, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_and_make_targets_that_documents_name_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert (
        set(re.findall(r"`?make ([a-z]+(?:-[a-z]+)*)(?: |`|\n|,)", "\n".join(re.findall(r"`+[^`]*`+", text))))
        <= targets
    )
    named = re.findall(r"(?<![\w/])(?:configs|model_cards|scripts)/[\w/]+\.(?:py|yaml)", text)
    named += [f"{name.replace('.', '/')}.py" for name in re.findall(r"python -m (scripts\.dev\.\w+\.[\w.]+\w)", text)]
    assert not [name for name in named if not ((ROOT / name).exists() or (ROOT / name[:-3] / "__main__.py").exists())]


CODE = [path for folder in ("hf_longattn", "scripts", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
ROOMS = "|".join(path.name for path in (ROOT / "hf_longattn").iterdir() if (path / "__init__.py").is_file())


def is_there(dotted: str, folder: Path) -> bool:
    """Whether a dotted name begins with a module in a folder, and goes on with a name that is in it."""
    place, names = folder, dotted.split(".")
    while names and (place / names[0] / "__init__.py").is_file():
        place /= names.pop(0)
    if names and (place / f"{names[0]}.py").is_file():
        file = place / f"{names.pop(0)}.py"
    elif place == folder:
        return False
    else:
        file = place / "__init__.py"
    return not names or re.search(rf"\b{names[0]}\b", file.read_text(encoding="utf-8")) is not None


def test_modules_that_texts_and_comments_name_exist() -> None:
    missing = []
    for path in (*CODE, *PRESENT):
        if path.name == "CHANGELOG.md" or "model_cards" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        files = re.findall(rf"(?<![\w./-])((?:hf_longattn|scripts|tests|examples|{ROOMS})/[\w/]+\.py)\b", text)
        missing += [
            (path, file)
            for file in files
            if not any((base / file).is_file() for base in (ROOT, ROOT / "hf_longattn", *path.parents))
        ]
        names = re.findall(r"(?<![\w./-])((?:hf_longattn|scripts\.dev)(?:\.[a-z]\w*)+)(?![\w*/])", text)
        missing += [(path, name) for name in names if not name.endswith(".md") and not is_there(name, ROOT)]
        for role in re.findall(r":(?:func|mod|class|data):`[~!]?\.*((?!transformers\.)[a-z]\w*(?:\.\w+)+)`", text):
            if not any(is_there(role, base) for base in (ROOT, ROOT / "hf_longattn", *path.parents[:3])):
                missing.append((path, role))
    assert not missing, "\n".join(f"{path.relative_to(ROOT)}: {name}" for path, name in missing)


def test_walks_in_architecture_name_functions_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    walks = re.split(r"^### ", text.split("\n## Four walks through the code\n")[1].split("\n## ")[0], flags=re.M)[1:]
    for walk in walks:
        steps = re.findall(r"^\| (\d+) \| .+ \| `([\w/]+\.py)` \| `(\w+)` \|$", walk, flags=re.M)
        assert [int(number) for number, _, _ in steps] == list(range(1, walk.count("\n| "))), walk.splitlines()[0]
        for number, file, name in steps:
            code = (ROOT / "hf_longattn" / file).read_text(encoding="utf-8")
            assert re.search(rf"^ *(?:def|class) {name}\b", code, flags=re.M), (
                f"{walk.splitlines()[0]} {number}: {name} is not in {file}"
            )
    assert len(walks) == 4


@pytest.mark.parametrize("folder", ["scripts", "scripts/dev"])
def test_readme_of_scripts_names_every_module_of_its_folder(folder: str) -> None:
    index = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    named = {name.removesuffix(".py").rstrip("/") for name in re.findall(r"`([\w/.]+)`", index)}
    folders = (
        [ROOT / folder, ROOT / folder / "studies", ROOT / folder / "tools"]
        if folder == "scripts/dev"
        else [ROOT / folder]
    )
    found = {
        path.stem
        for inner in folders
        for path in inner.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert found - {"__init__", "__pycache__"} <= named


def test_mechanism_in_contributing_equals_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(
        r"```python\n(\"\"\"My attention.*?)```",
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    assert code is not None
    (tmp_path / "my_attention.py").write_text(code[1], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    list_mechanisms()  # all of the package's are found before
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setitem(sys.modules, "my_attention", importlib.import_module("my_attention"))

    q, k, v = torch.randn(3, 2, 4, 300, 16, generator=torch.Generator().manual_seed(0)).unbind()
    for causal in (False, True):
        expected = reference_attend(q, k, v, "window", window=32, causal=causal)
        torch.testing.assert_close(
            attend(q, k, v, "mine", window=32, causal=causal).double(), expected, atol=1e-5, rtol=0
        )
        assert build_mechanism(
            "mine", num_heads=4, head_dim=16, **mechanism_class("mine").about.covering(300, causal)
        ).covers(300, causal)
    with pytest.raises(OptionError, match="must be at least 1"):
        build_mechanism("mine", num_heads=4, head_dim=16, window=0)


FOREIGN_QUOTES = {
    "… does not recognize this architecture",
    "… is not a valid attention implementation",
    "You are using a model of type long_bert to instantiate a model of type bert",
    "LOAD REPORT",
    "Unable to create tensor",
    "Cannot copy out of meta tensor",
}
"""Messages of transformers and PyTorch."""
COMPOSED = {
    "PyTorch's flash attention has no kernel for heads of …",
    "flex_attention has no kernel for heads of …",
    "… which gives none of … pixels",
}
"""Messages of which no string has all words."""


def literals(path: Path) -> set[str]:
    """The strings of a file, each on one line; an f-string has … in place of its values."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.add("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return {" ".join(re.sub(r"\{\w*\}", "…", text).split()) for text in found}


def test_troubleshooting_quotes_messages_that_exist() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quotes = {quote for cell in re.findall(r"^\| (.+?) \|", text, re.M) for quote in re.findall(r"`([^`]+)`", cell)}
    said = {message for path in (ROOT / "hf_longattn").rglob("*.py") for message in literals(path)}
    wanted = [quote for quote in quotes - FOREIGN_QUOTES - COMPOSED if " " in quote.strip("… ")]
    missing = [quote for quote in wanted if not any(holds(message, quote) for message in said)]
    assert wanted
    assert not missing


def holds(message: str, quote: str) -> bool:
    """Whether a quote with … for some words fits a message."""
    pieces = [piece.strip() for piece in quote.split("…")]
    return (
        all(piece in message for piece in pieces) and re.search(".*".join(map(re.escape, pieces)), message) is not None
    )


MODULES = ("hf_longattn", "hf_longattn.hub", "hf_longattn.training")
DIRECTIVE = re.compile(
    r"^\.\. (?:autofunction|autoclass|autoexception|autodata):: (\S+)$|^\.\. py:data:: (\w+)\n   :module: (\S+)$", re.M
)

NOTEBOOKS = sorted(path.stem for path in (Path(__file__).parent.parent / "docs" / "notebooks").glob("[0-9]*.md"))


def test_every_public_name_is_on_one_page_of_the_api(repository: Path) -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (repository / "docs" / "api").glob("*.md"))
    shown = Counter(name or f"{module}.{data}" for name, data, module in DIRECTIVE.findall(pages))
    public = Counter(f"{module}.{name}" for module in MODULES for name in importlib.import_module(module).__all__)
    assert shown == public


def build_site(repository: Path, tmp_path: Path, *options: str, timeout: float = 280) -> Path:
    """The folder of the documentation's pages, built with every warning as an error."""
    pytest.importorskip("sphinx", reason="Sphinx needs Python 3.11")
    site = tmp_path / "site"
    command = (
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        *options,
        "-d",
        str(tmp_path / "doctrees"),
        "-c",
        "docs",
        ".",
        str(site),
    )
    done = run_fresh(*command, cwd=repository, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return site / "docs"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(repository: Path, tmp_path: Path) -> None:
    pages = build_site(repository, tmp_path)
    text = (pages / "api" / "attention.html").read_text(encoding="utf-8")
    assert 'id="hf_longattn.attend"' in text
    assert "https://docs.pytorch.org/docs/stable/" in text


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_cells_of_a_notebook_run_without_warnings(notebook: str, repository: Path, tmp_path: Path) -> None:
    """Cases that are not shown assert what the text says of the outputs; the links are checked with the whole site."""
    page = f"docs/notebooks/{notebook}"
    alone = {"root_doc": page, "include_patterns": f"{page}.md", "suppress_warnings": "myst.xref_missing"}
    options = [
        part for name, value in (alone | {"nb_execution_mode": "force"}).items() for part in ("-D", f"{name}={value}")
    ]
    text = (build_site(repository, tmp_path, *options, timeout=900) / "notebooks" / f"{notebook}.html").read_text(
        encoding="utf-8"
    )
    assert "cell_output" in text
    assert "Warning" not in text


def test_markdown_table_writes_header_rule_and_rows() -> None:
    assert markdown_table(["name", "last"], [["a", "2"]]) == "| name | last |\n| --- | --- |\n| a | 2 |"
