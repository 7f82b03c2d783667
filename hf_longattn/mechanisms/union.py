"""The union of several masks under one softmax. Query i sees key j if any member's mask allows it. Each pair counts
once.

    visible(i, j) = visible_1(i, j) or visible_2(i, j) or …

A union of a window and strided columns is the "merged head" of Sparse Transformers (Child et al. 2019, section 5.1,
equation 7).
"""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import Tensor, nn

from ..engines.block_sparse import block_sparse_attention
from ..engines.call import AttentionCall, GatherTile, MaskMod, Pattern
from ..errors import OptionError
from ..positions.trained_distances import Locality
from .common.base import LayerSizes
from .common.capabilities import About
from .common.layout import band_tile, full_pairs, without
from .common.masked import GatheredMechanism, MaskedMechanism, SparseMechanism
from .common.options import Options, option
from .common.registry import MechanismSpec, mechanism_class, register_mechanism
from .strided import StridedOptions
from .window import Window, WindowOptions

EXAMPLE = "of='window:window=256+strided:stride=64'"


@dataclasses.dataclass(frozen=True)
class UnionOptions(Options):
    of: tuple[MechanismSpec, ...] = option(
        (MechanismSpec("window", WindowOptions()), MechanismSpec("strided", StridedOptions())),
        "the mechanisms whose masks are joined, as in window:window=256+strided:stride=64",
    )

    def check(self) -> None:
        """Refuse an empty union, and members that are no mask over positions."""
        if not self.of:
            raise OptionError(f"Mechanism 'union' needs the mechanisms that it joins, for example {EXAMPLE}.")
        for choice in self.of:
            masked = issubclass(mechanism_class(choice.mechanism), SparseMechanism | GatheredMechanism)
            if not masked or not choice.options.is_mask():
                raise OptionError(
                    f"Mechanism {choice.mechanism!r} is not a mask over positions, so that a union cannot contain it; "
                    "join masks such as window, longformer or strided."
                )

    def min_heads(self) -> int:
        return max((choice.options.min_heads() for choice in self.of), default=1)


@register_mechanism("union")
class Union(GatheredMechanism):
    about = About(
        summary="several masks joined under one softmax",
        paper="Child et al. 2019, Sparse Transformers, §5.1, eq. 7 (merged head)",
        when="one softmax over several patterns, for example a window and strided columns",
        engine="gathered",
        cost="the sum of its members'",
        sample={"of": "strided:window=8,stride=16+longformer:window=32,global_tokens=0+5"},
        covering=lambda length, causal: {"of": f"longformer:window=8+window:window={2 * length}"},
    )
    capabilities = GatheredMechanism.capabilities.but(takes_globals=True)
    options: UnionOptions
    forward_is_mask = True
    members: nn.ModuleList

    def __init__(self, sizes: LayerSizes, options: UnionOptions) -> None:
        """Build the members, and derive form, global tokens and capabilities from them."""
        super().__init__(sizes, options)
        self.members = nn.ModuleList()
        for choice in options.of:
            member = choice.build(sizes)
            if isinstance(member, Window) and (member.max_dilation > 1 or member.options.num_sinks):
                member.listed = True  # as tiles, since the band of a union has neither dilation nor sinks
            self.members.append(member)
        self.causal = self._common_form()
        self.forward_is_mask = bool(self.gathered)
        for member in reversed(self.mechanisms):  # the first member with token ids
            if member.global_token_ids is not None:
                self.global_token_ids = member.global_token_ids
        capabilities = [member.capabilities for member in self.mechanisms]
        self.capabilities = self.capabilities.but(
            trains=any(member.trains for member in capabilities),
            takes_globals=any(member.takes_globals for member in capabilities),
            takes_sinks=all(member.takes_sinks for member in capabilities),
            position_dependent=any(member.position_dependent for member in capabilities),
        )
        if all(member.per_head_tensors is not None for member in self.mechanisms):
            self.per_head_tensors = tuple(
                f"members.{index}.{name}"
                for index, member in enumerate(self.mechanisms)
                for name in member.per_head_tensors or ()
            )

    def _common_form(self) -> bool | str:
        """The form, causal or bidirectional, that all members have."""
        # each form (causal is True or False) that is the only one of a member -> the first such member's name
        only = {member.causal: member.name for member in reversed(self.mechanisms) if member.causal != "both"}
        if len(only) > 1:
            raise OptionError(
                f"Mechanism 'union' joins {only[True]!r}, which exists in the causal form only, with {only[False]!r}, "
                "which has no causal form; leave one of them out."
            )
        return next(iter(only), "both")

    def _enter(self, layer: int) -> None:
        for member in self.mechanisms:
            member.layer = layer

    @property
    def mechanisms(self) -> list[MaskedMechanism]:
        return list(self.members)  # type: ignore[arg-type]

    @property
    def bands(self) -> list[SparseMechanism]:
        """Members that are a band around the diagonal, perhaps with global tokens."""
        return [member for member in self.mechanisms if isinstance(member, SparseMechanism) and not member.listed]

    @property
    def gathered(self) -> list[GatheredMechanism]:
        """Members that list their pairs as tiles."""
        return [member for member in self.mechanisms if isinstance(member, GatheredMechanism) and member.listed]

    def pattern(self, causal: bool) -> Pattern | None:
        """The union of the members' bands; ``None`` if no member is a band.

        Every band contains the diagonal, so that the union is a band, too.
        """
        patterns = [member.pattern(causal) for member in self.bands]
        if not patterns:
            return None
        left = max(pattern.left for pattern in patterns)
        right = max(pattern.right for pattern in patterns)
        return Pattern(left, right, causal, any(pattern.has_globals for pattern in patterns))

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        """True where any member's mask allows a pair. All members receive the same ``global_mask``."""
        mods = [member.mask_mod(causal, global_mask) for member in self.mechanisms]
        return lambda b, h, q_idx, kv_idx: functools.reduce(
            torch.logical_or, [mod(b, h, q_idx, kv_idx) for mod in mods]
        )

    def resolve_globals(self, k: Tensor, call: AttentionCall) -> Tensor | None:
        masks = [tokens for member in self.mechanisms if (tokens := member.resolve_globals(k, call)) is not None]
        # Keep the tensor if all members use the same one, since results are cached on a call's global mask.
        if all(tokens is masks[0] for tokens in masks):
            return masks[0] if masks else None
        return functools.reduce(torch.logical_or, masks)

    def global_positions(self) -> tuple[int, ...]:
        return tuple(sorted({position for member in self.mechanisms for position in member.global_positions()}))

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        """A tile for the band, then each member's tiles without the pairs of earlier tiles."""
        band = self.pattern(causal)
        tiles = [] if band is None else [band_tile(length, band.left, band.right, device)]
        earlier: list[MaskMod] = []
        for member in self.gathered:
            tiles += [without(part, band, earlier, self.num_heads) for part in member.parts(length, causal, device)]
            earlier.append(member.mask_mod(causal, None))
        return tuple(tiles)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        band = self.pattern(call.causal)
        if band is None or self.gathered:
            return super().forward(q, k, v, call)
        positions = self.global_positions() if call.global_mask is None else None
        call = call.replace(global_mask=self.resolve_globals(k, call), global_positions=positions)
        return block_sparse_attention(q, k, v, band, call)

    def locality(self, causal: bool) -> Locality | None:
        """The smallest range that contains the ranges of all members; ``None`` if one of them is unbounded."""
        members = [member.locality(causal) for member in self.mechanisms]
        known = [local for local in members if local is not None]
        if len(known) < len(members):
            return None
        back = max(local.back for local in known)
        ahead = max(local.ahead for local in known)
        extra_keys = {local.beside for local in known}
        beside = next(keys for keys in ("others", "globals", "") if keys in extra_keys)  # the widest
        period = math.lcm(*(local.period for local in known))
        width = back + ahead if len(known) > 1 else known[0].width
        return Locality(back, ahead, period, beside=beside, width_of_keys=width)

    def covers(self, length: int, causal: bool = False) -> bool:
        return any(member.covers(length, causal) for member in self.mechanisms)

    def pairs(self, length: int, causal: bool = False) -> int:
        """Upper bound on the number of pairs. A pair counts once per member that sees it, up to full attention in
        total."""
        return min(full_pairs(length, causal), sum(member.pairs(length, causal) for member in self.mechanisms))
