"""A source format is one file dropped in place; what cannot be registered is refused with its file and line."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_longattn.conversion import convert_checkpoint, inspect_checkpoint, plan_conversion, sources
from hf_longattn.conversion.sources import base
from hf_longattn.conversion.sources.base import SourceFormat, register_source
from hf_longattn.conversion.sources.folder import Folder
from hf_longattn.errors import CheckpointError, RegistrationError
from hf_longattn.lazy import load_modules

ROOT = Path(__file__).resolve().parents[3]
HERE = re.escape(str(Path(__file__).resolve()))


@pytest.fixture
def npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example of a source as a file of the package."""
    load_modules("conversion.sources")  # the formats of the package, which stay
    (tmp_path / "dropped").mkdir()
    shutil.copy(ROOT / "examples" / "extend" / "npz.py", tmp_path / "dropped")
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path / "dropped")])
    monkeypatch.setattr(base, "FORMATS", dict(base.FORMATS))
    load_modules.cache_clear()
    yield
    load_modules.cache_clear()
    sys.modules.pop("hf_longattn.conversion.sources.npz", None)


@pytest.mark.thorough
@pytest.mark.usefixtures("npz")
def test_the_example_of_extending_is_a_source_like_any_other(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint("BertForMaskedLM", tokenizer="bert")
    old = load_file(source / "model.safetensors")
    np.savez(source / "weights.npz", **{name: values.numpy() for name, values in old.items()})
    (source / "model.safetensors").unlink()
    plan = plan_conversion(source, mechanism="window", window=16, max_length=200)
    assert plan.counts()["extended"] == 1
    assert inspect_checkpoint(source).parameters == sum(values.numel() for values in old.values())
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=200)
    assert report.passed
    assert "equal where the mechanism covers the input" in [check.name for check in report.checks if check.status == "passed"]
    assert load_file(tmp_path / "long" / "model.safetensors").keys() == old.keys()
    expected = {name: values.numpy() for name, values in old.items()}
    np.savez(source / "weights.npz", **{name: values.astype(values.dtype.newbyteorder(">")) for name, values in expected.items()})
    convert_checkpoint(source, tmp_path / "swapped", mechanism="window", window=16, max_length=200, verify=False)
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("long", "swapped")]
    assert all(torch.equal(files[1][name], values) for name, values in files[0].items())
    np.savez(source / "weights.npz", **expected, labels=np.array(["a", "b"]))
    with pytest.raises(CheckpointError, match=r"The array 'labels' of .* holds <U1, not numbers; leave it out of the file"):
        plan_conversion(source)
    (source / "weights.npz").write_text("no archive")
    with pytest.raises(CheckpointError, match=r"is not a whole \.npz file"):
        plan_conversion(source)


def test_a_missing_method_is_refused_with_file_and_line() -> None:
    class Half(SourceFormat):
        def recognises(self, request: object) -> bool:
            return False

    with pytest.raises(RegistrationError, match=rf"Source 'half' of {HERE}:\d+ lacks open\(\); define it as SourceFormat describes"):
        register_source("half")(Half)


def test_a_name_that_is_taken_is_refused_with_both_places() -> None:
    class Other(Folder):
        pass

    with pytest.raises(
        RegistrationError, match=rf"Two files register the source 'folder': .*folder\.py:\d+ and {HERE}:\d+; rename one of them"
    ):
        register_source("folder")(Other)


def test_something_else_is_refused() -> None:
    with pytest.raises(RegistrationError, match=r"Source 'text' of builtins\.str is not a class derived from SourceFormat"):
        register_source("text")(str)  # type: ignore[type-var]


def test_what_no_format_recognises_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text(json.dumps({}))
    for name, sentence in (("file.txt", "is a file; give the folder"), ("missing folder", "There is no folder")):
        with pytest.raises(CheckpointError, match=sentence):
            plan_conversion(tmp_path / name)
