"""Token ids of texts, documents and lists of words, and the maximum input length of a model.

Training reads the ids of ``tokenizer(text)``, as inference does and as transformers' ``run_mlm``, ``run_clm`` and
``run_ner`` do. There is one exception: if the tokenizer adds nothing after a text (GPT-2, Llama), a document of a
language model also gets the end token, so that the model learns where texts end.
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
"""The label of a token that does not count in the loss."""
LEAD, WORDS = "x", ("Lisbon", "the", "don't", "12", ".")
"""A first word, and words that follow it, to test how a tokenizer reads a list of words."""


def text_encoding(tokenizer: PreTrainedTokenizerBase, text: str, **tokenizer_kwargs: Any) -> BatchEncoding:
    """The result of ``tokenizer(text, …)``.

    Tokenizers of page layouts (LayoutLM, MarkupLM) need a box or an XPath for each word. All words get the same one.
    """
    parameters = inspect.signature(type(tokenizer).__call__).parameters
    words = text.split()
    for argument, location in (("boxes", [0, 0, 1000, 1000]), ("xpaths", "/html/body/p")):
        if argument in parameters or (argument == "boxes" and hasattr(tokenizer, "call_boxes")):
            return call_tokenizer(tokenizer, words, **{argument: [location] * len(words)}, **tokenizer_kwargs)
    return call_tokenizer(tokenizer, text, **tokenizer_kwargs)


def special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids of the special tokens before and after a text.

    Both are empty if the tokenizer changes the tokens of the text when it adds special tokens.
    """
    body = list(text_encoding(tokenizer, "a", add_special_tokens=False)["input_ids"])
    framed = list(text_encoding(tokenizer, "a")["input_ids"])
    for start in range(len(framed) - len(body) + 1):
        if framed[start : start + len(body)] == body:
            return framed[:start], framed[start + len(body) :]
    return [], []


def between(chunks: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Pieces of a text, token ids ``(B, L)``, whose first and last tokens are replaced by special tokens.

    ``before`` and ``after`` are the special tokens from :func:`special_ids`.
    """
    chunks = chunks.clone()
    chunks[..., : len(before)] = chunks.new_tensor(before)
    chunks[..., chunks.shape[-1] - len(after) :] = chunks.new_tensor(after)
    return chunks


def document_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of whole documents with special tokens.

    If the tokenizer adds nothing after a text, its end token (or else its separator) is added.
    """
    end = tokenizer.eos_token_id
    if end is None:
        end = tokenizer.sep_token_id
    _, after = special_ids(tokenizer)
    added = [] if end is None or after else [end]
    encoded = call_tokenizer(
        tokenizer, list(texts), return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    return [[*ids, *added] for ids in encoded["input_ids"]]


def to_documents(data: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """``input_ids`` of whole documents, one document per row. Documents without a token to predict are left out.

    ``data`` is a dataset with the column ``text``, and may be streamed.
    """
    special = set(tokenizer.all_special_ids)

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        documents = document_ids(rows["text"], tokenizer)
        return {"input_ids": [ids for ids in documents if len(ids) > 1 and not special.issuperset(ids)]}

    return data.map(encode, batched=True, batch_size=200, remove_columns=data.column_names)


def to_inputs(data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, pack: bool = False) -> Dataset:
    """Concatenated documents, cut into inputs of ``length`` tokens, as in ``run_mlm`` and ``run_clm``.

    A document that does not fit continues in the next input. 200 documents are concatenated at a time. Their last
    tokens form a shorter input, so that short texts are not lost. Inputs without a token to predict are left out.

    Args:
        data: a dataset with the column ``text``.
        pack: also return ``documents``: for each token, the number of its document.
    """
    special = set(tokenizer.all_special_ids)

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The inputs that some documents make."""
        documents = document_ids(rows["text"], tokenizer)
        columns = {"input_ids": list(chain.from_iterable(documents))}
        if pack:
            columns["documents"] = [number for number, ids in enumerate(documents) for _ in ids]
        starts = []  # index of the first token of each input
        for start in range(0, len(columns["input_ids"]), length):
            ids = columns["input_ids"][start : start + length]
            if len(ids) > 1 and not special.issuperset(ids):
                starts.append(start)
        return {name: [values[start : start + length] for start in starts] for name, values in columns.items()}

    return data.map(encode, batched=True, batch_size=200, remove_columns=data.column_names)


def reads_words(tokenizer: PreTrainedTokenizerBase, original: PreTrainedTokenizerBase | None = None) -> bool:
    """Whether a list of words gets the same ids from ``tokenizer`` as the words with spaces between them.

    The ids of the words with spaces are from ``original`` (default: ``tokenizer``). A few words are tested.
    """
    original = original or tokenizer
    lead_ids = call_tokenizer(original, LEAD, add_special_tokens=False)["input_ids"]
    for word in WORDS:
        text_ids = call_tokenizer(original, f"{LEAD} {word}", add_special_tokens=False)["input_ids"]
        encoded = call_tokenizer(tokenizer, [LEAD, word], is_split_into_words=True, add_special_tokens=False)
        numbers = encoded.word_ids()  # of the word to which each token belongs
        word_ids = [token for token, number in zip(encoded["input_ids"], numbers, strict=True) if number == 1]
        if text_ids[: len(lead_ids)] == lead_ids and text_ids[len(lead_ids) :] != word_ids:
            return False
    return True


def for_words(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    """A tokenizer that reads lists of words, as in ``run_ner``.

    A byte-level BPE would join the words. It is loaded again from its checkpoint ``name`` with ``add_prefix_space``.
    If that does not help, the result is ``tokenizer``.
    """
    if reads_words(tokenizer):
        return tokenizer
    from transformers import AutoTokenizer

    with_space = load_part(AutoTokenizer, name, add_prefix_space=True)
    # Qwen2's pre-tokenizer would also put a space before the 't of don't.
    if not reads_words(with_space, tokenizer):
        return tokenizer
    with_space.pad_token = tokenizer.pad_token
    return with_space


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, decoded: bool = True) -> int:
    """Maximum number of tokens of an input, including special tokens.

    Args:
        decoded: whether the decoder of an encoder-decoder reads the whole input as well, as in BART's classifiers.

    Raises:
        OptionError: neither the config nor the tokenizer has a maximum.
    """
    # A table of position embeddings
    embeddings = getattr(model.base_model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    if isinstance(table, torch.nn.Embedding):
        if table.padding_idx is None:
            return table.num_embeddings
        return table.num_embeddings - table.padding_idx - 1  # RoBERTa counts from padding_idx + 1

    # Otherwise, the config and the tokenizer
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
    """Maximum number of tokens that the decoder of an encoder-decoder reads and writes; ``None`` = no limit."""
    config: Any = model.config
    if hasattr(config, "decoder"):  # two models in one, such as SpeechEncoderDecoder
        return known_length(config.decoder, None, model.decoder)
    family = known_family(config)
    if family is not None and family.relative:
        return None
    for name in ("max_target_positions", "max_decoder_position_embeddings", "max_position_embeddings"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    return None


def input_length(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int | None, *, decoded: bool = True
) -> int:
    """Number of tokens of an input: ``wanted`` (``--max-length``), or the model's maximum.

    Args:
        decoded: see :func:`longest_input`.

    Raises:
        OptionError: ``wanted`` exceeds the maximum, or both are unknown.
    """
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
