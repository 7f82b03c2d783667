"""The HTML page: complete, without anything from outside, and usable in a real browser, wide and narrow, light and dark, by keyboard."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from hf_longattn.inspect import Diagnosis, html_page
from tests.browser import CHROMIUM, browser

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; apt-get install chromium")
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
SMALLEST = """Math.min(...Array.from(document.querySelectorAll("svg text"), one => one.getBoundingClientRect())
  .filter(box => box.width > 0).map(box => Math.min(box.height, box.width * 9)))"""


def test_the_page_says_what_was_found_and_what_to_do(diagnosis: Diagnosis) -> None:
    page, chosen = html_page(diagnosis), diagnosis.chosen()
    assert chosen is not None
    assert f"<h1>{diagnosis.conclusion()}</h1>" in page.replace("\N{NO-BREAK SPACE}", " ")
    assert " ".join(diagnosis.flags(chosen)) in page
    for candidate in diagnosis.candidates:
        assert f">{candidate}<" in page
    assert page.count("<svg") == page.count('role="img" aria-label="')
    assert "$" not in re.sub(r"<script>.*</script>", "", page, flags=re.DOTALL)
    assert "nan" not in re.sub(r"<[^>]*>", " ", page).split()


@pytest.mark.thorough
def test_nothing_comes_from_outside(diagnosis: Diagnosis) -> None:
    page = html_page(diagnosis)
    assert not re.search(r"(?:https?:)?//|url\((?!#)|@import", re.sub(r"<script>.*</script>", "", page, flags=re.DOTALL))
    assert {target for target in re.findall(r'(?:src|href)="([^"]*)"', page) if not target.startswith("#")} == {"data:,"}
    names = re.findall(r' id="([^"]*)"', page)
    assert {target[1:] for target in re.findall(r'href="(#[^"]*)"', page)} <= set(names)


@pytest.mark.thorough
def test_names_are_text_not_markup(diagnosis: Diagnosis) -> None:
    import dataclasses

    page = html_page(dataclasses.replace(diagnosis, model="<script>alert(1)</script>", text='a"b&c'))
    assert "<script>alert" not in page
    assert "a&#34;b&amp;c" in page


@pytest.mark.thorough
def test_points_cells_and_marks_say_what_they_stand_for(diagnosis: Diagnosis) -> None:
    page = html_page(diagnosis).replace("\N{NO-BREAK SPACE}", " ")
    for length in (64, 128, 256):
        assert f"<title>all {length} tokens equally</title>" in page
        for layer in range(3):
            assert re.search(rf"<title>layer {layer}, {length} tokens: [\d.,]+ effective tokens</title>", page)
    for layer in range(3):
        assert re.search(rf'title="layer {layer}: \d+ % of the attention at distances? [\d, to]+"', page)
    assert re.search(r'title="layer 2, head 3: [\d.]+"', page)


def test_the_same_diagnosis_gives_the_same_page(diagnosis: Diagnosis) -> None:
    assert html_page(diagnosis) == html_page(diagnosis)


@needs_browser
def test_in_a_browser(diagnosis: Diagnosis, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html_page(diagnosis), encoding="utf-8")
    with browser(tmp_path / "profile") as page:
        for width, dark in ((1280, False), (400, False), (1280, True), (400, True)):
            page.open(file, width, dark=dark)
            assert page.ask(FITS), f"nothing is cut off or scrolls sideways at {width} pixels"
            assert page.ask(SMALLEST) > 8.5, "labels stay legible"
            image = page.screenshot(tmp_path / f"{width}-{'dark' if dark else 'light'}.png")
            wide, high = struct.unpack(">II", image[16:24])
            assert wide == width
            assert high > 2000
            assert len(image) > 50_000, "it is not blank"
        grounds = []
        for dark in (False, True):
            page.open(file, 800, dark=dark)
            grounds.append(page.ask("getComputedStyle(document.body).backgroundColor"))
        assert grounds[0] != grounds[1]
        page.ask('document.querySelector("summary").focus()')
        page.press("Enter", 13)
    assert not page.problems
    assert {one for one in page.requests if not one.startswith("data:")} == {file.resolve().as_uri()}
