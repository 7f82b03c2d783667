"""What mechanisms can recall, measured on small models that are trained for it.

    python -m research.evaluate_probes mqar                                       # the curve of recall against state size
    python -m research.evaluate_probes mqar --mechanism window:window=16 --mechanism taylor:feature_dim=8
    python -m research.evaluate_probes performer-error                            # the error falls with the number of features

`mqar` is multi-query associative recall (Zoology, Arora et al. 2023): a text starts with key–value pairs, and each key is queried once
later. `performer-error` is the error of Performer's features against softmax. Each writes OUTPUT.json and OUTPUT.svg.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml

from benchmarks.report import machine
from hf_longattn import LongAttentionConfig
from hf_longattn.errors import LongAttentionError
from research.probes import (
    Mqar,
    RecallSetting,
    measure_performer_error,
    measure_recall,
    performer_error_markdown,
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
DEFAULT_CURVE = Path(__file__).parent / "configs" / "probe_mqar.yaml"


@app.command()
def mqar(
    mechanism: Annotated[
        list[str] | None, typer.Option(help="One setting, such as window:window=16, or several layers: 'taylor,window:window=16'.")
    ] = None,
    curve: Annotated[Path, typer.Option(help="YAML of named settings, used when no --mechanism is given.")] = DEFAULT_CURVE,
    pairs: Annotated[int, typer.Option(help="Key–value pairs of a text.")] = Mqar.pairs,
    length: Annotated[int, typer.Option(help="Tokens of a text.")] = Mqar.length,
    vocab: Annotated[int, typer.Option(help="Tokens there are; half of them keys.")] = Mqar.vocab,
    steps: Annotated[int, typer.Option(help="Training batches at most.")] = RecallSetting.steps,
    batch: Annotated[int, typer.Option(help="Texts of a batch.")] = RecallSetting.batch,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = RecallSetting.learning_rate,
    seed: Annotated[int, typer.Option(help="Of weights and texts.")] = 0,
    threads: Annotated[int, typer.Option(help="Processor threads; 0 is torch's own number.")] = 0,
    output: Annotated[Path, typer.Option(help="Path of the results without suffix.")] = Path("docs/results/mqar"),
) -> None:
    """Multi-query associative recall: recall against state size and speed."""
    if threads:
        torch.set_num_threads(threads)
    try:
        named = {line: {"layers": line} for line in mechanism} if mechanism else yaml.safe_load(curve.read_text(encoding="utf-8"))
        task = Mqar(pairs, length, vocab)
        training: dict[str, Any] = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "seed": seed}
        settings = [RecallSetting(name, LongAttentionConfig.from_dict(attention), **training) for name, attention in named.items()]
        results = [asdict(result) for result in measure_recall(settings, task, lambda line: typer.echo(line, err=True))]
    except (LongAttentionError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    about = {"task": asdict(task), "training": training, "attention": {s.name: s.attention.to_dict() for s in settings}}
    store(output, {"machine": machine(), **about, "results": results})
    plot_recall(results, output.with_suffix(".svg"))
    typer.echo(recall_markdown(results))


@app.command("performer-error")
def performer_error(
    features: Annotated[str, typer.Option(help="Numbers of features, separated by commas.")] = "16,32,64,128,256,512,1024",
    draws: Annotated[int, typer.Option(help="Draws of the directions to average over.")] = 16,
    output: Annotated[Path, typer.Option(help="Path of the results without suffix.")] = Path("docs/results/performer-error"),
) -> None:
    """Performer against softmax by the number of features, beside what theory says."""
    rows = [asdict(row) for row in measure_performer_error([int(count) for count in features.split(",")], draws)]
    store(output, {"machine": machine(), "draws": draws, "results": rows})
    plot_performer_error(rows, output.with_suffix(".svg"))
    typer.echo(performer_error_markdown(rows))


def store(output: Path, record: dict[str, Any]) -> None:
    """Write ``OUTPUT.json``."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
