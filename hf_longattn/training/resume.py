"""Check that a resumed training has the model, data and arguments of the training that wrote the checkpoint.

Each checkpoint stores them as a record, which is compared when the training is resumed.
"""

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
"""Name of the file that Trainer writes last. A checkpoint without it is not complete."""
SOURCES = ("data", "tasks")
"""Arguments that name training data. The rows are compared instead of the names."""
EVALUATION = ("validation", "max_eval_samples")
"""Arguments of the evaluation, which a resumed training may change."""
PATHS = ("model", "teacher")
"""Arguments that are a folder or a Hub name."""


class RunRecord(TrainerCallback, ExportableState):
    """Writes the facts that :func:`run_facts` returns into the state of each checkpoint."""

    def __init__(self, facts: Mapping[str, Any] | None = None) -> None:
        self.facts = dict(facts or {})

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"facts": self.facts}}


def run_facts(model: Any, rows: Any, model_args: ModelArguments, data_args: DataArguments) -> dict[str, Any]:
    """The facts that a resumed training must share with the training that it continues, as JSON values by name.

    They are the model and data arguments, and fingerprints of the model's config and of the training rows. Because the
    rows are compared, the names of the data are not, and files may be moved. Arguments of the Trainer may change, so a
    resumed training can take more steps.
    """
    facts = dict[str, Any]()
    for arguments in (model_args, data_args):
        names = {field.name for field in fields(arguments) if field.init and not field.name.endswith("_token")}
        facts |= {name: getattr(arguments, name) for name in sorted(names.difference(EVALUATION))}
    for name in facts.keys() & {*PATHS}:
        if Path(str(facts[name])).exists():  # else a Hub name
            facts[name] = str(Path(facts[name]).resolve())
    network = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if network is not None:
        facts["config"] = fingerprints.of_config(network.config)
    # multitask has a ConcatDataset with ``datasets``; a training in segments has Segments with ``documents``
    datasets = getattr(rows, "datasets", None) or [getattr(rows, "documents", rows)]
    if all(isinstance(data, Dataset) for data in datasets):
        facts["rows"] = fingerprints.of_value([fingerprints.of_rows(data) for data in datasets])
        facts = {name: value for name, value in facts.items() if name not in SOURCES}
    return dict(json.loads(json.dumps(facts, default=str)))


def check_same_run(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Refuse to resume if :func:`run_facts` differ from the facts in the checkpoint.

    Raises:
        CheckpointError: another program wrote the checkpoint.
        OptionError: the model, the training rows or an argument differ from those in the checkpoint.
    """
    callbacks = read_json_object(checkpoint / STATE).get("stateful_callbacks") or {}
    if RunRecord.__name__ not in callbacks:
        raise CheckpointError(
            f"{str(checkpoint)!r} was not written by longattn train, so it cannot be resumed; give another checkpoint."
        )
    recorded = callbacks[RunRecord.__name__]["attributes"]["facts"]
    for name, value in facts.items():
        if name not in recorded or recorded[name] == value:
            continue
        if name == "config":
            difference = "with a model of another config.json"
        elif name == "rows":
            difference = "on other training rows"
        else:
            difference = f"with {flag(name)} {words(recorded[name])}, not {words(value)}"
        raise OptionError(
            f"The training of {str(checkpoint)!r} was begun {difference}; give what it was begun with, or type "
            "--overwrite in place of --resume to begin anew."
        )


def words(value: Any) -> str:
    """The value of an argument as it is typed on the command line."""
    if not isinstance(value, list):
        value = [value]
    return " ".join(map(str, value)) or "(none)"
