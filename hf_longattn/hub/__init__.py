"""What goes to the Hub with a model: the card, written from measured results."""

from .card import write_model_card
from .results import MeasuredResult

__all__ = ["MeasuredResult", "write_model_card"]
