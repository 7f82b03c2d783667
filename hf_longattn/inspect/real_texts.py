"""What a checkpoint does with the user's texts: how many tokens they have, what is cut in silence, what is padding.

The tokenizer counts the tokens, and the limits are in the config and the tokenizer. No weights are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..conversion.load import quiet_libraries
from ..conversion.source import Source
from ..conversion.tokenizer import load_tokenizer, token_ids
from ..errors import CheckpointError
from ..evaluation.token_loss import text_of
from ..files import SENTENCE_LIMIT, TRANSFORMER_SETTINGS, is_long, sentence_class, sentence_values
from ..loading import load_config
from ..modeling.family.definition import UNLIMITED_LENGTH, known_family, longest_input
from .layers import Inspection
from .stock_layers import StockInspection

WINDOW, SINKS = 1024, 4
"""Size of the StreamingCache that is suggested: the last keys and the first keys that it keeps in a layer."""
UNPAD = "hf_longattn.unpad(model)"
READERS = {
    "ForTokenClassification": 'read_whole(pipeline("token-classification", {model!r}))',
    "ForSequenceClassification": 'read_whole(pipeline("text-classification", {model!r}), merge="max")',
    "ForMaskedLM": 'read_whole(pipeline("fill-mask", {model!r}))',
    "ForQuestionAnswering": "read_whole(QAReader(model, tokenizer))",
    "Model": 'read_whole(pipeline("feature-extraction", {model!r}))',
    "CrossEncoder": 'read_whole(CrossEncoder({model!r}), merge="max")',
}
"""End of a class's name -> code that reads whole texts with this class."""


@dataclass(frozen=True)
class Limit:
    """A number of tokens beyond which a text is cut, or may not work.

    Attributes:
        reader: what has the limit, such as the tokenizer.
        effect: what happens to a longer text.
        cuts: whether the rest of a longer text is lost in silence.
    """

    reader: str
    tokens: int
    effect: str
    cuts: bool


@dataclass(frozen=True)
class TextsInspection:
    """The user's texts, and what a checkpoint reads of them.

    Attributes:
        names: names of the texts.
        tokens: number of tokens of each text, special tokens included.
        limits: the limits of the checkpoint.
        cache_bytes: bytes of the decode cache after the longest text; 0 for a model that does not decode.
        streaming_bytes: bytes of a StreamingCache of the suggested size; 0 if it cannot be used, or is not smaller.
        advice: pairs of a reason and a line to type.
    """

    names: tuple[str, ...]
    tokens: tuple[int, ...]
    limits: tuple[Limit, ...]
    cache_bytes: int
    streaming_bytes: int
    advice: tuple[tuple[str, str], ...]

    @property
    def longest(self) -> int:
        """Number of tokens of the longest text."""
        return max(self.tokens)

    @property
    def read(self) -> tuple[int, ...]:
        """Number of tokens that are read of each text, after the lowest limit that cuts texts."""
        limit = min((limit.tokens for limit in self.limits if limit.cuts), default=self.longest)
        return tuple(min(count, limit) for count in self.tokens)

    @property
    def padded(self) -> int:
        """Number of tokens in a padded batch of all texts."""
        return len(self.tokens) * max(self.read)

    @property
    def lengths(self) -> list[int]:
        """Tokens that are read of the longest text, and all of its tokens. A single number if both are equal."""
        return sorted({max(self.read), self.longest})

    def lost(self, limit: Limit) -> int:
        """Number of tokens of all texts beyond a limit."""
        return sum(max(0, count - limit.tokens) for count in self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """The facts as a dictionary for JSON."""
        return {
            **asdict(self),
            "limits": [{**asdict(limit), "lost_tokens": self.lost(limit)} for limit in self.limits],
            "advice": [line for _, line in self.advice],
            "padded_tokens": self.padded,
            "real_tokens": sum(self.read),
        }


@quiet_libraries()
def inspect_texts(source: Source, files: Sequence[Path], model: StockInspection | Inspection) -> TextsInspection:
    """Compare texts with the limits of a checkpoint.

    Args:
        source: the checkpoint.
        files: files with a text each.
        model: the inspection of the checkpoint.

    Raises:
        CheckpointError: a file is missing, empty or not text, or the checkpoint has no tokenizer.
    """
    texts = [text_of(file) for file in files]
    config = load_config(source.folder)
    tokenizer = load_tokenizer(source.folder, config)
    if tokenizer is None:
        raise CheckpointError(f"{source.name!r} has no tokenizer, so the tokens of a text cannot be counted.")
    tokens = tuple(len(token_ids(tokenizer, text)) for text in texts)
    longest = max(tokens)
    cache, streaming = _caches(model, longest)
    limits = tuple(_limits(source, config, tokenizer))
    return TextsInspection(
        tuple(file.name for file in files),
        tokens,
        limits,
        cache,
        streaming,
        tuple(_advice(source, config, model, tokens, limits, streaming)),
    )


def _limits(source: Source, config: Any, tokenizer: Any) -> list[Limit]:
    """The limits of sentence-transformers, of the tokenizer, and of the model's positions."""
    limits = []
    reader = "tokenizer with truncation=True; token and zero-shot pipelines"
    if source.root is not None:  # a model of sentence-transformers
        name = str(sentence_class(source.root))
        values = [sentence_values(file).get(SENTENCE_LIMIT) for file in source.folder.glob(TRANSFORMER_SETTINGS)]
        for count in filter(None, values):
            limits.append(Limit(f"{name} (max_seq_length)", count, "cut in silence", True))
        if not limits:
            reader = f"{name}; {reader}"
    if 0 < tokenizer.model_max_length < UNLIMITED_LENGTH:
        limits.append(Limit(reader, int(tokenizer.model_max_length), "cut in silence", True))
    positions = longest_input(config)
    if positions is not None:
        family = known_family(config)
        effect = "not trained beyond"
        if family is not None and any(table.learned for table in family.position_tables):
            effect = "a longer input fails"
        limits.append(Limit("positions of the model", positions, effect, False))
    return limits


def _caches(model: StockInspection | Inspection, length: int) -> tuple[int, int]:
    """Bytes of the decode cache after ``length`` tokens: of the model's own cache, and of a StreamingCache.

    The second number is 0 if a StreamingCache cannot be used, or is not smaller.
    """
    if isinstance(model, Inspection):
        if not model.shape.causal:
            return 0, 0
        return sum(state.bytes for state in model.states_at(length)), 0
    text = model.text
    if not text.decodes:
        return 0, 0
    own = text.cache_bytes(length)
    streaming = text.cache_bytes(length, WINDOW + SINKS)
    can_stream = not any(layer.softcap or layer.bias or layer.pairs or layer.chunk for _, layer in text.layers)
    if not can_stream or streaming >= own:
        streaming = 0
    return own, streaming


def _advice(
    source: Source,
    config: Any,
    model: StockInspection | Inspection,
    tokens: Sequence[int],
    limits: Sequence[Limit],
    streaming: int,
) -> list[tuple[str, str]]:
    """Pairs of a reason and a line to type. ``streaming``: bytes of a StreamingCache; 0 = it is not suggested."""
    longest = max(tokens)
    advice: list[tuple[str, str]] = []
    if isinstance(model, StockInspection):
        decodes, takes_unpad = model.text.decodes, model.text.packs
        if model.text.declares:
            line = f'{model.class_name}.from_pretrained({source.name!r}, attn_implementation="longattn")'
            advice.append(("windows as windows, equal outputs", line))
    else:
        decodes, takes_unpad = model.shape.causal, True

    # Decoders
    if streaming:
        line = (
            f"model.generate(**prompt, cache=hf_longattn.StreamingCache({WINDOW}, sinks={SINKS}), "
            "prefill_chunk_size=2048)"
        )
        advice.append(("a cache that does not grow; earlier facts are forgotten", line))
        line = f"longattn convert {source.name} DST --config streaming-llm"
        advice.append(("the same as a checkpoint of its own", line))
    if decodes:  # padding stays in a decode cache
        return advice

    # Encoders
    if len(set(tokens)) > 1 and takes_unpad:
        advice.append(("the same outputs without padding", UNPAD))
    if any(limit.tokens < longest for limit in limits):
        name = str(sentence_class(source.root) if source.root is not None else model.class_name)
        if name == "SentenceTransformer":
            line = f"longattn embed {source.name} TEXTS --vectors passages:256 --output VECTORS"
            advice.append(("every token in windows, a vector for each passage", line))
        else:
            for end, code in READERS.items():
                if name.endswith(end):
                    advice.append(("every token, in windows", f"hf_longattn.{code.format(model=source.name)}"))
                    break
        if known_family(config) is not None and not is_long(source.config):
            length = 1 << (longest - 1).bit_length()
            line = f"longattn convert {source.name} DST --mechanism longformer --max-length {length}"
            advice.append(("every token in one pass", line))
    return advice
