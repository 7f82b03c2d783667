"""How a base model is run: once with the caller's arguments, or in a mode.

A mode changes the arguments of the base's ``forward``, calls it once or several times, and gives every field of the output the shape that
the caller expects (:mod:`.outputs`). The base model asks its modes in this order (``LongBaseModelMixin._run``):

- sharding (:mod:`.sharding`): the tokens of every row are those of one process of several;
- packing (:mod:`.packing`): the rows of a padded batch are one row of documents;
- segments (:mod:`.segments`): one segment of the text after another, with memory tokens.

A memory from call to call (:mod:`.memory`) belongs to the outermost model of a call, and reaches the base as a cache or as memory tokens.
Two modes compose, or the call is refused with one sentence; ``tests/modes`` crosses all of them, with all other ways to call a model.
"""
