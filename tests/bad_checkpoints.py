"""Ways in which the other files of a checkpoint can be bad: name -> (damage, words of the sentence that refuses it)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.damage import Cases, Damage, dangling, edit_json, instead, loop, outside, unreadable, weights, write

INDEX = "model.safetensors.index.json"


def index(**changes: Any) -> Damage:
    """Change the index: tensor or key -> value; `...` takes it out."""

    def damage(source: Path) -> None:
        values = json.loads((source / INDEX).read_text())
        values["weight_map"] = {name: file for name, file in {**values["weight_map"], **changes}.items() if file is not ...}
        (source / INDEX).write_text(json.dumps(values))

    return damage


def shard_elsewhere(source: Path) -> None:
    """The last shard lies above the folder, and the index says so."""
    name = weights(source).name
    weights(source).rename(source.parent / name)
    values = json.loads((source / INDEX).read_text())
    values["weight_map"] = {tensor: f"../{name}" if file == name else file for tensor, file in values["weight_map"].items()}
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
    "Windows path": (index(a="..\\model.safetensors"), "of the same folder|No such file"),
    "no file name": (index(a=""), "of the same folder"),
    "two dots": (index(a=".."), "of the same folder"),
    "zero in the name": (index(a="model\0.safetensors"), "of the same folder|No such file"),
    "a pickle": (index(a="pytorch_model.bin"), "of the same folder"),
    "a folder": (instead(INDEX, Path.mkdir), "is a folder"),
    "a link to nowhere": (instead(INDEX, dangling), "link"),
    "a link to itself": (instead(INDEX, loop), "link"),
    "not readable": (unreadable(INDEX), "cannot be read"),
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


COUNTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "max_position_embeddings")
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
    "a folder": (instead("tokenizer.json", Path.mkdir), "is a folder"),
    "a link to nowhere": (instead("tokenizer.json", dangling), "link"),
    "a link to itself": (instead("tokenizer.json", loop), "link"),
    "a link to another folder": (instead("tokenizer.json", outside), "outside"),
    "not readable": (unreadable("tokenizer.json"), "Permission denied"),
    "settings a list": (write("tokenizer_config.json", "[]"), "tokenizer|JSON object"),
    "settings nested too deeply": (write("tokenizer_config.json", '{"a":' * 100_000), "tokenizer|not valid JSON"),
    "settings name a number": (edit_json("tokenizer_config.json", tokenizer_class=3), "tokenizer"),
    "generation config no JSON": (write("generation_config.json", "{"), "generation_config.json"),
    "generation config a folder": (instead("generation_config.json", Path.mkdir), "is a folder"),
    "another file is a link outside": (instead("special_tokens_map.json", outside), "link|outside"),
    "a licence that is a link outside": (lambda source: (source / "LICENSE").symlink_to("/etc/hostname"), "outside"),
}
