"""Relative positions, which the option ``relative`` adds to the scores of any mechanism that has scores.

ALiBi: Press et al. 2022, Train Short, Test Long, section 3, and the authors' code where the number of heads is no
power of two.
T5: Raffel et al. 2020, section 2.1, with the buckets of its code. Shaw: Shaw et al. 2018, equations 2 and 4, of keys.
Transformer-XL: Dai et al. 2019, section 3.3; both directions as in Yang et al. 2019, XLNet. Rotary: Su et al. 2021,
RoFormer, equation 13.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor, nn

from ._loops import ScoreMod


def alibi_slope(h: int, heads: int) -> float:
    """2^(-8/H), 2^(-16/H) … for a power of two H; else those of the power below, then every second one of the power
    above."""
    power = 1
    while 2 * power <= heads:
        power *= 2
    if h < power:
        return 2.0 ** (-8 * (h + 1) / power)
    return 2.0 ** (-8 * (2 * (h - power) + 1) / (2 * power))


@functools.cache
def t5_bucket(ahead: int, buckets: int, max_distance: int, causal: bool) -> int:
    """The bucket of a key that stands ``ahead`` tokens after the query (before it where negative).

    Both ways, keys after the query have the second half of the buckets. Half of a side's buckets hold one distance
    each, and the logarithm of the distance runs over the other half up to ``max_distance``; the last one holds the
    rest.
    """
    if not causal:
        buckets //= 2
    side = buckets if ahead > 0 and not causal else 0
    distance = max(-ahead, 0) if causal else abs(ahead)
    exact = buckets // 2
    if distance < exact:
        return side + distance
    steps, bucket = buckets - exact, 0  # bucket = ⌊log(distance / exact) / log(max_distance / exact) · steps⌋
    while bucket + 1 < steps and Fraction(max_distance, exact) ** (bucket + 1) <= Fraction(distance, exact) ** steps:
        bucket += 1
    return side + exact + bucket


@functools.cache
def sinusoid(distance: int, width: int) -> Tensor:
    """R of section 3.3: sines, then cosines, of the distance at width / 2 frequencies."""
    frequencies = 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.cat([(distance * frequencies).sin(), (distance * frequencies).cos()])


def with_relative(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    *,
    causal: bool,
    scaling: float | None,
    score_mod: ScoreMod | None,
    is_constant: Callable[[int, int, int], bool] = lambda b, i, j: False,
) -> ScoreMod:
    """``score_mod`` of scores to which the relative term of ``module`` has been added.

    is_constant: whether key j of item b is a constant to the gradient where query i meets it.
    """
    name, _, rest = module.options.relative.partition(":")
    settings = {key: int(value) for key, value in (pair.split("=") for pair in rest.split(",") if pair)}
    learned = {key.removeprefix("relative."): value.double() for key, value in module.named_parameters()}
    heads, width = q.shape[1], q.shape[-1]
    scale = width**-0.5 if scaling is None else scaling

    def terms(b: int, h: int, i: int, keys: list[int]) -> Tensor:
        query, own = q[b, h, i - k.shape[2] + q.shape[2]], k[b, h * k.shape[1] // heads]
        if name == "alibi":
            return torch.tensor([-alibi_slope(h, heads) * abs(i - j) for j in keys], dtype=torch.float64)
        if name == "t5_buckets":
            buckets, max_distance = settings.get("num_buckets", 32), settings.get("max_distance", 128)
            return learned["table"][[t5_bucket(j - i, buckets, max_distance, causal) for j in keys], h]
        if name == "shaw":
            clip = settings.get("clip", 16)
            return scale * learned["keys"][[max(-clip, min(clip, j - i)) + clip for j in keys]] @ query
        assert name == "transformer_xl"
        waves = torch.stack([sinusoid(i - j, learned["projection"].shape[-1]) for j in keys])
        positions = waves @ learned["projection"][h].T
        met = torch.stack([own[j].detach() if is_constant(b, i, j) else own[j] for j in keys])
        return scale * (positions @ (query + learned["position"][h]) + met @ learned["content"][h])

    def added(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        score = score + terms(int(b), int(h), int(q_idx), kv_idx.flatten().tolist()).reshape(kv_idx.shape)
        return score if score_mod is None else score_mod(score, b, h, q_idx, kv_idx)

    return added
