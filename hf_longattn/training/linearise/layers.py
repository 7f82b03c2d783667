"""Choose the layers that keep softmax attention beside a cheap mechanism (Li et al. 2025, Distilling to Hybrid Attention Models via
KL-Guided Layer Selection, arXiv 2512.20569).

A layer's importance is the gain of restoring only this layer: KL(checkpoint ‖ all cheap) - KL(checkpoint ‖ all cheap but this layer). The
paper keeps softmax attention in the most important layers. But layers depend on one another. While the first layer gives wrong inputs,
restoring the second gains nothing, though both together may gain most. So layers are restored one after another, always the one that lowers
the divergence most. The result is compared with the paper's choice and with simple ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import PreTrainedModel

from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.errors import OptionError
from hf_longattn.evaluation.divergence import kl_divergence
from hf_longattn.mechanisms import Mechanism
from hf_longattn.modeling.attach.attachment import attach_mechanisms
from hf_longattn.modeling.attach.attention_sites import AttentionSite, attention_sites, mechanisms_restored
from hf_longattn.modeling.inference.optimize import evaluating
from hf_longattn.training.linearise.matching import Batch, own_attention, own_softmax
from hf_longattn.training.linearise.teacher import places_of_predictions, predictions_at

TOKENS_COMPARED = 256
"""Predictions of an input that are compared."""
NEGLIGIBLE = 1e-6
"""Minimum divergence in nats; smaller ones count as 0."""
Divergences = Callable[[Sequence[frozenset[int]]], Sequence[float]]
"""Sets of layers that keep softmax attention -> KL(checkpoint ‖ model) in nats of each."""


@dataclass(frozen=True)
class KeptLayers:
    """The choice.

    kept: numbers of the layers that keep softmax attention.
    importance: gain of restoring only this layer, in nats, for every candidate layer.
    divergence: of the choice; ``nothing``, with the cheap mechanism in every layer.
    compared: Name -> KL divergence, for this and other choices of the same size.
    """

    kept: tuple[int, ...]
    importance: dict[int, float]
    divergence: float
    nothing: float
    compared: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "kept": list(self.kept), "importance": {str(layer): gain for layer, gain in self.importance.items()}, "kl": self.divergence,
            "kl_without": self.nothing, "compared": self.compared,
        }  # fmt: skip


def choose_layers(divergences: Divergences, layers: Sequence[int], count: int) -> KeptLayers | None:
    """The best of several choices of ``count`` layers: greedy, the most important ones, evenly spaced, the first, the last. ``None`` if the
    cheap mechanism changes nothing.

    Measures up to ``count`` · ``len(layers)`` sets.
    """
    known: dict[frozenset[int], float] = {}

    def measured(sets: Sequence[frozenset[int]]) -> list[float]:
        new = [layer_set for layer_set in dict.fromkeys(sets) if layer_set not in known]
        known.update(zip(new, divergences(new) if new else [], strict=True))
        return [known[layer_set] for layer_set in sets]

    nothing, *restored = measured([frozenset(), *(frozenset({layer}) for layer in layers)])
    if nothing < NEGLIGIBLE:
        return None
    importance = {layer: nothing - divergence for layer, divergence in zip(layers, restored, strict=True)}
    in_turn: frozenset[int] = frozenset()
    while len(in_turn) < count:
        sets = [in_turn | {layer} for layer in layers if layer not in in_turn]
        in_turn = min(zip(measured(sets), sets, strict=True), key=lambda pair: pair[0])[1]
    choices = {
        "one after another": in_turn,
        "the most important alone": frozenset(sorted(layers, key=lambda layer: (-importance[layer], layer))[:count]),
        "evenly spaced": frozenset(layers[(2 * number + 1) * len(layers) // (2 * count)] for number in range(count)),
        "the first": frozenset(layers[:count]),
        "the last": frozenset(layers[-count:]),
    }
    by_choice = dict(zip(choices, measured(list(choices.values())), strict=True))
    best = min(by_choice, key=lambda name: by_choice[name])
    compared = {"chosen": by_choice[best], **by_choice, "none": nothing}
    return KeptLayers(tuple(sorted(choices[best])), importance, by_choice[best], nothing, compared)


def number_of_layers(number: float, layers: int, option: str) -> int:
    """Layers that keep softmax attention: ``number`` layers, or this share of ``layers`` if it is below 1.

    Raises:
        OptionError: the number is 0 or that of all layers.
    """
    count = max(1, round(number * layers)) if 0 < number < 1 else int(number)
    if not 0 < count < layers or (number >= 1 and count != number):
        raise OptionError(
            f"{option} is {number:g}, but the model has {layers} layers, so 1 to {layers - 1} of them can keep softmax attention; give "
            f"{option} {layers // 2 or 1}, or a share below 1."
        )
    return count


def keep_softmax(model: PreTrainedModel, number: float, batches: Sequence[Batch]) -> KeptLayers:
    """Restore softmax attention in the most important layers, in the model and in ``config.long_attention``.

    Args:
        model: the student, with the weights of the original.
        number: how many layers keep softmax attention: a number, or below 1 a share of all layers. Layers with softmax attention already
            count.
        batches: held-out inputs with labels.
    Raises:
        OptionError: as of :func:`number_to_restore`, or mechanisms that change nothing on these inputs.
    """
    cheap = [layer for layer, site in own_sites(model).items() if not _has_own(model, site)]
    choice = choose_layers(lambda sets: divergences(model, sets, batches), cheap, number_to_restore(model, number))
    if choice is None:
        raise OptionError(
            "The predictions are those of softmax attention with the mechanism in every layer, so no layer is more important than another; "
            "leave --softmax-layers out."
        )
    choice = broadcast_object_list([choice])[0]  # sums may differ in the last digit between processes
    restore_softmax(model, choice.kept)
    return choice


def number_to_restore(model: PreTrainedModel, number: float) -> int:
    """Number of layers to restore, so that ``number`` layers have softmax attention in the end.

    Raises:
        OptionError: none or all of the layers, or as many as have it already.
    """
    sites = own_sites(model)
    count = number_of_layers(number, len(sites), "--softmax-layers")
    already = sum(_has_own(model, site) for site in sites.values())
    if count <= already:
        raise OptionError(f"--softmax-layers is {count}, but {already} of the layers have softmax attention already; leave it out.")
    return count - already


def own_sites(model: PreTrainedModel) -> dict[int, AttentionSite]:
    """Self-attention by layer."""
    return {site.layer: site for site in attention_sites(model) if not site.cross}


def restore_softmax(model: PreTrainedModel, layers: Collection[int]) -> None:
    """Replace these layers' mechanisms by softmax attention, in the model and in its configuration."""
    trained = {layer: _mechanism(site).state_dict() for layer, site in own_sites(model).items() if layer not in layers}
    values = LongAttentionConfig.from_dict(model.config.long_attention).to_dict()
    base_attention = own_attention(model.config)
    restored = {str(layer): {"mechanism": name, **options} for layer in layers for name, options in [base_attention.for_layer(layer)]}
    overrides = {**values.pop("layers", {}), **restored}
    model.config.long_attention = LongAttentionConfig(layers=overrides, **values)
    attach_mechanisms(model, model.config.long_attention)
    for layer, site in own_sites(model).items():
        if layer in trained:
            _mechanism(site).load_state_dict(trained[layer])


@contextmanager
def with_softmax(model: PreTrainedModel, layers: Collection[int]) -> Iterator[None]:
    """Within the context these layers run softmax attention."""
    sites = [site for layer, site in own_sites(model).items() if layer in layers]
    with mechanisms_restored(sites):
        for site in sites:
            mechanism = _mechanism(site)
            softmax = own_softmax(model.config, site.layer, mechanism)
            softmax.layer, softmax.is_cross_attention = mechanism.layer, mechanism.is_cross_attention
            site.put(softmax)
        yield


@torch.no_grad()
def divergences(model: PreTrainedModel, sets: Sequence[Collection[int]], batches: Sequence[Batch]) -> list[float]:
    """KL(softmax attention in all layers ‖ only in these) in nats for each set of layers, mean over the predictions."""
    totals, count = [0.0] * len(sets), 0
    with evaluating(model):
        for batch in batches:
            inputs: dict[str, Any] = {name: value.to(model.device) for name, value in batch.items()}
            at = _some(places_of_predictions(model, inputs))
            inputs.pop("labels")

            def logits(layers: Collection[int], inputs: dict[str, Any] = inputs, at: Tensor = at) -> Tensor:
                with with_softmax(model, layers), predictions_at(model, at):
                    return model(**inputs).logits

            target = logits(own_sites(model))
            totals = [
                total + float(kl_divergence(logits(layers), target)) * len(target) for total, layers in zip(totals, sets, strict=True)
            ]
            count += len(target)
    return [total / max(1, count) for total in totals]


def _some(at: Tensor) -> Tensor:
    """At most ``TOKENS_COMPARED`` of the places of each row, evenly spread."""
    chosen = torch.zeros_like(at)
    for row, places in zip(chosen, at, strict=True):
        columns = torch.nonzero(places).flatten()
        row[columns[:: max(1, -(-len(columns) // TOKENS_COMPARED))]] = True
    return chosen


def _has_own(model: PreTrainedModel, site: AttentionSite) -> bool:
    """Whether a layer runs the base's attention: full, or its window."""
    (name, options), running = own_attention(model.config).for_layer(site.layer), _mechanism(site)
    return running.name == name and all(getattr(running.options, option) == value for option, value in options.items())


def _mechanism(site: AttentionSite) -> Mechanism:
    assert isinstance(site.mechanism, Mechanism)
    return site.mechanism
