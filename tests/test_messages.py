"""What messages advise: commands that exist, and options that are accepted."""

from __future__ import annotations

import ast
import functools
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import typer

from hf_longattn.cli import app, main
from hf_longattn.errors import LongAttentionError, UsageError
from hf_longattn.training.recipes import ready_recipes
from hf_longattn.training.tasks import load_task, task_names, task_parser
from tests.cases import every_case
from tests.grids import every_other
from tests.trained import REAL_TEXT, tokenizer_of

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path for path in (ROOT / "hf_longattn").rglob("*.py"))
EVERY_PAGE = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "model_cards").rglob("*.md")),
    ROOT / "hf_longattn" / "hub" / "card.md",
]
# which is for contributors
DOCUMENTS = [path for path in EVERY_PAGE if "results" not in path.parts and path.stem != "architecture"]
CHECKOUT = re.compile(r"\bmake [a-z-]+`|`make |^make |python3? -m scripts\b|(?:examples|scripts)/[\w/]+\.py", re.M)
"""What only a checkout of the repository has."""
OTHERS = {"--help", "--version", "--multi_gpu", "--no", "--query-gpu", "--force-reinstall", "--index-url"}
"""Flags of git, accelerate, pip and nvidia-smi, and beginnings of flags."""


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def texts(path: Path) -> list[tuple[int, str]]:
    """(line, text) of every string in a module that is no docstring; what an f-string inserts is ``1``."""
    return list(_texts(path))


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    parts, docstrings = set(), set()
    for node in nodes(path):
        if isinstance(node, ast.JoinedStr):
            parts |= {id(leaf) for value in node.values for leaf in ast.walk(value)}
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstrings |= {id(one.value) for one in node.body if isinstance(one, ast.Expr)}
    for node in nodes(path):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(one.value) if isinstance(one, ast.Constant) else "1" for one in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (parts | docstrings):
            yield node.lineno, node.value


def lists(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, words) of every list in a module that begins with "longattn"; what is computed is ``1``, what is unpacked
    is left out."""
    for node in nodes(path):
        if (
            isinstance(node, ast.List)
            and node.elts
            and isinstance(node.elts[0], ast.Constant)
            and node.elts[0].value == "longattn"
        ):
            kept = [one for one in node.elts if not isinstance(one, ast.Starred)]
            yield node.lineno, [str(one.value) if isinstance(one, ast.Constant) else "1" for one in kept][1:]


@functools.cache
def commands_of_app() -> dict[str, Any]:
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@functools.cache
def parser_of(task: str, command: str = "train") -> Any:
    return task_parser(load_task(task), f"longattn {command} {task}")


def problem(words: list[str], *, whole: bool) -> str:
    """Why the command line refuses a command; empty if it does not. A part of a command may lack what is required."""
    commands = commands_of_app()
    words = words[: next((place for place, word in enumerate(words) if word in (">", "|", "&&")), len(words))]
    if not words or words[0] not in commands:
        return "" if not whole and (not words or words[0].isupper()) else f"there is no command {words[:1]}"
    words = [re.sub(r"^[A-Z]$", "1", word) for word in words if word not in ("…", "...", "\\")]
    if words[0] in ("train", "evaluate"):
        return "" if len(words) == 1 and not whole else _task_problem(*words, whole=whole)
    command = commands[words[0]]
    try:
        command.make_context(words[0], words[1:], resilient_parsing=False).close()
    except typer.Exit:  # --help
        return ""
    except LongAttentionError as error:  # a recipe or a folder that the reader has
        is_the_readers = (
            ".yaml" in str(error) or "recipe '1'" in str(error) or str(error).startswith("There is no folder")
        )
        return "" if is_the_readers else str(error)
    except Exception as error:  # typer has its own copy of click
        part = type(error).__name__ == "MissingParameter" or "requires an argument" in str(error)
        return "" if part and not whole else str(error)
    return ""


def _task_problem(command: str, task: str, *words: str, whole: bool) -> str:
    if task not in task_names():
        return "" if task in ("1", "TASK") else f"there is no task {task}"
    parser = parser_of(task, command)
    flags = {option for action in parser._actions for option in action.option_strings}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in flags]
    required = [
        action for action in parser._actions if action.required and not set(action.option_strings) & set(words)
    ]
    if unknown or not whole:
        return f"no flag {unknown}" if unknown else ""
    if required:
        return f"lacks {required[0].option_strings}"
    try:
        parser.parse_args(list(words))
    except UsageError as error:
        return str(error)
    return ""


def commands_in(text: str) -> Iterator[tuple[list[str], bool]]:
    """(words, whether it is whole) of every command in a text: in backticks, or after "type"."""
    for found in re.findall(r"`(longattn(?: [^`]*)?)`", text):
        yield words_of(found), False
    for found in re.findall(
        r"(?:^|type:?\s+|[Nn]ext: )(longattn [a-z][^`\n]*?)(?:[;.,]\s|[;.,]?$|\n| and then)",
        text.replace("``", "`"),
        flags=re.M,
    ):
        yield words_of(found), False


def words_of(line: str) -> list[str]:
    try:
        return shlex.split(line.replace("\\\n", " "), comments=True)[1:]
    except ValueError:
        return line.split()[1:]


@pytest.mark.thorough
def test_commands_in_messages_are_accepted() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: longattn {' '.join(words)}: {why}"
        for path in MODULES
        for line, text in texts(path)
        for words, whole in commands_in(text)
        if (why := problem(words, whole=whole))
    ]
    wrong += [
        f"{path.relative_to(ROOT)}:{line}: longattn {' '.join(words)}: {why}"
        for path in MODULES
        for line, words in lists(path)
        if (why := problem(words, whole=False))
    ]
    assert not wrong, "\n".join(wrong)


def test_flags_that_messages_name_exist() -> None:
    commands = commands_of_app()
    known = {
        option
        for command in commands.values()
        for one in command.params
        for option in (*one.opts, *one.secondary_opts)
    } | OTHERS
    known |= {
        option for task in task_names() for action in parser_of(task)._actions for option in action.option_strings
    }
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {flag}"
        for path in MODULES
        for line, text in texts(path)
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)
        if flag.rstrip("-_") not in known
    ]
    assert not wrong, "\n".join(wrong)


def test_messages_name_nothing_that_only_a_checkout_has() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {text[:80]}"
        for path in MODULES
        for line, text in texts(path)
        if CHECKOUT.search(text)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.thorough
@every_case("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_documents_are_accepted(path: Path) -> None:
    text, wrong = path.read_text(encoding="utf-8"), []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        if language in ("", "bash"):
            found = re.findall(r"^(?:accelerate launch .*?-m hf_)?(longattn .*(?:\\\n.*)*)$", block, flags=re.M)
            wrong += [f"{line}: {why}" for line in found if (why := problem(words_of(line), whole=True))]
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    wrong += [f"{words}: {why}" for words, whole in commands_in(outside) if (why := problem(words, whole=whole))]
    assert not wrong, "\n".join(wrong)


@every_case("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_say_where_a_clone_is_needed(path: Path) -> None:
    shown = re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.S)
    sections = re.split(r"^#+ ", shown, flags=re.M)
    wrong = [
        section.splitlines()[0]
        for section in sections
        if CHECKOUT.search(section) and not re.search(r"clone|checkout", section)
    ]
    assert not wrong, f"{wrong}: these commands need a clone of the repository; say so"


SHAPE = {
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "hidden_size": 16,
    "intermediate_size": 16,
    "vocab_size": 200,
}
STACKS = {
    "d_model": 16,
    "vocab_size": 200,
    **{
        f"{stack}_{name}": value
        for stack in ("encoder", "decoder")
        for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 16))
    },
}
SOURCES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", {**SHAPE, "max_position_embeddings": 514, "pad_token_id": 1}),
    "bert-base": ("BertForMaskedLM", "BertConfig", {**SHAPE, "max_position_embeddings": 512}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_layer": 12, "n_head": 4, "n_embd": 16, "vocab_size": 200, "n_positions": 1024},
    ),
    "bart": (
        "BartForConditionalGeneration",
        "BartConfig",
        {**STACKS, "max_position_embeddings": 1024, "forced_eos_token_id": None},
    ),
    "vit-base": ("ViTModel", "ViTConfig", {name: SHAPE[name] for name in SHAPE if name != "vocab_size"}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**SHAPE, "max_position_embeddings": 4096}),
}
"""A checkpoint of the shape of each that documents and recipes convert, by a part of its name."""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path | None]:
    """stand_in("google-bert/bert-base-uncased"): a small checkpoint with its positions; ``None`` for others."""
    folder = tmp_path_factory.mktemp("sources")

    def make(name: str) -> Path | None:
        key = next((key for key in SOURCES if key in name.lower() and "/" not in name.lower().split(key)[1]), None)
        if key is None or "bigbird" in name:
            return None
        if not (folder / key).exists():
            model, config, values = SOURCES[key]
            torch.manual_seed(0)
            getattr(transformers, model)(getattr(transformers, config)(**values)).save_pretrained(folder / key)
        return folder / key

    return make


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """run("plan", …): what the command prints; it must succeed."""

    def call(*words: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        assert not ended.value.code, captured.err
        return captured.out

    return call


def warnings_of(run: Callable[..., str], words: list[str]) -> list[str]:
    """What a plan warns of for the words of `longattn convert SRC DST …`."""
    return json.loads(run("plan", words[1], *words[3:], "--json")).get("warnings", [])


# What inspect and search recommend.


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A masked language model of 64 tokens, and a text."""
    folder, tokenizer = tmp_path_factory.mktemp("short"), tokenizer_of("bert", 64)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **{**SHAPE, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}, max_position_embeddings=64
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    (folder / "text.txt").write_text(REAL_TEXT, encoding="utf-8")
    return {"model": folder / "bert", "text": folder / "text.txt"}


WIDTHS = [word for width in (16, 32, 64, 96, 128) for word in ("--candidate", f"window:window={width}")]
BY_CONTENT = (
    "top_k:num_keys=4",
    "block_top_k:num_blocks=1,block_size=8",
    "lsh:bucket_size=8",
    "full",
    "bigbird:block_size=4",
)
CONTENT = [word for name in BY_CONTENT for word in ("--candidate", name)]


@pytest.mark.thorough
def test_plan_does_not_warn_of_what_inspect_chooses(
    short: dict[str, Path], tmp_path: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["inspect", *short.values(), "--lengths", "64", *WIDTHS, *CONTENT]
    terminal, numbers = run(*line), json.loads(run(*line, "--json"))
    flags = re.search(r"add to longattn convert:\n  (.*)$", terminal, re.M)
    assert flags is not None
    assert flags[1] == shlex.join(numbers["chosen"]["flags"])
    typed = [str(word) for word in ("convert", short["model"], "other", "--max-length", "128")]
    assert not warnings_of(run, [*typed, *shlex.split(flags[1])])
    for one in numbers["candidates"]:  # what is left out is what a plan warns of
        values = one["name"].partition(":")
        given = [word for option in values[2].split(",") if option for word in ("--option", option)]
        assert bool(warnings_of(run, [*typed, "--mechanism", values[0], *given])) == bool(
            one["untrained_positions"]
        ), one["name"]


@pytest.mark.thorough
def test_plan_does_not_warn_of_what_search_recommends(
    short: dict[str, Path], tmp_path: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def layer_seconds(candidates: Any, *_: Any) -> Any:
        return {str(one): float(one.options.get("window", 256)) for one in candidates}, {}

    monkeypatch.setattr("hf_longattn.search.search.layer_seconds", layer_seconds)
    monkeypatch.chdir(tmp_path)
    for candidates in ([], [*WIDTHS, *CONTENT]):
        out = run(
            "search",
            *short.values(),
            "--output",
            f"{len(candidates)}.yaml",
            "--length",
            "256",
            "--budget",
            "100",
            *candidates,
        )
        command = re.search(r"^next: (longattn convert .*)$", out, re.M)
        assert command is not None
        assert not warnings_of(run, shlex.split(command[1])[1:])
        assert re.search(
            r"Without training the held-out loss at 256 tokens is .*: \d\.\d+ → \d\.\d+ nats", " ".join(out.split())
        )
        assert "left out: " in out
        assert shlex.split(command[1])[3] == "bert-long"
    choice = json.loads(
        run("plan", short["model"], "--mechanism", "auto", "--max-length", "256", "--budget", "100", "--json")
    )
    assert "warnings" not in choice
    assert choice["choice"]["loss_change"]["predicted"] > 10


# What a plan and a report recommend.

WIDE = {
    "bert-base": ["--mechanism", "window", "--option", "window=1024"],
    "roberta": ["--mechanism", "block_top_k"],
    "gpt2": ["--mechanism", "full"],
    "bart": ["--mechanism", "longformer", "--option", "window=1024", "--max-decoder-length", "4096"],
    "llama": ["--mechanism", "full", "--positions", "rope:none"],
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", every_other(WIDE))
def test_plan_does_not_warn_of_what_a_warning_advises(
    name: str, stand_in: Callable[[str], Path], run: Callable[..., str]
) -> None:
    source = stand_in(name)
    line = ["convert", str(source), "DST", "--max-length", "16384"]
    (warning,) = warnings_of(run, [*line, *WIDE[name]])
    advised = re.search(r"\((--.*?)\)", warning)
    assert advised is not None
    kept = (
        WIDE[name]
        if advised[1].startswith("--decoder")
        else [word for word in WIDE[name] if word in ("--positions", "rope:none")]
    )
    assert not warnings_of(run, [*line, *kept, *shlex.split(advised[1])])


# What documents and recipes recommend.


def conversions() -> Iterator[tuple[str, list[str], str]]:
    """(where, words, the block around them) of every conversion that a document or a recipe names."""
    for path in DOCUMENTS:
        for block in re.findall(
            r"^```(?:bash)?\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
        ):
            for line in re.findall(r"^(longattn (?:convert|plan) .*(?:\\\n.*)*)$", block, flags=re.M):
                yield path.name, words_of(line), block
    for name, recipe in ready_recipes().items():
        block = recipe.path.read_text(encoding="utf-8")
        for line in re.findall(r"^# +(longattn convert .*)$", block, flags=re.M):
            yield name, words_of(line), block


@pytest.mark.thorough
def test_plan_warns_of_no_conversion_in_documents_and_recipes(
    stand_in: Callable[[str], Path | None], run: Callable[..., str]
) -> None:
    """Unless the same block trains the result."""
    wrong, seen = [], 0
    # the same command is in several places, with another destination
    warned_by_words: dict[tuple[str, ...], list[str]] = {}
    for where, (command, name, *words), block in conversions():
        source = stand_in(name)
        if source is None or "--generic" in words or "auto" in words or "design.yaml" in words:
            continue
        if command == "plan":
            words = ["DST", *words]
        key = (str(source), *words[1:])
        if key not in warned_by_words:
            warnings = warnings_of(run, ["convert", str(source), *words])
            # a cost
            warned_by_words[key] = [one for one in warnings if "scales the rotations of all tokens" not in one]
        warned = warned_by_words[key]
        seen += 1
        if warned and "longattn train" not in block:
            wrong.append(f"{where}: {name} {' '.join(words)}: {warned[0]}")
        if warned and where in ready_recipes() and ready_recipes()[where].command == "convert":
            assert "needs training" in block, f"the recipe {where} needs training, which its title does not say"
    assert seen > 12
    assert not wrong, "\n".join(wrong)
