"""Code is as published where the installed distribution's record or git's last commit says so, and nowhere else."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_longattn.errors import RemoteCodeError
from hf_longattn.hub import bundle_remote_code, provenance, remote_code
from hf_longattn.hub.provenance import Provenance


def test_files_of_an_installed_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, record = tmp_path / "hf_longattn", tmp_path / "hf_longattn-0.1.0.dist-info"
    package.mkdir()
    record.mkdir()
    good, bad, new = (package / name for name in ("good.py", "bad.py", "new.py"))
    for path in (good, bad, new):
        path.write_text(path.name)
    digest = {path: base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).decode().rstrip("=") for path in (good, bad)}
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: hf-longattn\nVersion: 0.1.0\n")
    (record / "RECORD").write_text("".join(f"hf_longattn/{path.name},sha256={digest[path]},7\n" for path in digest))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: importlib.metadata.PathDistribution(record))
    assert provenance.provenance([good]) == Provenance("hf_longattn 0.1.0", ())
    bad.write_text("changed")
    assert provenance.provenance([good, bad, new]) == Provenance("hf_longattn 0.1.0", (bad, new))


def test_files_of_a_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    kept, changed, new = (tmp_path / name for name in ("kept.py", "changed.py", "new.py"))
    kept.write_text("1")
    changed.write_text("2")
    assert provenance.provenance([kept]) is None
    git("init")
    assert provenance.provenance([kept]) is None
    git("add", ".")
    git("commit", "-m", "first")
    known = provenance.provenance([kept, changed])
    assert known is not None
    assert not known.modified
    assert "git commit" in known.origin
    changed.write_text("3")
    new.write_text("4")
    known = provenance.provenance([kept, changed, new])
    assert known is not None
    assert known.modified == (changed, new)


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        (None, "Neither an installed distribution nor a git checkout"),
        (Provenance("hf_longattn 0.1.0", (Path("hf_longattn/engines/dense.py"),)), r"not as it was published: \S*dense\.py"),
    ],
)
def test_what_is_not_as_published_is_bundled_only_when_that_is_said(
    known: Provenance | None, sentence: str, converted: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(converted("bert"), tmp_path / "bert")
    monkeypatch.setattr(remote_code, "provenance", lambda files: known)
    with pytest.raises(RemoteCodeError, match=sentence):
        bundle_remote_code(tmp_path / "bert")
    assert not list((tmp_path / "bert").glob("*.py"))
    bundle_remote_code(tmp_path / "bert", user_code=True)
    header = (tmp_path / "bert" / "modeling_long_bert.py").read_text()[:1500]
    assert ("unknown origin" if known is None else "with local changes") in header
