"""Every file of a source is in the result, of every command that writes a model."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard

from hf_longattn.cli.app import app, main
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.conversion.native import export_native
from hf_longattn.errors import CheckpointError
from hf_longattn.export.compress import METHODS
from hf_longattn.files import GRAPHS
from tests.cases import every_case
from tests.conversion.conftest import LENGTH, drawn
from tests.saved import change_json, read_json, run_card
from tests.trained import tokenizer_of

st = pytest.importorskip("sentence_transformers")
LONG = 4 * LENGTH
TEXTS = [
    "Waiting, mostly.",
    "Measuring is mostly waiting, said the keeper of the lighthouse.",
    "The river meets the sea.",
]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who keeps the lighthouse?"}]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt "
    "%}<|assistant|>{% endif %}"
)
CARD = "---\nlicense: mit\nlanguage: de\n---\n\n# A model\n"
SPECIAL = {"eos_token_id": [0, 3], "pad_token_id": 0, "bos_token_id": 1}
GENERATION = {"do_sample": False, "max_new_tokens": 6, "repetition_penalty": 1.3, **SPECIAL}
QUICK = ("convert", "compress bf16", "export native")
"""Commands that neither trace a graph nor search for what matters least."""


# ---- what goes in


@dataclass(frozen=True)
class Kind:
    """A kind of model folder.

    make: writes it.
    answers: what is loaded from a folder says; of equal folders, equal tensors.
    mechanism: with which it is converted, so that short texts give what they gave before.
    """

    make: Callable[[Path], None]
    answers: Callable[[Path], torch.Tensor]
    mechanism: tuple[str, ...]


def bert(folder: Path, name: str, **config: Any) -> None:
    drawn(name, vocab_size=1000, initializer_range=0.3, **config).save_pretrained(folder)
    tokenizer_of("bert", LENGTH).save_pretrained(folder)


def make_encoder(folder: Path, *, pooling: str = "cls", inside: str = "") -> None:
    bert(folder / "plain", "BertModel")
    modules = st.sentence_transformer.modules
    transformer = st.base.modules.Transformer(str(folder / "plain"))
    model = st.SentenceTransformer(
        modules=[transformer, modules.Pooling(32, pooling), modules.Normalize()],
        prompts={"query": "find: ", "document": ""},
        default_prompt_name="query",
        similarity_fn_name="dot",
    )
    model.max_seq_length = LENGTH // 2
    model.save(str(folder))
    shutil.rmtree(folder / "plain")
    if inside:  # as older versions saved it
        listed = read_json(folder, "modules.json")
        (folder / "modules.json").write_text(json.dumps([{**listed[0], "path": inside}, *listed[1:]]))
        (folder / inside).mkdir()
        for file in [file for file in folder.iterdir() if file.is_file() and file.name not in AROUND]:
            shutil.move(file, folder / inside / file.name)


def make_reranker(folder: Path) -> None:
    bert(folder / "plain", "BertForSequenceClassification", num_labels=1)
    model = st.CrossEncoder(str(folder / "plain"), activation_fn=torch.nn.Tanh(), prompts={"rank": "rank: "})
    model.save(str(folder))
    shutil.rmtree(folder / "plain")


def make_instruct(folder: Path) -> None:
    values = {"use_sliding_window": False, "initializer_range": 0.3, "tie_word_embeddings": True}
    drawn("Qwen2ForCausalLM", **values).save_pretrained(folder)
    tokenizer = tokenizer_of("qwen2", LENGTH)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({**GENERATION, "max_length": LENGTH}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": 7}))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text(f"tools{TEMPLATE}")


AROUND = ("modules.json", "config_sentence_transformers.json", "README.md", "LICENSE", "NOTICE.txt")
"""Files of sentence-transformers that are not in the transformer's own folder."""


def embeddings(folder: Path) -> torch.Tensor:
    if (file := graph_of(folder)) is not None:
        settings = read_json(folder, "config_sentence_transformers.json")
        prompt = settings["prompts"][settings["default_prompt_name"]]
        return run_graph(file, [prompt + text for text in TEXTS])["sentence_embedding"]
    model = st.SentenceTransformer(str(folder), device="cpu")
    assert model.prompts == {"query": "find: ", "document": ""}
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    assert model.similarity_fn_name == "dot"
    found: torch.Tensor = model.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False).float()
    assert not torch.equal(found, model.encode(TEXTS, convert_to_tensor=True, prompt_name="document").float())
    return found


def ranks(folder: Path) -> torch.Tensor:
    if (file := graph_of(folder)) is not None:
        return run_graph(file, [TEXTS[0]] * 3, TEXTS)["logits"][:, 0].tanh()
    model = st.CrossEncoder(str(folder), device="cpu")
    assert type(model.activation_fn).__name__ == "Tanh"
    assert model.prompts == {"rank": "rank: "}
    return model.predict([(TEXTS[0], text) for text in TEXTS], convert_to_tensor=True, show_progress_bar=False).float()


def answer(folder: Path) -> torch.Tensor:
    """The logits of a chat, and the tokens that are generated by the folder's own settings."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>Be brief.<|user|>Who keeps the lighthouse?<|assistant|>"
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, chat_template="tools").startswith("tools<|system|>")
    inputs = tokenizer(text, return_tensors="pt")
    assert inputs["input_ids"][0, 0] == tokenizer.convert_tokens_to_ids("<|system|>")
    if (file := graph_of(folder)) is not None:
        return run_graph(file, [text])["logits"][0, -1]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    settings = model.generation_config.to_diff_dict()
    assert {name: settings.get(name) for name in GENERATION} == {**GENERATION, "do_sample": settings.get("do_sample")}
    with torch.no_grad():
        tokens = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
        logits = model(**inputs).logits[0, -1].float()
    return torch.cat([logits, tokens.float()]) if len(tokens) == GENERATION["max_new_tokens"] else logits


def graph_of(folder: Path) -> Path | None:
    return next((folder / name for name in GRAPHS.values() if (folder / name).is_file()), None)


def run_graph(file: Path, *texts: list[str]) -> dict[str, torch.Tensor]:
    inputs = transformers.AutoTokenizer.from_pretrained(file.parent)(*texts, padding=True, return_tensors="pt")
    if file.suffix == ".pt2":
        return torch.export.load(file).module()(**inputs)
    if file.suffix == ".xml":
        compiled = pytest.importorskip("openvino").compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        taken = {name: inputs[name].numpy() for entry in compiled.inputs for name in entry.get_names()}
        found = compiled(taken)
        return {entry.get_any_name(): torch.from_numpy(found[entry]) for entry in compiled.outputs}
    graph = pytest.importorskip("onnxruntime").InferenceSession(file)
    taken = {one.name: inputs[one.name].numpy() for one in graph.get_inputs()}
    names = [one.name for one in graph.get_outputs()]
    return {
        name: torch.from_numpy(np.asarray(value)) for name, value in zip(names, graph.run(None, taken), strict=True)
    }


WINDOW = ("--mechanism", "window", "--option", f"window={2 * LENGTH}")
KINDS = {
    "encoder": Kind(make_encoder, embeddings, WINDOW),
    "encoder in a folder": Kind(
        lambda folder: make_encoder(folder, pooling="mean", inside="0_Transformer"), embeddings, WINDOW
    ),
    "reranker": Kind(make_reranker, ranks, WINDOW),
    "instruct": Kind(make_instruct, answer, ("--mechanism", "full", "--positions", "rope:none")),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """folders(kind, long) -> a folder of that kind, as its library saves it, or converted; nobody else may read its
    files."""

    @cache
    def make(kind: str, long: bool) -> Path:
        folder = tmp_path_factory.mktemp("long" if long else "short") / "model"
        if long:
            command("convert", make(kind, False), folder, *KINDS[kind].mechanism, "--max-length", str(LONG))
            return folder
        KINDS[kind].make(folder)
        (folder / "README.md").write_text(CARD)
        (folder / "LICENSE").write_text("Do as you like.")
        (folder / "NOTICE.txt").write_text("Made by somebody.")
        for path in folder.rglob("*"):
            if path.is_file():
                path.chmod(0o400)
        return folder

    return make


# ---- what writes


@dataclass(frozen=True)
class Writer:
    """A command that writes a folder.

    name, arguments: of `longattn`; SRC and DST stand for the folders, MECHANISM for the kind's.
    long: whether it takes long models.
    tolerance: by which the results of the models may differ; ``None``: the outputs are others.
    refuses: kind -> the sentence with which it refuses it.
    """

    name: str
    arguments: tuple[str, ...] = ()
    long: bool = True
    tolerance: float | None = None
    refuses: tuple[tuple[str, str], ...] = ()


ENCODERS = ("encoder", "encoder in a folder", "reranker")
NO_STOCK = (("reranker", "has no stock form"),)
NO_TOKENS = tuple((kind, "predicts no tokens") for kind in ENCODERS)
KNOWN = {
    "convert": Writer("convert", ("MECHANISM", "--max-length", str(LONG)), False, 1e-4),
    "export onnx": Writer("export onnx", tolerance=1e-4),
    "export openvino": Writer("export openvino", tolerance=1e-4),
    "export torch": Writer("export torch", tolerance=1e-4),
    "export native": Writer("export native", tolerance=1e-4, refuses=NO_STOCK),
    "compress bf16": Writer("compress bf16", tolerance=0.1),
    "compress prune-heads": Writer("compress prune-heads", refuses=NO_TOKENS),
}
"""What is known of some commands; any other takes long models and may write others."""


def writers() -> Iterator[Writer]:
    """Every command with a destination, in every format and method."""
    for one in app.registered_commands:
        assert one.callback is not None
        parameters, name = inspect.signature(one.callback).parameters, one.callback.__name__
        if "destination" not in parameters:
            continue
        formats = GRAPHS if importlib.util.find_spec("transformers.exporters") else ()
        forms = {"format": (*formats, "native"), "method": METHODS}
        option = next((option for option in forms if option in parameters), None)
        for form in forms[option] if option is not None else [""]:
            title = f"{name} {form}".strip()
            known = KNOWN.get(title, Writer(title))
            chosen = (f"--{option}", form) if option is not None else ()
            short = ("--length", "96", "--documents", "2") if name == "compress" else ()
            yield Writer(
                title,
                (name, "SRC", "DST", *chosen, *short, *known.arguments),
                known.long,
                known.tolerance,
                known.refuses,
            )


WRITERS = {one.name: one for one in writers()}


def command(*arguments: Any) -> None:
    """Run `longattn` in this process.

    Raises:
        RuntimeError: the sentence with which it refused.
    """
    with warnings.catch_warnings(record=True), pytest.raises(SystemExit) as ended:
        main([str(one) for one in arguments])
    if ended.value.code not in (0, None):
        raise RuntimeError(str(ended.value.code))


CHANGED = ("tokenizer_config.json", "generation_config.json", "modules.json", "sentence_bert_config.json")
"""Files with lengths, classes or versions; what they say is seen in what they do."""


def check_files(source: Path, result: Path) -> None:
    """Everything beside the weights is there, with the licence, and can be read by everybody who may read new
    files."""
    weights = {
        path
        for pattern in ("*.safetensors", "config.json", "README.md", "*_report.json")
        for path in source.rglob(pattern)
    }
    graph = graph_of(result) is not None
    for path in source.rglob("*"):
        if path.is_dir() or (path in weights and path.parent.name != "1_Pooling"):
            continue
        inside = path.relative_to(source)
        written = result / (Path(*inside.parts[1:]) if inside.parts[0] == "0_Transformer" else inside)
        assert written.is_file(), f"{inside} is lost"
        assert (
            path.name in CHANGED or (graph and "Pooling" in str(inside)) or path.read_bytes() == written.read_bytes()
        ), inside
    card = ModelCard.load(result / "README.md")
    assert (card.data.license, card.data.language) == ("mit", "de")
    assert "partial-" not in "".join(path.read_text() for path in result.rglob("*") if path.suffix in (".json", ".md"))
    assert len(list(result.glob("*_report.json"))) == 1
    check_modes(result)


def check_modes(result: Path) -> None:
    """Everybody may read what is written, who may read new files."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (result, *result.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path


def cases() -> Iterator[Any]:
    """Of the quick commands, every kind with every other one."""
    for row, kind in enumerate(KINDS):
        for name in WRITERS:
            quick = name in QUICK and (QUICK.index(name) + row) % 2 == 0
            yield pytest.param(name, kind, marks=() if quick else pytest.mark.slow, id=f"{name}, {kind}")


@pytest.mark.thorough
@every_case(("name", "kind"), [*cases()])
def test_every_command_writes_a_whole_folder_that_answers_as_its_source(
    name: str, kind: str, folders: Callable[[str, bool], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = WRITERS[name]
    source, result = folders(kind, writer.long), tmp_path / "result"
    stands = {"SRC": [source], "DST": [result], "MECHANISM": KINDS[kind].mechanism}
    arguments = [each for one in writer.arguments for each in stands.get(one, [one])]
    if sentence := dict(writer.refuses).get(kind):
        with pytest.raises(RuntimeError):
            command(*arguments)
        assert sentence in capsys.readouterr().err
        assert not result.exists()
        return
    command(*arguments)
    check_files(source, result)
    expected, found = KINDS[kind].answers(source), KINDS[kind].answers(result)
    if writer.tolerance is not None and found.numel():
        expected = expected[: found.numel()] if graph_of(result) is not None else expected
        torch.testing.assert_close(found, expected, atol=writer.tolerance, rtol=writer.tolerance)
    else:
        assert found.isfinite().all()
    run_card(result)


@pytest.mark.thorough
@pytest.mark.parametrize("name", QUICK)
def test_card_shows_a_hostile_folder_name_as_text(
    name: str, folders: Callable[[str, bool], Path], tmp_path: Path
) -> None:
    writer, hostile = WRITERS[name], "a\n# owned\n\n```\n\x1b[2J `b` \u202e"
    source, result = tmp_path / f"source{hostile}", tmp_path / f"result{hostile}"
    kind = "encoder" if name == "export native" else "instruct"  # Qwen2 has no stock form
    shutil.copytree(folders(kind, writer.long), source)
    stands = {"SRC": [source], "DST": [result], "MECHANISM": KINDS[kind].mechanism}
    command(*(each for one in writer.arguments for each in stands.get(one, [one])))
    card = (result / "README.md").read_text()
    assert "owned" in card
    assert "\x1b" not in card
    assert "\u202e" not in card
    assert not [line for line in card.splitlines() if line.startswith("# owned")]
    assert len(re.findall(r"^```", card, flags=re.MULTILINE)) % 2 == 0
    run_card(result)


TRAINED = {"embed": "encoder", "embed --reranker": "reranker", "classify": "reranker", "clm": "instruct"}
"""Task -> the kind of folder that it starts from, of tasks that a kind of folder here can start."""


@pytest.mark.parametrize("task", [pytest.param(task, marks=pytest.mark.slow) for task in TRAINED])
def test_trained_folder_has_the_files_of_the_model_it_started_from(
    task: str, folders: Callable[[str, bool], Path], tmp_path: Path
) -> None:
    kind, data, result = TRAINED[task], tmp_path / "data.jsonl", tmp_path / "result"
    rows = [
        {
            "anchor": TEXTS[n % 3],
            "positive": f"{TEXTS[n % 3]} {n}",
            "text": f"{TEXTS[n % 3]} {n}",
            "label": f"l{n % 2}",
        }
        for n in range(24)
    ]
    columns = ("anchor", "positive") if task.startswith("embed") else ("text", "label")
    data.write_text("\n".join(json.dumps({name: row[name] for name in columns}) for row in rows))
    for name in ("book", "other"):
        (tmp_path / f"{name}.txt").write_text(" ".join(TEXTS) * 200)
    given = (
        ["--data", tmp_path / "book.txt", "--validation", tmp_path / "other.txt"]
        if task == "clm"
        else ["--data", data]
    )
    settings = ["--max-steps", 1, "--no-bf16", "--disable-tqdm", "True", "--max-length", LENGTH, "--batch-size", 2]
    command("train", *task.split(), "--model", folders(kind, True), *given, "--output", result, *settings)
    for name in ("LICENSE", "NOTICE.txt"):
        assert (result / name).is_file()
    assert ModelCard.load(result / "README.md").data.license == "mit"
    check_modes(result)
    if kind == "instruct":
        assert (result / "preprocessor_config.json").is_file()
    if task != "classify":
        assert KINDS[kind].answers(result).isfinite().all()


Checkpoint = Callable[..., Path]
ARGUMENTS = {"mechanism": "window", "window": 32, "max_length": 4 * LENGTH}
SHORT = "Waiting, mostly."
TEXT = "Measuring is mostly waiting, said the keeper of the lighthouse. "
CUT = {"direction": "Right", "max_length": LENGTH // 4, "strategy": "LongestFirst", "stride": 0}


def make_encoder_with_limits(folder: Path, inside: str) -> None:
    """Its limits are in the settings of its transformer and in its tokenizer.json, which servers read."""
    make_encoder(folder, pooling="mean", inside=inside)
    change_json(folder / inside, "sentence_bert_config.json", max_seq_length=LENGTH // 2)
    change_json(folder / inside, "tokenizer.json", truncation=CUT)


@pytest.mark.thorough
@pytest.mark.parametrize("path", ["", "0_Transformer"])
def test_converted_sentence_transformers_encode_longer_texts(path: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_encoder_with_limits(source, path)
    report = convert_checkpoint(source, tmp_path / "long", **ARGUMENTS)
    assert re.match(
        r"longattn train embed --model \S+ --data YOUR_PAIRS\.jsonl --max-length \d+ --output ",
        report.train_command or "",
    )
    assert isinstance(run_card(tmp_path / "long")["model"], st.SentenceTransformer)
    assert (tmp_path / "long" / "modules.json").is_file()
    assert {"modules.json", "config_sentence_transformers.json", "1_Pooling"} <= set(report.files)
    old, new = (st.SentenceTransformer(str(folder), device="cpu") for folder in (source, tmp_path / "long"))
    assert (old.max_seq_length, new.max_seq_length) == (LENGTH // 2, 4 * LENGTH)
    assert [type(module) for module in new] == [type(module) for module in old]
    assert read_json(tmp_path / "long", "tokenizer.json")["truncation"] == {
        **CUT,
        "max_length": 4 * LENGTH,
    }
    assert new.encode(TEXT).shape == (32,)
    assert abs(old.encode(SHORT) - new.encode(SHORT)).max() < 1e-5  # the window covers so short a text
    beginning, whole = TEXT * 8, TEXT * 30
    assert LENGTH < len(new.tokenizer(beginning)["input_ids"]) < 4 * LENGTH < len(new.tokenizer(whole)["input_ids"])
    assert (old.encode(beginning) == old.encode(whole)).all()
    assert abs(new.encode(beginning) - new.encode(whole)).max() > 1e-5
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "long")).__name__ == "LongBertModel"


def test_stock_sentence_encoder_reads_its_new_length_in_every_file(tmp_path: Path) -> None:
    """Servers take the limit from different files; one that is left as it was cuts texts off."""
    source, stock = tmp_path / "source", tmp_path / "stock"
    make_encoder_with_limits(source, "0_Transformer")
    convert_checkpoint(source, tmp_path / "long", mechanism="full", max_length=4 * LENGTH, verify=False)
    export_native(tmp_path / "long", stock, verify=False)
    config = read_json(stock)
    assert config["architectures"] == ["BertModel"]
    assert {
        config["max_position_embeddings"],
        read_json(stock, "sentence_bert_config.json")["max_seq_length"],
        read_json(stock, "tokenizer_config.json")["model_max_length"],
        read_json(stock, "tokenizer.json")["truncation"]["max_length"],
    } == {4 * LENGTH}
    assert read_json(stock, "modules.json")[0]["path"] == ""
    old, new = (st.SentenceTransformer(str(folder), device="cpu") for folder in (source, stock))
    assert [type(module) for module in new] == [type(module) for module in old]
    assert abs(old.encode(SHORT) - new.encode(SHORT)).max() < 1e-6
    beginning, whole = TEXT * 8, TEXT * 12
    assert LENGTH < len(new.tokenizer(beginning)["input_ids"]) < len(new.tokenizer(whole)["input_ids"]) < 4 * LENGTH
    assert abs(new.encode(beginning) - new.encode(whole)).max() > 1e-5


@pytest.mark.parametrize(
    ("modules", "sentence"),
    [
        ("[]", "must hold a list of modules"),
        ("{", "is not valid JSON"),
        ('[{"path": "../x", "type": "sentence_transformers.models.Transformer"}]', "lies outside of"),
        ('[{"path": "/etc", "type": "sentence_transformers.models.Transformer"}]', "lies outside of"),
        ('[{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}]', "begins with a"),
        (
            '[{"path": "missing", "type": "sentence_transformers.models.Transformer"}]',
            "config.json' cannot be read: No such file",
        ),
    ],
)
def test_conversion_refuses_modules_of_sentence_transformers_it_cannot_follow(
    modules: str, sentence: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = checkpoint("BertModel")
    (source / "modules.json").write_text(modules)
    with pytest.raises(CheckpointError, match=sentence):
        convert_checkpoint(source, tmp_path / "long", **ARGUMENTS)
    assert not (tmp_path / "long").exists()
