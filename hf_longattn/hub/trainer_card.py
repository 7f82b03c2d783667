"""Completes the cards that transformers writes when it pushes a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import HubError, in_one_line
from ..reading import read_text
from .card import model_card
from .metadata import fetch_card, inherited_metadata, read_card, source_card

EMPTY_CARD = "This model card has been automatically generated"
"""In the card that transformers writes for a repository that has none."""
TRAINING = "## Training procedure"
"""Heading of the part of Trainer's card that only Trainer knows."""


def complete_pushed_card(folder: str | Path, repo_id: str, source: str) -> None:
    """Replace transformers' empty card with ours, in a folder that is about to be pushed; any other card stays.

    Args:
        folder: a saved model.
        repo_id: the repository it is pushed to.
        source: what the model was loaded from; its card gives licence, language, data sets and tags.
    """
    readme = Path(folder) / "README.md"
    if not readme.is_file() or EMPTY_CARD not in (text := read_text(readme)):
        return
    tags = read_card(readme).data.get("tags") or []
    readme.unlink()
    try:
        card = model_card(folder, name=repo_id, **from_source(source, {"tags": tags}))
    except BaseException:
        readme.write_text(text, encoding="utf-8")
        raise
    card.save(readme)


def keep_model_card(trainer: Any) -> None:
    """Make ``trainer.push_to_hub()`` write our card, with the training added, instead of Trainer's, which drops the model's.

        trainer = Trainer(model, ...)
        keep_model_card(trainer)

    Licence, language, data sets, tags and ``base_model`` come from the card of the model that was loaded, unless
    ``push_to_hub`` is given others; results and hyperparameters are the Trainer's.

    Args:
        trainer: any ``transformers.Trainer`` whose model was loaded with ``from_pretrained``.
    """
    write, source = trainer.create_model_card, str(trainer.model.config.name_or_path)

    def create_model_card(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        if trainer.is_world_process_zero():
            complete_trainer_card(Path(trainer.args.output_dir), trainer.hub_model_id, source)

    trainer.create_model_card = create_model_card


def complete_trainer_card(folder: Path, repo_id: str | None, source: str) -> None:
    """Rewrite the card that Trainer wrote into ``folder``."""
    readme = folder / "README.md"
    if not (folder / "config.json").is_file():
        raise HubError(f"{str(folder)!r} contains no saved model yet, so its card cannot be written; call trainer.save_model() first.")
    theirs = read_card(readme)
    text = theirs.text.strip()
    said = introduction(text, source)
    training = text.partition(TRAINING)[2].strip()
    known = theirs.data.to_dict()
    stated = {name: known.get(name) for name in ("license", "language", "datasets", "base_model")}
    readme.unlink()
    try:
        contents = from_source(source, {**stated, "tags": known.get("tags") or []})
        ours = model_card(folder, name=repo_id or str(folder), introduction=said, training=training, **contents)
    except BaseException:
        theirs.save(readme)
        raise
    ours.data["eval_results"] = theirs.data.get("eval_results")
    ours.save(readme)


def introduction(text: str, source: str) -> str:
    """The first paragraphs of Trainer's card, without comment and title, and corrected: a loaded model was not trained from scratch, and a
    data set may have no name."""
    said = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL).strip().partition("\n## ")[0]
    said = re.sub(r"^# .*$", "", said, flags=re.MULTILINE).strip()
    if source:
        name = in_one_line(Path(source).name if Path(source).expanduser().exists() else source)
        said = said.replace("This model was trained from scratch", f"This model is a fine-tuned version of `{name}`")
    return re.sub(r" on (?:the None|an unknown|the unknown) dataset", "", said)


def from_source(source: str, given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Arguments of :func:`model_card` for a model that was loaded from ``source``: a Hub name is the base, a folder's card names it."""
    said = {name: value for name, value in given.items() if value}
    if not source:
        return said
    if not Path(source).expanduser().exists():
        fetch_card(source)
        return {"base_model": source, **said, "source": source}
    card = source_card(source)
    base = inherited_metadata(card).get("base_model") if card is not None else None
    return {**({"base_model": base} if base else {}), **said, "source": source}
