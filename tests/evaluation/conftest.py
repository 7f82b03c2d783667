"""The tokenizer and the tiny model of the training tests, a sentence encoder, and a network that nothing may touch."""

import socket

import pytest
import torch
from transformers import BertModel

from hf_longattn import convert_checkpoint
from scripts.dev.tools.small_models import Shape, small_config
from tests.trained import tokenizer_of
from tests.training.conftest import texts, tiny_model, tokenizer

__all__ = ["no_network", "texts", "tiny_model", "tokenizer"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sentence encoder that reads 64 tokens, converted to 512."""
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    place = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    tokenizer = tokenizer_of("bert", 64)
    config = small_config("bert", Shape(vocabulary=len(tokenizer)), initializer_range=0.2)
    BertModel(config).save_pretrained(place / "plain")
    tokenizer.save_pretrained(place / "plain")
    modules = [Transformer(str(place / "plain")), Pooling(32), Normalize()]
    prompts = {"query": "query: ", "document": "about "}
    st.SentenceTransformer(modules=modules, prompts=prompts).save(str(place / "short"))
    convert_checkpoint(
        place / "short", place / "long", mechanism="longformer", window=16, max_length=512, verify=False
    )
    return str(place / "long")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the metric must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
