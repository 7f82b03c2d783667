"""Names that several parts of the package share: of the backend, of files, their extensions and tags."""

BACKEND = "longattn"
"""The ``attn_implementation`` of Long models, and the name of the mask function. Names of cache layer types start with it, too."""
LOGGER = "transformers.hf_longattn"
"""The logger's name. It is below transformers' logger, whose verbosity then applies."""

CONVERSION_REPORT = "conversion_report.json"
"""File name of the report on how a checkpoint was converted."""
GRAPHS = {"onnx": "model.onnx", "torch": "model.pt2"}
"""Format of an exported graph -> its file in the folder."""
PREDICTIONS = ("predictions.json", "predictions.txt", "*_predictions.json", "null_odds.json")
"""Files with a training's answers to the validation data. Some of them quote the data."""
TAGS = ("hf_longattn", "long-context")
"""The tags of every long model on the Hub."""
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64")
"""Extensions of files that are read as sound."""
