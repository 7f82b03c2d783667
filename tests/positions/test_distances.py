"""Which mechanisms positions hold for without training."""

from __future__ import annotations

from hf_longattn import build_mechanism
from hf_longattn.mechanisms.common.capabilities import needs_training_by
from hf_longattn.positions.trained_distances import Locality, untrained_distances
from tests.cases import every_case

P = 512


@every_case(
    ("name", "options", "causal", "holds"),
    [
        ("window", {"window": 512}, False, True),
        ("window", {"window": 514}, False, False),
        ("window", {"window": 1024}, False, False),  # measured: the loss goes from 4.9 to 7.1
        ("window", {"window": 257}, True, True),
        ("window", {"window": 258}, True, False),  # most queries of a decoder see keys whose positions come after their own
        ("window", {"window": 256, "num_sinks": 4}, True, True),
        ("window", {"window": 256, "dilation": 2}, False, True),
        ("window", {"window": 256, "dilation": (1, 4)}, False, False),
        ("longformer", {"window": 512, "global_tokens": (0,)}, False, True),
        ("segmented", {"block_size": 512, "integration": "none"}, False, True),
        ("segmented", {"block_size": 256}, False, False),
        ("bigbird", {}, False, False),
        *((name, {}, False, False) for name in ("full", "top_k", "block_top_k", "lsh", "routing", "strided", "linear")),
    ],
)
def test_tiled_positions_hold_for_keys_that_span_the_trained_length(name: str, options: dict, causal: bool, holds: bool) -> None:  # type: ignore[type-arg]
    mechanism = build_mechanism(name, num_heads=2, head_dim=16, max_length=4096, **options)
    problem = needs_training_by(mechanism, "tile", P, 4096, causal)
    assert (problem == "") == holds
    assert holds or "tiled positions repeat every 512 tokens" in problem
    assert needs_training_by(mechanism, "tile", P, P, causal) == "", "nothing is tiled"


def test_untrained_distances_are_named_for_plain_rope_only() -> None:
    near, far = Locality(255, 0), Locality(900, 0)
    assert untrained_distances("rope:none", P, 4096, near, 256) == ""
    assert "distances up to 900" in untrained_distances("rope:none", P, 4096, far, 901)
    assert "any distance" in untrained_distances("rope:none", P, 4096, near, None)  # sinks
    for rule in ("random", "interpolate", "rope:yarn", "alibi", "none", "sinusoidal", "relative"):
        assert untrained_distances(rule, P, 4096, None, None) == ""
