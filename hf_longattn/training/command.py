"""The command line of a training: settings, the run, the model card; one sentence for what is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hf_longattn
from hf_longattn.errors import LongAttentionError
from hf_longattn.hub import from_source, write_model_card
from hf_longattn.training.settings import RunSettings, parse_settings

Settings = TypeVar("Settings", bound=RunSettings)


def run_training(
    kind: type[Settings],
    arguments: list[str] | None,
    description: str,
    *,
    train: Callable[[Settings], dict[str, Any]],
    card: Callable[[dict[str, Any]], str],
    result: Callable[[dict[str, Any]], str] = lambda log: "",
) -> int:
    """Run a training script; of several processes the first one speaks and writes the card.

    Args:
        kind: the settings; the command line has their names.
        arguments: of the command line; ``None`` = those of the process.
        description: the script's docstring; its first paragraph stands in the help.
        train: runs the training and returns its log.
        card: what the model card says of a log.
        result: what is printed of it at the end.

    Returns:
        The exit code: 0, or 1 with one sentence on stderr.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    try:
        settings = parse_settings(kind, sys.argv[1:] if arguments is None else arguments, description.split("\n\n")[0])
        if first:
            print(f"hf_longattn {hf_longattn.__version__}: training {settings.model}", file=sys.stderr)
        log = train(settings)
        if first:
            made_from = Path(settings.model).name if Path(settings.model).exists() else settings.model
            training = f"Fine-tuned from `{made_from}`. {card(log)}"
            write_model_card(settings.output, training=training, measured="", eval_results=None, **from_source(settings.model))
    except LongAttentionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if first:
        print("\n".join(line for line in (result(log), f"written to {settings.output}") if line), file=sys.stderr)
    return 0
