"""Loads a model of texts and images with its bundled code, where the package cannot be imported: ``python towers_alone.py FOLDER``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main(folder: str) -> None:
    sys.path[:] = [path for path in sys.path if not (Path(path) / "hf_longattn" / "__init__.py").exists()]
    if importlib.util.find_spec("hf_longattn") is not None:
        raise SystemExit("hf_longattn can be imported here, so that nothing would be shown")

    import torch
    from transformers import AutoModel, dynamic_module_utils

    dynamic_module_utils.HF_MODULES_CACHE = str(Path(folder).parent / "modules")
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    outputs = model(torch.randint(5, 90, (2, 248)), torch.randn(2, 3, 32, 32), return_loss=True)
    print(type(model.text_model).__name__, bool(outputs.loss.isfinite()))


if __name__ == "__main__":
    main(sys.argv[1])
