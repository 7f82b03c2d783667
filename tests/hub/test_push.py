"""Pushes: what is sent, what is refused, and that no token is shown."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import transformers
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from hf_longattn.errors import CheckpointError, HubError
from hf_longattn.files import MODEL_FILES, belongs, write_json
from hf_longattn.hub import check_login, push_model, write_model_card
from hf_longattn.loading import TOKEN, translated_errors
from tests.cases import every_case
from tests.cli.test_commands import run
from tests.fresh_processes import run_fresh
from tests.hub.verbose_commands import LOUD, MARK, use_tokens
from tests.hub_server import READER, STRANGER, WRITER, Hub, serve
from tests.saved import change_json

REPO = "writer/long-bert"


@pytest.fixture
def server(hub: Callable[[str], None]) -> Iterator[Hub]:
    with serve(Hub()) as running:
        hub(running.endpoint)
        yield running


@pytest.fixture
def model(converted: Callable[[str], Path], tmp_path: Path) -> Path:
    shutil.copytree(converted("bert"), tmp_path / "long-bert")
    return tmp_path / "long-bert"


def local_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_push_sends_the_whole_folder_in_one_commit(server: Hub, model: Path) -> None:
    report = push_model(model, REPO, token=WRITER, commit_message="First")
    sent, here = server.repos[REPO].branches["main"], local_files(model)
    assert report.left_out == ("conversion_report.json",)  # it names files of this machine
    assert {name for name, content in here.items() if sent.get(name) != content} == {"README.md", *report.left_out}
    assert server.repos[REPO].messages == ["First"]
    assert not server.repos[REPO].private
    assert (report.repo, report.revision, report.card) == (REPO, "main", "the folder's")
    assert set(report.files) == set(sent)
    assert WRITER not in repr(report)
    before = len(server.requests)
    push_model(model, REPO, token=WRITER)
    assert not any(line.startswith("PUT") for line in server.requests[before:]), "nothing large is sent twice"
    card = sent["README.md"].decode()
    assert f'from_pretrained("{REPO}")' in card
    assert str(model) not in card


def test_pushed_card_names_the_repository_where_it_loads_the_model(server: Hub, model: Path) -> None:
    place = model.rename(model.with_name("mon modèle"))
    command = "longattn train mlm --model {model} --data long.txt --output {model}-trained"
    change_json(place, "conversion_report.json", next_step={"command": command.split()})
    write_model_card(place)
    with open(place / "README.md", "a", encoding="utf-8") as card:
        card.write(f"Ask me about {place.name}.\n")
    assert str(place) in (place / "README.md").read_text()
    push_model(place, REPO, token=WRITER)
    card_text = server.repos[REPO].branches["main"]["README.md"].decode()
    assert f"longattn train mlm --model {REPO} --data long.txt --output {REPO}-trained\n" in card_text
    assert str(place) not in card_text
    assert card_text.endswith(f"Ask me about {place.name}.\n")


def test_push_changes_no_text_of_a_card_whose_comment_is_gone(server: Hub, model: Path) -> None:
    text = (model / "README.md").read_text()
    (model / "README.md").write_text("\n".join(line for line in text.splitlines() if "<!-- hf_longattn" not in line))
    push_model(model, REPO, token=WRITER)
    assert f'from_pretrained("{REPO}")' not in server.repos[REPO].branches["main"]["README.md"].decode()


def test_push_to_a_name_alone_goes_to_the_owner_of_the_token(
    server: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    assert push_model(model, "long-bert", private=True).repo == REPO
    assert server.repos[REPO].private


def test_push_keeps_the_card_and_files_of_the_repository(server: Hub, model: Path) -> None:
    there = server.add(REPO).branches["main"]
    there |= {"README.md": b"written by hand", "notes.txt": b"mine", "config.json": b"{}"}
    (model / "README.md").unlink()
    assert push_model(model, REPO, token=WRITER).card == "the repository's"
    now = server.repos[REPO].branches["main"]
    assert (now["README.md"], now["notes.txt"]) == (b"written by hand", b"mine")
    assert now["config.json"] == (model / "config.json").read_bytes()


def test_push_without_a_card_writes_one_for_the_repository(server: Hub, model: Path, tmp_path: Path) -> None:
    (model / "README.md").unlink()
    assert push_model(model, REPO, token=WRITER).card == "written"
    assert not (model / "README.md").exists()
    (tmp_path / "card.md").write_bytes(server.repos[REPO].branches["main"]["README.md"])
    card = ModelCard.load(tmp_path / "card.md")
    assert card.data.pipeline_tag == "fill-mask"
    assert "hf_longattn" in card.data.tags
    assert f'from_pretrained("{REPO}")' in card.text


def test_push_to_a_branch_leaves_the_main_one(server: Hub, model: Path) -> None:
    server.add(REPO).branches["main"]["kept.txt"] = b"1"
    assert push_model(model, REPO, token=WRITER, revision="trial").revision == "trial"
    assert list(server.repos[REPO].branches["main"]) == ["kept.txt"]
    assert {"kept.txt", "config.json"} <= set(server.repos[REPO].branches["trial"])


@every_case(
    ("repo", "token", "sentence"),
    [
        (REPO, None, "needs a token"),
        (REPO, "hf_unknownUNKNOWNunknown", "Invalid user token"),
        (REPO, READER, "permissions"),
        (REPO, STRANGER, "permissions"),
        ("writer/closed", STRANGER, "permissions"),
        ("a/b/c", WRITER, "Repo id must be in the form"),
        (REPO, f"{WRITER}\udce9", "has characters that no token of the Hub has; copy it again."),
    ],
)
def test_push_without_access_is_one_sentence(
    repo: str, token: str | None, sentence: str, server: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.requests.clear()
    server.add("writer/closed", private=True)
    server.add(REPO)
    code, _, said = run(capsys, "push", model, repo, *(["--token", token] if token else []))
    error = said.strip().splitlines()[-1]
    assert code == 1
    assert error.startswith("Error: ")
    assert sentence in error
    assert token is None or token not in error
    assert not any("commit" in line and " 200 " in line for line in server.requests)


def test_push_without_a_connection_is_one_sentence(hub: Callable[[str], None], model: Path) -> None:
    hub("http://127.0.0.1:9")
    with pytest.raises(HubError, match=re.escape("Connection refused (http://127.0.0.1:9)")):
        push_model(model, REPO, token=WRITER)


def test_push_says_that_no_class_is_named_and_uploads(
    server: Hub, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for architectures, lines in ((None, 1), (["LongBertForMaskedLM"], 0)):
        change_json(model, architectures=architectures)
        caplog.clear()
        push_model(model, REPO, token=WRITER)
        said = [message for message in caplog.messages if "its config.json names no class; write the class" in message]
        assert len(said) == lines
        assert json.loads(server.repos[REPO].branches["main"]["config.json"])["architectures"] == architectures


def test_private_push_refuses_a_public_repository(server: Hub, model: Path) -> None:
    server.add(REPO)
    for name in (REPO, REPO.partition("/")[2]):  # without its user, it is the one who is logged in
        with pytest.raises(HubError, match="is public, but it was to be private"):
            check_login(name, WRITER, private=True)
    with pytest.raises(HubError, match="is public, but it was to be private"):
        push_model(model, REPO, private=True, token=WRITER)
    assert not server.repos[REPO].messages


def test_push_refuses_bad_cards_before_sending(server: Hub, model: Path) -> None:
    (model / "README.md").write_text("---\nlicense: not-a-license\n---\n")
    with pytest.raises(HubError, match="must be one of"):
        push_model(model, REPO, token=WRITER)
    (model / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(CheckpointError, match=r"metadata .* cannot be read"):
        push_model(model, REPO, token=WRITER)
    (model / "README.md").write_text('# x\n<!-- hf_longattn: a push writes it in place of "\\q" -->\n')
    with pytest.raises(CheckpointError, match=r"name of the model in .* cannot be replaced"):
        push_model(model, REPO, token=WRITER)
    assert REPO not in server.repos


def name_token(model: Path, held: str) -> None:
    """A token in the metadata of a file of weights."""
    tensors = load_file(model / "model.safetensors")
    save_file(tensors, model / "model.safetensors", {"format": "pt", "note": held})


def module_folder(model: Path, path: str, text: str = "{}") -> None:
    """Add a module of sentence-transformers with a config."""
    modules = [{"path": "", "type": "a.Transformer"}, {"path": path, "type": "a.Pooling"}]
    write_json(model / "modules.json", modules)
    (model / path).mkdir(parents=True, exist_ok=True)
    (model / path / "config.json").write_text(text)


def text_in(name: str) -> Callable[[Path, str], object]:
    return lambda model, held: (model / name).write_text(f"token: {held}\n")


TOKEN_PLACES: dict[str, Callable[[Path, str], object]] = {
    "LICENSE": text_in("LICENSE"),
    "vocab.txt": text_in("vocab.txt"),
    "README.md": text_in("README.md"),
    "pytorch_model.bin": text_in("pytorch_model.bin"),
    "model.onnx": lambda model, held: (model / "model.onnx").write_bytes(b"\0" * (2**20 - 9) + held.encode() + b"\0"),
    "model.safetensors": name_token,
    "config.json": lambda model, held: module_folder(model, ".hidden/1_Pooling", f'["{held}"]'),
}


@every_case("held", [WRITER, "hf_" + "a1B2" * 9, "another-shape-of-20-signs"])
@every_case("file", list(TOKEN_PLACES))
def test_push_refuses_files_with_a_token(server: Hub, model: Path, held: str, file: str, tmp_path: Path) -> None:
    model = shutil.copytree(model, tmp_path / "copy")
    TOKEN_PLACES[file](model, held)
    with pytest.raises(HubError, match=rf"{re.escape(file)}.*token") as refused:
        push_model(model, REPO, token=held if held.startswith("another") else WRITER)
    assert held not in str(refused.value)
    assert not server.requests


@every_case("token", ["test", "the", "internationalization", "model"])
def test_push_takes_no_word_of_a_file_for_a_token(token: str, server: Hub, model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(model, tmp_path / "copy")
    (model / "vocab.txt").write_text("test\nthe\ninternationalization\nmodel\nhf_hub_download\n")
    with pytest.raises(HubError, match="token") as refused:
        push_model(model, REPO, token=token)
    assert "contains" not in str(refused.value)


SENT = """LICENSE LICENSE.md NOTICE USE_POLICY.md vocab.txt merges.txt spiece.model source.spm qwen.tiktoken
    special_tokens_map.json chat_template.jinja additional_chat_templates/tool.jinja preprocessor_config.json
    processor_config.json generation_config.json adapter_config.json pytorch_model.bin onnx/model.onnx
    onnx/model.onnx_data onnx/config.json openvino/openvino_model.bin openvino/openvino_model.xml modules.json
    1_Pooling/config.json 2_Dense/pytorch_model.bin sentence_bert_config.json
    config_sentence_transformers.json modeling_mine.py helper.py images/chart.png label_map.json README_zh.md"""
KEPT_HERE = """id_rsa id_rsa.pub key.pem .env .netrc .git/config .git/config.json .aws/credentials .docker/config.json
    credentials.json secrets.json kaggle.json client_secret.json service_account.json docker_config.json passwords.txt
    notes.txt notes.md train.sh train.py run.log nb.ipynb state.pkl data.csv train.jsonl predictions.json
    all_results.json training_log.json trainer_state.json training_args.bin optimizer.bin optimizer.pt secret.bin
    backup/model.onnx checkpoint-10/config.json wandb/config.json images/private.png .images/hidden.png onnx/id_rsa
    1_Pooling/id_rsa 1_Pooling/.netrc runs/events nbest_predictions.json"""


def test_push_sends_the_files_of_a_model_and_no_others(server: Hub, model: Path) -> None:
    for name in (SENT + " " + KEPT_HERE).split():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text("{}")
    change_json(model, auto_map={"AutoModel": "modeling_mine.Mine"})
    (model / "modeling_mine.py").write_text("from .helper import x\n")
    module_folder(model, "2_Dense")
    modules = [{"path": path, "type": "a.B"} for path in ("", "1_Pooling", "2_Dense")]
    write_json(model / "modules.json", modules)
    with open(model / "README.md", "a", encoding="utf-8") as card:
        card.write("![chart](images/chart.png) ![secret](.images/hidden.png)\n")
    before = ("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    expected = {*SENT.split(), *before, "2_Dense/config.json"}
    report = push_model(model, REPO, token=WRITER)
    assert set(report.files) == set(server.repos[REPO].branches["main"]) == expected
    assert set(report.left_out) == {*KEPT_HERE.split(), "conversion_report.json"}


def test_every_file_of_a_tokenizer_or_processor_of_transformers_belongs_to_a_model() -> None:
    from transformers import utils

    constants = {value for name, value in vars(utils).items() if name.endswith("_NAME") and isinstance(value, str)}
    names = {name for name in constants if name.endswith((".json", ".jinja", ".safetensors"))}
    for file in Path(transformers.__file__).parent.glob("models/*/tokenization_*.py"):
        for table in re.findall(r"VOCAB_FILES_NAMES = \{(.*?)\}", file.read_text(encoding="utf-8"), re.DOTALL):
            names.update(re.findall(r':\s*"([^"]+)"', table))
    assert {"vocab.txt", "merges.txt", "spiece.model", "config.json"} < names
    assert [name for name in sorted(names) if not belongs(name, MODEL_FILES)] == []


def test_push_lists_the_files_before_it_sends_one(
    hub: Callable[[str], None], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "id_rsa").write_text("secret")
    hub("http://127.0.0.1:9")
    code, _, said = run(capsys, "push", model, REPO, "--token", WRITER)
    assert code == 1
    for path in model.iterdir():
        listed = re.search(rf"^ +{path.stat().st_size:,}  {re.escape(path.name)}$", said, re.MULTILINE)
        assert (listed is None) == (path.name in ("id_rsa", "conversion_report.json")), path.name
    assert "Left out: conversion_report.json, id_rsa;" in said


def test_dry_run_lists_the_files_and_asks_the_hub_nothing(
    server: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = local_files(model)
    code, out, said = run(capsys, "push", model, REPO, "--dry-run", "--remote-code", "--json")
    assert code == 0
    report = json.loads(out)
    assert set(report["files"]) == {*before, "modeling_long_bert.py"} - {"conversion_report.json"}
    assert (report["commit"], report["url"]) == ("", "")
    assert all(name in said for name in report["files"])
    assert local_files(model) == before
    assert not server.requests
    (model / "LICENSE").write_text("hf_" + "a1B2" * 9)
    code, _, error = run(capsys, "push", model, REPO, "--dry-run")
    assert (code, "contains what looks like a Hub token" in error) == (1, True)


def test_push_refuses_a_folder_without_config_or_weights(server: Hub, model: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        push_model(tmp_path / "weights", REPO, token=WRITER)
    (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        push_model(model, REPO, token=WRITER)
    assert not server.requests


@pytest.mark.parametrize("file", ["model.onnx", "model.pt2"])
def test_push_sends_an_exported_graph_with_its_weights(server: Hub, model: Path, file: str) -> None:
    (model / "model.safetensors").rename(model / file)
    (model / f"{file}.data").write_bytes(b"weights")
    assert {file, f"{file}.data"} <= set(push_model(model, REPO, token=WRITER).files)


def test_convert_refuses_gated_source_in_one_sentence(
    server: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("writer/gated", model, gated=True)
    code, _, error = run(capsys, "convert", "writer/gated", tmp_path / "out", "--token", STRANGER)
    assert (code, "gated repo" in error) == (1, True)


def test_push_refuses_links_out_of_the_folder_and_follows_those_inside(server: Hub, model: Path) -> None:
    secret = model.parent / "secret.txt"
    secret.write_text("private")
    for name in ("LICENSE", "vocab.txt", "additional_chat_templates/a.jinja", "onnx/model.onnx"):
        (model / name).parent.mkdir(exist_ok=True)
        for link in (Path.symlink_to, Path.hardlink_to):
            link(model / name, secret)
            with pytest.raises(CheckpointError, match="outside of its checkpoint"):
                push_model(model, REPO, token=WRITER)
            (model / name).unlink()
    assert REPO not in server.repos
    (model / "LICENSE").symlink_to("config.json")
    (model / "NOTICE").hardlink_to(model / "tokenizer.json")
    push_model(model, REPO, token=WRITER)
    files = server.repos[REPO].branches["main"]
    assert files["LICENSE"] == files["config.json"]
    assert files["NOTICE"] == files["tokenizer.json"]


def test_push_refuses_weights_that_are_none(server: Hub, model: Path) -> None:
    secret = model.parent / "secret.txt"
    secret.write_text("private")
    (model / "other.safetensors").hardlink_to(secret)
    with pytest.raises(CheckpointError, match="is no file of weights"):
        push_model(model, REPO, token=WRITER)
    assert not server.requests


def test_push_sends_a_cache_snapshot_with_the_files_it_links_to(server: Hub, model: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(path for path in sorted(model.iterdir()) if path.is_file()):
        shutil.copyfile(path, blobs / str(number))
        (snapshot / path.name).symlink_to(blobs / str(number))
    push_model(snapshot, REPO, token=WRITER)
    assert server.repos[REPO].branches["main"]["model.safetensors"] == (model / "model.safetensors").read_bytes()


def test_unreadable_file_is_no_error_of_the_hub() -> None:
    with pytest.raises(CheckpointError, match=r"'/some/file': Permission denied\."), translated_errors(REPO):
        raise PermissionError(errno.EACCES, "Permission denied", "/some/file")


def test_no_output_or_file_of_convert_and_push_holds_a_token(converted: Callable[[str], Path], tmp_path: Path) -> None:
    environment = {**os.environ, **LOUD, "HF_HOME": str(tmp_path / "home")}
    done = run_fresh(use_tokens, converted("bert").with_name("source"), tmp_path, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    parts = re.split(f"^{MARK} (.*)$", done.stderr, flags=re.MULTILINE)
    assert parts[1::2] == ["0", "0", "0", "1"]
    assert "curl" in parts[2], "the libraries were not asked to be loud"
    contents = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert (tmp_path / "sent-5").exists()
    for token in (WRITER, READER):
        assert token not in done.stdout + done.stderr
        assert not any(token.encode() in content for content in contents)


def test_errors_of_the_hub_hide_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    for token in (WRITER, "secret-of-another-shape"):
        with pytest.raises(HubError, match=r"Bearer hf_\*\*\*") as refused, translated_errors("me/model", token):
            raise ValueError(f"the server said: bad header Bearer {token}")
        assert token not in str(refused.value)
        assert refused.value.__cause__ is None, "the traceback would print it"
    assert TOKEN.search("hf_longattn and hf_hub_download") is None
