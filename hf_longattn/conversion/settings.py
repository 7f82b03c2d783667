"""Settings of a conversion.

This file does not import torch, because the command line reads the help texts of the settings when it starts.
"""
# ruff: noqa: RUF009 (a setting is a dataclasses.field)

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import OptionError, nearest

if TYPE_CHECKING:
    from ..configuration import LongAttentionConfig


S = TypeVar("S", bound="Settings")
AUTO = "auto"
"""The value of ``mechanism`` that chooses a mechanism for every layer, mostly by :func:`hf_longattn.search_design`."""


def setting(
    default: Any,
    help: str,
    *,
    unset: str = "",
    flag: str = "",
    type: Any = str,
    metavar: str = "",
    minimum: int = 0,
    secret: bool = False,
) -> Any:
    """A dataclass field of a setting. Its metadata describe the flag on the command line.

    Args:
        default: the default value. If it is True or False, the flag takes no value.
        help: the meaning of the setting, as a sentence.
        unset: the meaning of the default ``None`` or ``"auto"``.
        flag: the flag; "" derives it from the field's name, "-" means that there is no flag.
        type: type of a value on the command line. With ``list[str]``, the flag can be repeated.
        metavar: placeholder for the value in the help.
        minimum: the smallest allowed value; 0 means no minimum.
        secret: whether the setting is never written into a report.
    """
    about = {
        "help": help,
        "unset": unset,
        "flag": flag,
        "metavar": metavar or None,
        "minimum": minimum or None,
        "type": bool if isinstance(default, bool) else type,
    }
    return field(default=default, repr=not secret, metadata=about)


@dataclass(frozen=True)
class Settings:
    """Base class of the settings of a conversion and of a search."""

    def to_dict(self) -> dict[str, Any]:
        """The settings that differ from their defaults, JSON-serialisable, for a report. Paths lose their folders, and
        secrets are left out."""
        written = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.repr and value != entry.default:
                written[entry.name] = Path(value).name if entry.metadata["type"] is Path else value

        def json_value(value: Any) -> Any:
            return value.to_dict() if hasattr(value, "to_dict") else str(value)

        return dict(json.loads(json.dumps(written, default=json_value)))

    @classmethod
    def from_keywords(cls: type[S], config: S | None, values: Mapping[str, Any]) -> S:
        """A config from keywords, or ``config`` unchanged if it is given.

        In a class with the setting ``options``, unknown keywords are options of the mechanism (``window=512``).

        Raises:
            OptionError: an unknown keyword, an option that is given twice, or keywords beside a config.
        """
        if config is not None:
            if values:
                first = next(iter(values))
                raise OptionError(
                    f"{first!r} was given together with a config; put it into the config (dataclasses.replace)."
                )
            return config
        known = [entry.name for entry in fields(cls)]
        settings = {name: value for name, value in values.items() if name in known}
        others = {name: value for name, value in values.items() if name not in known}
        if not others:
            return cls(**settings)
        if "options" not in known:
            wrong = next(iter(others))
            raise OptionError(
                f"{wrong!r} is not a setting of {cls.__name__}; expected one of "
                f"{', '.join(known)}.{nearest(wrong, known)}"
            )
        options = dict(settings.pop("options", None) or {})
        twice = sorted(options.keys() & others.keys())
        if twice:
            raise OptionError(f"The option {twice[0]!r} was given twice; give it once.")
        return cls(**{**settings, "options": {**options, **others}})


@dataclass(frozen=True)
class ConversionConfig(Settings):
    mechanism: str | None = setting(
        None,
        "One of `longattn mechanisms`, or auto: a search under --budget for every layer; without it, decoders get a "
        "window and sinks.",
        unset="longformer; a long model's own; images: window2d; sound: window",
    )
    max_length: int | None = setting(
        None, "Maximum length of the result, in tokens.", unset="the source's", type=int, minimum=1
    )
    image_size: str | int | Sequence[int] | None = setting(
        None, "Size of the images: 1024, or height and width, 768x1024.", unset="the source's", metavar="PIXELS"
    )
    audio_seconds: float | None = setting(
        None, "Duration of sound, verified and reported.", unset="the source's", type=float, metavar="SECONDS"
    )
    budget: str | None = setting(
        None,
        "With --mechanism auto, what attention may cost: a share of full attention's time (0.25), seconds (1.5s) or "
        "memory (200MB).",
        unset="0.25",
    )
    search_input: str | Path | None = setting(
        None,
        "With --mechanism auto, the input to choose by: a UTF-8 text file, an image or recording, or a folder of "
        "these.",
        unset="built-in English; required for images and sound",
        type=Path,
    )
    options: Mapping[str, Any] | None = setting(
        None,
        "An option of the mechanism, for example window=512. Repeatable.",
        flag="--option",
        type=list[str],
        metavar="NAME=VALUE",
    )
    layers: Mapping[Any, Any] | None = setting(
        None,
        'Different mechanisms in some layers, "0-3=window:window=256;11=full", or mechanisms that layers alternate '
        "between, "
        '"window:window=256,full". Repeatable.',
        type=list[str],
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
        "How positions are extended. Learned tables: tile, interpolate or stretch:ROWS. Any table: none or alibi. "
        "Towers: text=RULE,vision=RULE. Images: tile or interpolate. Rotary: rope: and none, linear, dynamic, yarn, "
        "base:BASE, longrope:FILE or self-extend. auto: tile for tables; rope:none, or rope:yarn if a layer sees "
        "beyond the old length.",
    )
    allow_pickle: bool = setting(
        False, "Read pytorch_model.bin if there is no safetensors file. Only tensors are read; no code is run."
    )
    needs_training: bool = setting(
        False,
        "Convert to a length at which the result is of no use until you train it: Whisper beyond its 30 seconds.",
    )
    generic: bool = setting(
        False,
        "For an architecture without Long classes: keep its plain class, config and weights, and add mechanisms; "
        "AutoModel loads the result after `import hf_longattn`.",
    )
    verify: bool = setting(
        True, "Check the written files; a failed check leaves no result.", flag="--verify/--no-verify"
    )
    verify_text: str | Path | None = setting(
        None, "A UTF-8 text file to verify with.", unset="built-in English", type=Path
    )
    verify_audio: str | Path | None = setting(None, "A recording to verify with.", unset="seeded sound", type=Path)
    overwrite: bool = setting(False, "Replace an existing checkpoint folder DST once the new one is complete.")
    remote_code: bool = setting(
        False,
        "Add a file that imports hf_longattn, so that programs which do not import it load the model with "
        "trust_remote_code=True; hf_longattn must be installed there.",
    )
    revision: str | None = setting(None, "Branch, tag or commit of a Hub repository.")
    token: str | bool | None = setting(
        None, "Hub access token.", unset="HF_TOKEN, or the one from `hf auth login`", secret=True
    )

    def __post_init__(self) -> None:
        """Raise :class:`OptionError` for settings that exclude each other."""
        wrong = {"mechanism", "layers"} & {*(self.options or {})}
        if wrong:
            raise OptionError(
                f"{min(wrong)!r} is not an option of a mechanism; use --{min(wrong)} (in Python, the argument "
                f"{min(wrong)})."
            )
        # a setting -> settings that must not be given with it
        exclusive = {"generic": ("remote_code",), "towers": ("mechanism", "options", "layers")}
        if self.mechanism == AUTO:  # it chooses the mechanisms and their options
            exclusive = {"mechanism": ("options", "layers", "long_attention", "towers", "generic"), **exclusive}
        elif self.budget is not None or self.search_input is not None:
            raise OptionError("--budget and --search-input are for --mechanism auto; add it, or leave them out.")
        flags = {"mechanism": f"--mechanism {self.mechanism}", "options": "--option", "remote_code": "--remote-code"}
        for name, others in exclusive.items():
            for other in others:
                if getattr(self, name) and getattr(self, other):
                    first, second = (flags.get(setting, f"--{setting}") for setting in (name, other))
                    raise OptionError(f"{first} and {second} exclude each other; leave one of them out.")

    def without_search(self) -> ConversionConfig:
        """The settings without ``mechanism="auto"`` and the settings of its search."""
        return replace(self, mechanism=None, budget=None, search_input=None)

    @property
    def names_attention(self) -> bool:
        return any(value for value in (self.mechanism, self.long_attention, self.options, self.layers))

    def attention(self, original: LongAttentionConfig | None = None) -> LongAttentionConfig:
        """The attention that these settings describe.

        Args:
            original: the attention of a source that is a long model of transformers. If the settings name another
                mechanism, it replaces all of this attention. Otherwise, options replace single options in it.
        """
        from ..configuration import LongAttentionConfig

        options = dict(self.options or {})
        if self.layers is not None:
            options["layers"] = self.layers
        if self.long_attention is not None:
            if self.mechanism is not None or options:
                names = ["mechanism"] * (self.mechanism is not None) + list(options)
                raise OptionError(
                    f"long_attention was given together with {', '.join(names)}; put everything into long_attention."
                )
            return LongAttentionConfig.from_dict(self.long_attention)
        if original is None or self.mechanism not in (None, original.mechanism):
            return LongAttentionConfig(self.mechanism, **options)

        # replace options in the original's default and layers
        values = LongAttentionConfig(original.mechanism, **options).to_dict()
        overrides = {}
        for index, override in original.layers.items():
            remaining = {name: value for name, value in override.items() if name not in options}
            if remaining:
                overrides[str(index)] = remaining
        return LongAttentionConfig.from_dict(
            {**original.options, **values, "layers": {**overrides, **values.get("layers", {})}}
        )


def of_conversion(name: str) -> Any:
    """A field for another dataclass, equal to the setting ``name`` of a conversion."""
    return copy(ConversionConfig.__dataclass_fields__[name])


def documented(config: type[Settings], summary: str) -> None:
    """Write the docstring of a class of settings: the ``summary``, and each setting's meaning and default."""
    lines = [
        f"    {entry.name}: {entry.metadata['help']} Default: {entry.metadata['unset'] or repr(entry.default)}."
        for entry in fields(config)
    ]
    config.__doc__ = "\n".join([summary, "", "Args:", *lines])


documented(ConversionConfig, "Settings of a conversion, one object or keywords of `convert_checkpoint`.")
