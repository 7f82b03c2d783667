"""What goes to the Hub with a model: the card, written from measured results, the model's code, and the way there."""

from .card import MeasuredResult, model_card, write_model_card
from .push import PushReport, check_login, push_model
from .remote_code import BUNDLED_CODE, bundle_remote_code, check_remote_code
from .trainer_card import from_source, keep_model_card
from .usage import next_step

__all__ = [
    "BUNDLED_CODE",
    "MeasuredResult",
    "PushReport",
    "bundle_remote_code",
    "check_login",
    "check_remote_code",
    "from_source",
    "keep_model_card",
    "model_card",
    "next_step",
    "push_model",
    "write_model_card",
]
