"""The words of the lookup set: short and common in source code, one piece each in a tokenizer that was trained on code.

Names and values are disjoint, so that a reader can tell a hop from an answer.
"""

from __future__ import annotations

_NAMES = """
    account action address alpha angle archive argument array attribute axis basis batch beta bias binary bit block
    body bound branch bucket buffer builder byte cache canvas case cell center channel character child chunk client
    cluster code color column config current curve date day decimal degree delta depth device digest domain edge
    element engine entry epoch error event face factor factory family field figure file filter force form format
    fraction frame function future gamma gate gradient graph grid group handle handler hash head header height host
    image index integer item job kernel key label layer layout leaf length level library limit line link list loader
    lock log loop manager map mask matrix member memory merge message method metric mock mode model module moment
    name node norm number object offset option order origin package paper parent parser past patch path pattern pipe
    pixel plan plot point policy pool port power present process product profile program project proxy queue radius
    random range rank ratio reader record region release report result ring root row sample scalar scale score
    screen script second section seed series server shadow shape sigma signal size socket source space speed square
    stack stage state status step storage store stream string style sum symbol system table tag target task team
    tensor term test text theta thread time title token tool trace track train tree trust tuple type unit user
    vector version video view weight width window word worker world writer
"""
_VALUES = """
    active back bad basic best big blue bottom clean close closed common complex dense direct double down dynamic
    eager early empty equal exact false fast final first fixed flat free frozen full global good green half hard
    hidden high inner joint large last lazy left linear local long low lower main new normal old one open outer
    private public raw read real red right round safe shared short simple single slow small soft sparse special
    static strict three top true two unique up upper valid warm write zero
"""
NAMES: tuple[str, ...] = tuple(_NAMES.split())
VALUES: tuple[str, ...] = tuple(_VALUES.split())
