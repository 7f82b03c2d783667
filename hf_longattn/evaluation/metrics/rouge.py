"""F-scores of ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum (Lin 2004), by the package ``rouge_score``, without stemming.

The package's tokenizer reads only a–z and digits. If a reference is mainly in another script, :class:`AnyScript`
splits the reference and its prediction into words.
"""

from __future__ import annotations

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from ...errors import check_extra
from ..summaries import means_in_percent

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
EXAMPLE = (["a red fox"], ["a red fox"], "rougeL")
"""Identical predictions and references, and the name of the score that must then be 100. Used by tests."""


def compute(predictions: list[str], references: list[str]) -> dict[str, float]:
    """Scores of predicted texts, such as summaries. ROUGE-Lsum compares the lines of two texts.

    Returns:
        rouge1, rouge2, rougeL and rougeLsum in per cent, their standard errors (rouge1_se, ...) for ten texts or more,
        and n, the number of texts.
    """
    check_extra("metrics", "rouge_score")
    from rouge_score.rouge_scorer import RougeScorer

    rows = []
    for prediction, reference in zip(predictions, references, strict=True):
        letters = [letter for letter in reference.lower() if letter.isalpha()]
        is_other_script = 2 * sum(letter > "z" for letter in letters) > len(letters)
        scorer = RougeScorer(NAMES, tokenizer=AnyScript() if is_other_script else None)
        scores = scorer.score(reference, prediction)
        rows.append([scores[name].fmeasure for name in NAMES])
    return means_in_percent(NAMES, rows)


class AnyScript:
    """A tokenizer for ``RougeScorer``: the lower-case words of BERT's tokenizer in any script, without punctuation."""

    normalise, split = BertNormalizer(strip_accents=False), BertPreTokenizer()

    def tokenize(self, text: str) -> list[str]:
        """The words of a text. Each Chinese character is a word."""
        words = self.split.pre_tokenize_str(self.normalise.normalize_str(text))
        return [word for word, _ in words if any(map(str.isalnum, word))]
