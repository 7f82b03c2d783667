"""Small checkpoints and data for the notebook, made on the spot: the site is built without a network.

Each function trains a small model of a well-known architecture for some seconds on one CPU thread, writes it into a
folder as ``save_pretrained`` does. With a network you need none of this: use the checkpoint that the notebook names.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics  # the language reference, in every Python installation
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import BertConfig, BertForQuestionAnswering, BertTokenizer

transformers.logging.disable_progress_bar()
for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):  # which Jupyter sets: without them commands draw no bars of progress
    os.environ.pop(name, None)

SENTENCES = re.findall(r"[A-Z][a-z][\w ,'-]{30,160}\.", " ".join(topics[name] for name in sorted(topics)))
"""English sentences about Python."""

SEASONS = {"spring": "seeds", "summer": "swimsuit", "autumn": "basket", "winter": "skates"}
QUESTION = "What did they take along?"


def diary(words: int, draw: random.Random) -> tuple[str, str]:
    """A document of about so many words: the season first, four things last, and between them sentences about
    something else.

    Returns:
        The document, and the thing that goes with the season.
    """
    season = draw.choice(list(SEASONS))
    between: list[str] = []
    while len(" ".join(between).split()) < words:
        between.append(draw.choice(SENTENCES))
    things = draw.sample(list(SEASONS.values()), 4)
    return " ".join([f"It was {season}.", *between, f"In the hall lay {', '.join(things)}."]), SEASONS[season]


def write_diaries(file: str, number: int, words: int, seed: int) -> list[dict[str, Any]]:
    """Questions about diaries, one a line in SQuAD's form.

    Returns:
        The same.
    """
    draw = random.Random(seed)
    rows = []
    for _ in range(number):
        text, thing = diary(words, draw)
        rows.append(
            {"question": QUESTION, "context": text, "answers": {"text": [thing], "answer_start": [text.rindex(thing)]}}
        )
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def diary_reader(folder: str, steps: int = 500) -> None:
    """A BERT of two layers that reads 512 tokens and answers questions about diaries, trained for 15 seconds."""
    torch.manual_seed(0)
    draw = random.Random(0)
    tokenizer = _words([diary(0, draw)[0] + QUESTION for _ in range(100)])
    model = BertForQuestionAnswering(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            initializer_range=0.1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    optimiser, schedule = _optimiser(model, 2e-3, steps)
    for step in range(steps):
        longest = 300 * max(0.0, step / steps - 0.2) ** 2 / 0.64  # short ones first: they teach the rule
        length = draw.randrange(int(longest) + 1)
        rows = [diary(length, draw) for _ in range(32 if length < 60 else 12)]
        inputs = tokenizer(
            [QUESTION] * len(rows),
            [text for text, _ in rows],
            truncation="only_second",
            max_length=512,
            padding=True,
            return_tensors="pt",
        )
        places = torch.tensor(
            [inputs.char_to_token(row, text.rindex(thing), sequence_index=1) for row, (text, thing) in enumerate(rows)]
        )
        positions = torch.arange(inputs["input_ids"].shape[1]).expand_as(inputs["input_ids"]).clone()
        question = int(inputs["token_type_ids"][0].argmax())
        # so that all rows are trained
        positions[:, question:] += torch.randint(0, 512 - positions.shape[1] + 1, (len(rows), 1))
        inputs["attention_mask"] = _near(inputs["attention_mask"], question) if step % 2 else inputs["attention_mask"]
        outputs = model(**inputs, position_ids=positions, start_positions=places, end_positions=places)
        _step(outputs.loss, model, optimiser, schedule)
    _save(folder, model, tokenizer)


def _words(texts: list[str]) -> BertTokenizer:
    """A tokenizer of BERT's kind that knows the words of English about Python and of these texts."""
    words = Counter(re.findall(r"\w+|[^\w\s]", " ".join([*SENTENCES, *texts]).lower()))
    letters = sorted(set("".join(words)))
    common = sorted(words, key=lambda word: (-words[word], word))
    pieces = dict.fromkeys(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *common]
    )
    return BertTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, do_lower_case=True, model_max_length=512
    )


def _near(mask: Tensor, question: int) -> Tensor:
    """A mask for BERT by which tokens see 16 neighbours to each side, and the question sees and is seen by all."""
    place = torch.arange(mask.shape[1])
    seen = (place[:, None] - place).abs() <= 16
    seen[:question] = seen[:, :question] = True
    return torch.where(seen & mask[:, None, None].bool(), 0.0, torch.finfo(torch.float32).min)


def _optimiser(model: torch.nn.Module, rate: float, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)


def _step(loss: Tensor, model: torch.nn.Module, optimiser: torch.optim.Optimizer, schedule: Any) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    schedule.step()
    optimiser.zero_grad()


def _save(folder: str, *parts: Any) -> None:
    for part in parts:
        part.save_pretrained(folder)
