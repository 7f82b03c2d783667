"""What SECURITY.md promises of a hostile checkpoint: none of its code runs, whatever a command is asked to do with
it."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch
import typer
from transformers import BertForMaskedLM

from hf_longattn import convert_checkpoint
from hf_longattn.cli import app
from hf_longattn.training.tasks import load_task, task_names
from tests.cases import every_case
from tests.grids import ONLY_QUICK

from .hostile import (
    KINDS,
    LEAKS,
    RUN,
    SECRET,
    Room,
    add_to,
    answer,
    bert,
    check_commands,
    own_model_type,
    own_tokenizer,
    sentence_encoder,
    write_code,
)
from .hub_server import WRITER, Hub

YES = "y\n" * 100
"""More answers than any command could ask for."""


@pytest.fixture(scope="module")
def program() -> Any:
    return typer.main.get_command(app)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    pytest.importorskip("sentence_transformers")
    for name in task_names():
        load_task(name)
    return Room.make(tmp_path_factory.mktemp("room"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    bert(tmp_path / "source")
    return tmp_path / "source"


@contextlib.contextmanager
def terminal() -> Iterator[TextIO]:
    """A terminal at which somebody types "y"."""
    import pty

    master, slave = pty.openpty()
    os.write(master, YES.encode())
    with os.fdopen(slave, "r") as stream:
        yield stream
    os.close(master)


def ran(program: Any, lines: Iterator[list[str]], marker: Path, typed: Callable[[], TextIO]) -> list[str]:
    """Command lines that ran a checkpoint's code, or offered to, with "yes" on standard input."""
    found = []
    for line in lines:
        _, said = answer(program, line, typed())
        happened = {
            "ran it": marker.exists(),
            "asked": "[y/N]" in said,
            "advised to trust it": "trust_remote_code" in said,
        }
        found += [f"{' '.join(line[:2])}: {what}" for what, so in happened.items() if so]
        marker.unlink(missing_ok=True)
    return found


def test_hostile_lines_try_every_command(program: Any) -> None:
    check_commands(program)


def lines_of(kinds: Sequence[Callable[[Path], object]]) -> list[Any]:
    """Each kind with all commands but train, and every other one with train, whose tasks load models by the same
    code."""
    return [
        pytest.param(
            kind, training, marks=pytest.mark.slow if training and number % 2 else (), id=f"{kind.__name__}-{name}"
        )
        for number, kind in enumerate(kinds)
        for training, name in ((True, "train"), (False, "others"))
    ]


@every_case(("kind", "training"), lines_of(KINDS))
def test_no_command_runs_code_of_a_hostile_checkpoint(
    kind: Callable[[Path], object],
    training: bool,
    program: Any,
    room: Room,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the commands, the quick tests try every sixth one, in turn."""
    model = tmp_path / "model"
    marker = tmp_path / "marker"
    kind(model)
    write_code(model, marker)
    monkeypatch.chdir(model)  # where `python -m hf_longattn` would find its modules
    monkeypatch.syspath_prepend(model)
    lines = room.lines(model, tmp_path / "out", training)
    if ONLY_QUICK:
        # From here on, none of them makes transformers import all of its models, which it lists where it has none for
        # a config.
        lines = itertools.islice(lines, (KINDS.index(kind) + 2) % 6, None, 6)
    assert ran(program, lines, marker, lambda: io.StringIO(YES)) == []


@pytest.mark.parametrize("kind", [own_model_type, own_tokenizer], ids=lambda kind: kind.__name__)
def test_no_training_runs_code_of_a_hostile_checkpoint_at_a_terminal(
    kind: Callable[[Path], object], program: Any, room: Room, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    marker = tmp_path / "marker"
    kind(model)
    write_code(model, marker)
    with terminal() as stream:
        assert ran(program, room.lines(model, tmp_path / "out", True), marker, lambda: stream) == []


COPYING = (
    "convert {model} {out} --mechanism window --max-length 256 --no-verify",
    "compress {model} {out} --method bf16",
    "export {model} {out}",
    "embed {model} {data}/pairs.jsonl --text-column positive --output {out}",
    "train embed --model {model} --data {data}/pairs.jsonl " + RUN.replace("--model {model}", ""),
    "train classify --data {data}/labels.csv " + RUN,
    "push {model} writer/leak --token " + WRITER,
)
"""Commands that copy or upload files of a checkpoint."""


@every_case("leak", list(LEAKS), of=3)
def test_no_command_copies_or_uploads_a_file_outside_of_a_checkpoint(
    leak: str, program: Any, room: Room, tmp_path: Path, server: Hub
) -> None:
    model = tmp_path / "model"
    outside = tmp_path / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret.json").write_text(f'{{"a": "{SECRET}"}}')
    LEAKS[leak](model, outside)
    for number, line in enumerate(COPYING):
        out = tmp_path / f"out-{number}"
        words = shlex.split(line.format(model=model, out=out, data=room.folder / "data"))
        done, said = answer(program, words, io.StringIO())
        assert not done or words[0] == "push", f"{words[0]}: {said}"
        assert "Traceback" not in said
        assert not out.exists() or not [*out.rglob("*")], words[0]
    for repository in server.repos.values():
        assert not [name for name, content in repository.branches["main"].items() if SECRET.encode() in content]


@every_case("path", [".t", "a/b", "1_Pooling", "1_Pooling/", "./.t"])
def test_ordinary_modules_of_any_name_are_converted(path: str, tmp_path: Path, room: Room) -> None:
    sentence_encoder(tmp_path / "model", path)
    convert_checkpoint(tmp_path / "model", tmp_path / "out", mechanism="window", max_length=256, verify=False)
    assert (tmp_path / "out" / path / "config.json").read_text() == (
        tmp_path / "model" / path / "config.json"
    ).read_text()


def dense(folder: Path, name: str) -> None:
    sentence_encoder(folder)
    add_to(folder / "1_Pooling" / "config.json", activation_function=name)


def reranker(folder: Path, name: str) -> None:
    sentence_encoder(folder)
    add_to(folder / "config.json", sentence_transformers={"activation_fn": name})


def old_reranker(folder: Path, name: str) -> None:
    sentence_encoder(folder)
    add_to(folder / "config.json", sbert_ce_default_activation_function=name)


@every_case("make", [dense, reranker, old_reranker], ids=lambda make: make.__name__)
@every_case(
    "name", ["torch.nn.Module", "torch.os.abort", "torch.nn.CrossEntropyLoss", "torch.nn.Embedding", "torch.x"]
)
def test_embed_refuses_activations_that_are_none(
    make: Callable[[Path, str], None], name: str, program: Any, room: Room, tmp_path: Path
) -> None:
    make(tmp_path / "model", name)
    for line in COPYING[3:5]:
        words = shlex.split(line.format(model=tmp_path / "model", out=tmp_path / "out", data=room.folder / "data"))
        done, said = answer(program, words, io.StringIO())
        assert not done
        assert f"names '{name}' as an activation function; expected one of torch.nn" in said


@every_case("kind", ["single", "pair"])
def test_embed_refuses_a_template_with_ids_beyond_the_model(
    kind: str, program: Any, room: Room, tmp_path: Path
) -> None:
    sentence_encoder(tmp_path / "model")
    file = tmp_path / "model" / "tokenizer.json"
    values = json.loads(file.read_text())
    far = {"id": "far", "ids": [10**9], "tokens": ["far"]}
    sequences = {"single": ["A"], "pair": ["A", "B"]}
    templates = {name: [{"Sequence": {"id": one, "type_id": 0}} for one in ids] for name, ids in sequences.items()}
    templates[kind].append({"SpecialToken": {"id": "far", "type_id": 0}})
    values["post_processor"] = {"type": "TemplateProcessing", **templates, "special_tokens": {"far": far}}
    file.write_text(json.dumps(values))
    add_to(tmp_path / "model" / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    for line in COPYING[3:5]:
        words = shlex.split(line.format(model=tmp_path / "model", out=tmp_path / "out", data=room.folder / "data"))
        done, said = answer(program, words, io.StringIO())
        assert not done
        assert "gives token ids up to 1000000000 ('around each text')" in said


@every_case("device", ["/dev/zero", "/dev/random", "pipe"])
@every_case("name", ["model.safetensors.index.json", "modules.json", "1_Pooling/config.json", "tokenizer.json"])
def test_embed_opens_no_device_or_pipe(device: str, name: str, program: Any, room: Room, tmp_path: Path) -> None:
    sentence_encoder(tmp_path / "model")
    (tmp_path / "model" / name).unlink(missing_ok=True)
    if device == "pipe":
        os.mkfifo(tmp_path / "model" / name)
    else:
        (tmp_path / "model" / name).symlink_to(device)
    for line in COPYING[3:5]:
        words = shlex.split(line.format(model=tmp_path / "model", out=tmp_path / "out", data=room.folder / "data"))
        done, said = answer(program, words, io.StringIO())
        assert not done
        assert "not a regular file" in said or "outside of its checkpoint" in said


@every_case("field", ["model_type", "long_attention_format", "architectures", "hidden_act", "torch_dtype"])
@every_case("text", ["x", "x y ", "\0"])
def test_messages_about_a_value_of_millions_of_characters_are_short(
    field: str, text: str, program: Any, source: Path, tmp_path: Path
) -> None:
    add_to(source / "config.json", **{field: text * 10**6})
    for line in (["inspect", str(source)], ["plan", str(source), "--mechanism", "window", "--max-length", "256"]):
        done, said = answer(program, line, io.StringIO())
        assert done or len(said) < 110_000, f"{line[0]}: {len(said):,} characters"


def test_only_convert_with_allow_pickle_reads_pickled_weights(program: Any, room: Room, tmp_path: Path) -> None:
    model = tmp_path / "model"
    bert(model)
    torch.save(BertForMaskedLM.from_pretrained(model).state_dict(), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    lines = [line for training in (True, False) for line in room.lines(model, tmp_path / "out", training)]
    done = [line for line in lines if answer(program, line, io.StringIO())[0]]
    assert [line[0] for line in done if "--allow-pickle" not in line] == ["plan", "inspect"]  # which read no weights
    assert [line[0] for line in done if "--allow-pickle" in line] == ["convert"]
