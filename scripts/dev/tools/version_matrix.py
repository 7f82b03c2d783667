"""Try the wheel on every Python and on the oldest and newest dependencies that pyproject.toml allows: ``make test-matrix``.

    python -m scripts.dev.tools.version_matrix                     # all rows
    python -m scripts.dev.tools.version_matrix 3.10-lowest         # some

For each row uv makes an environment with that Python, the wheel and what it requires (gigabytes, which uv keeps). There, outside of the
checkout, a small BERT is made, converted, inspected, trained and loaded, as in the README; then :data:`CORE`, a subset of the
quick tests, runs. Rows are independent, and a Python that uv does not find is named and fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "build" / "version_matrix"
"""For environments and logs."""
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
RESOLUTIONS = {"lowest": "lowest-direct", "highest": "highest"}
ROWS = ("3.10-lowest", *(f"{python}-highest" for python in PYTHONS))
"""Python and resolution; older versions of the dependencies have no wheels for newer Pythons."""
TESTS_NEED = ("hypothesis", "pytest>=9", "sentencepiece")
CORE = tuple(
    f"tests/{name}.py"
    for name in (
        *("test_attend", "test_declared", "test_reading", "test_configuration", "test_public_names"),
        *("modeling/test_config", "modeling/test_loading", "modeling/test_stored_formats", "modeling/test_overrides"),
        *("memory/test_cache_layers", "memory/test_decoding"),
    )
)
MAKE_BERT = """
import sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "long", "document", "."]
backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
special = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **special).save_pretrained(sys.argv[1])
shape = dict(vocab_size=9, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64)
BertForMaskedLM(BertConfig(**shape)).save_pretrained(sys.argv[1])
"""
USE_BERT = """
import hf_longattn
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("bert-256")
model = AutoModel.from_pretrained("bert-256")
hidden = model(**tokenizer("a long document . " * 100, truncation=True, max_length=256, return_tensors="pt")).last_hidden_state
assert hidden.shape == (1, 256, 32) and type(model).__name__ == "LongBertModel", (hidden.shape, type(model))
"""
COMMANDS = (
    "longattn --help",
    "longattn --version",
    "longattn convert bert bert-256 --mechanism longformer --option window=32 --max-length 256",
    "longattn inspect bert-256",
    "longattn train mlm --model bert-256 --data texts --max-steps 1 --output trained --bf16 false --use-cpu true",
)


def ran(command: Sequence[str], cwd: Path, log: Path, environment: dict[str, str]) -> bool:
    """Whether a command succeeds; its output goes to the end of ``log``."""
    with log.open("a", encoding="utf-8") as output:
        output.write(f"\n$ {' '.join(command)}\n")
        output.flush()
        return subprocess.run(command, cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False).returncode == 0


def try_row(row: str, wheel: Path, folder: Path) -> str:
    """What is wrong with a row, empty where nothing is; the folder keeps its environment and ``ROW.log``."""
    number, resolution = row.split("-")
    uv, log, place = str(Path(sys.executable).with_name("uv")), folder / f"{row}.log", folder / row
    log.unlink(missing_ok=True)
    python, options = str(place / "bin" / "python"), {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "TOKENIZERS_PARALLELISM": "false"}
    # a package that lies on the path would hide the wheel
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")} | options
    install = (uv, "pip", "install", "--quiet", "--python", python)
    oldest_or_newest = (*install, "--resolution", RESOLUTIONS[resolution], "-r", str(ROOT / "pyproject.toml"))
    if not ran((uv, "venv", "--quiet", "--clear", "--no-python-downloads", "--python", number, str(place)), folder, log, plain):
        return f"there is no Python {number} here"
    if not all(ran(line, folder, log, plain) for line in (oldest_or_newest, (*install, "--no-deps", str(wheel)), (*install, *TESTS_NEED))):
        return "not installed"
    with tempfile.TemporaryDirectory(dir=folder) as empty:
        here = Path(empty)
        (here / "texts").mkdir()
        for name in "abcdefghijkl":
            (here / "texts" / f"{name}.txt").write_text("a long document . " * 300, encoding="utf-8")
        commands = [tuple(line.split()) for line in COMMANDS]
        steps = [(python, "-c", MAKE_BERT, "bert"), *commands, (python, "-c", USE_BERT)]
        for step in steps:
            if not ran(step, here, log, plain):
                return f"failed: {' '.join(step)[:60].strip()!r}"
    marks = ("-q", "-m", "not slow", "-p", "no:cacheprovider")
    if not ran((python, "-m", "pytest", *marks, *CORE), ROOT, log, plain | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}):
        return "tests failed"
    return ""


def versions(python: Path) -> str:
    """The versions of an environment that matter, in words."""
    code = "import importlib.metadata as m, platform as p; print(p.python_version(), *(f'{n} {m.version(n)}' for n in %r), sep=', ')"
    names = ("torch", "transformers", "huggingface_hub", "numpy")
    return subprocess.run([str(python), "-c", code % (names,)], capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m scripts.dev.tools.version_matrix", description=__doc__, formatter_class=formatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"one of {', '.join(ROWS)}; all by default")
    options = parser.parse_args()
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f"there is no row {unknown[0]!r}; the rows are {', '.join(ROWS)}")
    wheels = sorted((ROOT / "dist").glob("*.whl"), key=lambda file: file.stat().st_mtime)
    if not wheels:
        parser.error("there is no wheel in dist/; type make release")
    FOLDER.mkdir(parents=True, exist_ok=True)
    failed = False
    for row in options.rows or ROWS:
        start = time.perf_counter()
        wrong = try_row(row, wheels[-1], FOLDER)
        seconds = time.perf_counter() - start
        log = "" if not wrong else f"; see {FOLDER / row}.log"
        print(f"{row}: {wrong or 'passed'}{log} ({versions(FOLDER / row / 'bin' / 'python')}; {seconds:.0f} s)", flush=True)
        failed |= bool(wrong)
    sys.exit(failed)


if __name__ == "__main__":
    main()
