"""Recall against state size (Arora et al. 2024, Based, figure 2): one small model for each setting of a mechanism, trained on the task."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

import hf_longattn
from hf_longattn import LongAttentionConfig
from hf_longattn.evaluation.probes import IGNORED
from hf_longattn.memory import cache_bytes


class TrainedTask(Protocol):
    """A task of :mod:`hf_longattn.evaluation.probes` that small models are trained on."""

    @property
    def length(self) -> int: ...

    @property
    def vocab(self) -> int: ...

    def easier(self, share: int) -> TrainedTask:
        """A ``share``-th of the task."""
        ...

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens and labels ``(B, N)``, -100 where nothing is asked."""
        ...


@dataclass(frozen=True)
class RecallSetting:
    """A model of two layers and its training.

    name: as it stands in tables.
    attention: mapping or :class:`hf_longattn.LongAttentionConfig`.
    steps: batches; training ends earlier when everything is recalled.
    """

    name: str
    attention: LongAttentionConfig
    width: int = 64
    heads: int = 2
    layers: int = 2
    steps: int = 1200
    batch: int = 48
    learning_rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class RecallResult:
    """accuracy: share of the asked keys whose value was named.
    state_bytes: memory of one sequence after the task's length, in the model's dtype.
    tokens_per_second: new tokens while decoding a batch of 32 at the task's length, one token at a time.
    steps, most_steps: batches of training, and how many there might have been; training ends earlier when everything is recalled.
    """

    name: str
    accuracy: float
    state_bytes: int
    tokens_per_second: float
    steps: int
    most_steps: int
    seconds: float


class RecallModel(nn.Module):
    """A short causal convolution over the embeddings, so that a value knows its key, as in the models of Zoology; then a Long GPT-2.

    Takes tokens ``(B, N)``; :attr:`head` makes logits of what it returns, ``(B, N, width)``.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.mixer = hf_longattn.LongGPT2Model(config)
        self.near = nn.Conv1d(config.n_embd, config.n_embd, NEAR, groups=config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, **arguments: Any) -> Tensor:
        embedded = self.mixer.wte(tokens)
        near = self.near(F.pad(embedded.mT, (NEAR - 1, 0))).mT
        return self.mixer(inputs_embeds=embedded + near, **arguments).last_hidden_state


NEAR = 3
"""Tokens that the convolution sees."""


def small_model(setting: RecallSetting, task: TrainedTask) -> RecallModel:
    """A model of the setting's shape with random weights, large enough for queries and keys of unit variance: from GPT-2's own, a
    thousand steps are not enough for anything but full attention."""
    torch.manual_seed(setting.seed)
    shape: dict[str, Any] = {"n_embd": setting.width, "n_head": setting.heads, "n_layer": setting.layers}
    shape["activation_function"] = "gelu_pytorch_tanh"  # GPT-2's, in one operation: a quarter of a training step is saved
    shape["n_positions"] = task.length + DECODED
    shape["initializer_range"] = setting.width**-0.5
    rates: dict[str, Any] = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    config = hf_longattn.LongGPT2Config(
        vocab_size=task.vocab, bos_token_id=0, eos_token_id=0, long_attention=setting.attention, **shape, **rates
    )
    return RecallModel(config)


DECODED = 16
"""Tokens decoded to measure the speed."""


def asked(model: RecallModel, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``(asked keys, vocab)`` and their labels."""
    chosen = labels != IGNORED
    return model.head(model(tokens, use_cache=False)[chosen]), labels[chosen]


@torch.no_grad()
def accuracy(model: RecallModel, task: TrainedTask, generator: torch.Generator, texts: int = 512) -> float:
    """Share of the asked keys whose value has the highest logit."""
    model.eval()
    logits, labels = asked(model, *task.batch(texts, generator))
    model.train()
    return (logits.argmax(-1) == labels).double().mean().item()


def train(model: RecallModel, setting: RecallSetting, task: TrainedTask, progress: Callable[[str], None]) -> int:
    """Train on easier texts, a quarter and half of the task, and on the task itself; returns the number of steps."""
    generator = torch.Generator().manual_seed(setting.seed + 1)
    held_out = torch.Generator().manual_seed(setting.seed + 2)
    tasks = [task.easier(share) for share in (4, 2, 1)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, setting.learning_rate, total_steps=setting.steps, pct_start=0.1)
    for step in range(1, setting.steps + 1):
        logits, labels = asked(model, *tasks[step % len(tasks)].batch(setting.batch, generator))
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 200 == 0:
            found = accuracy(model, task, held_out, 128)
            progress(f"{setting.name}: step {step}, loss {loss.item():.3f}, recall {found:.3f}")
            if found > 0.995:
                return step
    return setting.steps


@torch.no_grad()
def decoding(model: RecallModel, task: TrainedTask, batch: int = 32) -> tuple[int, float]:
    """Bytes of state of one sequence, and new tokens in a second."""
    model.eval()
    tokens, _ = task.batch(batch, torch.Generator().manual_seed(0))
    cache = DynamicCache(config=model.mixer.config)
    model(tokens, past_key_values=cache)
    size = cache_bytes(cache) // batch
    model(tokens[:, :1], past_key_values=cache)
    started = time.process_time()
    for _ in range(DECODED - 1):
        model(tokens[:, :1], past_key_values=cache)
    return size, batch * (DECODED - 1) / (time.process_time() - started)


def measure_recall(
    settings: Iterable[RecallSetting], task: TrainedTask, progress: Callable[[str], None] = lambda line: None
) -> list[RecallResult]:
    """Train and measure each setting.

    Raises:
        LongAttentionError: a mechanism without a causal form, an unknown option.
    """
    results = []
    for setting in settings:
        started, model = time.perf_counter(), small_model(setting, task)
        steps = train(model, setting, task, progress)
        recalled = accuracy(model, task, torch.Generator().manual_seed(setting.seed + 3))
        size, speed = decoding(model, task)
        results.append(RecallResult(setting.name, recalled, size, speed, steps, setting.steps, time.perf_counter() - started))
        progress(f"{setting.name}: recall {recalled:.3f}, state {size} bytes, {steps} steps in {results[-1].seconds:.0f} s")
    return results


def measure_speeds(settings: Sequence[RecallSetting], task: TrainedTask, rounds: int = 5) -> list[float]:
    """Decoding speed of each setting, with random weights: the median over rounds in which all settings take turns, so that a machine
    that slows down affects all of them."""
    models = [small_model(setting, task) for setting in settings]
    found = [[decoding(model, task)[1] for model in models] for _ in range(rounds)]
    return [statistics.median(of_model) for of_model in zip(*found, strict=True)]


def recall_markdown(results: Sequence[RecallResult] | Sequence[dict[str, Any]]) -> str:
    """A table, the largest state first."""
    rows = [row if isinstance(row, dict) else asdict(row) for row in results]
    lines = ["| attention | recall, % | state of a sequence, KiB | tokens/s decoding | steps |", "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (-row["state_bytes"], row["name"])):
        steps = f"{row['steps']} of {row['most_steps']}"
        cells = (f"{100 * row['accuracy']:.1f}", f"{row['state_bytes'] / 1024:.1f}", f"{row['tokens_per_second']:.0f}", steps)
        lines.append("| " + " | ".join([row["name"], *cells]) + " |")
    return "\n".join(lines)
