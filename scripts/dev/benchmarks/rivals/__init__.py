"""Strong ways to run a model on a CPU, side by side: ours, transformers', llama.cpp's, ONNX Runtime's and OpenVINO's.

``plan`` says what is measured, ``prepare`` makes its files, ``measure`` is one process of a measurement, and ``table``
writes the tables of the documents. ``llama`` reaches llama.cpp, and ``library`` sentence-transformers' own graphs.
"""
