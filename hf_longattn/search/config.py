"""Settings of a search. Command line and search read them here. Nothing heavy is imported, as in ``conversion/config.py``."""
# ruff: noqa: RUF009 (a setting is a dataclasses.field)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..conversion.config import ConversionConfig, Settings, documented, of_conversion, setting
from ..errors import OptionError
from .budget import BUDGET, Budget

if TYPE_CHECKING:
    from ..inspect import Candidate


@dataclass(frozen=True)
class SearchConfig(Settings):
    noun: ClassVar[str] = "search"
    budget: str | float | Budget = setting(
        BUDGET,
        "What the attention of all layers may cost for one text: a share of full attention's time (0.25), seconds (1.5s) or memory "
        "(200MB); with --mode full-layers, the number of layers that keep full attention.",
    )
    length: int | None = of_conversion("max_length")
    image_size: str | int | Sequence[int] | None = of_conversion("image_size")
    audio_seconds: float | None = setting(
        None, "Duration of the result's sounds.", unset="the checkpoint's", unit="seconds", type=float, metavar="SECONDS"
    )
    candidates: Sequence[str | Candidate] | None = setting(
        None,
        "A mechanism that layers may run, for example window:window=256. Repeatable.",
        unset="windows of several widths, longformer, bigbird, block_top_k, full; for images those on grids",
        flag="--candidate",
        type=list,
        metavar="MECHANISM[:NAME=VALUE,...]",
    )
    mode: str = setting("mechanisms", "mechanisms, or full-layers: which layers keep full attention while all others run --candidate.")
    score: str = setting(
        "mass",
        "How a candidate is judged in a layer: mass, the share of the softmax that it keeps, or kl, what it changes in the predictions.",
    )
    pieces: int = setting(4, "Pieces of TEXT, or images, that are read at most.", type=int, minimum=1)
    queries: int = setting(512, "Queries measured in each piece for captured mass.", flag="-", type=int)
    compare_at: int | None = setting(
        None,
        "Tokens, pixels of an image's sides, or seconds of sound at which candidates are judged.",
        unset="what the checkpoint was trained to read; for images --image-size, for sound --audio-seconds up to 60",
        type=int,
        minimum=1,
    )
    positions: str = setting("auto", "How positions are extended, as --positions of `longattn convert`.")
    device: str | None = setting(None, "cpu, cuda …", unset="the accelerator, if there is one")
    revision: str | None = of_conversion("revision")
    token: str | bool | None = of_conversion("token")

    def __post_init__(self) -> None:
        for name, known in {"mode": ("mechanisms", "full-layers"), "score": ("mass", "kl")}.items():
            if (value := getattr(self, name)) not in known:
                raise OptionError(f"{name} is {value!r}, but must be {' or '.join(map(repr, known))}.")
        if min(self.pieces, self.queries) < 1:
            raise OptionError("At least one piece of text and one query must be measured; for example pieces=4, queries=512.")

    @property
    def full_layers(self) -> bool:
        """Whether the search chooses layers that keep full attention."""
        return self.mode == "full-layers"

    @property
    def judged_by(self) -> str:
        """How candidates are judged: "mass" or "kl"."""
        return "kl" if self.full_layers else self.score

    def limit(self) -> Budget:
        """The budget, read; raises :class:`OptionError`."""
        return Budget.read_layers(self.budget) if self.full_layers else Budget.read(self.budget)

    def conversion(self) -> ConversionConfig:
        """Settings of the conversion whose result the designs are for."""
        return ConversionConfig(
            max_length=self.length, image_size=self.image_size, audio_seconds=self.audio_seconds,
            positions=self.positions, revision=self.revision, token=self.token,
        )  # fmt: skip


documented(SearchConfig, "Settings of a search, one object or keywords of `search_design`.")
