"""What a training depends on besides its checkpoint: stored in each checkpoint, and compared when one is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import ExportableState

from ..data import fingerprints
from ..errors import CheckpointError, OptionError, flag
from ..files import read_json_object
from .arguments import DataArguments, ModelArguments

STATE = "trainer_state.json"
"""Name of the file that completes a checkpoint."""
SOURCES, EVALUATION = ("data", "tasks"), ("validation", "max_eval_samples")
"""Arguments whose contents are compared instead of their names, and arguments of the evaluation."""
PATHS = ("model", "teacher")
"""Arguments that are a folder or a Hub name."""


class RunRecord(TrainerCallback, ExportableState):
    """Writes what a training depends on into the state of its checkpoints."""

    def __init__(self, facts: Mapping[str, Any] | None = None) -> None:
        self.facts = dict(facts or {})

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"facts": self.facts}}


def run_facts(model: Any, rows: Any, model_args: ModelArguments, data_args: DataArguments) -> dict[str, Any]:
    """What a training depends on, as JSON values.

    These are all model and data arguments, the fingerprints of the model's config and of the training rows. The rows
    stand for the sources of data, so files may be moved. Arguments of the Trainer may change: a resumed run can take
    more steps.
    """
    facts = dict[str, Any]()
    for arguments in (model_args, data_args):
        names = {field.name for field in fields(arguments) if field.init and not field.name.endswith("_token")}
        facts |= {name: getattr(arguments, name) for name in sorted(names.difference(EVALUATION))}
    for name in facts.keys() & {*PATHS}:
        if Path(str(facts[name])).exists():
            facts[name] = str(Path(facts[name]).resolve())
    network = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if network is not None:
        facts["config"] = fingerprints.of_config(network.config)
    parts = getattr(rows, "datasets", None) or [getattr(rows, "documents", rows)]  # several tasks; segments
    if all(isinstance(part, Dataset) for part in parts):
        facts["rows"] = fingerprints.of_value([fingerprints.of_rows(part) for part in parts])
        facts = {name: value for name, value in facts.items() if name not in SOURCES}
    return dict(json.loads(json.dumps(facts, default=str)))


def check_same_run(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Refuse to resume a training that depends on other things.

    Raises:
        CheckpointError: another program wrote the checkpoint.
        OptionError: the model, the training rows or an argument differ from those of the checkpoint's training.
    """
    callbacks = read_json_object(checkpoint / STATE).get("stateful_callbacks") or {}
    if RunRecord.__name__ not in callbacks:
        raise CheckpointError(
            f"{str(checkpoint)!r} was not written by longattn train, so it cannot be resumed; give another checkpoint."
        )
    before = callbacks[RunRecord.__name__]["attributes"]["facts"]
    other = next((name for name in facts if name in before and before[name] != facts[name]), None)
    if other is None:
        return
    how = {
        "config": "with a model of another config.json",
        "rows": "on other training rows",
    }.get(other, f"with {flag(other)} {words(before[other])}, not {words(facts[other])}")
    raise OptionError(
        f"The training of {str(checkpoint)!r} was begun {how}; give what it was begun with, or type --overwrite in "
        "place of --resume to begin anew."
    )


def words(value: Any) -> str:
    """A value as it is typed."""
    if not isinstance(value, list):
        value = [value]
    return " ".join(map(str, value)) or "(none)"
