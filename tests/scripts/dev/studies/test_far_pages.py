"""Pages with a key and values: boxes are those of the ink, boxes alone tell the answer, windows are those of training; a tiny run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_longattn.data.qa_features import QAFormat, encode_qa
from scripts.dev.studies import far_pages, far_running
from scripts.dev.studies.far_pages import KEY, PAGES, STRIDE, VALUES, WINDOW, Pages, in_windows, tokenizer
from scripts.dev.studies.far_running import arguments
from scripts.dev.studies.far_task import Shown
from scripts.dev.studies.page_rendering import CORNERS, HEIGHT, WIDTH, mark, picture, set_words

TEXT = "The tower was built by the river in the year 1889 , and its architect lived in a house nearby until the flood came . " * 200


@pytest.fixture(scope="module", autouse=True)
def short_text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A text of a few words in place of WikiText-2."""
    folder = tmp_path_factory.mktemp("text")
    for part in ("valid", "test"):
        (folder / f"{part}.txt").write_text(TEXT, encoding="utf-8")
    caches = (far_pages.tokenizer, far_pages.raw_words, far_pages.words, far_pages.typeset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(far_pages, "WIKITEXT", folder)
        patch.setattr(far_pages, "TYPESET", 8)
        for function in caches:
            function.cache_clear()
        yield
    for function in caches:
        function.cache_clear()


def test_boxes_are_those_of_the_ink() -> None:
    page = [*set_words(TEXT.split()[:120]), mark(KEY, 1), mark(VALUES[0], 2)]
    image = np.asarray(picture(page)) < 128
    inside = np.zeros_like(image)
    for word in page:
        left, top, right, bottom = word.box
        assert 0 <= left < right <= WIDTH
        assert 0 <= top < bottom <= HEIGHT
        assert image[top:bottom, left:right].any(), word.word
        inside[top:bottom, left:right] = True
    assert not (image & ~inside).any()


def test_the_answer_is_the_value_in_the_corner_of_the_key() -> None:
    random, corners = np.random.default_rng(0), []
    for _ in range(40):
        record, corner = Pages().document(Shown(512), random)
        corners.append(corner)
        words, boxes, numbers = record["words"], record["boxes"], record["pages"]
        key = words.index(KEY)
        value = words.index(record["answers"]["text"][0])
        assert (numbers[key], numbers[value]) == (0, PAGES - 1)
        assert corner == 2 * (boxes[key][1] > 500) + (boxes[key][0] > 500) == 2 * (boxes[value][1] > 500) + (boxes[value][0] > 500)
        assert sum(word in VALUES for word in words) == len(CORNERS)
        without, _ = Pages().document(Shown(512, control=True), random)
        assert KEY not in without["words"]
    assert np.bincount(corners, minlength=4).min() > 3


def test_labels_are_the_tokens_of_answers() -> None:
    inputs, labels = Pages().batch(Shown(512), 4, np.random.default_rng(0))
    values = set(tokenizer().convert_tokens_to_ids(list(VALUES)))
    assert all(int(row[label, 0]) in values for row, label in zip(inputs, labels, strict=True))
    easy, _ = Pages().batch(Shown(512, easy=1.0), 2, np.random.default_rng(0))
    assert easy.shape[1] == 128


def test_windows_of_the_baseline_are_those_of_training() -> None:
    """Every window is what `encode_qa` makes with a stride, and a token in two has its higher score."""
    record, _ = Pages().document(Shown(1100), np.random.default_rng(0))
    features = encode_qa(record, tokenizer(), QAFormat(WINDOW, STRIDE, token_columns={"bbox": 0}))
    (whole,) = encode_qa(record, tokenizer(), QAFormat(1100, token_columns={"bbox": 0}))
    row = torch.tensor([[*map(list, zip(whole.inputs["input_ids"], whole.inputs["token_type_ids"], strict=True))]])
    inputs = torch.cat([row, torch.tensor([whole.inputs["bbox"]])], 2)
    read: list[torch.Tensor] = []

    class Scores(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, bbox: torch.Tensor, **_: torch.Tensor) -> object:
            read.append(torch.cat([input_ids[..., None], bbox], 2)[0])
            logits = torch.arange(input_ids.shape[1]).float()[None]
            return type("Output", (), {"start_logits": logits, "end_logits": logits})

    scores = in_windows(Scores(), inputs, "class")
    assert scores.shape == inputs.shape[:2]
    assert len(read) == len(features) == 3
    for window, feature in zip(read, features, strict=True):
        expected = torch.cat([torch.tensor(feature.inputs["input_ids"])[:, None], torch.tensor(feature.inputs["bbox"])], 1)
        assert torch.equal(window[: len(expected) - 1], expected[:-1])
    assert scores[0, WINDOW - 2] == 2 * (WINDOW - 2)  # the last token of the first window's pages, also in the second one


def test_a_tiny_run_measures_every_system(tmp_path: Path) -> None:
    line = [
        "--seeds", "0", "--stages", "600:2:2", "--width", "32", "--layers", "1", "--short-minutes", "0.002", "--short-batch", "2",
        "--test-examples", "2", "--other-examples", "2", "--short-size", "256", "--work-dir", str(tmp_path),
    ]  # fmt: skip
    args, task = arguments([Pages], line), Pages()
    assert far_running.pretrained(task, args, 0)["held_out"]["n"] == 4
    for name, system in task.systems(args).items():
        if name != "windows":  # which need a small model of 512 tokens
            result = far_running.run_system(task, args, 0, system)
            assert 0 <= result["after"]["accuracy"] <= 100, name
