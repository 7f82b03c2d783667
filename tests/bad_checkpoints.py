"""Ways in which a checkpoint folder can be bad: name -> (damage, words of the sentence that refuses it)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from tests.damage import (
    Damage,
    dangling,
    edit_header,
    edit_json,
    edit_tensor,
    instead,
    join,
    loop,
    outside,
    parts,
    weights,
    write,
)

Cases = dict[str, tuple[Damage, str]]
INDEX = "model.safetensors.index.json"


def cut(count: int) -> Damage:
    """The weight file's first bytes; counted from its end where negative."""
    return lambda source: weights(source).write_bytes(weights(source).read_bytes()[:count])


def header_length(change: int | None = None, exact: int = 0) -> Damage:
    def damage(source: Path) -> None:
        raw = weights(source).read_bytes()
        length = exact if change is None else int.from_bytes(raw[:8], "little") + change
        weights(source).write_bytes(length.to_bytes(8, "little") + raw[8:])

    return damage


def header_text(text: bytes) -> Damage:
    return lambda source: join(weights(source), text, parts(weights(source))[1])


def header_twice(source: Path) -> None:
    """The header names its first tensor twice, as two different ones."""
    header, data = parts(weights(source))
    name = next(name for name in header if name != "__metadata__")
    other = json.dumps({name: {**header[name], "shape": [1, *header[name]["shape"]]}})
    join(weights(source), (json.dumps(header)[:-1] + ", " + other[1:]).encode(), data)


def instead_of_weights(content: bytes) -> Damage:
    return lambda source: weights(source).write_bytes(content)


def field(name: str, value: Any) -> Damage:
    """A field of the first tensor's entry in the header; `...` takes it out."""

    def edit(header: dict[str, Any], tensor: str) -> None:
        header[tensor] = {key: one for key, one in {**header[tensor], name: value}.items() if one is not ...}

    return edit_header(edit)


def shifted(start: int, end: int) -> Damage:
    def edit(header: dict[str, Any], tensor: str) -> None:
        a, b = header[tensor]["data_offsets"]
        header[tensor]["data_offsets"] = [a + start, b + end]

    return edit_header(edit)


def overlapping(header: dict[str, Any], tensor: str) -> None:
    """Every tensor of that size begins where the first does."""
    for entry in header.values():
        if entry.get("shape") == header[tensor]["shape"]:
            entry["data_offsets"] = header[tensor]["data_offsets"]
    header["again"] = header[tensor]


def filled(value: float, match: str = "") -> Damage:
    def edit(weight: torch.Tensor) -> torch.Tensor:
        weight[1, 2] = value
        return weight

    return edit_tensor(edit, match)


def unreadable(file: str) -> Damage:
    return lambda source: (weights(source) if file == "weights" else source / file).chmod(0)


def only_pickles(source: Path) -> None:
    for file in [*source.glob("*.safetensors"), *source.glob("*.index.json")]:
        file.unlink()
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04}\x94.")


LFS = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea423c2713d436b5ee50593a9640e0018c1550b5a0002f74190d6caea8\nsize 87102\n"
)
BROKEN = "not a whole safetensors file"

WEIGHTS: Cases = {
    "one byte short": (cut(-1), BROKEN),
    "half": (cut(4000), BROKEN),
    "header only": (cut(100), BROKEN),
    "eight bytes": (cut(8), BROKEN),
    "seven bytes": (cut(7), BROKEN),
    "no bytes": (cut(0), BROKEN),
    "bytes too many": (lambda source: weights(source).write_bytes(weights(source).read_bytes() + b"more"), BROKEN),
    "header length 0": (header_length(exact=0), BROKEN),
    "header length 1": (header_length(exact=1), BROKEN),
    "header one byte shorter": (header_length(-1), BROKEN),
    "header one byte longer": (header_length(1), BROKEN),
    "header longer by 64": (header_length(64), BROKEN),
    "header of 10 GB": (header_length(exact=10 * 2**30), BROKEN),
    "header of 2^63 bytes": (header_length(exact=2**63), BROKEN),
    "header of 2^64 - 1 bytes": (header_length(exact=2**64 - 1), BROKEN),
    "header no JSON": (header_text(b"{"), BROKEN),
    "header a list": (header_text(b"[]"), BROKEN),
    "header not UTF-8": (header_text(b'{"\xff\xfe": 1}'), BROKEN),
    "header names a tensor twice": (header_twice, "twice"),
    "metadata no text": (edit_header(lambda header, _: header.update(__metadata__={"format": 1})), BROKEN),
    "entry a number": (edit_header(lambda header, tensor: header.update({tensor: 3})), BROKEN),
    "no dtype": (field("dtype", ...), BROKEN),
    "no shape": (field("shape", ...), BROKEN),
    "no offsets": (field("data_offsets", ...), BROKEN),
    "unknown dtype": (field("dtype", "F13"), BROKEN),
    "dtype of numpy": (field("dtype", "float32"), BROKEN),
    "empty dtype": (field("dtype", ""), BROKEN),
    "dtype null": (field("dtype", None), BROKEN),
    "dtype twice as wide": (field("dtype", "F64"), BROKEN),
    "negative shape": (field("shape", [-1, 32]), BROKEN),
    "fractional shape": (field("shape", [1.5, 32]), BROKEN),
    "shape of text": (field("shape", "32"), BROKEN),
    "shape overflows": (field("shape", [2**62, 2**62]), BROKEN),
    "shape too large for its bytes": (field("shape", [4096, 4096]), BROKEN),
    "offsets overlap": (edit_header(overlapping), BROKEN),
    "offsets leave a gap": (shifted(0, -4), BROKEN),
    "offsets begin later": (shifted(4, 4), BROKEN),
    "offsets beyond the file": (field("data_offsets", [10**9, 10**9 + 4]), BROKEN),
    "offsets reversed": (field("data_offsets", [64, 0]), BROKEN),
    "offsets negative": (field("data_offsets", [-4, 0]), BROKEN),
    "three offsets": (field("data_offsets", [0, 1, 2]), BROKEN),
    "a web page": (instead_of_weights(b"<!DOCTYPE html><html><body>404: Not Found</body></html>"), BROKEN),
    "a Git LFS pointer": (instead_of_weights(LFS), "git lfs pull"),
    "a pickle": (instead_of_weights(b"PK\x03\x04" + b"\0" * 200), BROKEN),
    "zeros": (instead_of_weights(b"\0" * 5000), BROKEN),
    "a folder": (instead("weights", Path.mkdir), "is a folder"),
    "a pipe": (instead("weights", os.mkfifo), "is no regular file"),
    "a link to nowhere": (instead("weights", dangling), "link"),
    "a link to itself": (instead("weights", loop), "link"),
    "a link to another folder": (instead("weights", outside), "outside"),
    "not readable": (unreadable("weights"), "cannot be read"),
    "gone": (lambda source: weights(source).unlink(), "no weights: expected model.safetensors|is missing"),
    "only pickles": (only_pickles, "only as pickle"),
    "NaN": (filled(float("nan")), "NaN or infinit"),
    "infinity": (filled(float("inf")), "NaN or infinit"),
    "minus infinity": (filled(float("-inf")), "NaN or infinit"),
    "a matrix is missing": (edit_tensor(lambda weight: None), "missing|no shard holds"),
    "a matrix of one more row": (edit_tensor(lambda weight: torch.cat([weight, weight[:1]])), "shape|rows"),
    "a matrix without rows": (edit_tensor(lambda weight: weight[:0]), "shape|rows"),
    "a matrix one column narrower": (edit_tensor(lambda weight: weight[:, 1:].contiguous()), "shape"),
    "a vector for a matrix": (edit_tensor(lambda weight: weight.flatten()), "shape|rows"),
    "a number for a matrix": (edit_tensor(lambda weight: weight.sum()), "shape|rows"),
    "one more dimension": (edit_tensor(lambda weight: weight[None]), "shape|rows"),
    "whole numbers": (edit_tensor(lambda weight: weight.long()), "whole numbers|int64"),
    "truth values": (edit_tensor(lambda weight: weight > 0), "bool"),
    "complex numbers": (edit_tensor(lambda weight: weight.to(torch.complex64)), "dtype C64"),
}
"""Of the weight file, or the last of several."""


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


def first_shard_again(source: Path) -> None:
    """A further shard holds the tensors of the first once more."""
    first = sorted(source.glob("*.safetensors"))[0]
    (source / "model-again.safetensors").write_bytes(first.read_bytes())
    index(again="model-again.safetensors")(source)


INDICES: Cases = {
    "no JSON": (write(INDEX, "{"), "not valid JSON"),
    "no bytes": (write(INDEX, ""), "not valid JSON"),
    "a list": (write(INDEX, "[]"), "must hold a JSON object"),
    "not UTF-8": (write(INDEX, b"\xff\xfe\xfd"), "not valid JSON"),
    "nested too deeply": (write(INDEX, '{"a":' * 100_000), "not valid JSON"),
    "no weight_map": (write(INDEX, "{}"), "no weight_map"),
    "weight_map a list": (write(INDEX, '{"weight_map": []}'), "no weight_map"),
    "weight_map empty": (write(INDEX, '{"weight_map": {}}'), "no weight_map"),
    "file a number": (index(a=3), "no weight_map"),
    "file null": (index(a=None), "no weight_map"),
    "file a list": (index(a=["model.safetensors"]), "no weight_map"),
    "shard missing": (lambda source: weights(source).unlink(), "is missing"),
    "names a missing shard": (index(a="model-00099-of-00099.safetensors"), "is missing"),
    "names a tensor that is nowhere": (index(a="model-00001-of-00007.safetensors"), "no shard holds|is missing"),
    "shard above": (shard_elsewhere, "same folder"),
    "absolute path": (index(a="/etc/model.safetensors"), "same folder"),
    "path in a folder": (index(a="more/model.safetensors"), "same folder"),
    "path through here": (index(a="./model-00001-of-00007.safetensors"), "same folder"),
    "path upwards": (index(a="../../etc/passwd"), "same folder"),
    "Windows path": (index(a="..\\model.safetensors"), "same folder|is missing"),
    "no file name": (index(a=""), "same folder"),
    "dot": (index(a="."), "same folder"),
    "two dots": (index(a=".."), "same folder"),
    "zero in the name": (index(a="model\0.safetensors"), "same folder|is missing"),
    "a name too long": (index(a="m" * 5000 + ".safetensors"), "same folder|is missing"),
    "a pickle": (index(a="pytorch_model.bin"), "same folder"),
    "the config": (index(a="config.json"), "same folder"),
    "tensors in two shards": (first_shard_again, "in two shards"),
    "a folder": (instead(INDEX, Path.mkdir), "is a folder"),
    "a link to nowhere": (instead(INDEX, dangling), "link"),
    "a link to itself": (instead(INDEX, loop), "link"),
    "not readable": (unreadable(INDEX), "cannot be read"),
}


def big(source: Path) -> None:
    with open(source / "config.json", "wb") as file:
        file.write(b'{"a": "')
        file.truncate(3 * 2**30)  # takes no room on the disk


CONFIG = "config.json"
CONFIGS: Cases = {
    "absent": (lambda source: (source / CONFIG).unlink(), "has no config.json"),
    "no bytes": (write(CONFIG, ""), "not valid JSON"),
    "cut off": (write(CONFIG, '{"model_type": "be'), "not valid JSON"),
    "YAML": (write(CONFIG, "model_type: bert\n"), "not valid JSON"),
    "a list": (write(CONFIG, "[]"), "must hold a JSON object"),
    "a number": (write(CONFIG, "3"), "must hold a JSON object"),
    "null": (write(CONFIG, "null"), "must hold a JSON object"),
    "a text": (write(CONFIG, '"bert"'), "must hold a JSON object"),
    "not UTF-8": (write(CONFIG, b'{"model_type": "\xff"}'), "not valid JSON"),
    "UTF-16": (write(CONFIG, '{"model_type": "bert"}'.encode("utf-16")), "not valid JSON"),
    "zeros": (write(CONFIG, b"\0" * 100), "not valid JSON"),
    "nested too deeply": (write(CONFIG, "[" * 100_000 + "]" * 100_000), "not valid JSON"),
    "objects nested too deeply": (write(CONFIG, '{"a":' * 100_000 + "1" + "}" * 100_000), "not valid JSON"),
    "a number of 10,000 digits": (write(CONFIG, '{"hidden_size": ' + "9" * 10_000 + "}"), "not valid JSON"),
    "3 GB": (big, "too large"),
    "a folder": (instead(CONFIG, Path.mkdir), "is a folder"),
    "a pipe": (instead(CONFIG, os.mkfifo), "is no regular file"),
    "a link to nowhere": (instead(CONFIG, dangling), "link"),
    "a link to itself": (instead(CONFIG, loop), "link"),
    "a link to another folder": (instead(CONFIG, outside), "outside"),
    "not readable": (unreadable(CONFIG), "cannot be read"),
    "model_type absent": (edit_json(CONFIG, model_type=...), "no model_type"),
    "model_type null": (edit_json(CONFIG, model_type=None), "no model_type"),
    "model_type a number": (edit_json(CONFIG, model_type=3), "no model_type"),
    "model_type a list": (edit_json(CONFIG, model_type=["bert"]), "no model_type"),
    "model_type empty": (edit_json(CONFIG, model_type=""), "not supported|no model_type"),
    "model_type unknown": (edit_json(CONFIG, model_type="brand_new"), "not supported"),
    "model_type a path": (edit_json(CONFIG, model_type="../../bert"), "not supported"),
    "model_type mistyped": (edit_json(CONFIG, model_type="robert"), "Did you mean 'roberta'"),
    "model_type long without attention": (edit_json(CONFIG, model_type="long_bert"), "not supported"),
    "already long": (edit_json(CONFIG, long_attention={"mechanism": "full"}), "already a long checkpoint"),
    "class unknown": (edit_json(CONFIG, architectures=["ForPoetry"]), "no long form"),
    "class a number": (edit_json(CONFIG, architectures=3), "no long form"),
    "class a text": (edit_json(CONFIG, architectures="BertModel"), "no long form"),
    "classes are lists": (edit_json(CONFIG, architectures=[[]]), "no long form"),
    "class is an object": (edit_json(CONFIG, architectures=[{"a": 1}]), "no long form"),
    "two classes": (edit_json(CONFIG, architectures=["BertModel", "BertForMaskedLM"]), "no long form"),
    "class of another family": (edit_json(CONFIG, architectures=["ViTModel"]), "no long form"),
    "quantised": (edit_json(CONFIG, quantization_config={"quant_method": "gptq", "bits": 4}), "quantised"),
    "quantised in words": (edit_json(CONFIG, quantization_config="4 bits"), "quantised"),
}

COUNTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "max_position_embeddings")
NUMBERS: tuple[Any, ...] = (None, "", "many", -1, 0, 10**9, 2**70, 1.5, True, [], {}, float("inf"), float("nan"))
"""What stands where a config has a count."""

TOKENIZERS: Cases = {
    "no JSON": (write("tokenizer.json", "{"), "tokenizer"),
    "no bytes": (write("tokenizer.json", ""), "tokenizer"),
    "not UTF-8": (write("tokenizer.json", b"\xff\xfe"), "tokenizer"),
    "another format": (write("tokenizer.json", '{"version": "1.0"}'), "tokenizer"),
    "a list": (write("tokenizer.json", "[]"), "tokenizer"),
    "a number": (write("tokenizer.json", "3"), "tokenizer"),
    "unknown model": (edit_json("tokenizer.json", model={"type": "Oracle"}), "tokenizer"),
    "vocabulary of another model": (
        edit_json("tokenizer.json", model={"type": "WordLevel", "vocab": {"[UNK]": 10**6}, "unk_token": "[UNK]"}),
        "belongs to another model",
    ),
    "a folder": (instead("tokenizer.json", Path.mkdir), "is a folder"),
    "a link to nowhere": (instead("tokenizer.json", dangling), "link"),
    "a link to itself": (instead("tokenizer.json", loop), "link"),
    "a link to another folder": (instead("tokenizer.json", outside), "outside"),
    "not readable": (unreadable("tokenizer.json"), "cannot be read"),
    "settings no JSON": (write("tokenizer_config.json", "{"), "tokenizer|not valid JSON"),
    "settings a list": (write("tokenizer_config.json", "[]"), "tokenizer|JSON object"),
    "settings nested too deeply": (write("tokenizer_config.json", '{"a":' * 100_000), "tokenizer|not valid JSON"),
    "settings name a number": (edit_json("tokenizer_config.json", tokenizer_class=3), "tokenizer"),
    "generation config no JSON": (write("generation_config.json", "{"), "generation_config.json"),
    "generation config a list": (write("generation_config.json", "[]"), "generation_config.json"),
    "generation config a folder": (instead("generation_config.json", Path.mkdir), "is a folder"),
    "another file is a link outside": (instead("special_tokens_map.json", outside), "link|outside"),
    "a licence that is a link outside": (lambda source: (source / "LICENSE").symlink_to("/etc/hostname"), "outside"),
}
