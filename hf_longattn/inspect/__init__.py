"""Look at a model: what runs in every layer, what is seen, and how attention spreads over an input.

What runs, and why (``longattn inspect``):

paths            the engine path of every layer, and why not another

Which tokens reach which outputs, against the config (``longattn audit MODEL``):

audit            the audit of a model, a graph or a server, by all of these modules
declared         the reach that the config declares
targets          a model or a graph, and how its outputs change when tokens are replaced
server           a server of embeddings, in the same way
numbered_inputs  images and sounds made of numbered patches or frames
replacing        which tokens are replaced together, and what follows from the changes
verdict          the result: measured against declared reach
fixtures         tiny checkpoints with their reach, for the tests of engines

How attention spreads over an input (``longattn audit MODEL INPUT``):

attention        the diagnosis of a model on a text, image or sound, by all of these modules
loading          the checkpoint whose attention is watched
texts            token ids of a text
watching         queries and keys of every layer while a long or plain model runs
layer_attention  the softmax of one layer, for some queries at a time, and the numbers measured from it
candidates       the compared mechanisms, and the keys that each keeps
diagnosis        the result: numbers, conclusion, JSON

report           what terminal and page say of both; charts draws its figures
page             any report as one HTML page
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import public_names

if TYPE_CHECKING:
    from .attention import CapturedMass as CapturedMass
    from .attention import captured_mass as captured_mass
    from .attention import diagnose as diagnose
    from .audit import audit_reach as audit_reach
    from .candidates import Candidate as Candidate
    from .diagnosis import Diagnosis as Diagnosis
    from .diagnosis import LayerDiagnosis as LayerDiagnosis
    from .diagnosis import LengthDiagnosis as LengthDiagnosis
    from .page import html_page as html_page
    from .paths import Explanation as Explanation
    from .paths import explain as explain
    from .verdict import ReachAudit as ReachAudit
    from .verdict import StageReach as StageReach
    from .verdict import TowersAudit as TowersAudit

__getattr__, __all__ = public_names(__name__)
