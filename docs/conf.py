"""The site: `make site` in a clone builds it into build/site, without a network and with every warning as an error.

The notebooks are executed by `make site NOTEBOOKS=cache` alone; any other build shows them without outputs.
"""

import os
import re
import sys
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

from docutils import nodes
from nbclient import NotebookClient
from pygments.formatters import HtmlFormatter
from sphinx.application import Sphinx
from sphinx.highlighting import PygmentsBridge
from sphinx.util.images import get_image_size

from hf_longattn import __version__

project = "hf_longattn"
author = "The hf_longattn authors"
copyright = "The hf_longattn authors"
version = release = __version__  # of the code described, not of whatever is installed

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "scripts/dev/README.md",
    "scripts/dev/results/*.md",
    "model_cards/**",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]
exclude_patterns = [".venv*", ".git", ".tmp", "build", "demo_output", "runs", "**/__pycache__"]
html_theme = "furo"
html_title = f"hf_longattn {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
templates_path: list[str] = []

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"

nb_execution_mode = "off"
nb_execution_cache_path = str(Path(__file__).resolve().parent.parent / "build" / "notebooks")
nb_execution_in_temp = True
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # progress bars, and what libraries log
# What a command prints comes in pieces; myst-nb would put each on a line of its own.
NotebookClient.__init__ = partialmethod(NotebookClient.__init__, coalesce_streams=True)  # type: ignore[method-assign]
# What kernels start with: the commands and packages of this Python, stand_ins.py, one thread, and no network.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).resolve().parent / "notebooks"), os.environ.get("PYTHONPATH", "")]
)
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_preprocess_types = True
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

TORCH = "https://docs.pytorch.org/docs/stable"
TRANSFORMERS = "https://huggingface.co/docs/transformers/main_classes"
ELSEWHERE = {
    "torch.Tensor": f"{TORCH}/tensors.html#torch.Tensor",
    "Tensor": f"{TORCH}/tensors.html#torch.Tensor",
    "torch.dtype": f"{TORCH}/tensor_attributes.html#torch.dtype",
    "torch.device": f"{TORCH}/tensor_attributes.html#torch.device",
    "torch.nn.Module": f"{TORCH}/generated/torch.nn.Module.html",
    "nn.Module": f"{TORCH}/generated/torch.nn.Module.html",
    "transformers.PreTrainedModel": f"{TRANSFORMERS}/model#transformers.PreTrainedModel",
    "PreTrainedModel": f"{TRANSFORMERS}/model#transformers.PreTrainedModel",
    "transformers.PreTrainedConfig": f"{TRANSFORMERS}/configuration#transformers.PreTrainedConfig",
    "transformers.Trainer": f"{TRANSFORMERS}/trainer#transformers.Trainer",
    "transformers.TrainingArguments": f"{TRANSFORMERS}/trainer#transformers.TrainingArguments",
}
"""Names of other projects that signatures mention -> their page. transformers publishes no inventory, and the site is
built offline."""


class CodeFormatter(HtmlFormatter[str]):
    """Keeps words with hyphens whole where site.css wraps a long line, such as the name of an option; browsers would
    break them."""

    def wrap(self, source: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
        word = re.compile(r"(?<![^\s>])([\w./]*-[\w./-]{1,40})(?![^\s<])")
        return super().wrap((kind, word.sub(r'<span class="word">\1</span>', line)) for kind, line in source)


PygmentsBridge.html_formatter = CodeFormatter


def link_elsewhere(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """A link to the project that a name comes from."""
    address = ELSEWHERE.get(node.get("reftarget", ""))
    return None if address is None else nodes.reference("", "", content, internal=False, refuri=address)


def add_title(app: Sphinx, document: str, source: list[str]) -> None:
    """A title for stored results that are a table alone: the name of their file."""
    if document.startswith("scripts/dev/results/") and not source[0].startswith("# "):
        source[0] = f"# {document.rpartition('/')[2].replace('_', ' ').replace('-', ' ').capitalize()}\n\n{source[0]}"


def mark_wide_images(app: Sphinx, doctree: nodes.document, document: str) -> None:
    """The class "wide" for images of several panels, which site.css treats differently on a phone."""
    for image in doctree.findall(nodes.image):
        size = get_image_size(str(Path(app.srcdir) / image["uri"]))
        if size and size[0] > 700:
            image["classes"].append("wide")


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_title)
    app.connect("doctree-resolved", mark_wide_images)
    app.connect("missing-reference", link_elsewhere)
