"""What mechanisms can recall, measured on small models that are trained for it.

    python -m scripts.dev.studies.evaluate_probes mqar  # the curve of recall against state size
    python -m scripts.dev.studies.evaluate_probes mqar --only "nsa 8" --only full  # these settings; the others stay as they are stored
    python -m scripts.dev.studies.evaluate_probes mqar --missing  # the settings of the curve that are not stored
    python -m scripts.dev.studies.evaluate_probes mqar --speeds  # decode with all stored settings again, train none
    python -m scripts.dev.studies.evaluate_probes mqar --mechanism window:window=16 --mechanism taylor:feature_dim=8
    python -m scripts.dev.studies.evaluate_probes forgetting --mechanism full --mechanism delta
    python -m scripts.dev.studies.evaluate_probes learned  # these five tasks in small, with eight mechanisms
    python -m scripts.dev.studies.evaluate_probes performer-error  # the error falls with the number of features

`mqar` is multi-query associative recall (Zoology, Arora et al. 2023): a text starts with key–value pairs, and each key is queried once
later. `compositional` and `forgetting` are its forms with two keys, and with values that change; `induction` and `copy` ask what followed
a token before; `listops` is Long Range Arena's. These take --mechanism, once for each row. `performer-error` is the error of Performer's
features against softmax. Each writes OUTPUT.json and OUTPUT.svg.

A row is stored when it is complete, and joins those in OUTPUT.json, if task and training are the same; only --steps may differ, which is
stored with the row. --missing trains the rows that are not stored yet, so that a run that was stopped can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml

from hf_longattn import LongAttentionConfig
from hf_longattn.errors import LongAttentionError, OptionError, nearest
from scripts.dev.benchmarks.report import machine, store_study, stored_study
from scripts.dev.studies.probes import (
    MECHANISMS,
    TASKS,
    Compositional,
    Copy,
    Forgetting,
    Induction,
    ListOps,
    Mqar,
    RecallSetting,
    TrainedTask,
    learned_markdown,
    measure_performer_error,
    measure_recall,
    measure_speeds,
    performer_error_markdown,
    plot_learned,
    plot_performer_error,
    plot_recall,
    recall_markdown,
)

# \b keeps the lines of the examples, which the help would join.
app = typer.Typer(
    help=__doc__.replace("\n\n    ", "\n\n\b\n    "),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
TIMED = "speeds_measured_on"
DEFAULT_CURVE = Path(__file__).parent / "configs" / "probe_mqar.yaml"


@contextmanager
def command(threads: int) -> Iterator[None]:
    """Within it torch has so many threads, if not 0; what is refused is one sentence on stderr, and exit code 1."""
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    except (LongAttentionError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


@app.command()
def mqar(
    mechanism: Annotated[
        list[str] | None, typer.Option(help="One setting, such as window:window=16, or several layers: 'taylor,window:window=16'.")
    ] = None,
    curve: Annotated[Path, typer.Option(help="YAML of named settings, used when no --mechanism is given.")] = DEFAULT_CURVE,
    speeds: Annotated[bool, typer.Option("--speeds", help="Train nothing: time all stored settings again, in turns.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="A setting of the curve by its name, instead of all of them.")] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Train only settings that are not stored yet.")] = False,
    pairs: Annotated[int, typer.Option(help="Key–value pairs of a text.")] = Mqar.pairs,
    length: Annotated[int, typer.Option(help="Tokens of a text.")] = Mqar.length,
    vocab: Annotated[int, typer.Option(help="Tokens there are; half of them keys.")] = Mqar.vocab,
    steps: Annotated[int, typer.Option(help="Training batches at most.")] = RecallSetting.steps,
    batch: Annotated[int, typer.Option(help="Texts of a batch.")] = RecallSetting.batch,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = RecallSetting.learning_rate,
    seed: Annotated[int, typer.Option(help="Of weights and texts.")] = 0,
    threads: Annotated[int, typer.Option(help="Processor threads; 0 is torch's own number.")] = 0,
    output: Annotated[Path, typer.Option(help="Path of the results without suffix.")] = Path("scripts/dev/results/mqar"),
) -> None:
    """Multi-query associative recall: recall against state size and speed."""
    with command(threads):
        all_settings = yaml.safe_load(curve.read_text(encoding="utf-8"))
        named = chosen(all_settings, only or ([] if mechanism else [*all_settings])) | {line: {"layers": line} for line in mechanism or ()}
        task = Mqar(pairs, length, vocab)
        training: dict[str, Any] = {"batch": batch, "learning_rate": learning_rate, "seed": seed}
        kept = stored(output, asdict(task), training)
        if speeds:
            if not kept:
                raise OptionError(f"{str(output.with_suffix('.json'))!r} does not exist, so no settings can be timed; leave --speeds out")
            named = kept["attention"]
        if missing:
            named = {name: attention for name, attention in named.items() if name not in kept.get("attention", {})}
        settings = [RecallSetting(one, LongAttentionConfig.from_dict(named[one]), steps=steps, **training) for one in named]
        if speeds:
            rates = dict(zip(named, measure_speeds(settings, task), strict=True))
            results = [row | {"tokens_per_second": rates[row["name"]]} for row in kept["results"]]
            store_study(output, kept | {TIMED: machine(), "results": results})
        else:
            results = train_rows(output, settings, task, training, kept, [*all_settings])
    plot_recall(results, output.with_suffix(".svg"))
    typer.echo(recall_markdown(results))


def train_rows(
    output: Path, settings: Sequence[RecallSetting], task: Any, training: dict[str, Any], kept: dict[str, Any], order: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Train and measure each setting, and store its row when it is complete, beside those that are ``kept``; return all rows."""
    where = machine()
    rows = {row["name"]: row for row in kept.get("results", ())}
    attention = dict(kept.get("attention", {}))
    for setting in settings:
        (result,) = measure_recall([setting], task, lambda line: typer.echo(line, err=True))
        rows[setting.name] = asdict(result) | {"machine": where}
        attention[setting.name] = setting.attention.to_dict()
        names = [name for name in order if name in rows] + [name for name in rows if name not in order]
        timed = {TIMED: kept[TIMED]} if TIMED in kept else {}
        about = {"machine": kept.get("machine", where), **timed, "task": asdict(task), "training": training}
        store_study(output, about | {"attention": {name: attention[name] for name in names}, "results": [rows[name] for name in names]})
    return [rows[name] for name in order if name in rows] + [row for name, row in rows.items() if name not in order]


def chosen(settings: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The named settings of a curve.

    Raises:
        OptionError: it has no such setting.
    """
    if unknown := [name for name in names if name not in settings]:
        raise OptionError(f"the curve has no setting {unknown[0]!r}; it has {', '.join(settings)}.{nearest(unknown[0], settings)}")
    return {name: settings[name] for name in names}


def stored(output: Path, task: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """The record that single settings join; empty if there is none.

    Raises:
        OptionError: it is of another task or training, so that its rows cannot be compared.
    """
    record = stored_study(output)
    if record and (record["task"], record["training"]) != (task, training):
        file = str(output.with_suffix(".json"))
        raise OptionError(f"{file!r} was measured with {record['task']} and {record['training']}; give the same, or another --output")
    return record


Mechanisms = Annotated[
    list[str], typer.Option("--mechanism", help="A row: window:window=16, or several layers: 'taylor,window:window=16'.")
]
Length = Annotated[int, typer.Option(help="Tokens of a text.")]
Vocab = Annotated[int, typer.Option(help="Tokens there are.")]
Pairs = Annotated[int, typer.Option(help="Pairs of a text.")]
Steps = Annotated[int, typer.Option(help="Training batches at most.")]
Width = Annotated[int, typer.Option(help="Of the model; heads of 32 dimensions.")]
Seed = Annotated[int, typer.Option(help="Of weights and texts.")]
Threads = Annotated[int, typer.Option(help="Processor threads; 0 is torch's own number.")]
Missing = Annotated[bool, typer.Option("--missing", help="Train only rows that are not stored yet.")]
Output = Annotated[Path | None, typer.Option(help="Path of the results without suffix.", show_default="scripts/dev/results/TASK")]


@app.command()
def compositional(
    mechanism: Mechanisms,
    side: Annotated[int, typer.Option(help="First and second keys; there are side² values.")] = Compositional.side,
    length: Length = Compositional.length,
    vocab: Vocab = Compositional.vocab,
    steps: Steps = RecallSetting.steps,
    width: Width = RecallSetting.width,
    seed: Seed = 0,
    threads: Threads = 0,
    missing: Missing = False,
    output: Output = None,
) -> None:
    """Recall by two keys, neither of which tells the value."""
    learn("compositional", lambda: Compositional(side, length, vocab), mechanism, steps, width, seed, threads, missing, output)


@app.command()
def forgetting(
    mechanism: Mechanisms,
    pairs: Pairs = Forgetting.pairs,
    updates: Annotated[int, typer.Option(help="Keys that get another value.")] = Forgetting.updates,
    length: Length = Forgetting.length,
    vocab: Vocab = Forgetting.vocab,
    steps: Steps = RecallSetting.steps,
    width: Width = RecallSetting.width,
    seed: Seed = 0,
    threads: Threads = 0,
    missing: Missing = False,
    output: Output = None,
) -> None:
    """Recall of the latest value of keys, some of which change."""
    learn("forgetting", lambda: Forgetting(pairs, updates, length, vocab), mechanism, steps, width, seed, threads, missing, output)


@app.command()
def induction(
    mechanism: Mechanisms,
    length: Length = Induction.length,
    vocab: Vocab = Induction.vocab,
    steps: Steps = RecallSetting.steps,
    width: Width = RecallSetting.width,
    seed: Seed = 0,
    threads: Threads = 0,
    missing: Missing = False,
    output: Output = None,
) -> None:
    """What followed the last token when it occurred before."""
    learn("induction", lambda: Induction(length, vocab), mechanism, steps, width, seed, threads, missing, output)


@app.command("copy")
def copy_text(
    mechanism: Mechanisms,
    length: Length = Copy.length,
    vocab: Vocab = Copy.vocab,
    steps: Steps = RecallSetting.steps,
    width: Width = RecallSetting.width,
    seed: Seed = 0,
    threads: Threads = 0,
    missing: Missing = False,
    output: Output = None,
) -> None:
    """A random text, and the same text again."""
    learn("copy", lambda: Copy(length, vocab), mechanism, steps, width, seed, threads, missing, output)


@app.command()
def listops(
    mechanism: Mechanisms,
    length: Annotated[int, typer.Option(help="Symbols of an expression, fewer than this; a quarter of it at least.")] = 256,
    depth: Annotated[int, typer.Option(help="Depth of an expression at most.")] = ListOps.max_depth,
    arguments: Annotated[int, typer.Option(help="Arguments of an operation at most.")] = ListOps.max_arguments,
    steps: Steps = RecallSetting.steps,
    width: Width = RecallSetting.width,
    seed: Seed = 0,
    threads: Threads = 0,
    missing: Missing = False,
    output: Output = None,
) -> None:
    """The value of nested operations on digits, ten classes (Long Range Arena)."""
    learn("listops", lambda: ListOps(length, None, depth, arguments), mechanism, steps, width, seed, threads, missing, output)


def setting_of(layers: str, width: int, steps: int, seed: int) -> RecallSetting:
    """The model of a row and its training.

    Raises:
        LongAttentionError: an unknown mechanism or option, or a width that heads of 32 dimensions do not divide.
    """
    if width < 32 or width % 32:
        raise OptionError(f"--width is {width}, but heads have 32 dimensions; give a multiple of 32")
    return RecallSetting(layers, LongAttentionConfig.from_dict({"layers": layers}), width, width // 32, steps=steps, seed=seed)


def learn(
    name: str,
    make: Callable[[], TrainedTask],
    mechanisms: Sequence[str],
    steps: int,
    width: int,
    seed: int,
    threads: int,
    missing: bool,
    output: Path | None,
) -> None:
    """Train a small model for each mechanism, and write the results; rows that are stored already are kept, or measured again."""
    path = output or Path("scripts/dev/results") / name
    with command(threads):
        task: Any = make()
        training = {"width": width, "seed": seed}
        kept = stored(path, asdict(task), training)
        wanted = [one for one in mechanisms if not (missing and one in kept.get("attention", {}))]
        settings = [setting_of(one, width, steps, seed) for one in wanted]
        results = train_rows(path, settings, task, training, kept)
    plot_recall(results, path.with_suffix(".svg"))
    typer.echo(recall_markdown(results))


@app.command()
def learned(
    mechanism: Annotated[
        list[str] | None, typer.Option(help="A row, instead of the usual ones.", show_default=", ".join(MECHANISMS))
    ] = None,
    steps: Steps = 400,
    width: Width = 32,
    seed: Seed = 0,
    threads: Threads = 0,
    output: Annotated[Path, typer.Option(help="Path of the results without suffix.")] = Path("scripts/dev/results/learned"),
) -> None:
    """The five tasks in small; what is stored already is not trained again."""
    with command(threads):
        about = {name: asdict(task) for name, task in TASKS.items()}  # type: ignore[call-overload]
        training = {"steps": steps, "width": width, "seed": seed}
        kept = stored(output, about, training)
        record = {"machine": kept.get("machine", machine()), "task": about, "training": training, "results": kept.get("results", [])}
        for name in mechanism or MECHANISMS:
            setting = setting_of(name, width, steps, seed)
            for task in TASKS:
                if any((row["name"], row["task"]) == (name, task) for row in record["results"]):
                    continue
                (result,) = measure_recall([setting], TASKS[task], lambda line: typer.echo(line, err=True))
                record["results"].append({"task": task} | asdict(result))
                store_study(output, record)
    plot_learned(record["results"], output.with_suffix(".svg"))
    typer.echo(learned_markdown(record["results"]))


@app.command("performer-error")
def performer_error(
    features: Annotated[str, typer.Option(help="Numbers of features, separated by commas.")] = "16,32,64,128,256,512,1024",
    draws: Annotated[int, typer.Option(help="Draws of the directions to average over.")] = 16,
    output: Annotated[Path, typer.Option(help="Path of the results without suffix.")] = Path("scripts/dev/results/performer-error"),
) -> None:
    """Performer against softmax by the number of features, beside what theory says."""
    rows = [asdict(row) for row in measure_performer_error([int(count) for count in features.split(",")], draws)]
    store_study(output, {"machine": machine(), "draws": draws, "results": rows})
    plot_performer_error(rows, output.with_suffix(".svg"))
    typer.echo(performer_error_markdown(rows))


if __name__ == "__main__":
    app()
