"""Commands and programs of the documentation that no test of pages types, with the reason, and where they are tried
instead.

Everything else in a code block is typed by ``tests/test_pages.py``.
"""

from __future__ import annotations

SHOWN_ELSEWHERE = "an example of code to add, which the test named here puts in place: "
TIMES = "measures times for half an hour: tests/scripts/dev/benchmarks runs it on less"
INSTALLED = "needs a package that only this page installs"
SERVED = "needs a server in an environment of its own"
ENGINE = "needs an engine of `make llama-cpp`: tests/export/test_engines.py runs its converter and server"
KERNEL = "needs `kernels`, which fits another transformers: `make test-kernel` builds, loads and publishes"
SERVICE = "needs an account of a service outside"

NOT_TYPED: dict[str, dict[str, str]] = {
    "CONTRIBUTING.md": {
        "make install": "installs from an index",
        "make test": "is these tests",
        "make format": "changes the clone",
        ".venv/bin/python -m scripts.dev.benchmarks": TIMES,
        "make docs": "is tests/test_docs.py",
        "make release": "builds: tests/scripts/dev/tools/test_tools.py",
        '"""My attention': SHOWN_ELSEWHERE + "tests/mechanisms/test_registry.py",
    },
    "docs/extending.md": {
        "make docs": "is tests/test_docs.py",
        "make format docs": "changes the clone",
        ".venv/bin/p": "is for the file that was added, and is these tests",
        "from typing import Any": SHOWN_ELSEWHERE + "tests/families/test_new_family.py",
    },
    "docs/results/rivals.md": {
        "python -m scripts.dev.benchmarks.rivals --setup": "downloads, and makes graphs for an hour",
        "python -m scripts.dev.benchmarks.rivals --minutes": TIMES,
    },
    "docs/results/speed.md": {
        "python -m scripts.dev.benchmarks attention": TIMES,
        "python -m scripts.dev.benchmarks model": TIMES,
        "python -m scripts.dev.benchmarks.gpu_check": "needs a GPU: tests/scripts/dev/benchmarks runs it without one",
        "make bench": TIMES,
    },
    "docs/how-to/hub.md": {"hf auth login": "asks for the token of an account"},
    "docs/how-to/retrieve.md": {"import pandas": "needs Java and Spark"},
    "docs/how-to/recipes.md": {
        "longattn train qa --config longformer-triviaqa": "trains for days",
        "python scripts/prepare_triviaqa.py": "reads TriviaQA from the Hub",
    },
    "docs/how-to/evaluate.md": {"python -c": INSTALLED},
    "docs/how-to/kernel.md": {
        "python scripts/build_kernel.py": KERNEL,
        "python scripts/push_kernel.py": KERNEL,
        "LOCAL_KERNELS=": KERNEL,
        "from transformers": KERNEL,
    },
    "docs/how-to/serve.md": {
        "vllm serve": "needs vLLM, which pins other versions: tests/modeling/test_vllm.py has a stand-in",
        "from sentence_transformers": SERVED,
        "INFINITY_MODEL_WARMUP": SERVED,
        "python server_reach.py": SERVED,
        "python llama.cpp": ENGINE,
        "llama-server": ENGINE,
    },
    "docs/how-to/gliner.md": {
        "from gliner": INSTALLED,
        "longattn convert encoder": INSTALLED,
        "import hf_longattn": INSTALLED,
        "model =": INSTALLED,
    },
    "docs/how-to/stock.md": {"from gliner": INSTALLED},
    "docs/install.md": {"git clone REPOSITORY": SERVICE},
}
"""Page -> the beginning of a command, or of a block of Python (of every one, if empty) -> why it is not typed."""


def reason_not_typed(page: str, typed: str) -> str:
    """Why a command or a program is not typed; empty for nearly everything."""
    return next((why for beginning, why in NOT_TYPED.get(page, {}).items() if typed.startswith(beginning)), "")
