"""Settings of a conversion. Command line, plan, conversion and report read them here.

Nothing heavy is imported here, since the command line reads the help texts when it starts.
"""
# ruff: noqa: RUF009 (a setting is a dataclasses.field)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ..errors import OptionError, nearest
from ..mechanisms.common.choice_text import IN_TURN

if TYPE_CHECKING:
    import torch

    from ..configuration import LongAttentionConfig


S = TypeVar("S", bound="Settings")
AUTO = "auto"
"""The value of ``mechanism`` for which a search chooses one for every layer, as :func:`hf_longattn.search_design` does."""


def setting(
    default: Any,
    help: str,
    *,
    unset: str = "",
    flag: str = "",
    flag_help: str = "",
    type: Any = str,
    metavar: str | None = None,
    minimum: int | None = None,
    secret: bool = False,
) -> Any:
    """A dataclass field with the metadata of its help text and its flag.

    Args:
        default: its value if nothing is given.
        help: its meaning, in a sentence.
        unset: what the default ``None`` or ``"auto"`` means.
        flag: on the command line; "" derives it from the field's name, "-" means no flag.
        flag_help: help of a flag with the opposite meaning, such as --no-verify.
        type: of one value on the command line; ``list`` for a flag that can be repeated.
        metavar: the form of a value, in the help.
        minimum: the smallest valid number.
        secret: never written into a report.
    """
    about: dict[str, Any] = {"help": help, "unset": unset, "flag": flag, "flag_help": flag_help or help, "metavar": metavar}
    about |= {"type": bool if isinstance(default, bool) else type, "minimum": minimum, "secret": secret}
    return field(default=default, repr=not secret, metadata=about)


@dataclass(frozen=True)
class Settings:
    """Base class of the settings of a conversion and of a search. noun: what they are settings of."""

    noun: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Settings that differ from their defaults, JSON-serialisable, for the report. Paths are file names, and secrets are left out."""
        values = {}
        for setting in fields(self):
            value = getattr(self, setting.name)
            if value != setting.default and not setting.metadata["secret"]:
                value = value.to_dict() if hasattr(value, "to_dict") else value
                values[setting.name] = Path(value).name if setting.metadata["type"] is Path else _plain(value)
        return values

    @classmethod
    def from_keywords(cls: type[S], config: S | None, values: Mapping[str, Any]) -> S:
        """``config`` itself, or a config made from keywords.

        Raises:
            OptionError: both are given, or a keyword is not a setting.
        """
        known = [entry.name for entry in fields(cls)]
        if wrong := next((name for name in values if name not in known), None):
            raise OptionError(f"{wrong!r} is not a setting of a {cls.noun}; expected one of {', '.join(known)}.{nearest(wrong, known)}")
        return cls(**values) if config is None else _alone(config, values)


def _plain(value: Any) -> Any:
    """A JSON-serialisable form of a value."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value).removeprefix("torch.")


@dataclass(frozen=True)
class ConversionConfig(Settings):
    noun: ClassVar[str] = "conversion"
    mechanism: str | None = setting(
        None,
        "One of `longattn mechanisms`; auto searches one for every layer under --budget.",
        unset="longformer; a long model's own; images: window2d; sound: window",
    )
    max_length: int | None = setting(None, "Maximum length of the result, in tokens.", unset="the source's", type=int, minimum=1)
    image_size: str | int | Sequence[int] | None = setting(
        None, "Size of the images: 1024, or height and width, 768x1024.", unset="the source's", metavar="PIXELS"
    )
    audio_seconds: float | None = setting(
        None, "Duration of sound, verified and reported.", unset="the source's", type=float, metavar="SECONDS"
    )
    budget: str | None = setting(
        None,
        "With --mechanism auto, what attention may cost: a share of full attention's time (0.25), seconds (1.5s) or memory (200MB).",
        unset="0.25",
    )
    search_text: str | Path | None = setting(
        None, "With --mechanism auto: a UTF-8 text file by which mechanisms are chosen.", unset="built-in English", type=Path
    )
    search_images: str | Path | None = setting(
        None,
        "With --mechanism auto: an image, or a folder of images, by which mechanisms of a model of images are chosen.",
        unset="scikit-learn's photographs",
        type=Path,
    )
    search_audio: str | Path | None = setting(
        None,
        "With --mechanism auto: a recording, or a folder of recordings, by which mechanisms of a model of sound are chosen.",
        unset="none, and required there",
        type=Path,
    )
    options: Mapping[str, Any] | None = setting(
        None, "An option of the mechanism, for example window=512. Repeatable.", flag="--option", type=list, metavar="NAME=VALUE"
    )
    layers: Mapping[Any, Any] | None = setting(
        None,
        'Different mechanisms in some layers, "0-3=window:window=256;11=full", or mechanisms that layers alternate between, '
        '"window:window=256,full". Repeatable.',
        type=list,
        metavar="[LAYERS=]MECHANISM[:NAME=VALUE,...]",
    )
    long_attention: LongAttentionConfig | Mapping[str, Any] | None = setting(
        None, "A whole configuration in place of mechanism, options and layers.", flag="-"
    )
    towers: Mapping[str, Any] | None = setting(
        None,
        "Mechanisms of a model of several towers, each with its options: text=window:window=64,vision=window2d.",
        unset="each tower's default",
        metavar="TOWER=MECHANISM[:NAME=VALUE,...],...",
    )
    text_global: bool = setting(
        False,
        "With --generic and --towers text=MECHANISM: all tokens but those of images are global in the language model, whose mechanism "
        "takes global tokens, as longformer does.",
    )
    decoder_long_attention: LongAttentionConfig | Mapping[str, Any] | None = setting(
        None,
        "Self-attention of the decoder of an encoder-decoder model, for example window:window=256.",
        unset="full",
        flag="--decoder-mechanism",
        metavar="MECHANISM[:NAME=VALUE,...]",
    )
    max_decoder_length: int | None = setting(
        None,
        "Maximum length of the decoder of an encoder-decoder model, in tokens.",
        unset="the source's; the encoder's for heads that read the whole text in the decoder",
        type=int,
        minimum=1,
    )
    positions: str = setting(
        "auto",
        "How positions are extended. Learned tables: tile, interpolate, stretch:ROWS or random. Any table: none or alibi. "
        "Towers: text=RULE,vision=RULE. Images: tile or interpolate. Rotary: rope: and none, linear, dynamic, yarn, base:BASE, "
        "longrope:FILE or self-extend. auto: tile for tables; rope:none, or rope:yarn if a layer sees beyond the old length.",
    )
    dtype: str | torch.dtype | None = setting(None, "Save weights as fp32, bf16 or fp16.", unset="unchanged")
    allow_pickle: bool = setting(False, "Read pytorch_model.bin if there is no safetensors file. Only tensors are read; no code is run.")
    needs_training: bool = setting(
        False, "Convert to a length at which the result is of no use until you train it: Whisper beyond its 30 seconds."
    )
    generic: bool = setting(
        False,
        "For an architecture without Long classes: keep its plain class, config and weights, and add mechanisms; AutoModel loads the "
        "result after `import hf_longattn`.",
    )
    verify: bool = setting(
        True,
        "Check the written files; a failed check leaves no result.",
        flag="--no-verify",
        flag_help="Do not check the written files.",
    )
    verify_text: str | Path | None = setting(None, "A UTF-8 text file to verify with.", unset="built-in English", type=Path)
    verify_audio: str | Path | None = setting(None, "A recording to verify with.", unset="seeded sound", type=Path)
    native: bool = setting(
        False,
        "Write a stock checkpoint instead: an architecture of transformers that computes the same and needs no hf_longattn; refused "
        "where there is none (`longattn plan` says it).",
    )
    overwrite: bool = setting(False, "Replace an existing checkpoint folder DST once the new one is complete.")
    remote_code: bool = setting(
        False,
        "Add a file that imports hf_longattn, so that programs which do not import it load the model with trust_remote_code=True; "
        "hf_longattn must be installed there.",
    )
    revision: str | None = setting(None, "Branch, tag or commit of a Hub repository.")
    token: str | bool | None = setting(None, "Hub access token.", unset="HF_TOKEN, or the one from `hf auth login`", secret=True)

    def __post_init__(self) -> None:
        for name, instead in (("mechanism", "--mechanism"), ("long_attention", "--mechanism, --option and --layers")):
            if name in (self.options or {}):
                raise OptionError(f"{name!r} is not an option of a mechanism; use {instead} (in Python, the argument {name}).")
        if self.layers is not None and "layers" in (self.options or {}):
            raise OptionError("The option 'layers' was given twice; give it once.")
        if self.mechanism == AUTO:
            contradicting = [name for name in ("options", "layers", "long_attention", "towers") if getattr(self, name)]
            if contradicting or self.generic:
                raise OptionError(
                    "--mechanism auto chooses mechanisms and options itself, to which "
                    f"{contradicting[0] if contradicting else 'generic'} does not apply; leave it out, or name a mechanism."
                )
        elif any(value is not None for value in (self.budget, self.search_text, self.search_images, self.search_audio)):
            raise OptionError(
                "--budget, --search-text, --search-images and --search-audio are for --mechanism auto; add it, or leave them out."
            )
        if self.towers is not None and self.names_attention:
            raise OptionError(
                "--towers gives each tower its mechanism, so --mechanism, --option and --layers do not apply; leave them out, or --towers."
            )
        if self.text_global and not (self.generic and "text" in (self.towers or {})):
            raise OptionError(
                "--text-global is for the language model of a plain class that reads images; add --generic and --towers text=longformer, "
                "or leave it out."
            )
        if self.generic and self.remote_code:
            raise OptionError("--remote-code writes a file that imports Long classes, and --generic makes none; leave one of them out.")
        if self.native and (self.generic or self.remote_code):
            flag = "--generic" if self.generic else "--remote-code"
            raise OptionError(f"--native writes a stock architecture, to which {flag} does not apply; leave one of them out.")

    @classmethod
    def from_keywords(cls, config: ConversionConfig | None, values: Mapping[str, Any]) -> ConversionConfig:
        """``config`` itself, or a config made from keywords. Keywords that are not fields are mechanism options (``window=512``).

        Raises:
            OptionError: both are given, or an option is given twice.
        """
        if config is not None:
            return _alone(config, values)
        known = {entry.name for entry in fields(cls)}
        options = {name: value for name, value in values.items() if name not in known}
        listed_options = dict(values.get("options") or {})
        if twice := sorted(listed_options.keys() & options.keys()):
            raise OptionError(f"The option {twice[0]!r} was given twice; give it once.")
        chosen = {name: value for name, value in values.items() if name in known}
        return cls(**{**chosen, "options": {**listed_options, **options} or None})

    def without_search(self) -> ConversionConfig:
        """The settings without ``mechanism="auto"`` and the settings of its search."""
        return replace(self, mechanism=None, budget=None, search_text=None, search_images=None, search_audio=None)

    def check_mechanisms(self) -> None:
        """Refuse unknown mechanisms and options before the source is opened.

        Raises:
            OptionError: with the nearest valid name.
        """
        from ..mechanisms import check_options

        if self.mechanism not in (None, AUTO):
            check_options(str(self.mechanism), dict(self.options or {}))
        layers = self.layers or {}
        numbered = [choice for where, choice in layers.items() if where != IN_TURN]
        for choice in (*layers.get(IN_TURN, ()), *numbered, self.decoder_long_attention, *(self.towers or {}).values()):
            if isinstance(choice, Mapping) and "mechanism" in choice:
                check_options(choice["mechanism"], {name: value for name, value in choice.items() if name != "mechanism"})

    @property
    def names_attention(self) -> bool:
        """Whether a mechanism, options, layers or a whole configuration were given."""
        return any(value for value in (self.mechanism, self.long_attention, self.options, self.layers))

    def attention(self, original: LongAttentionConfig | None = None) -> LongAttentionConfig:
        """The mechanism with options and layers, or the whole configuration.

        Args:
            original: the attention of a source that is already long. Given options replace its options; another mechanism replaces
                all of it.

        Raises:
            OptionError: a whole configuration was given together with a mechanism, options or layers.
            OptionError: from the configuration itself, with the nearest valid name.
        """
        from ..configuration import LongAttentionConfig

        options = {**(self.options or {}), **({} if self.layers is None else {"layers": self.layers})}
        if self.long_attention is not None:
            if self.mechanism is not None or options:
                names = ["mechanism"] * (self.mechanism is not None) + list(options)
                raise OptionError(f"long_attention was given together with {', '.join(names)}; put everything into long_attention.")
            return LongAttentionConfig.from_dict(self.long_attention)
        if original is None or self.mechanism not in (None, original.mechanism):
            return LongAttentionConfig(**options) if self.mechanism is None else LongAttentionConfig(self.mechanism, **options)
        values = LongAttentionConfig(original.mechanism, **options).to_dict()
        layers = {index: {k: v for k, v in override.items() if k not in options} for index, override in original.layers.items()}
        overrides = {str(index): override for index, override in layers.items() if override}
        return LongAttentionConfig.from_dict({**original.options, **values, "layers": {**overrides, **values.get("layers", {})}})


def of_conversion(name: str) -> Any:
    """A copy of a field of :class:`ConversionConfig`."""
    entry = next(entry for entry in fields(ConversionConfig) if entry.name == name)
    return field(default=entry.default, repr=entry.repr, metadata=entry.metadata)


def _alone(config: S, values: Mapping[str, Any]) -> S:
    """Return the config; raise ``OptionError`` if keywords were given as well."""
    if values:
        raise OptionError(f"{next(iter(values))!r} was given together with a config; put it into the config (dataclasses.replace).")
    return config


def documented(config: type[Settings], summary: str) -> None:
    """Set the docstring of a config: every setting with its meaning, default and unit."""
    lines = []
    for entry in fields(config):
        about = entry.metadata
        default = about["unset"] or repr(entry.default)
        lines.append(f"    {entry.name}: {about['help']} Default: {default}.")
    config.__doc__ = "\n".join([summary, "", "Args:", *lines])


documented(ConversionConfig, "Settings of a conversion, one object or keywords of `convert_checkpoint`.")
