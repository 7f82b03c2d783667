"""Probes: synthetic tasks that measure what a model retrieves from a text, and over which distance.

RULER's tasks, HELMET's and ∞Bench's, passkey retrieval and ListOps are texts (:class:`TextTask`); associative recall, induction and copying
are rows of tokens (:class:`TokenTask`), on which small models can also be trained from scratch.
"""

from . import infbench as infbench
from .listops import ListOps
from .needles import Niah, Passkey
from .ruler import CommonWords, FrequentWords, VariableTracking
from .run import ProbeCell, ProbeRecord, ProbeReport, probe_model
from .scoring import candidate_log_likelihoods, masked_log_likelihoods, match_all, match_number
from .task import IGNORED, ProbeSample, ProbeTask, TextTask, TokenSample, TokenTask, list_probes, probe_task
from .token_tasks import Compositional, Copy, Forgetting, Induction, Mqar

__all__ = [
    "IGNORED",
    "CommonWords",
    "Compositional",
    "Copy",
    "Forgetting",
    "FrequentWords",
    "Induction",
    "ListOps",
    "Mqar",
    "Niah",
    "Passkey",
    "ProbeCell",
    "ProbeRecord",
    "ProbeReport",
    "ProbeSample",
    "ProbeTask",
    "TextTask",
    "TokenSample",
    "TokenTask",
    "VariableTracking",
    "candidate_log_likelihoods",
    "list_probes",
    "masked_log_likelihoods",
    "match_all",
    "match_number",
    "probe_model",
    "probe_task",
]
