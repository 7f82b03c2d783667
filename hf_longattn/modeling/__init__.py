"""Code that turns a model class of transformers into a Long one. The families are in :mod:`hf_longattn.families`.

A call of a Long model, step by step:

1. A head (``LongAttentionMixin.with_arguments``) passes the arguments of this package, such as ``documents``, on to
   its base model. Afterwards it adds the auxiliary losses of mechanisms to its loss.
2. With ``memory=``, the outermost model runs with a memory, which becomes a cache or memory tokens in the next steps.
3. The base model, ``LongBaseModelMixin``, takes these arguments (``read_arguments``), checks lengths, detects packed
   documents, and finds global tokens by their ids.
4. A model with memory tokens runs over one segment after another (:mod:`.attach.memory_tokens`); every other model
   runs once.

``tests/modes`` tests combinations of the ways to call a model, such as padding with a cache.
"""
