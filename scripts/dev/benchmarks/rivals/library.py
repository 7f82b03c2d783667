"""Graphs that sentence-transformers makes of all-MiniLM-L6-v2 with optimum (``backend="onnx"`` and ``"openvino"``).

    PYTHONPATH=HOME/st:. python -m scripts.dev.benchmarks.rivals.library HOME st-onnx FOLDER

Optimum needs transformers 4, so its packages lie in a folder of their own. torch and the engines are the project's.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from scripts.dev.benchmarks.rivals.plan import arguments

PACKAGES = (
    "sentence-transformers==5.1.2",
    "transformers==4.57.6",
    "tokenizers==0.22.2",
    "huggingface_hub==0.36.2",
    "optimum==2.3.0",
    "optimum-onnx==0.1.0",
    "optimum-intel==2.2.0",
    "datasets==4.0.0",
    "nncf==3.4.0",
)
WORDS = ["every", "window", "of", "tokens", "in", "this", "court", "is", "read", "by", "the", "north"]
"""Words of the texts by which int8 is calibrated."""


def quantise(model: Any, folder: Path) -> None:
    """Static int8 as by ``export_static_quantized_openvino_model``, whose texts are a data set of the Hub."""
    from datasets import Dataset
    from optimum.intel import (  # type: ignore[import-not-found]
        OVConfig,
        OVQuantizationConfig,
        OVQuantizer,
    )

    texts = [" ".join(WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(200)) for i in range(64)]
    tokens = model.tokenizer(texts, padding="max_length", max_length=384, truncation=True)
    names = ("input_ids", "attention_mask", "token_type_ids")
    OVQuantizer.from_pretrained(model[0].auto_model).quantize(
        ov_config=OVConfig(quantization_config=OVQuantizationConfig()),
        calibration_dataset=Dataset.from_dict({name: tokens[name] for name in names}),
        save_directory=str(folder / "openvino"),
    )


def make(source: Path, graph: str, folder: Path) -> None:
    """Write ``model.onnx`` or ``openvino_model.xml`` of a sentence encoder into ``folder``."""
    from sentence_transformers import (
        SentenceTransformer,
        export_dynamic_quantized_onnx_model,
        export_optimized_onnx_model,
    )

    backend: Any = "openvino" if graph.startswith("st-ov") else "onnx"
    model = SentenceTransformer(str(source), backend=backend, device="cpu", model_kwargs={"export": True})
    with tempfile.TemporaryDirectory(dir=folder) as work:
        if graph in ("st-onnx", "st-ov"):
            model.save_pretrained(work)
        elif graph == "st-ov-int8":
            quantise(model, Path(work))
        elif graph == "st-onnx-O3":
            export_optimized_onnx_model(model, "O3", work)
        else:
            export_dynamic_quantized_onnx_model(model, graph.removeprefix("st-onnx-"), work)
        files = [*Path(work).rglob("*.xml" if backend == "openvino" else "*.onnx")]
        if graph.startswith("st-onnx-"):  # the exact graph may lie beside it
            files = [file for file in files if file.name != "model.onnx"]
        (file,) = files
        if backend == "openvino":
            shutil.copyfile(file, folder / "openvino_model.xml")
            shutil.copyfile(file.with_suffix(".bin"), folder / "openvino_model.bin")
        else:
            shutil.copyfile(file, folder / "model.onnx")


def source_of(home: Path) -> Path:
    """The folder of the sentence encoder with the weights of the measured checkpoint."""
    from scripts.dev.real import real_checkpoint

    folder = home / "models" / "minilm" / "st"
    if not folder.exists():
        shutil.copytree(real_checkpoint(), folder)
        for name in ("model.safetensors", "config.json"):
            shutil.copyfile(home / "models" / "minilm" / "hf" / name, folder / name)
    return folder


if __name__ == "__main__":
    folder, graph, output = arguments(__doc__, "source", "graph", "output")
    make(Path(folder), graph, Path(output))
