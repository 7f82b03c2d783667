"""Warm-up, stable, decay: a learning-rate schedule whose end need not be known at the start (Hu et al. 2024, arXiv:2404.06395)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Schedule:
    """The learning rate's scale as a function of the tokens seen.

    ``warmup_tokens`` rise linearly; then 1 until the decay starts, which falls linearly to zero within ``decay_tokens``.
    """

    warmup_tokens: int
    decay_start: int | None = None
    decay_tokens: int = 0

    def scale(self, tokens: int) -> float:
        """Return the factor of the base learning rate at ``tokens``."""
        if self.decay_start is not None:
            return max(0.0, 1.0 - (tokens - self.decay_start) / self.decay_tokens)
        return min(1.0, (tokens + 1) / max(1, self.warmup_tokens))

    def start_decay(self, tokens: int, decay_tokens: int) -> None:
        """Start the decay now; a decay already under way is unchanged."""
        if self.decay_start is None:
            self.decay_start, self.decay_tokens = tokens, max(1, decay_tokens)

    def finished(self, tokens: int) -> bool:
        """Return whether the decay has come to its end."""
        return self.decay_start is not None and tokens >= self.decay_start + self.decay_tokens


def tokens_from(text: str, tokens_per_second: float) -> int:
    """Read a decay length: ``12000000`` tokens, or ``15m`` minutes at the present speed.

    Raises:
        ValueError: the text is neither.
    """
    text = text.strip()
    return round(float(text[:-1]) * 60 * tokens_per_second) if text.endswith("m") else int(text)
