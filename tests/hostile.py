"""Checkpoints whose code would leave a file, and command lines that try each in every command."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Dinov2Config,
    Dinov2ForImageClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    WavLMConfig,
    WavLMForCTC,
)
from transformers.models.auto import modeling_auto

from hf_longattn import LongBertConfig, LongBertForMaskedLM
from tests.trained import REAL_TEXT, tokenizer_of

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CODE = "from pathlib import Path\nPath({marker!r}).touch()\n"
AUTO = (
    "AutoConfig",
    "AutoTokenizer",
    "AutoProcessor",
    "AutoImageProcessor",
    "AutoFeatureExtractor",
    "AutoVideoProcessor",
    *(name for name in vars(modeling_auto) if name.startswith("AutoModel")),
)
MAPS = dict.fromkeys(AUTO, "evil.Evil") | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
"""``auto_map`` that names a class of evil.py for every Auto class."""

LINES: dict[str, tuple[str, ...]] = {
    "convert": (
        "{model} {out} --mechanism window --max-length 256 --no-verify",
        "{model} {out} --mechanism window --max-length 256 --no-verify --allow-pickle",
        "{model} {out} --mechanism window --max-length 256 --no-verify --generic",
    ),
    "plan": ("{model} --mechanism window --max-length 256",),
    "export": ("{model} {out}", "{model} {out} --format native"),
    "compress": ("{model} {out} --method bf16",),
    "inspect": (
        "{model}",
        "{model} {data}/book.txt --lengths 16",
        "{model} {data}/images/a/0.png",
        "{model} {data}/sounds/a/0.wav",
    ),
    "search": ("{model} {data}/book.txt --output {out} --length 64 --candidate window:window=4",),
    "embed": ("{model} {data}/pairs.jsonl --text-column positive --output {out}",),
    "push": ("{model} somebody/model --token hf_no --remote-code",),
    "evaluate classify": (
        "{score} --data {data}/labels.csv",
        "{score} --data {data}/images",
        "{score} --data {data}/sounds",
    ),
    "evaluate clm": ("{score} --data {data}/book.txt",),
    "evaluate ctc": ("{score} --data {data}/spoken.csv",),
    "evaluate distill": ("{score} --data {data}/book.txt --method logits --teacher {good}",),
    "evaluate embed": ("{score} --data {data}/pairs.jsonl", "{score} --data {data}/pairs.jsonl --reranker"),
    "evaluate linearise": ("{score} --data {data}/book.txt",),
    "evaluate mlm": ("{score} --data {data}/book.txt",),
    "evaluate multitask": ("{score} --tasks one=classify:{data}/labels.csv",),
    "evaluate qa": ("{score} --data {data}/questions.json --stride 8",),
    "evaluate seq2seq": ("{score} --data {data}/summaries.jsonl",),
    "evaluate tokens": ("{score} --data {data}/tags.conll --stride 8",),
    "train classify": ("{run} --data {data}/labels.csv", "{run} --data {data}/images", "{run} --data {data}/sounds"),
    "train clm": ("{run} {texts}",),
    "train ctc": ("{run} --data {data}/spoken.csv", "{run} --data {data}/spoken.csv --new-vocabulary"),
    "train distill": (
        "{run} {texts} --method logits --teacher {good}",
        "--model {good} --teacher {model} {texts} --method logits --output-dir {out} --max-steps 1 --bf16 false",
    ),
    "train embed": ("{run} --data {data}/pairs.jsonl", "{run} --data {data}/pairs.jsonl --reranker"),
    "train linearise": ("{run} {texts}",),
    "train mlm": ("{run} {texts}",),
    "train multitask": ("{run} --tasks one=classify:{data}/labels.csv two=tokens:{data}/tags.conll",),
    "train qa": ("{run} --data {data}/questions.json --stride 8",),
    "train seq2seq": ("{run} --data {data}/summaries.jsonl",),
    "train tokens": ("{run} --data {data}/tags.conll --stride 8",),
}
"""What is typed after each command; ``{model}`` is the hostile checkpoint."""
RUN = (
    "--model {model} --output-dir {out} --max-steps 1 --per-device-train-batch-size 1 --disable-tqdm true --bf16 false"
)
SCORE = "--model {model} --output {out} --per-device-eval-batch-size 1 --disable-tqdm true --bf16 false"
TEXTS = "--data {data}/book.txt --validation {data}/book.txt"
WITHOUT_CHECKPOINT = ("env", "mechanisms", "recipes")


def commands(group: Any, path: str = "") -> Iterator[str]:
    """Every command of the program, as it is typed."""
    for name in group.list_commands(None):
        typed, command = f"{path} {name}".strip(), group.get_command(None, name)
        yield from commands(command, typed) if hasattr(command, "list_commands") else (typed,)


def check_commands(program: Any) -> None:
    """Fail for a command that no line tries, and for lines of no command."""
    known = {*commands(program)}
    new = sorted(known - LINES.keys() - {*WITHOUT_CHECKPOINT})
    assert not new, (
        f"{', '.join(new)}: add to LINES in tests/{Path(__file__).name} what is typed after it, with {{model}} for a "
        "checkpoint"
    )
    assert not (gone := sorted(LINES.keys() - known)), (
        f"LINES in tests/{Path(__file__).name} has {', '.join(gone)}, which is no command"
    )


def answer(program: Any, line: list[str], typed: TextIO) -> tuple[bool, str]:
    """Whether a command line succeeds, and what it says."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        patch.setattr(sys, "stdin", typed)
        try:
            code = program(line, standalone_mode=False)
        except SystemExit as stopped:
            code = stopped.code
        except ValueError as error:
            code = str(error)
    return code in (None, 0), f"{said.getvalue()}{code}"


@dataclass(frozen=True)
class Room:
    """Where commands are tried: harmless checkpoints and data for them, made once."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Room:
        tokenizer = bert(folder / "good")
        config = LongBertConfig(
            vocab_size=len(tokenizer), max_position_embeddings=64, long_attention={"mechanism": "hedgehog"}, **SIZES
        )
        LongBertForMaskedLM(config).save_pretrained(folder / "long")
        tokenizer.save_pretrained(folder / "long")
        write_data(folder / "data")
        return cls(folder)

    def lines(self, model: Path, out: Path, training: bool) -> Iterator[list[str]]:
        """Command lines with ``model`` for every command that takes a checkpoint: trainings, or the others."""
        for command, ends in LINES.items():
            for number, end in enumerate(ends if command.startswith("train ") == training else ()):
                place = out / f"{command.replace(' ', '-')}-{number}"
                line = end.replace("{run}", RUN).replace("{score}", SCORE).replace("{texts}", TEXTS)
                names = {
                    "model": model,
                    "out": place,
                    **{name: self.folder / name for name in ("good", "long", "data")},
                }
                yield shlex.split(f"{command} {line}".format(**names))


def write_data(folder: Path) -> None:
    """Small data for every task."""
    folder.mkdir()
    words = REAL_TEXT.split()
    (folder / "book.txt").write_text("\n\n".join(" ".join(words[at : at + 60]) for at in range(0, 1200, 60)))
    rows = [" ".join(words[at : at + 12]).replace('"', "") for at in range(0, 120, 12)]
    write_rows(folder / "pairs.jsonl", [{"anchor": row[:20], "positive": row} for row in rows])
    write_rows(folder / "summaries.jsonl", [{"document": row, "summary": row[:20]} for row in rows])
    (folder / "labels.csv").write_text(
        "text,label\n" + "".join(f'"{row}",{"ab"[number % 2]}\n' for number, row in enumerate(rows))
    )
    answers = [
        {"id": str(number), "question": "who", "answers": [{"text": row[:4], "answer_start": 0}]}
        for number, row in enumerate(rows)
    ]
    paragraphs = [{"context": row, "qas": [answer]} for row, answer in zip(rows, answers, strict=True)]
    (folder / "questions.json").write_text(
        json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]})
    )
    documents = (
        "\n".join(f"{word} {('O', 'B-X')[number % 2]}" for number, word in enumerate(row.split())) for row in rows
    )
    (folder / "tags.conll").write_text("\n\n".join(documents))
    spoken = ["file,text"]
    for label in "ab":
        for kind in ("images", "sounds"):
            (folder / kind / label).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (28, 28), (number, 0, 0)).save(folder / "images" / label / f"{number}.png")
            soundfile.write(folder / "sounds" / label / f"{number}.wav", np.sin(np.arange(3200.0)), 16000)
            spoken.append(f"sounds/{label}/{number}.wav,a b")
    (folder / "spoken.csv").write_text("\n".join(spoken) + "\n")


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def add_to(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file, which may be new."""
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | fields))


def bert(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer = tokenizer_of("bert", 64)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZES)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def llama(folder: Path) -> None:
    """A model type for which transformers has no tokenizer of its own."""
    tokenizer = tokenizer_of("bert", 64)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZES)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)


def own_model_type(folder: Path) -> None:
    bert(folder)
    add_to(folder / "config.json", model_type="evil", auto_map=MAPS)


def own_head(folder: Path) -> None:
    """A known model type with an unknown head, without weights, which would only take time."""
    llama(folder)
    add_to(folder / "config.json", architectures=["Evil"], auto_map=MAPS)
    (folder / "model.safetensors").unlink()


def own_tokenizer(folder: Path) -> None:
    llama(folder)
    add_to(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map=MAPS)


def own_image_processor(folder: Path) -> None:
    sizes = {**SIZES, "image_size": 28, "patch_size": 14, "mlp_ratio": 1}
    Dinov2ForImageClassification(Dinov2Config(**sizes)).save_pretrained(folder)
    add_to(folder / "preprocessor_config.json", auto_map=MAPS)


def own_feature_extractor(folder: Path) -> None:
    tokenizer = bert(folder)
    convolutions = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    WavLMForCTC(
        WavLMConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **convolutions, **SIZES)
    ).save_pretrained(folder)
    add_to(folder / "preprocessor_config.json", auto_map=MAPS)


def own_processor(folder: Path) -> None:
    """Sentence-transformers asks for a processor first."""
    llama(folder)
    add_to(folder / "processor_config.json", processor_class="Evil", auto_map=MAPS)
    add_to(folder / "tokenizer_config.json", processor_class="Evil", tokenizer_class="Evil", auto_map=MAPS)


def own_sentence_module(folder: Path) -> None:
    bert(folder)
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Transformer"}]))
    (folder / "model.safetensors").unlink()


def long_with_own_code(folder: Path) -> None:
    """A folder of `longattn convert --remote-code` whose code was changed."""
    tokenizer = bert(folder)
    attention = {"long_attention": {"mechanism": "window", "window": 4}}
    config = LongBertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **attention, **SIZES)
    LongBertForMaskedLM(config).save_pretrained(folder)
    add_to(folder / "config.json", auto_map=MAPS)
    (folder / "model.safetensors").unlink()


def stock_checkpoint(folder: Path) -> None:
    """A folder of `longattn export --format native`."""
    bert(folder)
    add_to(
        folder / "config.json", model_type="longformer", architectures=["Evil"], attention_window=[4], auto_map=MAPS
    )
    (folder / "model.safetensors").unlink()


def own_decoder(folder: Path) -> None:
    """An encoder-decoder whose inner config names a type that has no decoder in transformers."""
    tokenizer = bert(folder)
    parts = [{"model_type": "bert", "vocab_size": len(tokenizer), **SIZES}, {"model_type": "vit", "auto_map": MAPS}]
    add_to(
        folder / "config.json", model_type="encoder-decoder", architectures=["EncoderDecoderModel"], encoder=parts[0]
    )
    add_to(folder / "config.json", decoder={**parts[1], "_name_or_path": str(folder)})


def generic(folder: Path) -> None:
    """A folder of `longattn convert --generic`."""
    bert(folder)
    attention = {"mechanism": "window", "window": 4}
    add_to(
        folder / "config.json",
        model_type="long_generic_evil",
        architectures=["LongGeneric:Evil"],
        long_attention=attention,
        auto_map=MAPS,
    )


def adapter(folder: Path) -> None:
    """An adapter whose base is hostile, and whose config names modules to import."""
    bert(folder / "base")
    add_to(folder / "base" / "config.json", model_type="evil", auto_map=MAPS)
    write_code(folder / "base", folder.parent / "marker")
    described = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "target_modules": ["query"],
        "base_model_name_or_path": str(folder / "base"),
    }
    imports = {
        "auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"},
        "megatron_core": "evil",
        "megatron_config": {"a": 1},
    }
    add_to(folder / "adapter_config.json", **described, **imports)
    name = "base_model.model.bert.encoder.layer.0.attention.self.query"
    save_file(
        {f"{name}.lora_A.weight": torch.zeros(1, 16), f"{name}.lora_B.weight": torch.zeros(16, 1)},
        folder / "adapter_model.safetensors",
    )


def model_with_adapter(folder: Path) -> None:
    """A model with an adapter in its folder, which transformers loads with it."""
    adapter(folder)
    bert(folder)


class Runs:
    """What a hostile pickle holds: unpickled, it would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def pickled(folder: Path) -> None:
    bert(folder)
    weights = BertForMaskedLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save({**weights, "bert.extra": Runs(folder.parent / "marker")}, folder / "pytorch_model.bin")


KINDS: tuple[Callable[[Path], object], ...] = (
    own_model_type,
    own_head,
    own_tokenizer,
    own_image_processor,
    own_feature_extractor,
    own_processor,
    own_sentence_module,
    long_with_own_code,
    stock_checkpoint,
    own_decoder,
    generic,
    adapter,
    model_with_adapter,
    pickled,
)
"""Make a hostile checkpoint in a folder; what it runs makes the file "marker" beside the folder."""


SECRET = "a-secret-that-no-command-may-copy"


def sentence_encoder(folder: Path, path: str = "1_Pooling") -> None:
    """A sentence encoder whose pooling is in the folder ``path``."""
    bert(folder)
    modules = [("", "Transformer"), (path, "Pooling")]
    write_modules(folder, *((path, f"sentence_transformers.models.{kind}") for path, kind in modules))
    (folder / path).mkdir(parents=True, exist_ok=True)
    add_to(folder / path / "config.json", word_embedding_dimension=16, pooling_mode_mean_tokens=True)


def write_modules(folder: Path, *modules: tuple[str, str]) -> None:
    rows = [{"idx": n, "name": str(n), "path": path, "type": kind} for n, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(rows))


def named(path: str, link: str | None = None) -> Callable[[Path, Path], None]:
    """A module's folder whose file ``link`` leads to the secret; by default the folder itself does."""

    def make(folder: Path, outside: Path) -> None:
        sentence_encoder(folder, path)
        place = folder / path if link is None else folder / path / link
        place.parent.mkdir(parents=True, exist_ok=True)
        if link is None:
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        place.symlink_to(outside if link is None else outside / "secret.json")

    return make


def module_path(path: str) -> Callable[[Path, Path], None]:
    """A module's folder ``path`` as modules.json says it, ``{outside}`` for the folder of the secret."""

    def make(folder: Path, outside: Path) -> None:
        sentence_encoder(folder)
        (folder / ".link").symlink_to(outside.parent)
        path_of = path.format(outside=outside, name=outside.name)
        write_modules(folder, ("", "sentence_transformers.models.Transformer"), (path_of, "evil.Pooling"))

    return make


def root_file(name: str, link: Callable[[Path, Path], None] = Path.symlink_to) -> Callable[[Path, Path], None]:
    """A file of the folder that is a link to the secret, or by ``Path.hardlink_to`` a second name of it."""

    def make(folder: Path, outside: Path) -> None:
        sentence_encoder(folder)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        link(folder / name, outside / "secret.json")

    return make


def index_outside(name: str) -> Callable[[Path, Path], None]:
    def make(folder: Path, outside: Path) -> None:
        sentence_encoder(folder)
        with safe_open(folder / "model.safetensors", "pt") as tensors:
            files = dict.fromkeys(tensors.keys(), name.format(outside=outside))
        (folder / "model.safetensors").rename(outside / "private.safetensors")
        add_to(folder / "model.safetensors.index.json", metadata={}, weight_map=files)

    return make


def tokenizer_outside(name: str) -> Callable[[Path, Path], None]:
    def make(folder: Path, outside: Path) -> None:
        sentence_encoder(folder)
        values = json.loads((folder / "tokenizer.json").read_text())
        values["model"]["vocab"][SECRET] = len(values["model"]["vocab"])
        (outside / "tokenizer.4.0.0.json").write_text(json.dumps(values))
        add_to(folder / "tokenizer_config.json", fast_tokenizer_files=[name.format(outside=outside)])

    return make


def config_outside(folder: Path, outside: Path) -> None:
    sentence_encoder(folder)
    (folder / "config.json").rename(outside / "config.4.0.0.json")
    add_to(folder / "config.json", model_type="bert", configuration_files=[str(outside / "config.4.0.0.json")])


def router_outside(folder: Path, outside: Path) -> None:
    sentence_encoder(folder)
    add_to(folder / "1_Pooling" / "router_config.json", types={f"../../{outside.name}": "evil.Evil"}, structure={})


LEAKS: dict[str, Callable[[Path, Path], None]] = {
    "link in a hidden module": named(".t", "config.json"),
    "other link in a hidden module": named(".t", "notes.txt"),
    "link below a hidden folder": named("a/.b", "config.json"),
    "link deep in a module": named("1_Pooling", "deep/er/x"),
    "link of any name in a module": named("1_Pooling", ".x"),
    "module that is a link": named("1_Pooling"),
    "hidden module that is a link": named(".t"),
    "module through a link": module_path(".link/{name}"),
    "module upwards": module_path("../{name}"),
    "module upwards inside": module_path("1_Pooling/../../{name}"),
    "absolute module": module_path("{outside}"),
    "hard link in a hidden module": lambda folder, outside: hard_link(folder, outside, ".t"),
    "hard link in a module": lambda folder, outside: hard_link(folder, outside, "1_Pooling"),
    "licence": root_file("LICENSE"),
    "hard link of the licence": root_file("LICENSE", Path.hardlink_to),
    "template": root_file("chat_template.jinja"),
    "one of many templates": root_file("additional_chat_templates/x.jinja"),
    "vocabulary": root_file("vocab.txt"),
    "hard link of the vocabulary": root_file("vocab.txt", Path.hardlink_to),
    "processor": root_file("preprocessor_config.json"),
    "settings": root_file("config_sentence_transformers.json"),
    "transformer's settings": root_file("sentence_bert_config.json"),
    "card": root_file("README.md"),
    "shards upwards": index_outside("../outside/private.safetensors"),
    "absolute shards": index_outside("{outside}/private.safetensors"),
    "tokenizer upwards": tokenizer_outside("../outside/tokenizer.4.0.0.json"),
    "absolute tokenizer": tokenizer_outside("{outside}/tokenizer.4.0.0.json"),
    "absolute config": config_outside,
    "module of a router upwards": router_outside,
}
"""Make a checkpoint in a folder, one of whose files leads to a secret in another folder, "outside"."""


def hard_link(folder: Path, outside: Path, path: str) -> None:
    sentence_encoder(folder, path)
    (folder / path / "notes.txt").hardlink_to(outside / "secret.json")


def write_code(folder: Path, marker: Path) -> None:
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)))
