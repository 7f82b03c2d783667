"""Model cards: what a card says, inherits, and never names."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForMaskedLM,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

import hf_longattn
from hf_longattn.cli.train import train
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import CheckpointError, HubError, LongAttentionError
from hf_longattn.families import FAMILIES
from hf_longattn.files import public_name, write_json
from hf_longattn.hub import model_card, push_model, write_model_card
from hf_longattn.hub.card import inherited_metadata, read_card
from hf_longattn.hub.push import NAMED, push_loaded
from hf_longattn.training.trainer import LongTrainer
from scripts.dev.tools.small_models import Shape, small_config, small_values
from tests.cases import every_case
from tests.cli.test_commands import output
from tests.conversion.conftest import LENGTH
from tests.grids import every_other, quickly
from tests.hub_server import WRITER, Hub, serve
from tests.stock_cases import save_long
from tests.trained import tokenizer_of
from tests.training.conftest import quick

PAGES = tuple(base for base, family in FAMILIES.items() if family.spec.further)
CHECK = {"name": "tensors", "status": "passed", "detail": "2 of 2"}
EXACT = {"dataset": "lookup", "metric": "exact match", "unit": "%"}


def tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<s>", "</s>", "<mask>", "<unk>"]
    words = special + sorted({"The", "house", "name", "is", "A", "long", "document", "import", "np", "as", "."})
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", mask_token="<mask>", unk_token="<unk>", eos_token="</s>"
    )


def saved(folder: Path, kind: str) -> Path:
    base = next((base for base in ("gpt2", *PAGES) if kind in FAMILIES[base].model_classes), "bert")
    attention = {"mechanism": "longformer", "window": 8, "layers": {1: {"window": 16}}}
    if base == "gpt2":
        attention = {"mechanism": "window", "window": 8}
    values = small_values(base, Shape(vocabulary=16))
    config = FAMILIES[base].config_class(**values, long_attention=attention)
    FAMILIES[base].model_class(f"Long{kind}")(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.thorough
@pytest.mark.parametrize(
    "kind",
    every_other(
        head for base in ("bert", "gpt2", *PAGES) for head in FAMILIES[base].model_classes if head != "BertLMHeadModel"
    ),
)
def test_usage_in_the_card_of_every_head_runs_as_it_stands(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "model", kind)
    text = write_model_card(folder).read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(code, "usage", "exec"), {})  # an error of the snippet is the test's
    printed = capsys.readouterr()
    marks_question = kind == "BertForQuestionAnswering"
    assert printed.out.strip() or marks_question or "model(" not in code  # the span of a random model may be empty
    assert "UNEXPECTED" not in printed.err, "the snippet loads another class than the one that was saved"
    assert ("global_attention_mask" in code) == marks_question


@pytest.mark.parametrize(
    ("kind", "task", "call"),
    [("CrossEncoder", "text-ranking", "model.rank("), ("SentenceTransformer", "sentence-similarity", "model.encode(")],
)
def test_card_of_sentence_transformers_loads_encoders_and_rerankers(
    kind: str, task: str, call: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "model", "BertModel")
    (folder / "modules.json").write_text("[]")
    write_json(folder / "config_sentence_transformers.json", {"model_type": kind})
    card = ModelCard.load(write_model_card(folder))
    assert (card.data.library_name, card.data.pipeline_tag) == ("sentence-transformers", task)
    assert f"model = {kind}(" in card.text
    assert call in card.text


def test_metadata_of_the_source_completes_the_card_of_a_folder(tmp_path: Path) -> None:
    """sentence-transformers writes a card of its own into a folder that it saves."""
    folder = saved(tmp_path / "model", "BertModel")
    (folder / "README.md").write_text("---\ntags: [saved]\nlanguage: fr\n---\n# x\n")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "README.md").write_text(
        "---\nlicense: mit\ntags: [old]\nlanguage: de\nbase_model: a/b\n---\n# y\n"
    )
    data = ModelCard.load(write_model_card(folder, source=tmp_path / "source")).data
    assert (data.license, data.language, data.base_model) == ("mit", "fr", None)
    assert {"saved", "old"} <= set(data.tags)


def test_tags_of_a_sentence_encoder_are_not_those_of_a_model_with_another_head(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "README.md").write_text(
        "---\ntags: [sentence-transformers, feature-extraction, old]\n---\n"
    )
    folder = saved(tmp_path / "model", "BertForSequenceClassification")
    assert ModelCard.load(write_model_card(folder, source=tmp_path / "source")).data.tags == [
        "hf_longattn",
        "long-context",
        "old",
    ]


def test_card_of_every_class_of_every_family_loads_it(tmp_path: Path) -> None:
    loads = re.compile(r'model = (?:AutoModel\w*|hf_longattn\.\w+)\.from_pretrained\("me/long"\)\.eval\(\)')
    classes = [(family, long) for family in FAMILIES.values() for long in family.model_classes.values()]
    without = []
    for family, long in classes:
        values = {
            **family.config_class().to_diff_dict(),
            "model_type": family.config_class.model_type,
            "architectures": [long],
        }
        write_json(tmp_path / "config.json", values)
        if loads.search(str(model_card(tmp_path, name="me/long"))) is None:
            without.append(long)
    assert not without
    write_json(tmp_path / "config.json", {"model_type": "long_marian", "architectures": ["LongMarianMTModel"]})
    card = model_card(tmp_path)
    assert "AutoModelForSeq2SeqLM" in card.text
    assert card.data.pipeline_tag == "translation"


def test_card_says_the_given_metadata_results_and_texts(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "BertForQuestionAnswering")
    report = {
        "text": "200 tokens of built-in English",
        "next_step": {"command": ["longattn", "train", "qa", "--model", "{model}"]},
        "plan": {"source": "some/bert", "old_length": 32, "new_length": 64, "positions": "tile"},
        "checks": [{"name": "equal at the old length", "status": "passed", "detail": "largest difference 0.0"}],
        "versions": {"torch": "2.13.0"},
    }
    rows = [
        {**EXACT, "value": 82.5, "n": 200, "standard_error": 2.7, "system": "converted"},
        {**EXACT, "value": 81.0, "split": "test"},
    ]
    metadata = {"license": "apache-2.0", "language": "en", "datasets": ["squad"], "tags": ["code"]}
    texts = {
        "name": "me/long-bert",
        "training": "Trained **briefly**.",
    }
    path = write_model_card(folder, base_model="some/bert", report=report, results=rows, **metadata, **texts)
    card = ModelCard.load(path)
    assert card.data.base_model == "some/bert"
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "question-answering"
    assert set(card.data.tags) == {"code", "hf_longattn", "long-context"}
    [result] = card.data.eval_results
    assert (result.metric_value, result.metric_type, result.dataset_type, result.dataset_split) == (
        81.0,
        "exact_match",
        "lookup",
        "test",
    )
    for piece in (
        "82.5 ± 2.7 %",
        "equal at the old length",
        "longattn train qa --model me/long-bert\n",
        "me/long-bert",
        "32 to 64 tokens",
    ):
        assert piece in card.text, piece
    assert "window=16" in card.text


def test_card_of_a_plain_model_states_nothing_that_was_not_given(tmp_path: Path) -> None:
    write_json(
        tmp_path / "config.json",
        {"model_type": "bert", "architectures": ["BertForMaskedLM"], "max_position_embeddings": 512},
    )
    text = write_model_card(tmp_path, name="folder/small").read_text()
    assert "import hf_longattn" not in text
    assert "## Results" not in text
    assert "## What the conversion checked" not in text


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (".", "a local folder"),
        ("../bert/", "a local folder"),
        ("bert", "a local folder"),  # as a report has it, which leaves folders out
        ("some/bert", "`some/bert`"),
    ],
)
def test_card_calls_the_source_by_its_name_on_the_hub(
    typed: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "model", "BertForMaskedLM")
    (tmp_path / "bert").mkdir()
    monkeypatch.chdir(tmp_path / "bert")
    plan = {"source": typed, "old_length": 32, "new_length": 64, "positions": "tile"}
    assert f"Converted from {shown}, extended" in write_model_card(folder, report={"plan": plan}).read_text()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mechanism": "window", "window": 16}, "equals full attention on texts of up to 9 tokens."),
        (
            {"mechanism": "window", "window": 16, "exact_length": 12},
            "equals full attention on texts of up to 12 tokens.",
        ),
        (
            {"mechanism": "window", "window": 16, "layers": {0: {"window": 8}}},
            "equals full attention on texts of up to 5 tokens.",
        ),
        ({"mechanism": "longformer", "window": 512}, "equals full attention on texts of up to 257 tokens."),
        ({"mechanism": "longformer", "window": 2048}, "equals full attention on texts of up to 1,025 tokens."),
        ({"mechanism": "full"}, "equals full attention at every length."),
        ({"mechanism": "linear"}, "never equals full attention."),
    ],
)
def test_card_says_up_to_which_length_the_model_equals_full_attention(
    options: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    config = {
        "model_type": "long_bert",
        "architectures": ["LongBertModel"],
        "max_position_embeddings": 4096,
        "num_hidden_layers": 2,
    }
    write_json(tmp_path / "config.json", {**config, "long_attention": options})
    assert f"- Its attention {sentence}\n" in write_model_card(tmp_path).read_text()


def test_card_names_the_stack_that_equals_full_attention(tmp_path: Path) -> None:
    """Of towers, only texts have such a length; a decoder may have windows where its encoder has none."""
    shared = {"max_position_embeddings": 64}
    text = {"model_type": "long_clip_text_model", "long_attention": {"mechanism": "full"}, **shared}
    vision = {"model_type": "long_clip_vision_model", "long_attention": {"mechanism": "window2d", "window": 2}}
    towers = {
        "model_type": "long_clip",
        "architectures": ["LongCLIPModel"],
        "text_config": text,
        "vision_config": vision,
    }
    write_json(tmp_path / "config.json", towers)
    card = write_model_card(tmp_path).read_text()
    assert "- The attention of the tower text equals full attention at every length.\n" in card
    assert "Its attention" not in card

    window = {"mechanism": "window", "window": 8}
    decodes = {
        "model_type": "long_bart",
        "architectures": ["LongBartForConditionalGeneration"],
        "long_attention": {"mechanism": "full"},
    }
    write_json(tmp_path / "config.json", {**decodes, **shared, "decoder_long_attention": window})
    card = write_model_card(tmp_path).read_text()
    assert "- Its attention equals full attention at every length.\n" in card
    assert "- The self-attention of its decoder equals full attention on texts of up to 8 tokens.\n" in card


@pytest.mark.parametrize(
    ("lengths", "shown"),
    [
        ({"old_length": 64, "new_length": 64}, " (positions: tile)"),
        ({"old_length": 32, "new_length": 64}, ", extended from 32 to 64 tokens (positions: tile)"),
        ({"old_length": 64, "new_length": 64, "old_audio_seconds": 15, "new_audio_seconds": 15}, " (positions: tile)"),
        (
            {"old_length": 64, "new_length": 64, "old_image_size": [8, 8], "new_image_size": [16, 16]},
            ", extended from images of 8 × 8 to 16 × 16 pixels (positions: tile)",
        ),
    ],
)
def test_card_says_extended_only_of_what_grew(lengths: dict[str, object], shown: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "BertForMaskedLM")
    plan = {"source": "bert", "positions": "tile", **lengths}
    assert f"Converted from a local folder{shown}" in write_model_card(folder, report={"plan": plan}).read_text()


def test_card_says_that_a_conversion_was_not_verified(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "BertForMaskedLM")
    assert (
        "converted with `--no-verify`"
        in write_model_card(folder, report={"verified": False, "checks": []}).read_text()
    )
    assert "--no-verify" not in write_model_card(folder).read_text()


@pytest.mark.parametrize(
    ("step", "name", "expected"),
    [
        (
            {"command": ["train", "{model}", "--output={model}-qa"]},
            "me/long",
            "training*:\n\n```\ntrain me/long --output=me/long-qa\n```",
        ),
        ({"command": ["train", "{model}"]}, "my model", "train 'my model'\n"),
        (
            {"advice": "fine-tune {model} with transformers' Trainer"},
            "me/long",
            "training*: fine-tune me/long with transformers' Trainer.",
        ),
    ],
)
def test_next_step_in_a_card_names_the_model_as_it_is_loaded(
    step: dict[str, object], name: str, expected: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "model", "BertForMaskedLM")
    assert expected in write_model_card(folder, report={"next_step": step}, name=name).read_text()


def test_card_refuses_a_folder_without_config_and_results_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        write_model_card(tmp_path)
    folder = saved(tmp_path / "model", "BertForMaskedLM")
    with pytest.raises(LongAttentionError, match="'exact match' on 'lookup' is nan, but must be a finite number"):
        write_model_card(folder, results=[{**EXACT, "value": float("nan")}])
    with pytest.raises(LongAttentionError, match=r"these results: 'value' is missing"):
        write_model_card(folder, results=[{"dataset": "lookup", "score": 1}])


def test_card_of_a_fine_tuned_model_names_its_base_lengths_and_labels_and_rounds_its_scores(tmp_path: Path) -> None:
    config = {
        "model_type": "long_bert",
        "architectures": ["LongBertForSequenceClassification"],
        "max_position_embeddings": 1024,
    }
    config |= {"extended_from": {"max_position_embeddings": 512}, "long_attention": {"mechanism": "window"}}
    names = {str(number): f"topic {number}" for number in range(21)}
    for labels, shown in (
        ({"0": "bad", "1": "good"}, "Labels: `bad`, `good`."),
        (names, f"Labels: {', '.join(f'`topic {number}`' for number in range(20))} and 1 more."),
    ):
        write_json(tmp_path / "config.json", {**config, "id2label": labels})
        scores = [{**EXACT, "value": 50 / 3}]
        card = ModelCard.load(
            write_model_card(tmp_path, base_model="some/bert", training="Trained for 2 steps.", results=scores)
        )
        assert "Fine-tuned from `some/bert`, extended from 512 to 1,024 tokens, with `window` attention" in card.text
        assert shown in card.text
        assert [result.metric_value for result in card.data.eval_results] == [16.667]


@pytest.mark.parametrize(
    ("base", "mechanism", "sentence"),
    [
        ("bert", "window", "are refused; truncate them"),
        ("llama", "window", "Its texts may be of any length: no query looks back more than 512 positions"),
        ("llama", "full", "Other sizes may run, but were not verified"),
    ],
)
def test_card_says_whether_longer_inputs_are_refused(base: str, mechanism: str, sentence: str, tmp_path: Path) -> None:
    values = small_values(base)
    FAMILIES[base].config_class(**values, long_attention={"mechanism": mechanism}).save_pretrained(tmp_path)
    assert sentence in write_model_card(tmp_path).read_text()


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        *(
            (values, "No card of .* can be made from its config.json, its conversion_report.json")
            for values in (
                {"checks": 5},
                {"checks": [{"name": "x"}]},
                {"plan": "x"},
                {"versions": 5},
                {"tolerance": "x", "checks": [CHECK]},
                {"plan": {"new_length": "x", "old_length": 5, "positions": "tile"}},
            )
        ),
        ({"text": "\ud800"}, "not valid JSON"),
    ],
)
def test_card_refuses_a_conversion_report_of_odd_types(
    report: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "model", "BertForMaskedLM")
    write_json(folder / "conversion_report.json", report)
    with pytest.raises(CheckpointError, match=sentence):
        write_model_card(folder)


@pytest.mark.filterwarnings("ignore:.*(it is ignored|No metadata is taken)")
@pytest.mark.parametrize(
    "front",
    [
        "tags: 5",
        "5: x",
        "model-index: text",
        "model-index: [5]",
        "- a\n- b",
        "license",
        "license: [a]",
        "language: {a: 1}",
        'license: "\\ud800"',
    ],
)
def test_card_leaves_out_front_matter_of_odd_types_with_a_warning(front: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "BertForMaskedLM")
    (folder / "README.md").write_text(f"---\n{front}\n---\n# Model\n")
    assert "## Use" in write_model_card(folder).read_text()


SOURCE = """---
language: [en, de]
license: other
license_name: mine
license_link: LICENSE.md
datasets: [bookcorpus]
base_model: someone/older
pipeline_tag: fill-mask
library_name: keras
tags: [exbert, tf, onnx, biology]
model-index:
- name: small
  results:
  - task: {type: fill-mask}
    dataset: {name: books, type: books}
    metrics: [{type: loss, value: 2.0}]
---

# small-bert
"""
KEPT = {
    "language": ["en", "de"],
    "license": "other",
    "license_name": "mine",
    "license_link": "LICENSE.md",
    "datasets": ["bookcorpus"],
}


def written(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md", ignore_metadata_errors=False)


def test_card_takes_over_metadata_of_a_source_folder(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint("BertForMaskedLM")
    (source / "README.md").write_text(SOURCE)
    report = convert_checkpoint(source, tmp_path / "long", max_length=128, mechanism="window", window=16, verify=False)
    assert "README.md" in report.files
    card = written(tmp_path / "long")
    assert {name: card.data.to_dict().get(name) for name in KEPT} == KEPT
    assert set(card.data.tags) == {"exbert", "biology", "hf_longattn", "long-context"}
    assert card.data.base_model is None, "the base of its source is not its base, and a folder has no name on the Hub"
    assert card.data.eval_results is None
    assert card.data.library_name == "transformers"
    assert "# small-bert" not in card.text
    assert f'from_pretrained("{tmp_path / "long"}")' in card.text
    write_model_card(tmp_path / "long", license="mit", tags=["code"], base_model="someone/small-bert")
    again = written(tmp_path / "long").data
    assert (again.license, again.to_dict().get("license_name"), again.language) == ("mit", None, ["en", "de"])
    assert again.base_model == "someone/small-bert"
    write_model_card(tmp_path / "long")
    assert written(tmp_path / "long").data.to_dict() == again.to_dict(), (
        "a card that is written again keeps what it says"
    )


def test_card_takes_over_metadata_of_a_hub_source(
    checkpoint: Callable[..., Path], hub: Callable[[str], None], tmp_path: Path
) -> None:
    source = checkpoint("BertForMaskedLM")
    (source / "README.md").write_text(SOURCE)
    server = Hub()
    server.add("someone/small-bert", source)
    with serve(server):
        hub(server.endpoint)
        convert_checkpoint(
            "someone/small-bert", tmp_path / "long", max_length=128, mechanism="window", window=16, verify=False
        )
    card = written(tmp_path / "long")
    assert {name: card.data.to_dict().get(name) for name in KEPT} == KEPT
    assert card.data.base_model == "someone/small-bert"
    assert "Converted from `someone/small-bert`" in card.text


def test_unreadable_card_of_a_source_gives_no_metadata_and_a_warning(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.warns(UserWarning, match="No metadata is taken"):
        assert inherited_metadata(tmp_path) == {}
    (tmp_path / "README.md").write_text("# no front matter\n")
    assert inherited_metadata(tmp_path) == {}


REPO, BIRDS = "writer/pushed", "One bird sang on the hill, and another answered from the wood. " * 60
COMMANDS = {
    "convert": "convert {at}/short {out} --max-length 256 --verify-text {at}/book.txt",
    "compress": "compress {at}/long {out} --method bf16 --length 64 --text {at}/book.txt",
    "native": "export {at}/long {out} --format native",
    "torch": "export {at}/long {out} --format torch",
    "clm": "train clm --model {at}/long --data {at}/book.txt {at}/other.txt --output {out} --max-steps 1 "
    "--max-length 64 --batch-size 1",
    "distill": "train distill --method logits --model {at}/long --teacher {at}/short --data {at}/book.txt "
    "{at}/other.txt --output {out} --max-steps 1 --max-length 64 --batch-size 1",
}


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a long model, the short one that it could be of, and texts."""
    place = tmp_path_factory.mktemp("models") / "secret client"
    small = {"num_hidden_layers": 1, "max_position_embeddings": 128, "vocab_size": 1000}
    for name in ("long", "plain"):
        save_long(place / name, "llama", {"mechanism": "full"}, **small)
    LlamaForCausalLM(small_config("llama", **small)).save_pretrained(place / "short")
    tokenizer = tokenizer_of("gpt2", 128)
    for name in ("long", "short"):
        tokenizer.save_pretrained(place / name)
    for name in ("book.txt", "other.txt"):
        (place / name).write_text(BIRDS)
    return place


@pytest.mark.parametrize("command", quickly(COMMANDS, ("convert", "compress", "native", "distill")))
def test_pushed_files_name_no_folder_of_this_machine(
    command: str, private: Path, server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(private)
    at, out = Path("../secret client") if command == "native" else private, private / command
    output(capsys, *(word.format(at=at, out=out) for word in COMMANDS[command].split()))
    push_model(out, REPO, token=WRITER)
    sent = server.repos[REPO].branches["main"]
    places = [private.name, *(str(Path(package.__file__ or "").parent) for package in (hf_longattn, torch))]
    assert [(name, place) for name, content in sent.items() for place in places if place.encode() in content] == []
    card = sent["README.md"].decode()
    assert "\n# pushed\n" in card
    assert f"model_name: {command}\n" not in card
    if command in ("native", "torch"):
        assert not [name for name in ("long", "plain") if f"`{name}`" in card]
        assert "from a local folder." in card


@every_case(
    ("typed", "shown"),
    [
        ("squad", "squad"),
        ("org/data:subset", "org/data:subset"),
        ("https://host/a/b", "https://host/a/b"),
        ("/home/a b/q.jsonl", "q.jsonl"),
        ("file:///home/me/q.jsonl", "q.jsonl"),
        ("../secret client/bert", "bert"),
        ("secret client/bert", "bert"),
        (r"C:\Users\me\q.jsonl", "q.jsonl"),
        ("topic=classify:/home/a b/q.jsonl", "topic=classify:q.jsonl"),
        ("moved away/q.jsonl", "q.jsonl"),
        ("moved-away/q.jsonl", "q.jsonl"),
        ("org/model-v1.5", "org/model-v1.5"),
        ("", ""),
    ],
)
def test_public_name_of_a_source_has_no_folders(typed: str, shown: str) -> None:
    assert public_name(typed) == shown


TUNED = "writer/tuned"
METADATA = {"license": "apache-2.0", "language": "en", "datasets": ["bookcorpus"], "base_model": "someone/small-bert"}


@pytest.fixture
def folder(converted: Callable[[str], Path], tmp_path: Path) -> Path:
    shutil.copytree(converted("bert"), tmp_path / "long-bert")
    write_model_card(tmp_path / "long-bert", **METADATA, tags=["biology"])
    return tmp_path / "long-bert"


def pushed_card(server: Hub, tmp_path: Path) -> ModelCard:
    (tmp_path / "pushed.md").write_bytes(server.repos[TUNED].branches["main"]["README.md"])
    return ModelCard.load(tmp_path / "pushed.md", ignore_metadata_errors=False)


def test_push_to_hub_of_a_model_sends_its_card(server: Hub, folder: Path, tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(folder)
    model.push_to_hub(TUNED)
    card = pushed_card(server, tmp_path)
    assert {name: card.data.to_dict().get(name) for name in METADATA} == METADATA
    assert set(card.data.tags) == {"biology", "hf_longattn", "long-context"}
    assert f'from_pretrained("{TUNED}")' in card.text
    there = server.repos[TUNED].branches["main"]
    there["README.md"] = there["README.md"].replace(b"## Limits", b"## What it cannot do")
    model.push_to_hub(TUNED)
    assert "## What it cannot do" in pushed_card(server, tmp_path).text, "a card that is there stays"


def test_saving_with_a_push_sends_the_changed_files_as_longattn_push_does(
    server: Hub, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    model = AutoModelForMaskedLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id=TUNED, commit_message="First")
    sent = server.repos[TUNED].branches["main"]
    assert {"config.json", "model.safetensors", "README.md"} == set(sent)
    assert f'from_pretrained("{TUNED}")' in sent["README.md"].decode()
    assert server.repos[TUNED].messages == ["First"]
    assert model.push_to_hub(TUNED).startswith(f"{server.endpoint}/{TUNED}/commit/")
    with pytest.raises(HubError, match="is public, but it was to be private"):
        model.push_to_hub(TUNED, private=True)
    with pytest.raises(HubError, match="Repo id must be in the form"):
        push_loaded(folder, "a/b/c", str(folder))


@pytest.mark.parametrize("trainer", [Trainer, LongTrainer])
def test_plain_trainer_keeps_the_tags_of_the_card(
    trainer: type[Trainer], server: Hub, folder: Path, tmp_path: Path
) -> None:
    model = AutoModelForMaskedLM.from_pretrained(folder)
    arguments = TrainingArguments(output_dir=str(tmp_path / "run"), report_to=[], hub_model_id=TUNED, use_cpu=True)
    trainer(model, arguments).push_to_hub()
    assert {"hf_longattn", "long-context"} <= set(pushed_card(server, tmp_path).data.tags)
    commit = trainer(model, arguments).push_to_hub(blocking=False)
    assert isinstance(commit, Future)
    commit.result()


def test_longattn_training_pushes_its_card(server: Hub, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(4):
        (tmp_path / "texts" / f"{number}.txt").write_text(BIRDS * (number + 1))
    run = {"max_length": 64, "max_steps": 1, "push_to_hub": True, "hub_model_id": TUNED}
    quick("mlm", folder, tmp_path / "run", tmp_path / "texts", **run)
    card = pushed_card(server, tmp_path)
    assert {name: card.data.to_dict().get(name) for name in METADATA} == METADATA
    assert f"Fine-tuned from `someone/small-bert`, extended from {LENGTH} to 256 tokens" in card.text
    assert "Trained for 1 step on texts (input length 64); " in card.text
    assert "long-bert" not in card.text, "a folder that nobody else has"
    assert f'from_pretrained("{TUNED}")' in card.text
    there = server.repos[TUNED].branches["main"]
    assert {"model.safetensors", "tokenizer.json"} <= set(there)
    assert "training_args.bin" not in there


def test_public_repository_is_refused_before_a_private_training(
    server: Hub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add(TUNED)
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(BIRDS)
    line = f"""--model {folder} --data {tmp_path}/one.txt --validation {tmp_path}/two.txt --output {tmp_path}/run
        --no-bf16 --push-to-hub --hub-model-id {TUNED} --hub-private-repo True"""
    assert train("mlm", line.split()) == 1
    assert "'writer/tuned' is public, but it was to be private" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.safetensors").exists()


def block(metadata: str) -> str:
    return f"---\n{metadata}\n---\n# x\n"


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 9)}]\n" for before, after in pairwise("abcdefghi")
)
MERGES = "a: &a {k: v}\n" + "".join(
    f"{after}: &{after}\n  <<: [{','.join([f'*{before}'] * 9)}]\n" for before, after in pairwise("abcdefghi")
)
CARDS_THAT_TAKE_LONG = {
    "a million tags": (block("tags:\n" + "- t\n" * 10**6), "at most 2 MB are read"),
    "many tags": (block("tags: [" + ",".join(map(str, range(200_000))) + "]"), "at most 1,000 words"),
    "aliases": (block(f"{BOMB}tags: [*i]"), "its aliases make more than"),
    "aliases of a long text": (
        block(f"a: &a {'x y ' * 10_000}\ntags: [{'*a,' * 1000}]"),
        "its aliases make more than",
    ),
    "merges": (block(MERGES), "its aliases make more than"),
    "an alias of itself": (block("tags: &a [*a]"), "its aliases make more than"),
    "deep": (block("tags: " + "[" * 100_000), "nested more than 50 deep"),
    "deep and closed": (block("tags: " + "{a: " * 5000 + "}" * 5000), "nested more than 50 deep"),
    "a number in base 60": (block("license: " + "1:" * 300_000 + "1"), "has 600,001 characters"),
    "digits": (block("license: " + "1" * 10**6), "has 1,000,000 characters"),
    "3 GB": ("x" * 3 * 2**20, "at most 2 MB are read"),
    "tags that are no words": (block("tags: {a: b}"), "must be a list of at most"),
    "lists in tags": (block("tags: [[a]]"), "must be a list of at most"),
    "a list": (block("- a"), "must be names with values, not list"),
    "no index": (block("model-index: {a: b}"), "cannot be read"),
}


@every_case("kind", list(CARDS_THAT_TAKE_LONG), of=4)
def test_card_that_would_take_long_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    text, sentence = CARDS_THAT_TAKE_LONG[kind]
    (tmp_path / "README.md").write_text(text)
    begin = time.process_time()
    with pytest.raises(CheckpointError, match=sentence) as refused:
        read_card(tmp_path / "README.md")
    with pytest.warns(UserWarning, match="No metadata is taken from it"):
        assert inherited_metadata(tmp_path) == {}
    assert time.process_time() - begin < 5
    assert len(str(refused.value)) < 700


@every_case("tags", ["5", "2024-01-01", "[2024-01-01, 5, 1.5, true, null, no, a]", "a", "[a, a]", "''", "[]"])
def test_dates_and_numbers_among_tags_are_words(tags: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(block(f"tags: {tags}\nlicense: mit\nlanguage: en"))
    read = read_card(tmp_path / "README.md").data.tags
    assert all(isinstance(tag, str) for tag in read)
    assert inherited_metadata(tmp_path)["license"] == "mit"


@every_case(
    "text",
    [
        "<!-- hf_longattn: x -->\n" * 50_000,
        "<!-- hf_longattn: " * 50_000,
        '<!-- hf_longattn: "' + '\\"' * 400_000 + " -->",
        ('<!-- hf_longattn: "' + '\\"' * 50 + "-->") * 5000,
    ],
    ids=lambda text: f"{text[:30]}{len(text)}",
)
def test_name_in_a_card_with_many_comments_is_read_at_once(text: str) -> None:
    begin = time.process_time()
    for quoted in (None, "x"):
        comment = f'\n<!-- hf_longattn: a push writes it in place of "{quoted}", unless -->\n' if quoted else ""
        NAMED.search(text + comment)
    assert NAMED.search(comment + text)[1] == '"x"'
    assert time.process_time() - begin < 2
