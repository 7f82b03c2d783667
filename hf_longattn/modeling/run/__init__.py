"""How a base model is run: once with the caller's arguments, or in a mode.

A call of a Long model, step by step:

1. A head (``LongAttentionMixin.with_arguments``) passes our arguments on to its base model, and adds the loss terms
   of mechanisms (:mod:`.losses`).
2. With ``memory=``, the outermost model runs in the mode :mod:`.memory`: the memory becomes a cache or memory tokens in the next steps.
3. The base model, ``LongBaseModelMixin``, takes our arguments (``read_arguments``). Its call may be sharded (:mod:`.sharding`: each
   process has a part of every row) or packed (:mod:`.packing`: the rows of a padded batch are one row of documents).
4. Otherwise ``run_whole`` checks lengths, detects packed documents (:mod:`.documents`), and marks tokens as global by their ids.
5. A model with memory tokens runs over one segment after another (:mod:`.segments`), with a cache if ``generate`` asks for one
   (:mod:`.segment_decoding`); every other model runs once.

Every mode has the same three steps (:class:`.modes.Mode`): ``prepare`` the inputs, or return ``None``; ``run`` the model once or several
times; ``restore`` the outputs. For base models, only :func:`.outputs.joined` knows every field of an output, and which fields have a
token axis. If an output has a field that the mode cannot restore, the call is refused.

If two modes apply to one call (``modes_of`` of the base model), both run, or only one does, or the call is refused. The table
:data:`.modes.MODE_INTERACTIONS` decides, and :func:`.modes.should_run` reads it:

============ ================ ================ ================
..           packing          segments         memory
============ ================ ================ ================
sharding     sharding runs    refused          refused
packing                       segments run     memory runs
segments                                       both run
============ ================ ================ ================

``tests/modes`` combines all modes with all other ways to call a model.
"""
