"""How a Long model is run, step by step.

1. A head (``LongAttentionMixin.with_arguments``) passes our arguments on to its base model, and adds the loss terms
   of mechanisms (:mod:`.losses`).
2. With ``memory=``, the outermost model runs with a memory (:mod:`.memory`), which becomes a cache or memory tokens in the next steps.
3. The base model, ``LongBaseModelMixin``, takes our arguments (``read_arguments``), checks lengths, detects packed documents
   (:mod:`.documents`), and marks tokens as global by their ids.
4. A model with memory tokens runs over one segment after another (:mod:`.segments`); every other model runs once.

``tests/modes`` combines ways to call a model with each other.
"""
