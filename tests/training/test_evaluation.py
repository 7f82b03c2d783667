"""`longattn evaluate`: only what a checkpoint has is scored, with its own classes and under its own names."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Model,
    PreTrainedTokenizerBase,
    T5EncoderModel,
    Wav2Vec2Model,
)
from transformers.models.bert.modeling_bert import BertIntermediate

from hf_longattn.cli.train import train
from hf_longattn.files import read_json
from hf_longattn.training import load_multitask_head, run
from hf_longattn.training.tasks import task_names
from scripts.dev.tools.small_models import Shape, small_config
from tests.cases import every_case
from tests.saved import change_json, label_config
from tests.training.conftest import checkpoint, launched, quick
from tests.training.speech import sentences, speech_checkpoint, spoken
from tests.training.test_classify import WORDS, rows, table
from tests.training.test_multitask import three_tasks
from tests.training.test_options import DATA

USUAL = ["--no-bf16", "--disable-tqdm", "True"]
CLASSES = ["good", "bad", "fair"]
Multitask = tuple[str, list[str]]
"""A checkpoint with several heads, and what is typed after --tasks."""
Scored = Callable[..., tuple[int, str, dict[str, Any]]]
SHAPE = Shape(width=16, layers=1, heads=2, inner=32, vocabulary=1024)
"""With the vocabulary of the tokenizer."""


@pytest.fixture
def scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Scored:
    """``scored(task, line)``: the exit code of an evaluation, what it said, and scores.json."""

    def run(task: str, *line: object) -> tuple[int, str, dict[str, Any]]:
        capsys.readouterr()
        output = tmp_path / "scored"
        code = train(task, [*map(str, line), "--output", str(output), "--overwrite", *USUAL], "evaluate")
        scores = read_json(output / "scores.json") if not code else {}
        return code, capsys.readouterr().err, scores

    return run


UNNAMED = [f"LABEL_{number}" for number in range(3)]


def classifier(folder: Path, tokenizer: PreTrainedTokenizerBase, names: list[str] = UNNAMED) -> str:
    """A BERT with a head for classes of these names; what it answers depends on the document."""
    return with_head(BertForSequenceClassification, names, folder, tokenizer)


def with_head(head: Any, names: list[str], folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    torch.manual_seed(0)
    head(small_config("bert", SHAPE, initializer_range=0.5, **label_config(names))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def batches(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Any]:
    """One document each, cut as the models here cut it."""
    return [tokenizer(text, truncation=True, max_length=SHAPE.tokens, return_tensors="pt") for text in texts]


def answers(model: str, texts: list[str]) -> list[int]:
    """The classes that a checkpoint gives documents, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = BertForSequenceClassification.from_pretrained(model).eval()
    with torch.inference_mode():
        return [int(network(**batch).logits.argmax()) for batch in batches(tokenizer, texts)]


def test_evaluate_refuses_checkpoints_without_weights_of_head(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, scored: Scored
) -> None:
    base = checkpoint("mlm", tmp_path / "mlm", tokenizer)
    for name, model in (
        ("bert", BertModel(small_config("bert", SHAPE))),
        ("gpt2", GPT2Model(small_config("gpt2", SHAPE, tie_word_embeddings=False))),
        ("t5", T5EncoderModel(small_config("t5", SHAPE))),
    ):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    spoken(tmp_path, len(sentences(20)))
    headless = {"mlm": tmp_path / "bert", "clm": tmp_path / "gpt2", "seq2seq": tmp_path / "t5"}
    headless["ctc"] = Path(speech_checkpoint(tmp_path / "ctc"))
    Wav2Vec2Model.from_pretrained(headless["ctc"]).save_pretrained(headless["ctc"])
    wrong = {}
    for task in set(task_names()) - {"distill", "linearise"}:  # which train no head
        file = table(tmp_path, DATA[task], f"{task}.jsonl")
        source = {"multitask": ["--tasks", f"one=classify:{file}"]}
        line = [
            "--model",
            headless.get(task, base),
            *source.get(task, ["--data", file]),
            *(["--reranker"] if task == "embed" else []),
        ]
        code, said, _ = scored(task, *line)
        if code != 1 or not re.search(
            r"^Error: .*(lacks weights of|has no heads of longattn train multitask)", said, re.M
        ):
            wrong[task] = said
    assert wrong == {}


def test_evaluate_refuses_a_head_of_another_size(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, scored: Scored
) -> None:
    model = classifier(tmp_path / "model", tokenizer)
    change_json(tmp_path / "model", **label_config(["a", "b"]))
    code, said, _ = scored("classify", "--model", model, "--data", table(tmp_path, [{"text": "for", "label": "a"}]))
    assert code == 1
    assert "lacks weights of BertForSequenceClassification: classifier of this size; give a checkpoint" in said


def test_evaluate_classify_matches_labels_with_the_class_names_of_the_model(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, scored: Scored
) -> None:
    texts = [row["text"] for row in rows(12)]
    named, unnamed = classifier(tmp_path / "named", tokenizer, CLASSES), classifier(tmp_path / "unnamed", tokenizer)
    numbers = answers(named, texts)
    assert len(set(numbers)) > 1
    by_name = [CLASSES[number] for number in numbers]
    few = [row for row in zip(texts, by_name, strict=True) if row[1] == by_name[0]]

    def outcome(model: str, labelled: Any) -> Any:
        data = table(tmp_path, [{"text": text, "label": label} for text, label in labelled])
        code, said, scores = scored("classify", "--model", model, "--data", data)
        return said.splitlines()[-1] if code else scores["metrics"]["after"]["accuracy"]

    assert outcome(named, zip(texts, by_name, strict=True)) == 100.0
    assert outcome(named, few) == 100.0  # one class of three, whose number is the model's
    assert outcome(unnamed, zip(texts, numbers, strict=True)) == 100.0
    refusals = {
        "The model does not know the labels 0, 1 of the data; its classes are bad, fair, good; "
        "change the labels of the data to these, or write them into id2label of its config.json.": outcome(
            named, [(text, at % 2) for at, text in enumerate(texts)]
        ),
        "The model does not know the labels neutral of the data; its classes are bad, fair, good; "
        "change the labels of the data to these, or write them into id2label of its config.json.": outcome(
            named, [*few, (texts[0], "neutral")]
        ),
        "The model does not know the labels good, neutral of the data; its classes are 0, 1, 2; "
        "change the labels of the data to these, or write them into id2label of its config.json.": outcome(
            unnamed, [(texts[0], "good"), (texts[1], "neutral")]
        ),
    }
    assert {said: f"Error: {said}" for said in refusals} == refusals


def test_evaluate_tokens_matches_tags_with_the_names_of_model(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, scored: Scored
) -> None:
    names = ["I-THING", "O", "B-THING"]
    model = with_head(BertForTokenClassification, names, tmp_path / "model", tokenizer)
    outside = [{"tokens": ["for", "while"], "ner_tags": ["O", "O"]}] * 12
    code, said, scores = scored("tokens", "--model", model, "--data", table(tmp_path, outside))
    assert (code, scores.get("tags")) == (0, names), said


def test_evaluate_refuses_missing_data_and_options_of_training(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    scored: Scored,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = classifier(tmp_path / "model", tokenizer, CLASSES)
    data = table(tmp_path, [{"text": "for", "label": "good"}])
    sentences_said = {
        ("classify", "--model", model): "No data given; add --data with a file",
        ("classify", "--data", data): "No model given; add --model",
        ("multitask", "--model", model): "No tasks given; add --tasks NAME=KIND:DATA",
        ("classify", "--model", model, "--data", data, "--use-peft"): "There is no option --use-peft",
    }
    wrong = {}
    for line, words in sentences_said.items():
        code, said, _ = scored(*line)
        if code not in (1, 2) or words not in said or "Traceback" in said or said.count("Error: ") != 1:
            wrong[line] = said
    assert wrong == {}
    monkeypatch.chdir(tmp_path / "model")
    assert train("classify", ["--model", model, "--data", data, *USUAL], "evaluate") == 1
    assert (
        "The output '.' is the folder of --model, which would be overwritten; give another --output"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_evaluate_in_two_processes_gives_scores_of_one(
    multitask: Multitask, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model, tasks = multitask
    named = classifier(tmp_path / "named", tokenizer, sorted(WORDS))
    text = checkpoint("mlm", tmp_path / "mlm", tokenizer)
    lines = {
        "multitask": ["--model", model, "--tasks", *tasks],
        "classify": ["--model", named, "--data", tasks[0].partition(":")[2]],
        "mlm": ["--model", text, "--data", tasks[0].partition(":")[2]],
    }
    wrong = {}
    for task, line in lines.items():
        single, double = tmp_path / f"{task}-1", tmp_path / f"{task}-2"
        assert train(task, [*line, "--output", str(single), *USUAL], "evaluate") == 0
        launched(["evaluate", task, *line, "--output", str(double), *USUAL], tmp_path)
        scores = [read_json(folder / "scores.json")["metrics"]["after"] for folder in (single, double)]
        for numbers in scores:
            numbers.pop("loss_se", None)  # over batches, of which several processes fill the last one
        if scores[0] != pytest.approx(scores[1], rel=1e-5):
            wrong[task] = scores
    assert wrong == {}


@pytest.fixture(scope="module")
def multitask(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Multitask:
    """A checkpoint with three heads, and its tasks. The head "topic" predicts both classes on the documents of
    :func:`rows`."""
    tmp_path = tmp_path_factory.mktemp("multitask")
    tasks = three_tasks(tmp_path)
    quick("multitask", classifier(tmp_path / "short", tokenizer), tmp_path / "several", tasks=tasks, max_steps=1)
    weights, model = (
        load_file(tmp_path / "several" / "model.safetensors"),
        load_multitask_head(str(tmp_path / "several"), "topic").eval(),
    )
    with torch.inference_mode():
        pooled = torch.cat(
            [model.bert(**batch).pooler_output for batch in batches(tokenizer, [row["text"] for row in rows()])]
        )
    direction = pooled[0] - pooled.mean(0)
    weights["heads.topic.classifier.weight"] = torch.stack([direction, -direction])
    weights["heads.topic.classifier.bias"] = weights["heads.topic.classifier.weight"] @ -pooled.mean(0)
    save_file(weights, tmp_path / "several" / "model.safetensors", {"format": "pt"})
    return str(tmp_path / "several"), tasks


@pytest.mark.thorough
def test_heads_of_a_multitask_checkpoint_are_scored_and_trained_further(
    multitask: Multitask,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    scored: Scored,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, tasks = multitask
    topic = load_multitask_head(model, "topic").eval()
    documents = [row["text"] for row in rows()]
    with torch.inference_mode():
        chosen = [
            topic.config.id2label[int(topic(**batch).logits.argmax())] for batch in batches(tokenizer, documents)
        ]
    assert set(chosen) == {"files", "loops"}
    hits = [label == row["label"] for label, row in zip(chosen, rows(), strict=True)]
    caplog.clear()
    code, said, scores = scored("multitask", "--model", model, "--tasks", *tasks)
    assert code == 0, said
    assert not re.search("new and trained|not used", caplog.text), caplog.text
    assert scores["metrics"]["after"]["topic_accuracy"] == pytest.approx(100 * sum(hits) / len(hits))
    single = table(
        tmp_path,
        [{"text": text, "label": label} for text, label in zip(documents, chosen, strict=True)],
        "chosen.jsonl",
    )
    flipped = table(tmp_path, [{"text": documents[0], "label": chosen[0]}], "first.jsonl")
    for data in (single, flipped):  # one class of two keeps its number
        code, said, scores = scored("multitask", "--model", model, "--tasks", f"topic=classify:{data}")
        assert (code, scores["metrics"]["after"]["topic_accuracy"]) == (0, 100.0), said
    other = table(tmp_path, [{"text": "for", "label": "neither"}], "other.jsonl")
    refused = {
        f"topics=classify:{single}": r"has no head 'topics' of kind classify with the labels files, loops; .* Did you "
        r"mean 'topic'\?",
        f"names=classify:{single}": r"has no head 'names' of kind classify .*; its heads are ask \(qa: .*\), names "
        r"\(tokens: ",
        f"topic=classify:{other}": r"has no head 'topic' of kind classify with the labels neither; .* topic "
        r"\(classify: files, loops\)",
    }
    wrong = {}
    for task, words in refused.items():
        code, said, _ = scored("multitask", "--model", model, "--tasks", task)
        if code != 1 or not re.search(words, said):
            wrong[task] = said
    assert wrong == {}

    caplog.clear()
    new = [tasks[0], tasks[2], f"fresh=classify:{single}"]
    changes = {"tasks": new, "validation": [f"topic={single}"], "max_steps": 1, "learning_rate": 1e-9}
    log = quick("multitask", model, tmp_path / "next", **changes)
    assert log["metrics"]["before"]["topic_accuracy"] == 100.0  # of the head that was trained before
    assert "The head of the task 'fresh' is new: " in caplog.text
    kept = load_multitask_head(str(tmp_path / "next"), "topic")
    assert torch.allclose(kept.classifier.weight, topic.classifier.weight, atol=1e-6)
    heads = AutoModel.from_pretrained(tmp_path / "next").config.multitask_heads
    assert heads.keys() == {"ask", "topic", "fresh"}
    assert heads["topic"]["labels"] == ["files", "loops"]


@every_case("task", ["classify", "tokens", "qa"])
def test_evaluations_compute_no_padding_and_have_the_same_scores(
    task: str, scored: Scored, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [row["text"].split()[: (4, 40)[number % 2]] for number, row in enumerate(rows())]
    data: dict[str, list[dict[str, Any]]] = {
        "classify": [{"text": " ".join(text), "label": "good"} for text in words],
        "tokens": [{"tokens": text, "ner_tags": ["B-name", *["O"] * (len(text) - 1)]} for text in words],
        "qa": [
            {
                "id": str(number),
                "question": "which",
                "context": " ".join(text),
                "answers": {"text": [text[0]], "answer_start": [0]},
            }
            for number, text in enumerate(words)
        ],
    }
    head, names = {
        "classify": (BertForSequenceClassification, CLASSES),
        "tokens": (BertForTokenClassification, ["O", "B-name"]),
        "qa": (BertForQuestionAnswering, ["O", "B-name"]),
    }[task]
    model = with_head(head, names, tmp_path / "model", tokenizer)
    line = ("--model", model, "--data", table(tmp_path, data[task]), "--per-device-eval-batch-size", 4)
    sizes: list[int] = []
    forward = BertIntermediate.forward

    def noted(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        sizes.append(hidden_states.shape[:2].numel())
        return forward(self, hidden_states)

    monkeypatch.setattr(BertIntermediate, "forward", noted)
    _, said, log = scored(task, *line)
    assert log, said
    computed = sum(sizes)
    sizes.clear()
    monkeypatch.setattr(run, "unpadded", nullcontext)
    _, _, padded = scored(task, *line)
    assert computed < 0.9 * sum(sizes)
    assert log["metrics"]["after"] == pytest.approx(padded["metrics"]["after"], abs=1e-3)
