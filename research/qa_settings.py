"""The settings of a question-answering fine-tuning; the command line and the recipes of configs/ are made from them."""

# ruff: noqa: RUF009 (`setting` makes a field)
from __future__ import annotations

from dataclasses import dataclass

from hf_longattn.errors import OptionError
from hf_longattn.training.settings import RunSettings, setting


@dataclass
class QASettings(RunSettings):
    """What to train, on what, and for how long."""

    data: list[str] = setting(
        [],
        "One or several of: a SQuAD-shaped .json, .jsonl, .csv or .parquet file, a folder written by datasets, the name of a dataset on "
        "the Hub, 'docstring' and 'lookup' (tasks built from the installed Python packages).",
    )
    split: str = setting("train", "Split to train on, where the data have several.")
    validation: str = setting("", "Data to measure the loss on, before and after, in one of the forms of a file of --data.")
    validation_split: str = setting("validation", "Split of --validation, where that has several.")
    max_length: int | None = setting(None, "Longest input in tokens; default: what the model takes.")
    stride: int = setting(128, "Tokens shared by the windows that a document too long for the model is cut into (files).")
    global_question: bool | None = setting(
        None,
        "Make the question's tokens global; default: yes where the mechanism takes global tokens and the tokenizer separates question and "
        "document, so that the saved model finds them by itself. Without such a separator, inference needs global_attention_mask too.",
    )
    crop: list[int] = setting(
        [], "Two numbers: train on stretches of so many tokens, shortest and longest, cut at random around the answer."
    )
    min_tokens: int = setting(300, "Shortest docstring document, in tokens.")
    max_tokens: int = setting(8000, "Longest docstring document, in tokens.")
    questions_per_module: int = setting(4, "At most so many docstring questions per module.")
    max_questions: int = setting(0, "Build so many docstring questions at most; 0 = all. They come from modules in random order.")
    pack: int = setting(1, "Most questions that one training input asks, where a document has several.")
    lookup_share: float = setting(0.5, "Share of steps on lookup documents where there are other data as well.")
    lookup_lengths: list[int] = setting([], "Two numbers: lookup documents of so many tokens; default: a curriculum from 40 tokens to 500.")
    step_up: float = setting(0.8, "The curriculum goes one step up at this share of exact answers.")
    pointer_layers: list[int] = setting(
        [], "Layers whose output is trained to point at the trail of lookups, such as 1 2 3; dropped from the result."
    )
    pointer_weight: float = setting(1.0, "Weight of the pointers' loss beside the answer's.")
    epochs: float | None = setting(None, "Passes over the data; files and docstring questions only.")
    max_steps: int = setting(0, "Optimiser steps, where no epochs are given; default: 1000 without max_minutes, no limit with it.")
    max_minutes: float | None = setting(None, "Stop after so many minutes; the learning rate reaches zero by then.")
    tokens_per_step: int = setting(8192, "Tokens per forward pass and process: short documents share a batch, grouped by length.")
    gradient_accumulation: int = setting(1, "Forward passes per optimiser step.", kw_only=True)
    learning_rate: float = setting(3e-5, "Highest learning rate; it rises over warmup_steps, then falls to zero.")
    adam_beta2: float = setting(0.999, "AdamW's second beta.")
    random_positions: bool = setting(False, "Start every training input at a random row of the position table.")
    max_question_tokens: int = setting(64, "Tokens that a question may have; of a longer one the rest is cut off, with a warning.")
    windows: list[int] = setting(
        [],
        "For short models: train under the attention that their conversion will have. In every step document tokens see the "
        "question and so many tokens on either side, one of these numbers; 0 = full attention.",
    )
    logging_steps: int = setting(
        20, "Steps between log lines, at most; the curriculum moves at these. A short run logs ten times, and every run its last step.",
        kw_only=True,
    )  # fmt: skip

    def check(self) -> None:
        """Refuse settings that contradict one another."""
        super().check()
        if not self.data:
            raise OptionError("no data given; say --data with a SQuAD-shaped file, a folder or a dataset's name")
        if self.max_question_tokens < 1:
            raise OptionError(f"max_question_tokens must be at least 1, not {self.max_question_tokens}")
        for name in ("crop", "lookup_lengths"):
            value = getattr(self, name)
            if value and (len(value) != 2 or value[0] > value[1] or value[0] < 1):
                raise OptionError(f"{name} takes two numbers, shortest and longest, not {value}; for instance 128 448")
        if self.epochs is not None and "lookup" in self.data:
            raise OptionError("lookup documents are endless: give max_steps or max_minutes instead of epochs")
