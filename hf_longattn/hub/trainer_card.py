"""Write our model card in place of transformers' when it pushes a model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub.repocard_data import model_index_to_eval_results

from ..errors import HubError, in_one_line
from ..files import public_name, read_text
from .card import model_card
from .metadata import fetch_card, inherited_metadata, read_card, source_card

EMPTY_CARD = "This model card has been automatically generated"
"""Text in the placeholder card that transformers writes for a repository without a card."""


def complete_pushed_card(folder: str | Path, repo_id: str, source: str) -> None:
    """Replace transformers' placeholder card with ours in a folder that is about to be pushed. Any other card stays.

    Args:
        folder: a saved model.
        repo_id: the repository it is pushed to.
        source: the folder or Hub name from which the model was loaded. Its card gives licence, language, data sets and tags.
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


class ModelCardMixin:
    """Mixin that goes before ``Trainer`` in a class's bases. ``push_to_hub`` then adds the training to the model's card. Trainer itself
    would replace that card.

        class CardTrainer(ModelCardMixin, Trainer): ...

    Licence, language, data sets, tags and ``base_model`` come from the card of the model that was loaded by ``from_pretrained``, unless
    ``push_to_hub`` is given other values. Results and hyperparameters come from the Trainer.
    """

    def create_model_card(self: Any, *args: Any, **kwargs: Any) -> None:
        """Write ``README.md`` into the output folder. Takes the arguments of ``Trainer.create_model_card``.

        Raises:
            HubError: the folder contains no saved model.
        """
        from transformers import Trainer
        from transformers.modelcard import TrainingSummary, make_markdown_table

        if not self.is_world_process_zero():
            return
        folder, source = Path(self.args.output_dir), str(self.model.config.name_or_path)
        if not (folder / "config.json").is_file():
            raise HubError(f"{str(folder)!r} contains no saved model yet, so its card cannot be written; call trainer.save_model() first.")
        signature = inspect.signature(Trainer.create_model_card).bind(self, *args, **kwargs)
        summary = TrainingSummary.from_trainer(*signature.args, **signature.kwargs)
        metadata = summary.create_metadata()
        stated = {name: metadata.get(name) for name in ("license", "language", "datasets", "base_model", "tags")}
        start = f"Fine-tuned from `{in_one_line(public_name(source))}`" if source else "Trained"
        datasets = metadata.get("datasets") or []
        settings = "\n".join(f"- {name}: {value}" for name, value in (summary.hyperparameters or {}).items())
        card = model_card(
            folder,
            name=self.hub_model_id or str(folder),
            introduction=f"{start}{' on ' * bool(datasets)}{in_one_line(', '.join(datasets))} by transformers' Trainer.",
            training=f"{settings}\n\n{make_markdown_table(summary.eval_lines)}" if summary.eval_lines else settings,
            measured="\n".join(f"- {name}: {value}" for name, value in (summary.eval_results or {}).items()),
            eval_results=model_index_to_eval_results(metadata["model-index"])[1] or None,
            **from_source(source, stated),
        )
        card.save(folder / "README.md")


def from_source(source: str, stated: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Arguments of :func:`model_card` for a model loaded from ``source``. That is the base model or a folder whose card names it."""
    contents = {name: value for name, value in stated.items() if value}
    if not source:
        return contents
    if not Path(source).expanduser().exists():
        fetch_card(source)
        return {"base_model": source, **contents, "source": source}
    card = source_card(source)
    base = inherited_metadata(card).get("base_model") if card is not None else None
    return {**({"base_model": base} if base else {}), **contents, "source": source}
