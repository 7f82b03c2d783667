"""A report, printed on a terminal."""

from __future__ import annotations

import pytest

from hf_longattn.cli.terminal import show
from hf_longattn.reports import Report, Table, markdown_table


def test_show_prints_a_report_as_plain_text_within_its_width(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(width=60)
    report.facts(("model", "[bold]bert"), ("nothing", ""))
    report.say("", "strong")
    report.say("for readers of [red]terminals")
    report.say("longattn " + "x" * 70, typed=True)
    report.table(Table(("name", "first", "last"), [("a", "1", "2"), (), ("b", "3" * 30, "4" * 30)], "a table", shrinks=True))
    report.table(Table(("no", "rows"), []))
    show(report)
    out = capsys.readouterr().out
    assert "model  [bold]bert" in out
    assert "for readers of [red]terminals" in out
    assert "longattn " + "x" * 70 + "\n" in out
    assert "4" * 30 in out
    assert "333" not in out, "a leading column is left out"
    assert not any(words in out for words in ("nothing", "rows"))
    assert max(len(line) for line in out.splitlines() if "x" not in line) <= 60


def test_markdown_table_writes_header_rule_and_rows() -> None:
    assert markdown_table(["name", "last"], [["a", "2"]]) == "| name | last |\n| --- | --- |\n| a | 2 |"
