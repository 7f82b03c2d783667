"""Fine-tune a model, short or converted, on extractive question answering in SQuAD's shape.

    python scripts/train_qa.py --config configs/qa_reference_512.yaml
    python scripts/train_qa.py --model my-long-model --data my_squad.json --epochs 2 --output trained
    accelerate launch --num_processes 2 scripts/train_qa.py --model ... --data docstring lookup --output trained

Recipes in YAML hold the same names; what is given on the command line wins.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

import hf_longattn  # registers the long models with AutoModel
from hf_longattn.errors import LongAttentionError, OptionError, nearest
from hf_longattn.hub import write_model_card
from hf_longattn.training.qa_finetune import describe_training, finetune_qa
from hf_longattn.training.qa_settings import QASettings


def parse_settings(arguments: list[str]) -> QASettings:
    """Return the settings of a recipe (``--config``) overridden by the command line."""
    parser = HfArgumentParser(QASettings, description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", type=Path, help="Recipe in YAML with the names below.")
    known, _ = parser.parse_known_args(arguments)
    if known.config:
        parser.set_defaults(**read_recipe(known.config))
    values = vars(parser.parse_args(arguments))
    values.pop("config")
    return QASettings(**values)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a YAML recipe; unknown names are refused."""
    if not path.is_file():
        raise OptionError(f"recipe {str(path)!r} does not exist; the ready ones are in configs/")
    recipe = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    names = QASettings.__dataclass_fields__
    for name in recipe:
        if name not in names:
            raise OptionError(f"{path}: unknown setting {name!r}.{nearest(name, names)} --help lists all of them")
    return recipe


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    try:
        settings = parse_settings(sys.argv[1:] if arguments is None else arguments)
        print(f"hf_longattn {hf_longattn.__version__}: training {settings.model} on {', '.join(settings.data)}", file=sys.stderr)
        log = finetune_qa(settings)
        if int(os.environ.get("RANK", "0")) == 0:
            base = settings.model if not Path(settings.model).exists() else None
            write_model_card(settings.output, base_model=base, training=describe_training(log))
    except LongAttentionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"written to {settings.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
