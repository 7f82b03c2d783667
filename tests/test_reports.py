"""One report, printed on a terminal, as an HTML page and as Markdown."""

from __future__ import annotations

import pytest

from hf_longattn.cli.terminal import show
from hf_longattn.inspect import html_page
from hf_longattn.reports import Drawing, Report, Table


class Found:
    """A product with every kind of part."""

    def report(self) -> Report:
        report = Report("A <title>", about="about it", width=60)
        report.facts(("model", "[bold]bert"), ("nothing", ""))
        report.section("Numbers", "They are few.")
        report.say("", "strong")
        report.say("for readers of [red]terminals", only="terminal")
        report.say("longattn " + "x" * 70, typed=True)
        report.table(Table(("name", "first", "last"), [("a", "1", "2"), (), ("b", "3" * 30, "4" * 30)], "a table", shrinks=True))
        report.table(Table(("no", "rows"), []))
        heat = Table(("layer", "0", "1"), [("0", "7", "8")], "heat", shares=[[0.2, 0.9]], tooltips=[["few", "many"]])
        report.table(heat, only="page")
        report.add(Drawing(lambda: "data:,", "a drawing"), "page")
        return report


def test_a_terminal_shows_plain_texts_within_its_width(capsys: pytest.CaptureFixture[str]) -> None:
    show(Found().report())
    out = capsys.readouterr().out
    assert "model  [bold]bert" in out
    assert "for readers of [red]terminals" in out
    assert "longattn " + "x" * 70 + "\n" in out
    assert "4" * 30 in out
    assert "333" not in out, "a leading column is left out"
    assert not any(words in out for words in ("nothing", "rows", "They are few", "heat"))
    assert max(len(line) for line in out.splitlines() if "x" not in line) <= 60


def test_a_page_shows_every_part_as_text() -> None:
    page = html_page(Found().report())
    assert "<h1>A &lt;title&gt;</h1>" in page
    for shown in ("<h2>Numbers</h2>", "<p>They are few.</p>", ">[bold]bert<", "3" * 30, 'title="many"', 'alt="a drawing"'):
        assert shown in page
    assert "terminals" not in page


def test_markdown_has_the_texts_of_the_page() -> None:
    page = Found().report().markdown()
    assert page.startswith("# A <title>\n\n- model: [bold]bert\n\n## Numbers\n\nThey are few.\n\n    longattn x")
    assert "a table:\n\n| name | first | last |\n| --- | --- | --- |\n| a | 1 | 2 |" in page
