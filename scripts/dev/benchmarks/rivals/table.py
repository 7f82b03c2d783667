"""Who is faster, by how much, and in how much memory: the tables of a stored run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scripts.dev.benchmarks import report
from scripts.dev.benchmarks.rivals.plan import (
    LENGTHS,
    LIMIT_COSINE,
    LIMIT_DIFFERENCE,
    LIMIT_LOW,
    LONG,
    MODELS,
    SHORT,
    WAYS,
)

EVEN = 1.03
"""Ratio up to which two numbers count as equal."""
RIGHT: tuple[str, ...] = ("equal", "close")
"""Verdicts of outputs that may win."""
Row = dict[str, Any]


def verdict(row: Row) -> str:
    """Whether a row's outputs are those of the reference: equal in fp32, and close in other precisions."""
    way = WAYS[row["way"]]
    if "seconds" not in row:
        return "not run"
    if not way.same:
        return "another function"
    if way.precision != "fp32":
        return "close" if row["least_cosine"] >= LIMIT_LOW else "differs"
    right = row["least_cosine"] >= LIMIT_COSINE and row["difference"] <= LIMIT_DIFFERENCE
    return "equal" if right else "differs"


def line(row: Row) -> str:
    """A row in one line of text."""
    start = f"  {row['way']}"
    if "error" in row:
        return f"{start}: {row['error']}"
    found = verdict(row)
    if "difference" in row:
        found = f"difference {row['difference']:.1e}, cosine {row['least_cosine']:.6f}, {found}"
    return f"{start}: {digits(row['seconds'])} s, {row['mebibytes']:,.0f} MiB, {found}"


def digits(value: float) -> str:
    """A number with three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def named(row: Row) -> str:
    """A way with its precision, if that is not fp32."""
    way = WAYS[row["way"]]
    shown = way.precision != "fp32" and way.precision.upper() not in way.title
    return f"{way.title}, {way.precision}" if shown else way.title


def best(rows: Sequence[Row], ours: bool, exact: bool, field: str) -> Row | None:
    """The right row of a side with the smallest value of a field."""
    fitting = [
        row
        for row in rows
        if WAYS[row["way"]].ours == ours
        and verdict(row) in RIGHT
        and (not exact or WAYS[row["way"]].precision == "fp32")
    ]
    return min(fitting, key=lambda row: float(row[field]), default=None)


def winner(own: float, rival: float, name: str) -> str:
    """Who has the smaller number, and how many times the other's it is. A rival that wins is in bold."""
    if max(own, rival) <= EVEN * min(own, rival):
        return "equal"
    if own < rival:
        return f"ours, {rival / own:.2f} ×"
    return f"**{name}, {own / rival:.2f} ×**"


def duel(own: Row | None, rows: Sequence[Row], exact: bool) -> list[str]:
    """The cells of our row beside the rivals' fastest and smallest."""
    rival, small = (best(rows, False, exact, field) for field in ("seconds", "mebibytes"))
    cells = []
    for row in (own, rival):
        cells += [named(row), digits(row["seconds"]), f"{row['mebibytes']:,.0f}"] if row else ["–", "–", "–"]
    if not own or not rival or not small:
        return [*cells, "no rival ran" if own else "–", "–"]
    smallest = (best(rows, True, exact, "mebibytes") if WAYS[own["way"]].same else None) or own
    memory = winner(smallest["mebibytes"], small["mebibytes"], f"{named(small)}, {small['mebibytes']:,.0f}")
    return [*cells, winner(own["seconds"], rival["seconds"], named(rival)), memory]


def grouped(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    """(model, length) -> rows, in the order of models and lengths."""
    return {
        (model, length): found
        for model in MODELS
        for length in LENGTHS
        if (found := [row for row in rows if (row["model"], row["length"]) == (model, length) and "seconds" in row])
    }


def duels(rows: Sequence[Row], exact: bool, lengths: Sequence[int] = LENGTHS) -> str:
    """Who wins, a line for each model and length."""
    lines = []
    for (model, length), group in grouped(rows).items():
        if length not in lengths:
            continue
        size = f"{length:,}"
        own = best(group, True, exact, "seconds")
        if own and (exact or any(WAYS[row["way"]].precision != "fp32" for row in group)):
            lines.append([MODELS[model], size, *duel(own, group, exact)])
        others = [
            row
            for row in group
            if verdict(row) == "another function" and (not exact or WAYS[row["way"]].precision == "fp32")
        ]
        if others:
            own = min(others, key=lambda row: float(row["seconds"]))
            lines.append([f"{MODELS[model]}; ours is another function", size, *duel(own, group, exact)])
    header = ["", "tokens", "our fastest", "s", "MiB", "fastest rival", "s", "MiB", "faster", "least memory"]
    return report.markdown_table(header, lines)


def advice(rows: Sequence[Row]) -> str:
    """The fastest way with the outputs of the stock model, for each model and length, in fp32 and in any precision."""
    lines: dict[str, list[str]] = {}
    for (model, length), group in grouped(rows).items():
        found = []
        for exact in (True, False):
            own, rival = (best(group, ours, exact, "seconds") for ours in (True, False))
            if own and rival:
                first, second = sorted((own, rival), key=lambda row: float(row["seconds"]))
                found.append(f"{named(first)} ({second['seconds'] / first['seconds']:.2f} × the other side's best)")
            elif own:
                found.append(f"{named(own)} (no rival ran)")
        if found:
            words = dict.fromkeys(found)
            lines.setdefault(MODELS[model], []).append(f"at {length:,} tokens {', in any precision '.join(words)}")
    return "\n".join(f"- {title}: {'; '.join(parts)}." for title, parts in lines.items())


def full(rows: Sequence[Row], model: str) -> str:
    """All ways of a model: seconds and memory at each length. The smallest number of right outputs is in bold."""
    own = [row for row in rows if row["model"] == model and "seconds" in row]
    lengths = [length for length in LENGTHS if any(row["length"] == length for row in own)]
    cells = {(row["way"], row["length"]): row for row in own}

    def column(field: str, length: int, show: Callable[[float], str]) -> dict[str, str]:
        found = {way: row for (way, size), row in cells.items() if size == length}
        least = min((row[field] for row in found.values() if verdict(row) in RIGHT), default=0.0)
        shown = {}
        for way, row in found.items():
            text = show(row[field])
            shown[way] = f"**{text}**" if row[field] == least and verdict(row) in RIGHT else text
        return shown

    columns = [column("seconds", length, digits) for length in lengths]
    columns += [column("mebibytes", length, lambda size: f"{size:,.0f}") for length in lengths]
    lines = []
    for way in WAYS:
        runs = [row for row in own if row["way"] == way]
        if not runs:
            continue
        title = named(runs[0])
        if compiled := max((row.get("compile_seconds", 0) for row in runs), default=0):
            title += f" in {compiled:.0f} s"
        worst = ["another function", ""]
        if compared := [row for row in runs if "difference" in row]:
            cosine = min(row["least_cosine"] for row in compared)
            wrong = " (differs)" * any(verdict(row) == "differs" for row in compared)
            worst = [f"{max(row['difference'] for row in compared):.0e}", f"{cosine:.6f}{wrong}"]
        lines.append([title, *(values.get(way, "–") for values in columns), *worst])
    header = ["", *(f"s at {length:,}" for length in lengths), *(f"MiB at {length:,}" for length in lengths)]
    return report.markdown_table([*header, "largest difference", "least cosine"], lines)


def left_out(rows: Sequence[Row]) -> str:
    """What did not run, and why."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if "error" in row:
            reasons.setdefault(row["error"], []).append(
                f"{MODELS[row['model']]} by {named(row)} at {row['length']:,} tokens"
            )
    return "\n".join(f"- {'; '.join(cases)}: {reason}." for reason, cases in reasons.items())


def about(record: dict[str, Any]) -> str:
    """Machine, commit and versions of a run."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"*{report.where(record['machine'])}, commit {record['commit']}; {versions}*"


def markdown(record: dict[str, Any]) -> str:
    """The tables of the page."""
    rows = record["rows"]
    parts = [
        "### Which to use",
        advice(rows),
        "### In fp32",
        duels(rows, True),
    ]
    if any(WAYS[row["way"]].precision != "fp32" for row in rows):
        parts += ["### In the fastest precision of each side", duels(rows, False)]
    for model, title in MODELS.items():
        if any(row["model"] == model and "seconds" in row for row in rows):
            parts += [f"### {title}", full(rows, model)]
    if missing := left_out(rows):
        parts += ["### Left out", missing]
    return "\n\n".join([*parts, about(record)])


def brief(record: dict[str, Any]) -> str:
    """Who wins in fp32 at the shortest and at the longest usual length."""
    return f"{duels(record['rows'], True, (SHORT, LONG))}\n\n*{report.where(record['machine'])}*"
