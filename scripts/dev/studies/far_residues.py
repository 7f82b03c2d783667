"""Proteins in which the class of residues depends on a residue more than a thousand places away: small ESM models, converted.

A chain has sites in its second half, prolines and glutamines, and each kind binds one residue that lies in the first quarter: a
tryptophan, cysteine, histidine or methionine binds prolines, a tyrosine, phenylalanine, lysine or arginine glutamines. The class of a
site is the kind of the residue that binds it.

``--task residues`` has rotary positions, as ESM-2, ``--task residues_absolute`` a table of positions, as ESM-1b.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EsmConfig, EsmForTokenClassification

from .far_running import FULL, Stage, run_study
from .far_task import Labelled, Read, Shown, System, Task, converted, plain, task_folder

ALPHABET = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYWMHCXBUZO.-", "<null_1>", "<mask>"]
"""The vocabulary of ESM-2."""
COMMON = "LAGVSETIDN"
"""Residues that have no part in the task."""
SITES: tuple[tuple[str, str], ...] = (("P", "WCHM"), ("Q", "YFKR"))
"""Residues that are sites, and those that bind them."""
SITES_IN_CHAIN = 8
"""Of each kind."""
FIRST, LAST = 1 / 4, 1 / 2
"""Shares of the chain in which the binding residues are, and after which the sites are."""
WINDOW = 64
"""Residues that a window spans."""
ROWS = 258
"""Of a table of positions, two more than tokens, as in ESM."""


def ids(residues: str) -> Tensor:
    """The token ids of residues."""
    return torch.tensor([ALPHABET.index(residue) for residue in residues])


class Residues(Task):
    """Chains and the classes of their sites."""

    name = "residues"
    classes = sum(len(binding) for _, binding in SITES)
    item = "chain"
    unit = "tokens"
    making = "drawing"
    labelled = "tokens"
    baselines = ("crops",)
    positions: ClassVar[str] = "rotary"
    defaults = {
        "systems": ["crops", "first-full", FULL],
        "stages": [Stage(512, 256, 8), Stage(1024, 256, 8), Stage(2048, 256, 8), Stage(4096, 256, 4)], "short_size": 256, "width": 32,
        "layers": 2, "halved": 0.5, "short_batch": 16, "short_minutes": 0.15, "rate": 2e-3, "test_examples": 20, "other_examples": 4,
        "memory_batch": 1,
    }  # fmt: skip

    def chain(self, shown: Shown, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Token ids and labels ``(size,)`` of a chain between ``<cls>`` and ``<eos>``."""
        length = shown.size - 2
        residues, labels = random.choice(list(COMMON), length), np.full(length, -100)
        binding_places = random.permutation(int(FIRST * length))[: len(SITES)]
        site_places = random.permutation(np.arange(int(LAST * length), length))[: len(SITES) * SITES_IN_CHAIN]
        first_class = 0
        for (site, binding), place, places in zip(SITES, binding_places, np.split(site_places, len(SITES)), strict=True):
            kind = int(random.integers(len(binding)))
            if not shown.control:
                residues[place] = binding[kind]
            residues[places], labels[places] = site, first_class + kind
            first_class += len(binding)
        ends = torch.tensor([-100])
        tokens = torch.cat([torch.tensor([0]), ids("".join(residues)), torch.tensor([2])])
        return tokens, torch.cat([ends, torch.from_numpy(labels), ends])

    def batch(self, shown: Shown, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Token ids and labels, ``(count, size)`` each."""
        tokens, labels = zip(*(self.chain(shown, random) for _ in range(count)), strict=True)
        return torch.stack(tokens), torch.stack(labels)

    def sentence(self, size: int) -> str:
        return (
            f"Chains of {size:,} tokens of the amino-acid alphabet. The label of every proline and glutamine in the second half is the "
            f"kind of one residue in the first quarter, at least {size // 4:,} places away: the only one of W, C, H, M, for glutamines "
            "of Y, F, K, R. Chance 25 %. In the control these residues are left out."
        )

    def small_model(self, args: argparse.Namespace, seed: int) -> EsmForTokenClassification:
        if args.start_from:
            folder = task_folder(args.start_from, args, seed, args.start_size or args.short_size)
            return EsmForTokenClassification.from_pretrained(folder)
        config = EsmConfig(
            vocab_size=len(ALPHABET), hidden_size=args.width, num_hidden_layers=args.layers, num_attention_heads=max(1, args.width // 32),
            intermediate_size=2 * args.width, max_position_embeddings=ROWS, position_embedding_type=self.positions, pad_token_id=1,
            mask_token_id=len(ALPHABET) - 1, token_dropout=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            num_labels=self.classes,
        )  # fmt: skip
        return EsmForTokenClassification(config)

    def small_logits(self, model: nn.Module, inputs: Tensor, labelled: Labelled) -> Tensor:
        return whole(model, inputs, labelled)

    def systems(self, args: argparse.Namespace) -> dict[str, System]:
        window = {"mechanism": "window", "window": WINDOW}
        full = {"mechanism": "full"}
        first_full = {**window, "layers": {0: full}}
        short = plain(EsmForTokenClassification)

        def with_attention(attention: Mapping[str, Any]) -> Callable[[Path, int], nn.Module]:
            return converted("esm", EsmForTokenClassification, attention, lambda size: {"max_position_embeddings": size + 2})

        return {
            "crops": System(f"crops of {args.short_size:,} tokens", short, in_crops(args.short_size)),
            "window": System("window in every layer", with_attention(window), whole),
            "globals": System("longformer, <cls> global", with_attention({**window, "mechanism": "longformer"}), whole),
            "first-full": System("window, the first layer full", with_attention(first_full), whole),
            FULL: System("full attention", with_attention(full), whole),
        }

    def about_model(self, settings: Mapping[str, Any]) -> str:
        kind = {"rotary": "rotary positions", "absolute": "a table of positions"}[self.positions]
        return f"An ESM of {settings['layers']} layers and width {settings['width']} with {kind}"

    def tokens(self, size: int) -> str:
        return f"{size - 2:,} residues"

    def of_size(self, size: int) -> str:
        return f"{size:,} {self.unit}"


class ResiduesWithTable(Residues):
    """The same task for an ESM with a table of positions."""

    name = "residues_absolute"
    positions = "absolute"
    defaults = {**Residues.defaults, "systems": ["crops", "first-full"]}


def whole(model: nn.Module, inputs: Tensor, labelled: Labelled) -> Tensor:
    """Reads chains in one pass."""
    return model(input_ids=inputs).logits


def in_crops(size: int) -> Read:
    """Reads chains in crops of so many tokens, with ``<cls>`` and ``<eos>`` of their own; the last crop ends where the chain does."""

    def read(model: nn.Module, inputs: Tensor, labelled: Labelled) -> Tensor:
        first, residues, last = inputs[:, :1], inputs[:, 1:-1], inputs[:, -1:]
        step, length = size - 2, residues.shape[1]
        logits = torch.zeros(())
        for end in [*range(step, length, step), length]:
            start = max(0, end - step)
            part = whole(model, torch.cat([first, residues[:, start:end], last], 1), labelled)
            logits = part[:, :-1] if start == 0 else torch.cat([logits[:, : start + 1], part[:, 1:-1]], 1)
        return torch.cat([logits, part[:, -1:]], 1)

    return read


TASKS = (Residues, ResiduesWithTable)

if __name__ == "__main__":
    run_study(TASKS)
