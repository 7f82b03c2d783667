"""What an audit says of servers: of all that read a text, cut it off, refuse it or average its chunks, and of bad answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

import hf_longattn.families as families
from hf_longattn.cli import main
from hf_longattn.errors import OptionError
from hf_longattn.inspect import audit_reach
from hf_longattn.inspect.server import KEY
from tests.cells import every_cell
from tests.inspect.fakes import WORDS, serving, window
from tests.inspect.servers import Server, at

pytestmark = pytest.mark.usefixtures("families_hidden")

LENGTH = 256


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 256 tokens whose tokens all see one another, with a tokenizer."""
    place = tmp_path_factory.mktemp("server")
    folder = window(place / "long", "full")
    model = families.LongBertModel.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    (place / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", *WORDS]))
    BertTokenizerFast(vocab=str(place / "vocab.txt"), model_max_length=LENGTH).save_pretrained(folder)
    return folder


class Behaviour(NamedTuple):
    """How a server treats long texts, and what the audit says of it."""

    settings: dict[str, Any]
    problem: str
    note: str = ""


BEHAVIOURS = {
    "honest": Behaviour({}, ""),
    "truncates": Behaviour(
        {"keeps": 128, "truncates": True}, "no token from 126 on changes the embedding: the input is cut off", "refuses such a text instead"
    ),
    "truncates always": Behaviour(
        {"keeps": 128, "truncates": True, "knows_truncate": False}, "the input is cut off", "the server cuts such a text off as well"
    ),
    "refuses": Behaviour({"keeps": 128}, "a text of more than 128 tokens is refused"),
    "averages": Behaviour({"keeps": 66, "chunks": True}, "chunks of some 64 tokens are embedded by themselves and averaged"),
}
ROUTES = ("/v1/embeddings", "/embed", "/v1/embed", "/v2/embed", "/api/embed")


@every_cell(("route", "behaviour"), [(route, behaviour) for route in ROUTES for behaviour in BEHAVIOURS], of=3)
def test_what_a_server_does_with_long_texts(route: str, behaviour: str, long: Path) -> None:
    settings, problem, note = BEHAVIOURS[behaviour]
    with at(Server(long, **settings), route) as url:
        audit = audit_reach(long, url=url)
    (stage,) = audit.stages
    assert problem in stage.problem
    assert audit.agrees == (not problem)
    assert note in "".join(audit.notes)
    assert bool(audit.notes) == bool(note)
    assert audit.length == (128 if behaviour == "refuses" else LENGTH)


def test_base64_is_read(long: Path) -> None:
    with at(Server(long, base64=True), "/v1/embeddings") as url:
        assert audit_reach(long, url=url, length=64).agrees


def test_the_name_of_the_model(long: Path) -> None:
    """That of the folder, else the one that the server names, else the one in the address."""
    server = Server(long, served=("other",))
    with at(server, "/v1/embeddings") as url:
        assert audit_reach(long, url=url, length=64).agrees
        assert server.asked[-1]["model"] == "other"
        server.served = ("somebody/long", "other")
        assert audit_reach(long, url=url, length=64).agrees
        assert server.asked[-1]["model"] == "somebody/long"
        server.served = ("one", "two")
        with pytest.raises(OptionError, match=r"serves one, two, but no 'long'; name one in the address: \?model=one"):
            audit_reach(long, url=url, length=64)
        assert audit_reach(long, url=f"{url}?model=two&version=1", length=64).agrees
        assert server.asked[-1]["model"] == "two"
        with pytest.raises(OptionError, match=r"answers 404 to 8 tokens: .*does not exist.*is this the route"):
            audit_reach(long, url=f"{url}?model=three", length=64)


@pytest.mark.parametrize("status", [400, 404, 405, 413, 422, 500])
def test_a_server_of_something_else(status: int, long: Path) -> None:
    with serving(lambda body: (status, {"detail": "no"}), "/embed") as url, pytest.raises(OptionError) as refused:
        audit_reach(long, url=url, length=64)
    assert str(refused.value).startswith(f'{url} answers {status} to 8 tokens: {{"detail": "no"}}; is this the route of its embeddings')


def test_a_server_that_wants_a_key(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with at(Server(long, key="secret"), "/v1/embeddings") as url:
        with pytest.raises(OptionError, match=rf"answers 401 .*put the key that it wants into the variable {KEY}"):
            audit_reach(long, url=url, length=64)
        monkeypatch.setenv(KEY, "secret\n")
        assert audit_reach(long, url=url, length=64).agrees
        monkeypatch.setenv(KEY, "sec\nret")
        with pytest.raises(OptionError, match=rf"The variable {KEY} has characters that no key has; set it again\.$"):
            audit_reach(long, url=url, length=64)


def test_a_busy_server_is_asked_again_when_it_says(long: Path) -> None:
    server = Server(long, busy=3)
    with at(server, "/embed") as url:
        assert audit_reach(long, url=url, length=64).agrees
        server.busy = 10**9
        with pytest.raises(OptionError, match=r"answers 429 .*limits the rate of requests"):
            audit_reach(long, url=url, length=64, timeout=0.3)


def test_a_tokenizer_of_bytes_begins_a_text_with_a_space(long: Path, tmp_path: Path) -> None:
    """Its words have other tokens at the start of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["river", "stone", "house"]
    letters = sorted({letter for word in [*words, "the"] for letter in word} | {"Ġ"})
    vocabulary = {token: number for number, token in enumerate(letters)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    vocabulary |= {token: len(vocabulary) + number for number, token in enumerate(("th", "the", "Ġthe"))}
    for word in words:
        parts = ["Ġ", *word]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            vocabulary.setdefault(parts[0], len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64)
    folder = tmp_path / "bytes"
    families.LongBertModel.from_pretrained(long).save_pretrained(folder)
    fast.save_pretrained(folder)
    server = Server(folder)
    server.tokenizer = fast
    with at(server, "/embed") as url:
        audit = audit_reach(folder, url=url)
    assert audit.agrees
    assert audit.length == 64
    assert {text[0] for body in server.asked for text in body["inputs"]} == {" "}


def test_the_command_says_what_to_do(long: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with at(Server(long, keeps=128, truncates=True), "/embed") as url, pytest.raises(SystemExit) as stopped:
        main(["audit", str(long), "--url", url])
    assert stopped.value.code == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "the input is cut off" in said
    assert 'With "truncate": false in a request, the server refuses such a text instead (413), so send that.' in said
