"""Code that turns a model class of transformers into a Long one. The families are in :mod:`hf_longattn.families`.

- :mod:`.family`: a family's entry, its config and its lengths;
- :mod:`.attach`: mechanisms, memory tokens and weights on the modules of a model;
- :mod:`.run`: how a base model is run;
- :mod:`.inference`: packed layers, and attention with fewer heads;
- :mod:`.mixin`, :mod:`.classes`: the Long classes; :mod:`.generic`: models of any other architecture.

Each module imports only from those above it in this list.
"""
