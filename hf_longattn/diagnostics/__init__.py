"""What a model attends to as its text grows, and what each mechanism would keep of it: ``longattn diagnose``.

rows        the softmax of one layer, some queries at a time, and what is measured of it
watching    queries and keys at the moment of attention, in long and plain models
candidates  the mechanisms compared, and which keys each keeps
texts       token ids of a text, with and without a planted needle
loading     the checkpoint, with more positions if asked
measure     all of it together
diagnosis   the result: numbers, conclusion, recommendation, JSON
pictures    the same for a model of pictures: its attention on one picture, and what mechanisms on the grid would keep
sounds      the same for a model of sound, by time
receptive_field  how far a model of pictures or sound looks: features that change when patches or stretches are replaced
page        the result as one HTML page, by a template; charts draws its pictures
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
    from .pictures import PictureDiagnosis as PictureDiagnosis
    from .pictures import diagnose_picture as diagnose_picture
    from .pictures import picture_page as picture_page
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
        "page": ("html_page",),
        "pictures": ("PictureDiagnosis", "diagnose_picture", "picture_page"),
        "receptive_field": ("ReceptiveField", "measure_receptive_field"),
        "sounds": ("diagnose_sound",),
        "texts": ("Needle",),
    },
)
