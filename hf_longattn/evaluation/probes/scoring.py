"""Modes of asking and scoring: generation, likelihood of candidates, or a span of the text."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...cache_argument import CACHE
from ...data.answers import normalise
from ...data.masking import mask_places
from ...data.tokenization import special_ids
from ...errors import LongAttentionError
from ...modeling.family.definition import CAUSAL_LANGUAGE_MODELS, known_family
from ..qa_reader import QAReader, Span, whole
from .task import ProbeSample, TokenSample

MASKED_SHARE = 8
"""An encoder's copy has one masked token in this many."""


@dataclass(frozen=True)
class ProbeAnswer:
    """A model's answer.

    score: 0 to 1.
    text: the answer.
    tokens: number of tokens of the input.
    chance: the score of a random choice among the candidates; ``None`` without candidates.
    """

    score: float
    text: str
    tokens: int
    chance: float | None = None


def match_all(prediction: str, answers: Sequence[str]) -> float:
    """The share of the answers that the prediction contains, ignoring case: RULER's string_match_all of one sample."""
    return sum(answer.lower() in prediction.lower() for answer in answers) / len(answers)


def match_number(prediction: str, answer: str, pattern: str = r"(\d+)") -> float:
    """1 if the first number of the prediction is the answer, as in Landmark attention's passkey test; else 0."""
    number = re.search(pattern, prediction)
    return float(number is not None and float(number[1]) == float(answer))


def match_values(prediction: str, values: str) -> float:
    """The share of values listed before the first error, without the first value, which the prompt gives."""
    listed, right = (list(map(int, re.findall(r"\d+", text)))[1:] for text in (prediction, values))
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(listed, right, strict=False))
    return len(list(same)) / len(right)


SCORES: dict[str, Callable[[str, Sequence[str]], float]] = {
    "string_match_all": match_all,
    "first_number": lambda text, answers: match_number(text, answers[0]),
    "substring_exact_match": lambda text, answers: float(normalise(answers[0]) in normalise(text)),
    "first_digits": lambda text, answers: float(re.findall(r"\d+", text)[:1] == [answers[0]]),
    "first_value": lambda text, answers: match_number(text, answers[0], r"(\d+\.\d+|\d+)"),
    "any_word": lambda text, answers: float(answers[0] in re.split(r"[\s:\"'.,?!{}]+", text)),
    "last_word": lambda text, answers: match_number(text, answers[0], r"(?:^|[\s.`'\":])([+-]?\d+)[\s.`'\":]*$"),
    "leading_values": lambda text, answers: match_values(text, answers[0]),
}
"""Scores of generated or marked text, 0 to 1. Their means over samples are the published scores, whether:

string_match_all: which share of the answers the text contains, in any case (RULER, constants.py).
first_number: the first number is the answer (Landmark attention).
substring_exact_match: the text contains the answer; punctuation, articles and case do not count (HELMET, utils.py).
first_digits, first_value, any_word, last_word: the first digits in a row ("01" is not "1"), the first number, any word or the last word is
    the answer; leading_values: see :func:`match_values` (∞Bench, compute_scores.py, whose rule for GPT-4 leaves out the first value).
"""


def match(sample: ProbeSample, prediction: str) -> float:
    """The score of generated or extracted text."""
    return SCORES[sample.score](prediction, sample.answers)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens of a prompt with the special tokens before it, but not those after it."""
    body = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [*special_ids(tokenizer)[0], *body]


# ---- decoders


@torch.no_grad()
def candidate_log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, candidates: Sequence[str]
) -> list[float]:
    """The log-likelihood of each candidate after the prompt, in nats, summed over its tokens.

    The prompt is read once; the candidates continue from copies of its cache. Tokens are split as in lm-evaluation-harness: prompt and
    candidate are tokenized together, and the candidate begins after the prompt's number of tokens.

    Args:
        model: with a language-model head; an encoder-decoder reads the prompt with its encoder.
        candidates: with their leading space.
    """
    if model.config.is_encoder_decoder:
        return [_decoded_likelihood(model, tokenizer, prompt, candidate) for candidate in candidates]
    rows = [prompt_ids(tokenizer, prompt + candidate) for candidate in candidates]
    shared = min(len(prompt_ids(tokenizer, prompt)), *(len(row) - 1 for row in rows))
    while any(row[:shared] != rows[0][:shared] for row in rows):
        shared -= 1
    rests = [row[shared:] for row in rows]
    ids = torch.tensor([rows[0][:shared]], device=model.device)
    last_logits = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    read = model(input_ids=ids, use_cache=True, **last_logits)
    first = read.logits[:, -1].float().log_softmax(-1)
    likelihoods = [float(first[0, rest[0]]) for rest in rests]
    if (longest := max(map(len, rests))) > 1:
        cache = copy.deepcopy(read[CACHE])
        cache.batch_repeat_interleave(len(rests))
        padded = torch.tensor([rest[:-1] + [rest[-1]] * (longest - len(rest)) for rest in rests], device=model.device)
        logits = model(input_ids=padded, **{CACHE: cache}, use_cache=True).logits.float().log_softmax(-1)
        for row, rest in enumerate(rests):
            places = torch.arange(len(rest) - 1, device=model.device)
            likelihoods[row] += float(logits[row, places, torch.tensor(rest[1:], dtype=torch.long, device=model.device)].sum())
    return likelihoods


def _decoded_likelihood(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, candidate: str) -> float:
    inputs = tokenizer(prompt, return_tensors="pt", verbose=False)["input_ids"].to(model.device)
    labels = torch.tensor([tokenizer(candidate.strip(), add_special_tokens=False)["input_ids"]], device=model.device)
    logits = model(input_ids=inputs, labels=labels).logits[0].float().log_softmax(-1)
    return float(logits[torch.arange(labels.shape[1]), labels[0]].sum())


@torch.no_grad()
def generated_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], new_tokens: int) -> list[int]:
    """The tokens that a model generates greedily after ``ids``, with its cache."""
    row = torch.tensor([list(ids)], device=model.device)
    padding = next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)
    generated = model.generate(
        input_ids=row,
        attention_mask=torch.ones_like(row),
        max_new_tokens=new_tokens,
        max_length=None,
        do_sample=False,
        num_beams=1,
        pad_token_id=padding,
    )[0].tolist()
    return generated if model.config.is_encoder_decoder else generated[len(ids) :]


def by_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sample: ProbeSample) -> ProbeAnswer:
    """The answer that a decoder or encoder-decoder generates."""
    joint = model.config.is_encoder_decoder
    ids = tokenizer(sample.prompt, verbose=False)["input_ids"] if joint else prompt_ids(tokenizer, sample.prompt)
    text = tokenizer.decode(generated_ids(model, tokenizer, ids, sample.new_tokens), skip_special_tokens=True)
    return ProbeAnswer(match(sample, text), text, len(ids))


def by_likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sample: ProbeSample, choices: int, masked: bool
) -> ProbeAnswer:
    """The most likely of the candidates, by nats per character; of k answers, the share of them among the k most likely candidates.

    Among ties and NaN likelihoods, the answers come last.
    """
    texts, right = sample.continuations(choices)
    score = masked_log_likelihoods if masked else candidate_log_likelihoods
    likely = [likelihood / len(text) for likelihood, text in zip(score(model, tokenizer, sample.prompt, texts), texts, strict=True)]
    best = sorted(range(len(texts)), key=lambda place: (math.inf if math.isnan(likely[place]) else -likely[place], place < right))[:right]
    tokens = len(tokenizer(sample.prompt, verbose=False)["input_ids"])
    answer = ", ".join(texts[place].removeprefix(sample.lead).strip() for place in best)
    return ProbeAnswer(sum(place < right for place in best) / right, answer, tokens, right / len(texts))


# ---- encoders


@torch.no_grad()
def masked_log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, candidates: Sequence[str]
) -> list[float]:
    """The log-likelihood of each candidate between the prompt and a full stop, all of its tokens masked together, in nats.

    Candidates of as many tokens share a forward pass.

    Raises:
        LongAttentionError: a slow tokenizer, or one without a mask token.
    """
    if not tokenizer.is_fast or tokenizer.mask_token_id is None:
        raise LongAttentionError(
            "Masked likelihoods need a fast tokenizer with a mask token; take the tokenizer that the model was trained with."
        )
    groups: dict[tuple[int, ...], list[tuple[int, list[int], list[int]]]] = defaultdict(list)
    for number, candidate in enumerate(candidates):
        read = tokenizer(f"{prompt}{candidate}.", return_offsets_mapping=True, verbose=False)
        start, end = len(prompt), len(prompt) + len(candidate)
        places = [place for place, (first, last) in enumerate(read["offset_mapping"]) if first < end and last > start and last > first]
        ids, expected = mask_places(read["input_ids"], places, tokenizer)
        groups[tuple(ids)].append((number, places, expected))
    likelihoods = [0.0] * len(candidates)
    for row, members in groups.items():
        logits = model(input_ids=torch.tensor([row], device=model.device)).logits[0].float()
        for number, places, expected in members:
            chosen = logits[places].log_softmax(-1)
            targets = torch.tensor(expected, dtype=torch.long, device=chosen.device)
            likelihoods[number] = float(chosen[torch.arange(len(places)), targets].sum())
    return likelihoods


def by_span(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sample: ProbeSample, length: int) -> ProbeAnswer:
    """The best spans of the context, one for each answer, without nesting.

    A context of more than ``length`` tokens is read in windows. The question takes at most half of a window. A span has at most 30
    tokens, or as many as the longest answer has characters if these are more.
    """
    reader = QAReader(
        "probe", model, tokenizer, whole(length, max_question_tokens=length // 2), batch_size=1,
        n_best=200 if len(sample.answers) > 1 else 20, max_answer_tokens=max(30, *map(len, sample.answers)),
    )  # fmt: skip
    answer = reader.read([{"question": sample.question.strip(), "context": sample.context}])[0]
    chosen: list[Span] = []
    for span in answer.spans:
        if all(span.end <= previous.start or span.start >= previous.end for previous in chosen):
            chosen.append(span)
        if len(chosen) == len(sample.answers):
            break
    text = "\n".join(span.text for span in chosen)
    return ProbeAnswer(match(sample, text), text, answer.length)


# ---- rows of tokens


@torch.no_grad()
def score_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sample: TokenSample, mode: str, masked: bool) -> ProbeAnswer:
    """The share of the target tokens that a model predicts: among the candidates by likelihood, among all tokens by generation.

    A decoder predicts from the previous token. For an encoder, the target token is masked; in a copy, one token in :data:`MASKED_SHARE`.
    """
    before, _ = special_ids(tokenizer)
    ids, places, targets = list(sample.ids), list(sample.places), list(sample.targets)
    if not masked and mode == "generate" and sample.is_tail:
        generated = generated_ids(model, tokenizer, [*before, *ids[: places[0] + 1]], len(places))
        right = sum(token == target for token, target in zip(generated, targets, strict=False))
        return ProbeAnswer(right / len(targets), tokenizer.decode(generated), len(before) + len(ids))
    if masked:
        if len(places) > MASKED_SHARE and sample.is_tail:
            places, targets = places[::MASKED_SHARE], targets[::MASKED_SHARE]
        ids += [0] * (places[-1] + 2 - len(ids))
        ids, _ = mask_places(ids, [place + 1 for place in places], tokenizer)
        after = tokenizer("")["input_ids"][len(before) :]
    row = [*before, *ids, *(after if masked else [])]
    columns = torch.tensor(places, device=model.device) + len(before) + int(masked)
    inputs = torch.tensor([row], device=model.device)
    logits: Tensor = model(input_ids=inputs, **({} if masked else {"use_cache": False})).logits[0, columns].float()
    if mode == "likelihood":
        candidates = torch.tensor(sample.candidates, device=model.device)
        named = candidates[logits[:, candidates].argmax(-1)].tolist()
    else:
        named = logits.argmax(-1).tolist()
    right = sum(token == target for token, target in zip(named, targets, strict=True))
    chance = 1 / len(sample.candidates) if mode == "likelihood" else None
    return ProbeAnswer(right / len(targets), tokenizer.decode(named), len(row), chance)


HEADS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "span": ("AutoModelForQuestionAnswering", ("span",), ("ForQuestionAnswering",)),
    "masked": ("AutoModelForMaskedLM", ("likelihood",), ("ForMaskedLM",)),
    "decoder": ("AutoModelForCausalLM", ("generate", "likelihood"), CAUSAL_LANGUAGE_MODELS),
    "encoder-decoder": ("AutoModelForSeq2SeqLM", ("generate", "likelihood"), ("ForConditionalGeneration",)),
}
"""Head -> the class that loads it, its modes, the default first, and how the names of its classes end."""


def head_of(model: Any) -> str:
    """The key in :data:`HEADS` of a model's head.

    Raises:
        LongAttentionError: the model has another head.
    """
    name = type(model).__name__
    for head, (_, _, endings) in HEADS.items():
        if name.endswith(endings) and (head != "encoder-decoder" or model.config.is_encoder_decoder):
            return head
    family = known_family(model.config)
    if family is not None and family.rule.not_probed:
        raise LongAttentionError(f"A {name} {family.rule.not_probed}.")
    raise LongAttentionError(
        f"A {name} has no head that a probe can ask; give a checkpoint with a language-model or question-answering head "
        "(…ForCausalLM, …ForMaskedLM, …ForConditionalGeneration or …ForQuestionAnswering)."
    )
