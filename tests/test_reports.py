"""Tables in Markdown."""

from __future__ import annotations

from hf_longattn.reports import markdown_table


def test_markdown_table_writes_header_rule_and_rows() -> None:
    assert markdown_table(["name", "last"], [["a", "2"]]) == "| name | last |\n| --- | --- |\n| a | 2 |"
