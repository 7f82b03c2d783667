"""What goes to the Hub with a model: the card, written from measured results, and the model's code."""

from .card import write_model_card
from .remote_code import bundle_remote_code
from .results import MeasuredResult

__all__ = ["MeasuredResult", "bundle_remote_code", "write_model_card"]
