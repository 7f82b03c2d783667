"""Token ids of texts with special tokens, of documents and of lists of words, and the longest input of a model.

Training reads the ids of ``tokenizer(text)``, as inference does (``run_mlm``, ``run_clm``, ``run_ner``). Documents of
a language model also get the end token if the tokenizer adds nothing after a text (GPT-2, Llama), so that the model
learns where texts end.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import OptionError
from ..loading import call_tokenizer, load_part
from ..modeling.family.definition import known_family, known_length

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100
"""The label of a token without loss."""
LEAD, WORDS = "x", ("Lisbon", "the", "don't", "12", ".")
"""A first word and later words. They show how a tokenizer reads a list of words."""


def text_encoding(tokenizer: PreTrainedTokenizerBase, text: str, **tokenizer_kwargs: Any) -> BatchEncoding:
    """The result of ``tokenizer(text, …)``. If the tokenizer requires boxes or paths of words, all words are put in
    one line."""
    parameters = inspect.signature(type(tokenizer).__call__).parameters
    words, locations = text.split(), {"boxes": [0, 0, 1000, 1000], "xpaths": "/html/body/p"}
    for argument, location in locations.items():
        if argument in parameters or (argument == "boxes" and hasattr(tokenizer, "call_boxes")):
            return call_tokenizer(tokenizer, words, **{argument: [location] * len(words)}, **tokenizer_kwargs)
    return call_tokenizer(tokenizer, text, **tokenizer_kwargs)


def special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text. Empty if they change the text's own tokens."""
    body = list(text_encoding(tokenizer, "a", add_special_tokens=False)["input_ids"])
    framed = list(text_encoding(tokenizer, "a")["input_ids"])
    for start in range(len(framed) - len(body) + 1):
        if framed[start : start + len(body)] == body:
            return framed[:start], framed[start + len(body) :]
    return [], []


def between(chunks: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Token ids ``(B, L)`` of pieces of a text, whose first and last tokens are replaced by special tokens.

    ``before`` and ``after`` are those of :func:`special_ids`.
    """
    chunks = chunks.clone()
    chunks[..., : len(before)] = chunks.new_tensor(before)
    chunks[..., chunks.shape[-1] - len(after) :] = chunks.new_tensor(after)
    return chunks


def document_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokens of whole documents with special tokens. The end token is added if the tokenizer adds nothing after a
    text."""
    end = tokenizer.eos_token_id
    if end is None:
        end = tokenizer.sep_token_id
    added = [] if end is None or special_ids(tokenizer)[1] else [end]
    encoded = call_tokenizer(
        tokenizer, list(texts), return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]
    return [[*ids, *added] for ids in encoded]


def to_documents(data: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """``input_ids`` of whole documents, one row each. ``data`` has the column ``text``, and may be streamed.

    Documents without a token to predict are left out.
    """
    special = set(tokenizer.all_special_ids)

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        documents = document_ids(rows["text"], tokenizer)
        return {"input_ids": [ids for ids in documents if len(ids) > 1 and not special.issuperset(ids)]}

    return data.map(encode, batched=True, batch_size=200, remove_columns=data.column_names)


def to_inputs(data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, pack: bool = False) -> Dataset:
    """Documents one after the other, cut into inputs of ``length`` tokens as in ``run_mlm`` and ``run_clm``.

    A document longer than an input continues in the next one. The remaining tokens of every 200 documents form a
    shorter input, so that short texts are not lost. Inputs without a target are left out.

    Args:
        data: a dataset with the column ``text``.
        pack: also add ``documents``, the number of each token's document.
    """
    special = set(tokenizer.all_special_ids)

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        documents = document_ids(rows["text"], tokenizer)
        columns = {"input_ids": list(chain.from_iterable(documents))}
        if pack:
            columns["documents"] = [number for number, ids in enumerate(documents) for _ in ids]
        inputs = {at: columns["input_ids"][at : at + length] for at in range(0, len(columns["input_ids"]), length)}
        cuts = [at for at, ids in inputs.items() if len(ids) > 1 and not special.issuperset(ids)]
        return {name: [values[at : at + length] for at in cuts] for name, values in columns.items()}

    return data.map(encode, batched=True, batch_size=200, remove_columns=data.column_names)


def reads_words(tokenizer: PreTrainedTokenizerBase, original: PreTrainedTokenizerBase | None = None) -> bool:
    """Whether a list of words gets the same ids as the text does from ``original`` (default: ``tokenizer``)."""
    lead = call_tokenizer(original or tokenizer, LEAD, add_special_tokens=False)["input_ids"]
    for word in WORDS:
        ids = call_tokenizer(original or tokenizer, f"{LEAD} {word}", add_special_tokens=False)["input_ids"]
        encoded = call_tokenizer(tokenizer, [LEAD, word], is_split_into_words=True, add_special_tokens=False)
        alone = [token for token, number in zip(encoded["input_ids"], encoded.word_ids(), strict=True) if number == 1]
        if ids[: len(lead)] == lead and ids[len(lead) :] != alone:
            return False
    return True


def for_words(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer for lists of words. A byte-level BPE would join the words, so it is reloaded from its checkpoint
    ``name`` with ``add_prefix_space``, as in ``run_ner``."""
    if reads_words(tokenizer):
        return tokenizer
    from transformers import AutoTokenizer

    with_space = load_part(AutoTokenizer, name, add_prefix_space=True)
    # Qwen2's pre-tokenizer would put a space before the 't of don't as well
    if not reads_words(with_space, tokenizer):
        return tokenizer
    with_space.pad_token = tokenizer.pad_token
    return with_space


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, decoded: bool = True) -> int:
    """Maximum tokens of an input, including special tokens.

    Args:
        decoded: whether the decoder of an encoder-decoder also reads all of the input, as in BART's classifiers.

    Raises:
        OptionError: neither the config nor the tokenizer has a maximum.
    """
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if isinstance(table, torch.nn.Embedding):  # RoBERTa counts from padding_idx + 1
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    lengths = [known_length(model.config, tokenizer, model)]
    if decoded and getattr(model.config, "is_encoder_decoder", False):
        lengths.append(decoder_length(model))
    known = [length for length in lengths if length is not None]
    if not known:
        raise OptionError(
            "Neither the model's config nor its tokenizer tells how long an input may be; give --max-length."
        )
    return min(known)


def decoder_length(model: PreTrainedModel) -> int | None:
    """Maximum number of tokens that the decoder of an encoder-decoder reads and writes; ``None`` without a limit."""
    config: Any = model.config
    if hasattr(config, "decoder"):  # two models in one, such as SpeechEncoderDecoder
        return known_length(config.decoder, None, model.decoder)
    family = known_family(config)
    if family is not None and family.relative:
        return None
    names = ("max_target_positions", "max_decoder_position_embeddings", "max_position_embeddings")
    return next((int(getattr(config, name)) for name in names if getattr(config, name, None)), None)


def input_length(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int | None, *, decoded: bool = True
) -> int:
    """Return the tokens of one input: ``wanted``, or the model's maximum. ``decoded`` as for :func:`longest_input`."""
    try:
        longest = longest_input(model, tokenizer, decoded=decoded)
    except OptionError:
        if wanted is None:
            raise
        return wanted
    if wanted is not None and wanted > longest:
        raise OptionError(
            f"--max-length {wanted} exceeds the {longest} tokens that the model takes; convert it to that length "
            "first."
        )
    return wanted or longest
