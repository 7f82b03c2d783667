"""A finite training set as groups of features of similar length."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from hf_longattn.training.qa_features import QAFeature, QAFormat, encode_qa


class GroupedFeatures(Dataset):
    """All features of the records, sorted into groups of similar length that hold about ``tokens_per_group`` tokens.

    Args:
        records: SQuAD-shaped.
        tokenizer: a fast tokenizer.
        form: whole documents or windows.
        tokens_per_group: about the padded tokens of a group.
        seed: which features of similar length come together.
    """

    def __init__(
        self,
        records: Iterable[Mapping[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        form: QAFormat,
        tokens_per_group: int,
        seed: int = 0,
    ) -> None:
        features = [feature for record in records for feature in encode_qa(record, tokenizer, form)]
        random.Random(seed).shuffle(features)
        features.sort(key=lambda feature: len(feature) // 32)
        self.groups: list[list[QAFeature]] = [[]]
        for feature in features:
            if self.groups[-1] and (len(self.groups[-1]) + 1) * len(feature) > tokens_per_group:
                self.groups.append([])
            self.groups[-1].append(feature)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> list[QAFeature]:
        return self.groups[index]
