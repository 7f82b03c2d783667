"""What a checkpoint does with given texts: their tokens, what is cut in silence, padding, and the decode cache.

Neither weights nor a pass are needed: the tokenizer counts, and config and tokenizer tell the limits.
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
"""Keys that the suggested StreamingCache keeps in a layer without a window."""
UNPAD = "hf_longattn.unpad(model)"
READERS = {
    "ForTokenClassification": 'read_whole(pipeline("token-classification", {model!r}))',
    "ForSequenceClassification": 'read_whole(pipeline("text-classification", {model!r}), merge="max")',
    "ForMaskedLM": 'read_whole(pipeline("fill-mask", {model!r}))',
    "ForQuestionAnswering": "read_whole(QAReader(model, tokenizer))",
    "Model": 'read_whole(pipeline("feature-extraction", {model!r}))',
    "CrossEncoder": 'read_whole(CrossEncoder({model!r}), merge="max")',
}
"""How a class is read whole, by the end of its name, or by its class of sentence-transformers."""


@dataclass(frozen=True)
class Limit:
    """A number of tokens beyond which a text is cut or not known to work.

    reader: what has the limit. effect: what happens to a longer text. cuts: whether the rest is lost in silence.
    """

    reader: str
    tokens: int
    effect: str
    cuts: bool


@dataclass(frozen=True)
class TextsInspection:
    """Given texts, and what a checkpoint reads of them.

    tokens: number of tokens of each text, special tokens included.
    cache_bytes: bytes of the decode cache after the longest text; 0 for a model that does not decode.
    streaming_bytes: those in a StreamingCache of the suggested size; 0 where it does not apply, or keeps as much.
    advice: lines to type, each with the reason.
    """

    names: tuple[str, ...]
    tokens: tuple[int, ...]
    limits: tuple[Limit, ...]
    cache_bytes: int
    streaming_bytes: int
    advice: tuple[tuple[str, str], ...]

    @property
    def longest(self) -> int:
        return max(self.tokens)

    @property
    def read(self) -> tuple[int, ...]:
        """Tokens of each text behind the lowest silent cut."""
        limit = min((limit.tokens for limit in self.limits if limit.cuts), default=self.longest)
        return tuple(min(count, limit) for count in self.tokens)

    @property
    def padded(self) -> int:
        """Tokens that a padded batch of all texts computes in a layer."""
        return len(self.tokens) * max(self.read)

    @property
    def lengths(self) -> list[int]:
        """The longest text as it is read, and whole."""
        return sorted({max(self.read), self.longest})

    def lost(self, limit: Limit) -> int:
        """Tokens of all texts beyond a limit."""
        return sum(max(0, count - limit.tokens) for count in self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
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
        model: the checkpoint's inspection.

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
    limits = []
    reader = "tokenizer with truncation=True; token and zero-shot pipelines"
    if source.root is not None:
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
        learned = family is not None and any(table.learned for table in family.position_tables)
        effect = "a longer input fails" if learned else "not trained beyond"
        limits.append(Limit("positions of the model", positions, effect, False))
    return limits


def _caches(model: StockInspection | Inspection, length: int) -> tuple[int, int]:
    """Bytes of the decode cache after ``length`` tokens: the model's own, and a StreamingCache."""
    if isinstance(model, Inspection):
        if not model.shape.causal:
            return 0, 0
        return sum(state.bytes for state in model.states_at(length)), 0
    text = model.text
    if not text.decodes:
        return 0, 0
    own = text.cache_bytes(length)
    streaming = text.cache_bytes(length, WINDOW + SINKS)
    streams = not any(layer.softcap or layer.bias or layer.pairs or layer.chunk for _, layer in text.layers)
    return own, streaming if streams and streaming < own else 0


def _advice(
    source: Source,
    config: Any,
    model: StockInspection | Inspection,
    tokens: Sequence[int],
    limits: Sequence[Limit],
    streaming: int,
) -> list[tuple[str, str]]:
    """What to type, with a reason each."""
    longest, advice = max(tokens), list[tuple[str, str]]()
    is_stock = isinstance(model, StockInspection)
    decodes = model.text.decodes if isinstance(model, StockInspection) else model.shape.causal
    if isinstance(model, StockInspection) and model.text.declares:
        line = f'{model.class_name}.from_pretrained({source.name!r}, attn_implementation="longattn")'
        advice.append(("windows as windows, equal outputs", line))
    if streaming:
        line = (
            f"model.generate(**prompt, cache=hf_longattn.StreamingCache({WINDOW}, sinks={SINKS}), "
            "prefill_chunk_size=2048)"
        )
        advice.append(("a cache that does not grow; earlier facts are forgotten", line))
        line = f"longattn convert {source.name} DST --config streaming-llm"
        advice.append(("the same as a checkpoint of its own", line))
    if decodes:  # a cache holds padding, too
        return advice
    takes_unpad = not is_stock or model.text.packs  # type: ignore[union-attr]
    if len(set(tokens)) > 1 and takes_unpad:
        advice.append(("the same outputs without padding", UNPAD))
    if any(limit.tokens < longest for limit in limits):
        name = sentence_class(source.root) if source.root is not None else model.class_name
        reader = next((line for end, line in READERS.items() if str(name).endswith(end)), None)
        if name == "SentenceTransformer":
            line = f"longattn embed {source.name} TEXTS --vectors passages:256 --output VECTORS"
            advice.append(("every token in windows, a vector for each passage", line))
        elif reader is not None:
            advice.append(("every token, in windows", f"hf_longattn.{reader.format(model=source.name)}"))
        if known_family(config) is not None and not is_long(source.config):
            length = 1 << (longest - 1).bit_length()
            line = f"longattn convert {source.name} DST --mechanism longformer --max-length {length}"
            advice.append(("every token in one pass", line))
    return advice
