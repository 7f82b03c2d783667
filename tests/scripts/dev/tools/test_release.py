"""What is shipped: the files of wheel and source distribution, and the version."""

from __future__ import annotations

import re

import pytest

from scripts.dev.tools import release


@pytest.mark.thorough
def test_distributions_hold_the_files_that_they_should() -> None:
    """By hatchling's own list; recipes and metadata, which it adds while building, are checked by `make release`."""
    pytest.importorskip("hatchling")
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    stubs = release.stub_files()
    wheel, sdist = (builder(str(release.ROOT)) for builder in (WheelBuilder, SdistBuilder))
    for folder in (".tmp", "runs", "dist"):  # a link in one of them to a folder of the checkout would be taken for that folder
        assert sdist.config.directory_is_excluded(folder, ""), folder
    expected = {name for name in release.wheel_files() if not name.startswith(("hf_longattn/configs/", f"{release.NAME}.dist-info"))}
    packed = {file.distribution_path: 0 for file in wheel.recurse_included_files() if file.distribution_path not in stubs}
    assert release.differences(packed, expected - stubs, size=0, largest=0) == []
    expected = release.sdist_files() - {"PKG-INFO", ".gitignore", "pyproject.toml"}
    packed = {file.distribution_path: 0 for file in sdist.recurse_included_files() if file.distribution_path not in stubs}
    assert release.differences(packed, expected - stubs, size=0, largest=0) == []


def test_release_names_files_that_are_missing_foreign_or_too_large() -> None:
    packed = {"a.py": 10, "weights.bin": 2 * 10**6}
    assert release.differences(packed, {"a.py", "b.py"}, size=5, largest=4) == [
        "lacks b.py",
        "has weights.bin, which nobody expects",
        "has weights.bin of 2000000 bytes",
        "has 5 bytes, more than 4",
    ]


def test_citation_changelog_and_security_name_the_version() -> None:
    for file, pattern in {"CITATION.cff": r"^version: (\S+)$", "CHANGELOG.md": r"^## ([\d.]+)"}.items():
        versions = re.findall(pattern, (release.ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert versions[0] == release.VERSION, file
    minor = release.VERSION.rpartition(".")[0]
    assert f"| the newest {minor}.x | yes |" in (release.ROOT / "SECURITY.md").read_text(encoding="utf-8")
