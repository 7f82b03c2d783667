"""The documents: made parts are up to date, links lead somewhere, code compiles, commands exist."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import hf_longattn
from hf_longattn import attend, build_mechanism, list_mechanisms
from hf_longattn.attend import reference_attend
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms import mechanism_class
from hf_longattn.mechanisms.common import registry
from hf_longattn.modeling.family.definition import FACTS_FILE
from scripts.dev.tools import derived, update_docs
from tests.cells import every_cell
from tests.warm import run_fresh

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *(path for folder in ("docs", "model_cards", "scripts") for path in sorted((ROOT / folder).rglob("*.md")))]


def check_documents() -> None:
    """Exit with 1 if a document is out of date. Derived families count as they are stored."""
    derived.families_json = FACTS_FILE.read_text
    raise SystemExit(update_docs.main(["--check"]))


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_made_parts_are_up_to_date(whole: bool, repository: Path) -> None:
    """The quick test derives no family anew; tests/modeling/test_derived.py does it for a sample."""
    command = ("-m", "scripts.dev.tools.update_docs", "--check") if whole else (check_documents,)
    done = run_fresh(*command, cwd=repository)
    assert done.returncode == 0, f"type: make docs\n{done.stdout}{done.stderr}"


@every_cell("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


@every_cell("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_documents_compiles(path: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL):
        ast.parse(code)


# CHANGELOG.md and stored results are not among them: they name what has been.
PRESENT = [path for path in DOCUMENTS if path.stem != "CHANGELOG" and path.parent.name != "results"]


@every_cell("path", PRESENT, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_and_targets_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+(?:-[a-z]+)*)(?: |`|\n|,)", "\n".join(re.findall(r"`+[^`]*`+", text)))) <= targets
    named = re.findall(r"(?<![\w/])(?:configs|model_cards|scripts)/[\w/]+\.(?:py|yaml)", text)
    named += [f"{name.replace('.', '/')}.py" for name in re.findall(r"python -m (scripts\.dev\.\w+\.[\w.]+\w)", text)]
    assert not [name for name in named if not (ROOT / name).exists()]


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
            (path, file) for file in files if not any((base / file).is_file() for base in (ROOT, ROOT / "hf_longattn", *path.parents))
        ]
        names = re.findall(r"(?<![\w./-])((?:hf_longattn|scripts\.dev)(?:\.[a-z]\w*)+)(?![\w*/])", text)
        missing += [(path, name) for name in names if not name.endswith(".md") and not is_there(name, ROOT)]
        for role in re.findall(r":(?:func|mod|class|data):`[~!]?\.*((?!transformers\.)[a-z]\w*(?:\.\w+)+)`", text):
            if not any(is_there(role, base) for base in (ROOT, ROOT / "hf_longattn", *path.parents[:3])):
                missing.append((path, role))
    assert not missing, "\n".join(f"{path.relative_to(ROOT)}: {name}" for path, name in missing)


@pytest.fixture
def small_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with small models by the names that the documents use."""
    monkeypatch.chdir(tmp_path)
    words = WordLevel({word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "A", "long", "document"])}, "[UNK]")
    backend = Tokenizer(words)
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_max_length=500)
    sizes = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    short = BertModel(BertConfig(**sizes, max_position_embeddings=64))
    long = hf_longattn.LongBertModel(
        hf_longattn.LongBertConfig(**sizes, max_position_embeddings=4096, long_attention={"mechanism": "longformer", "window": 32})
    )
    decoder = hf_longattn.LongGPT2LMHeadModel(
        hf_longattn.LongGPT2Config(
            vocab_size=8, n_embd=16, n_layer=1, n_head=2, n_positions=4096, eos_token_id=None, bos_token_id=None,
            long_attention={"mechanism": "window", "window": 32, "num_sinks": 4},
        )
    )  # fmt: skip
    for name, model in {"bert-4096": long, "gpt2-4096": decoder, "google-bert/bert-base-uncased": short}.items():
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)


def python_of(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_example_with_trainer_runs(small_models: None, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["A long document " * number for number in range(1, 9)], "label": [0, 1] * 4})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows)
    [code] = python_of(ROOT / "docs" / "how-to" / "train.md")
    names: dict[str, Any] = {}
    brief = code.replace("learning_rate=3e-5", 'num_train_epochs=1, use_cpu=True, report_to="none"')
    exec(compile(brief, "train.md", "exec"), names)
    assert names["trainer"].state.global_step == 1


def test_the_example_of_late_chunking_runs(small_models: None, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = python_of(ROOT / "docs" / "how-to" / "embed.md")
    names: dict[str, Any] = {}
    exec(compile(code, "embed.md", "exec"), names)
    assert "".join(chunk.text for chunk in names["chunks"]) == "A long document. " * 1000
    assert re.fullmatch(r"\d+ \d+\n", capsys.readouterr().out)


def test_the_walks_through_the_code_name_what_is_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    walks = re.split(r"^### ", text.split("\n## Four walks through the code\n")[1].split("\n## ")[0], flags=re.M)[1:]
    for walk in walks:
        steps = re.findall(r"^\| (\d+) \| .+ \| `([\w/]+\.py)` \| `(\w+)` \|$", walk, flags=re.M)
        assert [int(number) for number, _, _ in steps] == list(range(1, walk.count("\n| "))), walk.splitlines()[0]
        for number, file, name in steps:
            code = (ROOT / "hf_longattn" / file).read_text(encoding="utf-8")
            assert re.search(rf"^ *(?:def|class) {name}\b", code, flags=re.M), f"{walk.splitlines()[0]} {number}: {name} is not in {file}"
    assert len(walks) == 4


@pytest.mark.parametrize("folder", ["scripts", "scripts/dev"])
def test_an_index_names_every_module_of_its_folder(folder: str) -> None:
    index = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    named = {name.removesuffix(".py").rstrip("/") for name in re.findall(r"`([\w/.]+)`", index)}
    folders = [ROOT / folder, ROOT / folder / "studies", ROOT / folder / "tools"] if folder == "scripts/dev" else [ROOT / folder]
    found = {path.stem for inner in folders for path in inner.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found - {"__init__", "__pycache__"} <= named


def test_the_mechanism_that_contributing_shows_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(\"\"\"My attention.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert code is not None
    (tmp_path / "my_attention.py").write_text(code[1], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    list_mechanisms()  # all of the package's are found before
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setitem(sys.modules, "my_attention", importlib.import_module("my_attention"))

    q, k, v = torch.randn(3, 2, 4, 300, 16, generator=torch.Generator().manual_seed(0)).unbind()
    for causal in (False, True):
        expected = reference_attend(q, k, v, "window", window=32, causal=causal)
        torch.testing.assert_close(attend(q, k, v, "mine", window=32, causal=causal).double(), expected, atol=1e-5, rtol=0)
        assert build_mechanism("mine", num_heads=4, head_dim=16, **mechanism_class("mine").covering(300, causal)).covers(300, causal)
    with pytest.raises(OptionError, match="must be at least 1"):
        build_mechanism("mine", num_heads=4, head_dim=16, window=0)


def test_images_of_any_mode_are_read_in_colour() -> None:
    """A grey or a transparent image has another number of channels than models read."""
    texts = {path: path.read_text(encoding="utf-8") for path in (*DOCUMENTS, ROOT / "hf_longattn/hub/usage.jinja")}
    opened = {path.name: re.findall(r'Image\.open\(\w*"?[^)]*\)(?:\.convert\("RGB"\))?', text) for path, text in texts.items()}
    plain = {name: calls for name, found in opened.items() if (calls := [call for call in found if not call.endswith('("RGB")')])}
    assert not plain


FOREIGN_QUOTES = {"… does not recognize this architecture", "LOAD REPORT", "Unable to create tensor"}
"""Messages of transformers."""
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
    return all(piece in message for piece in pieces) and re.search(".*".join(map(re.escape, pieces)), message) is not None
