"""What a stranger does who has transformers and not this package: load a model with its code, run it, save it, load it again.

Run as a script, ``stranger.py REQUEST``, with a JSON file: ``paths`` go first on ``sys.path``, from which the package's own
checkout is taken away; ``modules`` is where transformers puts code, where it was imported already; ``models`` are what to load,
``program`` is run in the end. It writes ``outputs.pt`` beside the request, and imports nothing of the project.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path


def main(request: Path) -> None:
    asked = json.loads(request.read_text())
    sys.path[:] = [*asked["paths"], *(path for path in sys.path if not (Path(path) / "hf_longattn" / "__init__.py").exists())]
    if importlib.util.find_spec("hf_longattn") is not None:
        raise SystemExit("hf_longattn can be imported here, so that nothing would be shown")

    import torch
    import transformers
    from transformers import dynamic_module_utils

    if asked["modules"] is not None:
        dynamic_module_utils.HF_MODULES_CACHE = asked["modules"]
    results: dict[str, object] = {"transformers": transformers.__version__}
    models = {}
    for name, one in asked["models"].items():
        load = getattr(transformers, one["auto"]).from_pretrained
        model = load(one["repo"], trust_remote_code=True).eval()
        models[name] = model
        tokenizer = transformers.AutoTokenizer.from_pretrained(one["repo"], trust_remote_code=True) if one["tokenizer"] else None
        tokens = tokenizer(one["text"], return_tensors="pt") if tokenizer else {"input_ids": torch.tensor(one["ids"])}
        with torch.no_grad():
            found = {"logits": model(**tokens)[0]}
        if one["generates"]:
            found["generated"] = model.generate(**tokens, max_new_tokens=8, do_sample=False)
        saved = request.parent / f"{name}-again"
        model.save_pretrained(saved)
        again = load(saved, trust_remote_code=True).eval()
        with torch.no_grad():
            found["again"] = again(**tokens)[0]
        config = transformers.AutoConfig.from_pretrained(saved, trust_remote_code=True)
        found["heads"] = sorted(json.loads((saved / "config.json").read_text())["auto_map"])
        found["config"] = type(config).__name__
        results[name] = found
        one["tokens"] = tokens
    for name, one in asked["models"].items():  # several copies of the code live in this process by now
        with torch.no_grad():
            results[name]["still"] = models[name](**one["tokens"])[0]
        models[name].use_base_attention("eager")
        models[name].set_attn_implementation("longattn")
        with torch.no_grad():
            results[name]["back"] = models[name](**one["tokens"])[0]
    if asked["program"]:
        exec(compile(asked["program"], "usage of the card", "exec"), {})
    torch.save(results, request.parent / "outputs.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
