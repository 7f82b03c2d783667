"""Damages of checkpoints (configs, indices, tokenizers, weights) with what convert says of each."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from tests.damage import (
    Cases,
    Damage,
    dangling,
    edit_json,
    edit_tensor,
    instead,
    loop,
    outside,
    unreadable,
    weights,
    write,
)

INDEX = "model.safetensors.index.json"


def index(**changes: Any) -> Damage:
    """Change the index: tensor or key -> value; `...` takes it out."""

    def damage(source: Path) -> None:
        values = json.loads((source / INDEX).read_text())
        values["weight_map"] = {
            name: file for name, file in {**values["weight_map"], **changes}.items() if file is not ...
        }
        (source / INDEX).write_text(json.dumps(values))

    return damage


def shard_elsewhere(source: Path) -> None:
    """The last shard lies above the folder, and the index says so."""
    name = weights(source).name
    weights(source).rename(source.parent / name)
    values = json.loads((source / INDEX).read_text())
    values["weight_map"] = {
        tensor: f"../{name}" if file == name else file for tensor, file in values["weight_map"].items()
    }
    (source / INDEX).write_text(json.dumps(values))


INDICES: Cases = {
    "no JSON": (write(INDEX, "{"), "not valid JSON"),
    "a list": (write(INDEX, "[]"), "must contain a JSON object"),
    "must map tensors to": (write(INDEX, "{}"), "must map tensors to"),
    "weight_map empty": (write(INDEX, '{"weight_map": {}}'), "must map tensors to"),
    "file a number": (index(a=3), "must map tensors to"),
    "shard missing": (lambda source: weights(source).unlink(), "No such file|cannot be loaded"),
    "shard above": (shard_elsewhere, "of the same folder"),
    "absolute path": (index(a="/etc/model.safetensors"), "of the same folder"),
    "path upwards": (index(a="../../etc/passwd"), "of the same folder"),
    "two dots": (index(a=".."), "of the same folder"),
    "a pickle": (index(a="pytorch_model.bin"), "of the same folder"),
}


def big(source: Path) -> None:
    with open(source / "config.json", "wb") as file:
        file.write(b'{"a": "')
        file.truncate(3 * 2**30)  # takes no space on the disk


CONFIG = "config.json"
CONFIGS: Cases = {
    "absent": (lambda source: (source / CONFIG).unlink(), "has no config.json"),
    "no bytes": (write(CONFIG, ""), "not valid JSON"),
    "a list": (write(CONFIG, "[]"), "must contain a JSON object"),
    "a text": (write(CONFIG, '"bert"'), "must contain a JSON object"),
    "not UTF-8": (write(CONFIG, b'{"model_type": "\xff"}'), "is not UTF-8 text"),
    "nested too deeply": (write(CONFIG, "[" * 100_000 + "]" * 100_000), "not valid JSON"),
    "a number of 10,000 digits": (write(CONFIG, '{"hidden_size": ' + "9" * 10_000 + "}"), "not valid JSON"),
    "3 GB": (big, "but at most 268 MB are read"),
    "a folder": (instead(CONFIG, Path.mkdir), "is a folder"),
    "a pipe": (instead(CONFIG, os.mkfifo), "is not a regular file"),
    "a link to nowhere": (instead(CONFIG, dangling), "link"),
    "a link to itself": (instead(CONFIG, loop), "link"),
    "a link to another folder": (instead(CONFIG, outside), "outside"),
    "not readable": (unreadable(CONFIG), "cannot be read"),
    "model_type absent": (edit_json(CONFIG, model_type=...), "no model_type"),
    "model_type a number": (edit_json(CONFIG, model_type=3), "no model_type"),
    "model_type empty": (edit_json(CONFIG, model_type=""), "not supported|no model_type"),
    "model_type unknown": (edit_json(CONFIG, model_type="brand_new"), "not supported"),
    "model_type mistyped": (edit_json(CONFIG, model_type="robert"), "Did you mean 'roberta'"),
    "model_type long without attention": (edit_json(CONFIG, model_type="long_bert"), "not supported"),
    "already long": (edit_json(CONFIG, long_attention={"mechanism": "full"}), "already a long checkpoint"),
    "class unknown": (edit_json(CONFIG, architectures=["ForPoetry"]), "not supported"),
    "classes are lists": (edit_json(CONFIG, architectures=[[]]), "not supported"),
    "two classes": (edit_json(CONFIG, architectures=["BertModel", "BertForMaskedLM"]), "not supported"),
    "class of another family": (edit_json(CONFIG, architectures=["ViTModel"]), "not supported"),
    "quantised": (edit_json(CONFIG, quantization_config={"quant_method": "gptq", "bits": 4}), "quantised"),
}


def big_tokenizer(source: Path) -> None:
    with open(source / "tokenizer.json", "rb+") as file:
        file.truncate(2 * 10**9)  # takes no space on the disk


COUNTS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
NUMBERS: tuple[Any, ...] = (None, "", "many", -1, 0, 10**9, 2**70, 1.5, True, [], {}, float("inf"), float("nan"))
"""What stands where a config has a count."""

TOKENIZERS: Cases = {
    "2 GB": (big_tokenizer, "too large for a tokenizer: 2,000 MB"),
    "no JSON": (write("tokenizer.json", "{"), "tokenizer"),
    "another format": (write("tokenizer.json", '{"version": "1.0"}'), "tokenizer"),
    "unknown model": (edit_json("tokenizer.json", model={"type": "Oracle"}), "tokenizer"),
    "vocabulary of another model": (
        edit_json("tokenizer.json", model={"type": "WordLevel", "vocab": {"[UNK]": 10**6}, "unk_token": "[UNK]"}),
        "belongs to another model",
    ),
    "a link to another folder": (instead("tokenizer.json", outside), "outside"),
    "not readable": (unreadable("tokenizer.json"), "Permission denied"),
    "settings a list": (write("tokenizer_config.json", "[]"), "tokenizer|JSON object"),
    "settings nested too deeply": (write("tokenizer_config.json", '{"a":' * 100_000), "tokenizer|not valid JSON"),
    "settings name a number": (edit_json("tokenizer_config.json", tokenizer_class=3), "tokenizer"),
    "generation config no JSON": (write("generation_config.json", "{"), "generation_config.json"),
    "another file is a link outside": (instead("special_tokens_map.json", outside), "link|outside"),
    "a licence that is a link outside": (lambda source: (source / "LICENSE").symlink_to("/etc/hostname"), "outside"),
}


def cut(count: int) -> Damage:
    """The weight file's first bytes; counted from its end where negative."""
    return lambda source: weights(source).write_bytes(weights(source).read_bytes()[:count])


def header_of_10_gigabytes(source: Path) -> None:
    raw = weights(source).read_bytes()
    weights(source).write_bytes((10 * 2**30).to_bytes(8, "little") + raw[8:])


def instead_of_weights(content: bytes) -> Damage:
    return lambda source: weights(source).write_bytes(content)


def filled(value: float) -> Damage:
    def edit(weight: torch.Tensor) -> torch.Tensor:
        weight[1, 2] = value
        return weight

    return edit_tensor(edit)


def only_pickles(source: Path) -> None:
    for file in [*source.glob("*.safetensors"), *source.glob("*.index.json")]:
        file.unlink()
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04}\x94.")


LFS = (
    b"version https://git-lfs.github.com/spec/v1\noid "
    b"sha256:4665a5ea423c2713d436b5ee50593a9640e0018c1550b5a0002f74190d6caea8\nsize 87102\n"
)
BROKEN = "cannot be loaded"

WEIGHTS: Cases = {
    "one byte short": (cut(-1), BROKEN),
    "no bytes": (cut(0), BROKEN),
    "header of 10 GB": (header_of_10_gigabytes, BROKEN),
    "a web page": (instead_of_weights(b"<!DOCTYPE html><html><body>404: Not Found</body></html>"), BROKEN),
    "a Git LFS pointer": (instead_of_weights(LFS), "git lfs pull"),
    "a folder": (instead("weights", Path.mkdir), "is a folder"),
    "a pipe": (instead("weights", os.mkfifo), "is not a regular file"),
    "a link to nowhere": (instead("weights", dangling), "link"),
    "a link to itself": (instead("weights", loop), "link"),
    "a link to another folder": (instead("weights", outside), "outside"),
    "not readable": (unreadable("weights"), "Permission denied"),
    "gone": (lambda source: weights(source).unlink(), "has no weights, or |No such file"),
    "only pickles": (only_pickles, "only as pickle"),
    "NaN": (filled(float("nan")), "NaN or infinit"),
    "a matrix is missing": (edit_tensor(lambda weight: None), "missing"),
    "a matrix of one more row": (
        edit_tensor(lambda weight: torch.cat([weight, weight[:1]])),
        "shape|conversion of the weights",
    ),
    "a matrix without rows": (edit_tensor(lambda weight: weight[:0]), "shape|conversion of the weights"),
    "a number for a matrix": (edit_tensor(lambda weight: weight.sum()), "shape|conversion of the weights"),
    "whole numbers": (edit_tensor(lambda weight: weight.long()), "holds I64 numbers"),
    "truth values": (edit_tensor(lambda weight: weight > 0), "holds BOOL numbers"),
    "complex numbers": (edit_tensor(lambda weight: weight.to(torch.complex64)), "holds C64 numbers"),
}
"""Of the weight file, or the last of several."""
