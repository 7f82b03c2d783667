"""Word and character error rates of transcripts, by jiwer.

A rate is the number of substitutions, deletions and insertions in all transcripts, divided by the number of words or
characters in all references.
"""

from __future__ import annotations

from ...errors import check_extra
from ..summaries import Estimate, in_percent, ratio_and_error

EXAMPLE = (["a red fox"], ["one big bear"], "wer")
"""A prediction and a reference without a common word, and the name of the score that must then be 100. Used by
tests."""


def compute(predictions: list[str], references: list[str]) -> dict[str, float]:
    """Error rates of predicted texts. Differences in case and punctuation are errors, but not in white space.

    Returns:
        wer and cer in per cent, their standard errors over texts (wer_se, cer_se) for ten texts or more, and n, the
        number of texts.
    """
    check_extra("metrics", "jiwer")
    from jiwer import process_characters, process_words

    rates: dict[str, Estimate] = {}
    for name, process in (("wer", process_words), ("cer", process_characters)):
        pairs = []
        for prediction, reference in zip(predictions, references, strict=True):
            counts = process(reference, prediction)
            errors = counts.substitutions + counts.deletions + counts.insertions
            length = counts.substitutions + counts.deletions + counts.hits  # of the reference
            pairs.append((errors, length))
        rates[name] = ratio_and_error(pairs)
    return in_percent(rates, len(predictions))
