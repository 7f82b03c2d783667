"""Put ``configs/`` into wheels, and the types of the Long classes into wheels and source distributions.

Wheels carry ``configs/`` as ``hf_longattn/configs``. An editable installation reads the checkout's own: a copy in
site-packages would be a second, older one, and a folder there that can be imported as ``hf_longattn`` without the
package.

``hf_longattn/families/*.pyi`` are generated (:mod:`scripts.dev.tools.class_stubs`) and not in git. Their signatures
are transformers', so they are written where torch and transformers can be imported: in a checkout by ``make install``,
``make lint`` and ``make format``, and by this hook in a build without isolation
(``pip wheel --no-deps --no-build-isolation .``). An isolated build takes those that the checkout has, and a source
distribution brings its own. Without any, the package works, and type checkers do not know the Long classes.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NEEDED = ("torch", "transformers")
WITHOUT_STUBS = (
    "The distribution has no types of the Long classes for type checkers, since {missing} cannot be imported here; "
    "build it with --no-build-isolation where the dependencies of hf_longattn are installed."
)


class WheelContents(BuildHookInterface):
    """Called by hatchling, which is told of this file in ``pyproject.toml``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the stubs into the checkout before its files are collected; an editable installation reads the
        checkout itself."""
        if version == "editable":
            return
        root = Path(self.root)
        if self.target_name == "wheel":
            build_data["force_include"][str(root / "configs")] = "hf_longattn/configs"
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if not missing:
            paths = os.pathsep.join(path for path in (str(root), os.environ.get("PYTHONPATH")) if path)
            command = [sys.executable, "-m", "scripts.dev.tools.class_stubs"]
            subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": paths}, check=True)
        elif not (root / "hf_longattn" / "families" / "__init__.pyi").is_file():
            self.app.display_warning(WITHOUT_STUBS.format(missing=" and ".join(missing)))
