"""Measure a model's attention as its text grows, and how much of it each mechanism would keep: ``longattn diagnose``.

layer_attention  the softmax of one layer, for some queries at a time, and the numbers measured from it
watching         queries and keys of every layer while a long or plain model runs
candidates       the compared mechanisms, and the keys that each keeps
texts            token ids of a text, with and without a planted needle
loading          the checkpoint, with extended positions if requested
measure          the diagnosis of a text model, by all of these modules
diagnosis        the result: numbers, conclusion, recommendation, JSON
pictures         the diagnosis of a picture model: attention on one picture, and how much mechanisms on a grid would keep of it
sounds           the diagnosis of a sound model, in frames and seconds
receptive_field  effective receptive field of a picture or sound model: feature changes when patches or frames are replaced
report           what terminal and page say of it; charts draws its figures
page             any report as one HTML page
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import public_names

if TYPE_CHECKING:
    from .candidates import Candidate as Candidate
    from .diagnosis import Diagnosis as Diagnosis
    from .diagnosis import LayerDiagnosis as LayerDiagnosis
    from .diagnosis import LengthDiagnosis as LengthDiagnosis
    from .diagnosis import Recommendation as Recommendation
    from .measure import CapturedMass as CapturedMass
    from .measure import captured_mass as captured_mass
    from .measure import diagnose as diagnose
    from .page import html_page as html_page
    from .page import picture_page as picture_page
    from .pictures import PictureDiagnosis as PictureDiagnosis
    from .pictures import diagnose_picture as diagnose_picture
    from .receptive_field import ReceptiveField as ReceptiveField
    from .receptive_field import measure_receptive_field as measure_receptive_field
    from .sounds import diagnose_sound as diagnose_sound
    from .texts import Needle as Needle

__getattr__, __all__ = public_names(
    __name__,
    {
        "candidates": ("Candidate",),
        "measure": ("CapturedMass", "captured_mass", "diagnose"),
        "diagnosis": ("Diagnosis", "LayerDiagnosis", "LengthDiagnosis", "Recommendation"),
        "page": ("html_page", "picture_page"),
        "pictures": ("PictureDiagnosis", "diagnose_picture"),
        "receptive_field": ("ReceptiveField", "measure_receptive_field"),
        "sounds": ("diagnose_sound",),
        "texts": ("Needle",),
    },
)
