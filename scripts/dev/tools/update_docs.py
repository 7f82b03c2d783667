"""Put stored results and the registries into the documents: `make docs`, or with --check say what is out of date.

A document holds pairs of markers, `<!-- made: NAME -->` and `<!-- end -->`; what stands between them comes from
`BLOCKS[NAME]`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import typer

from examples import planted_entities
from hf_longattn import list_mechanisms, mechanism_info
from hf_longattn.cli import app
from hf_longattn.families import FAMILIES, Family
from hf_longattn.modeling.family.definition import CAUSAL_LANGUAGE_MODELS, FACTS_FILE, stored_facts
from hf_longattn.names import TESTED
from hf_longattn.training.recipes import ready_recipes
from scripts.dev import RESULTS, ROOT
from scripts.dev.benchmarks import (
    engines,
    half_weights,
    kernel,
    onnx_graphs,
    padding,
    stock_windows,
    unread_masks,
    whole_texts,
)
from scripts.dev.benchmarks.gpu_check import markdown as gpu_markdown
from scripts.dev.benchmarks.memory import footprint_table
from scripts.dev.benchmarks.report import markdown_table, where
from scripts.dev.benchmarks.rivals import table as rivals
from scripts.dev.studies import decoder
from scripts.dev.tools import derived, first_look, launches, mechanism_pages
from scripts.dev.tools.check_derived import VERIFIED

MARKED = re.compile(r"(<!-- made: (\S+) -->\n)(.*?)(<!-- end -->)", flags=re.DOTALL)


def stored(name: str) -> dict[str, Any]:
    """A stored result by the stem of its file."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def measured(name: str, table: Callable[[dict[str, Any]], str]) -> str:
    """The table of a stored result, and its machine."""
    record = stored(name)
    return f"{table(record)}\n\n*{where(record['machine'])}*"


OURS, FULL = "longattn", "sdpa"


def benchmarks() -> str:
    """Every stored benchmark: a table for each kind, a column for each length; then the machines."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    records = [record for record in records if "timings" in record and "kind" in record]
    sections = []
    for kind, title in {"attention": "Attention alone", "model": "Whole models", "train": "Training steps"}.items():
        chosen = [record for record in records if record["kind"] == kind]
        lengths = sorted({length for record in chosen for length in record["lengths"]})
        heads = ["ms (× sdpa)", *(f"{length:,}" for length in lengths), "others"]
        sections.append(
            f"### {title}\n\n{left(markdown_table(heads, [benchmark_row(record, lengths) for record in chosen]))}"
        )
    worst = max(
        (check for record in records for check in record["checks"]),
        key=lambda check: check["error"] / check["tolerance"],
    )
    error = (
        f"Largest difference from the definition, before timing: {worst['error']:.1e}, where "
        f"{worst['tolerance']:.0e} is allowed."
    )
    machines = sorted({where(record["machine"]) for record in records})
    return "\n\n".join([*sections, error, *(f"*{machine}*" for machine in machines)])


def benchmark_row(record: dict[str, Any], lengths: list[int]) -> list[str]:
    """What was measured; our time at each length and how many times as fast as full attention it is; the same factor
    for other modules."""
    ours = {timing["length"]: timing["median_ms"] for timing in record["timings"] if timing["implementation"] == OURS}
    faster: dict[str, dict[int, float]] = {}
    for ratio in record["ratios"]:
        faster.setdefault(ratio["implementation"], {})[ratio["length"]] = ratio["times_faster"]
    full = faster.pop(FULL, {})
    cells = []
    for length in lengths:
        time = "–" if length not in ours else f"{ours[length]:,.1f}" if ours[length] < 100 else f"{ours[length]:,.0f}"
        cells.append(f"{time} ({full[length]:.1f}×)" if length in full else time)
    others = [f"{name} {factors[max(factors)]:.1f}×" for name, factors in faster.items()]
    return [describe(record), *cells, ", ".join(others)]


def describe(record: dict[str, Any]) -> str:
    """What a benchmark measured, in a few words."""
    case = record["case"]
    words = [f"`{case['mechanism']}`", *(f"{name}={value}" for name, value in case["options"].items())]
    words += [f"{case['num_globals']} global tokens"] * bool(case["num_globals"]) + ["causal"] * case["causal"]
    words += [f"{case['base']}, {case['layers']} layers"] * (record["kind"] != "attention") + [case["dtype"]] * (
        case["dtype"] != "fp32"
    )
    words += ["with backward"] * (case["backward"] and record["kind"] == "attention")
    words += ["processor time"] * (record.get("clock", "time") != "time")
    return ", ".join(words)


def recipes(command: str, about: str) -> str:
    """The recipes of a command with published values, one line each; ``longattn recipes NAME`` prints the rest."""
    recipes = [recipe for recipe in ready_recipes().values() if recipe.command.startswith(command)]
    return left(markdown_table(["recipe", about], [[f"`{recipe.name}`", recipe.title] for recipe in recipes]))


def mechanisms() -> str:
    """All mechanisms, one line each."""
    infos = [mechanism_info(name) for name in list_mechanisms()]
    forms = {"both": "both", True: "causal", False: "bidirectional"}
    rows = [
        [f"[`{info.name}`](mechanisms/{info.name}.md)", info.summary, forms[info.causal], info.cost] for info in infos
    ]
    return left(markdown_table(["mechanism", "what is attended to", "form", "cost"], rows))


OFFSETS: dict[int | str, str] = {0: "", "padding": ", after padding"}


def _positions(family: Family) -> str:
    """How a family's positions are encoded, in a few words."""
    if family.towers:
        return "of each tower"
    if family.rope:
        return "rotary"
    if family.no_positions:
        return "none"
    if family.spec.reads == "grid":
        return "of patches"
    if family.spec.reads == "sound":
        return family.spec.positions
    kinds = {
        f"learned{OFFSETS.get(table.offset, f', offset {table.offset}')}"
        for table in family.position_tables
        if table.learned
    }
    kinds |= {"sinusoids"} if any(not table.learned for table in family.position_tables) else set()
    return "; ".join(sorted(kinds)) or "relative"


READS = {"grid": "images", "sound": "sound", "towers": "several inputs"}


def _reads(family: Family) -> str:
    """The input of a family; for texts also whether it has an encoder, a decoder or both."""
    if family.spec.reads != "text":
        return READS[family.spec.reads]
    decodes = any(name.endswith(CAUSAL_LANGUAGE_MODELS) for name in family.model_classes)
    masked = any(name.endswith("ForMaskedLM") for name in family.model_classes)  # BERT has a causal head, too
    return (
        f"texts: {'encoder-decoders' if family.two_stacks else 'decoders' if decodes and not masked else 'encoders'}"
    )


def families() -> str:
    """All families, grouped by what they read and by how positions are encoded."""
    groups: dict[tuple[str, str], list[str]] = {}
    for base, family in sorted(FAMILIES.items()):
        groups.setdefault((_reads(family), _positions(family)), []).append(f"`{base}`")
    rows = [[reads, positions, ", ".join(names)] for (reads, positions), names in sorted(groups.items())]
    return left(markdown_table(["reads", "positions", "model types"], rows))


def derived_families() -> str:
    """How many families ``check_derived`` verified, and those whose rotary positions cannot be scaled."""
    table: Any = stored("derived_families")
    unscaled = [f"`{base}`" for base, result in sorted(table["families"].items()) if result != VERIFIED]
    return (
        f"`check_derived` verified {len(table['families'])} families. Rotary positions of {', '.join(unscaled)} "
        "cannot be scaled further (`rope:none`)."
    )


def refused_families() -> str:
    """Why the other models of texts have no family: the reason, and their model types."""
    bases: dict[str, list[str]] = {}
    for base, reason in stored_facts()["refused"].items():
        bases.setdefault(reason.partition(", such as ")[0], []).append(f"`{base}`")
    return left(
        markdown_table(
            ["why not", "model types"], [[reason, ", ".join(names)] for reason, names in sorted(bases.items())]
        )
    )


COMPARED = {"decoded": "texts, with decoding", "sounds": "sounds", "padded": "texts", "": "images and other inputs"}
"""Word in the modes of an architecture -> its row. The first that fits counts."""


def architectures() -> str:
    """What stock models of every type do under ``longattn``: equal, refused, without transformers' AttentionInterface,
    or not run."""
    rows: dict[str, dict[str, list[str]]] = {"equal": {}, "refused": {}, "not built": {}, "unpadded": {}}
    others: dict[str, list[str]] = {"own": [], "in": []}
    for name, entry in stored("architectures")["architectures"].items():
        windowed = f"**`{name}`**" if entry.get("equal", "").startswith("window") else f"`{name}`"
        kind = next(kind for kind in (*others, *rows) if kind in entry)
        if "unpadded" in entry:
            sentence = re.sub(
                r"^\w+ (cannot run without padding: |(?=has no))|[.,] (Sort|so its) .*", "", entry["unpadded"]
            )
            sentence = re.sub(r"^\w+ of layer \d+ (.*), which .*|(it fails on three short texts).*", r"\1\2", sentence)
            sentence = re.sub(r"\d+(\.\d+)?(e-\d+)?", "N", sentence)
            rows["unpadded"].setdefault(sentence, []).append(f"`{name}`")
        if kind in others:
            others[kind].append(f"`{name}`")
        elif kind == "equal":
            row = next(row for word, row in COMPARED.items() if word in entry["equal"])
            rows["equal"].setdefault(row, []).append(windowed)
        elif kind == "not built":
            known = entry[kind].startswith(("it ", "its ", "called "))
            rows[kind].setdefault(
                entry[kind] if known else "no small sizes or inputs are known with which it runs", []
            ).append(windowed)
        for sentence in {re.sub(r"\d+", "N", sentence.split("; ")[0]) for sentence in entry.get("refused", {})}:
            rows["refused"].setdefault(sentence.split("Attention of layer N ")[-1], []).append(f"`{name}`")

    def table(kind: str, head: str) -> str:
        cells = [[words, str(len(names)), ", ".join(names)] for words, names in sorted(rows[kind].items())]
        return left(markdown_table([head, "", "model types"], cells))

    return "\n\n".join(
        [
            "These model types are equal. Those in bold have windows that hide keys in the comparison:",
            table("equal", "compared with"),
            f"These are equal inside their model, where they were compared: {', '.join(others['in'])}.",
            "These model types are refused in some or all of these comparisons:",
            table("refused", "the layer …"),
            "After `hf_longattn.unpad`, batches with padding on either side are equal to 1e-9, too, or the model is "
            "refused:",
            table("unpadded", "without padding"),
            f"These {len(others['own'])} model types have attention code of their own, whatever attn_implementation "
            f"is: {', '.join(others['own'])}.",
            "These model types were not run by themselves:",
            table("not built", "why"),
        ]
    )


def commands() -> str:
    """The commands of the command line, with the first sentence of their help."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    rows = [
        [f"`longattn {name}`", " ".join((command.help or "").split("\n\n")[0].split())]
        for name, command in commands.items()
    ]
    return left(markdown_table(["command", "what it does"], rows))


def versions() -> str:
    """The versions of libraries with which the package runs and is tested, in two sentences."""
    tested = []
    for library, (lowest, newest) in TESTED.items():
        span = lowest if lowest == newest else f"{lowest} to {newest}"
        tested.append(f"{library.replace('_', '-')} {span}")
    return (
        f"You need Python 3.10, torch {TESTED['torch'][0]} and transformers {TESTED['transformers'][0]}, or newer "
        f"versions. The tests pass with {', '.join(tested[:-1])} and {tested[-1]}. If an installed "
        "version is newer than the tested ones, one line in the log names it."
    )


def left(table: str) -> str:
    """The table with all columns aligned left."""
    return table.replace("---:", "---")


BLOCKS: dict[str, Callable[[], str]] = {
    "stock-windows": lambda: stock_windows.markdown(stored("stock_windows")).strip(),
    "stock-windows-brief": lambda: stock_windows.brief(stored("stock_windows")),
    "padding": lambda: padding.markdown(stored("padding")).strip(),
    "kernel": lambda: kernel.table(stored("kernel")).strip(),
    "unread-masks": lambda: unread_masks.markdown(stored("unread_masks")).strip(),
    "benchmarks": benchmarks,
    "gpu": partial(measured, "gpu_check", gpu_markdown),
    "launches": lambda: launches.table(stored("launches")["rows"]),
    "launches-of-inputs": lambda: launches.table_of_inputs(stored("launches")["rows"]),
    "engines": partial(measured, "engines", engines.table),
    "half-weights": lambda: half_weights.table(stored("half_weights")),
    "rivals": lambda: rivals.markdown(stored("rivals")),
    "rivals-brief": lambda: rivals.brief(stored("rivals")),
    "onnx-graphs": partial(measured, "onnx_graphs", onnx_graphs.table),
    **{name: partial(measured, name, footprint_table) for name in ("memory", "memory-deberta-v2")},
    "decoder-loss": lambda: decoder.loss_table(stored("decoder")),
    "decoder-use": lambda: decoder.use_table(stored("decoder")),
    "streaming": lambda: decoder.stream_lines(stored("decoder")),
    "whole-texts": lambda: whole_texts.markdown(stored("whole_texts")).strip(),
    "planted-entities": lambda: planted_entities.tags_table(stored("planted_entities")),
    "planted-instructions": partial(measured, "planted_entities", planted_entities.guard_table),
    "mechanisms": mechanisms,
    "recipes": partial(recipes, "train", "training"),
    "conversions": partial(recipes, "convert", "attention"),
    "mechanism-options": mechanism_pages.shared_options,
    "families": families,
    "architectures": architectures,
    "derived-families": derived_families,
    "refused-families": refused_families,
    "commands": commands,
    "versions": versions,
}


def render(text: str) -> str:
    """The document with every marked part updated."""
    return MARKED.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]()}\n{match[4]}", text)


def main(arguments: list[str] | None = None) -> int:
    """Write what changed; with --check write nothing and return 1 when something would change."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a document is out of date")
    check = parser.parse_args(arguments).check
    stale = []
    pages = {ROOT / "docs" / "mechanisms" / name: text for name, text in mechanism_pages.pages().items()}
    pages[FACTS_FILE] = derived.families_json()
    for path in sorted({ROOT / "README.md", RESULTS / "launches.md", *(ROOT / "docs").rglob("*.md"), *pages}):
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        after = pages.get(path) or render(before)
        if after != before:
            stale.append(path)
            if not check:
                path.write_text(after, encoding="utf-8")
    images = ROOT / "docs" / "images"
    if check:
        names = [*(f"{name}.png" for name in list_mechanisms()), first_look.FILE]
        stale += [path for name in names if not (path := images / name).exists()]
    else:
        mechanism_pages.draw(images)
        first_look.draw(stored(first_look.RESULT), images / first_look.FILE)
    print(
        f"{'out of date' if check else 'updated'}: "
        f"{', '.join(str(path.relative_to(ROOT)) for path in stale) or 'nothing'}"
    )
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
