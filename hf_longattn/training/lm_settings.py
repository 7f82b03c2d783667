"""The settings of a training on text, and of a language-model adaptation; command lines and the recipes of configs/ are made from them."""

# ruff: noqa: RUF009 (`setting` makes a field)
from __future__ import annotations

from dataclasses import dataclass, field

from hf_longattn.errors import OptionError
from hf_longattn.training.settings import RunSettings, setting

OBJECTIVES = ("auto", "mlm", "clm")


@dataclass
class TextRunSettings(RunSettings):
    """What every training on text has besides: the text, and what its inputs are."""

    text: list[str] = setting(
        [], "One or several of: a .txt, .jsonl, .csv, .tsv or .parquet file, a folder of text "
        "files, a folder written by datasets, the name of a dataset on the Hub."
    )  # fmt: skip
    column: str = setting("text", "The column that holds the text, where there are several.")
    split: str = setting("train", "Split to train on, where the data have several.")
    validation: str = setting("", "Text to measure the loss on, before and after; default: the last hundredth of the documents.")
    max_documents: int = setting(0, "Read so many documents at most; 0 = all.")
    objective: str = setting("auto", "mlm (predict masked tokens), clm (predict the next one), or auto: what the model has a head for.")
    mask_probability: float = setting(0.15, "Share of tokens that mlm chooses.")
    max_length: int | None = setting(None, "Tokens of a training input; default: what the model takes.")
    batch_size: int = setting(1, "Inputs per forward pass and process.")

    def check(self) -> None:
        """Refuse settings that contradict one another."""
        super().check()
        if not self.text:
            raise OptionError("no text given; say --text with a file, a folder or a dataset's name")
        if self.objective not in OBJECTIVES:
            raise OptionError(f"objective must be one of {', '.join(OBJECTIVES)}, not {self.objective!r}")
        if not 0 < self.mask_probability < 1:
            raise OptionError(f"mask_probability must lie between 0 and 1, not {self.mask_probability}")
        if self.batch_size < 1:
            raise OptionError(f"batch_size must be at least 1, not {self.batch_size}")
        if self.max_length is not None and self.max_length < 2:
            raise OptionError(f"max_length must be at least 2 tokens, not {self.max_length}")


@dataclass
class LMSettings(TextRunSettings):
    """What to train further on long text, and for how long."""

    epochs: float | None = setting(None, "Passes over the data.")
    max_steps: int = setting(0, "Optimiser steps, where no epochs are given; default: 1000 without max_minutes, no limit with it.")
    max_minutes: float | None = setting(None, "Stop after so many minutes; the learning rate reaches zero by then.")
    learning_rate: float = setting(5e-5, "Highest learning rate; it rises over warmup_steps, then falls to zero.")
    segments: int = setting(
        0, "Read each document in segments of so many tokens, one after the other, with the model's memory of those before; "
        "0 = inputs that stand alone. For models that remember: transformer_xl, infini, recurrent_memory, linear, window."
    )  # fmt: skip

    def check(self) -> None:
        """Refuse settings that contradict one another."""
        super().check()
        if self.segments and (self.segments < 2 or self.epochs is not None or self.gradient_checkpointing or self.max_length is not None):
            raise OptionError(
                f"segments is {self.segments}: give at least 2 tokens, max_steps or max_minutes in place of epochs, and neither max_length "
                "nor gradient_checkpointing, which drops what the layers remember"
            )


@dataclass
class MLMSettings(LMSettings):
    """Masked tokens, for encoders."""

    objective: str = field(default="mlm", init=False)


@dataclass
class CLMSettings(LMSettings):
    """Next tokens, for decoders."""

    objective: str = field(default="clm", init=False)
    mask_probability: float = field(default=0.15, init=False)
