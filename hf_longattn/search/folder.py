"""The folder of a search: its settings, what was measured, the study, and the result. One search at a time works in it.

settings.json   what the measurements depend on; a search resumes with the same ones only
costs.json      seconds and bytes of the candidates in one layer
scores.json     what each candidate is worth in each layer
study.journal   trials of stage 2
report.json, report.md, pareto.svg, design.yaml
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ..conversion.tensor_files import write_json
from ..errors import CheckpointError, DestinationExistsError, LongAttentionError
from ..reading import check_name, read_json_object
from ..staging import staged_file, write_text
from .plot import draw_search
from .result import SearchResult
from .study import STUDY

SETTINGS, COSTS, SCORES, LOCK = "settings.json", "costs.json", "scores.json", ".lock"
DESIGN, REPORT, PAGE, PLOT = "design.yaml", "report.json", "report.md", "pareto.svg"
MEASURED = (SCORES, STUDY, f"{STUDY}.lock", DESIGN, REPORT, PAGE, PLOT, SETTINGS)
"""Files that ``overwrite`` removes; costs stay, since they do not depend on model or text."""


class SearchFolder:
    """A folder that this process alone searches in, after :func:`opened_folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, name: str) -> Path:
        """The path of a file or folder in it."""
        return self.path / name

    def stored(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The JSON object of a file, or else what ``compute`` returns, which is written there."""
        file = self.file(name)
        if file.is_file():
            return read_json_object(file)
        values = compute()
        with staged_file(file) as stage:
            write_json(stage, values)
        return values

    def write(self, result: SearchResult) -> None:
        """Recipe, report and figure; each appears whole, in place of an earlier one."""
        head = f"# {result.command}\n# {' '.join(result.reason.split())}\n"
        recipe = yaml.safe_dump(dict(result.recipe), sort_keys=False, allow_unicode=True, width=200)
        draw_search(result, self.file(PLOT))
        write_text(self.file(PAGE), result.to_markdown())
        with staged_file(self.file(REPORT)) as stage:
            write_json(stage, result.to_dict())
        write_text(self.file(DESIGN), head + recipe)


@contextmanager
def opened_folder(path: str | Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Iterator[SearchFolder]:
    """The folder of a search, made if it does not exist; one process at a time has it.

    Raises:
        DestinationExistsError: it holds a search and neither ``resume`` nor ``overwrite`` is given, other settings, or something else; or
            another process is searching in it.
        CheckpointError: it cannot be made, or what it holds is damaged.
    """
    check_name(path)
    folder = SearchFolder(Path(path).expanduser())
    new_folders = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.file(LOCK), timeout=0)
        lock.acquire()
    except Timeout as error:
        raise DestinationExistsError(f"Another search is working in {str(path)!r}; wait for it, or choose another --output.") from error
    except OSError as error:
        raise CheckpointError(f"The folder {str(path)!r} cannot be made ({error.strerror}); choose another --output.") from error
    refused = False
    try:
        new_search = not folder.file(SETTINGS).exists() or overwrite
        _check(folder, dict(settings), resume=resume, overwrite=overwrite)
        try:
            yield folder
        except LongAttentionError:
            refused = new_search and not folder.file(STUDY).exists()
            raise
    finally:
        lock.release()
        if refused:  # Windows removes no file that is locked
            _remove_files(folder, new_folders)


def _remove_files(folder: SearchFolder, new_folders: Sequence[Path]) -> None:
    """Remove the files of a refused search, and the folders created for it. Measured costs stay in a folder that existed."""
    for name in (*MEASURED, LOCK, *((COSTS,) if new_folders else ())):
        folder.file(name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        for empty in new_folders or [folder.path]:
            empty.rmdir()


def _check(folder: SearchFolder, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    file, name = folder.file(SETTINGS), str(folder.path)
    unknown = {path.name for path in folder.path.iterdir()} - {LOCK, COSTS, *MEASURED}
    if not file.is_file() and unknown:
        raise DestinationExistsError(f"{name!r} holds files that are not a search's; choose another --output.")
    if overwrite:
        for measured in MEASURED:
            folder.file(measured).unlink(missing_ok=True)
    elif file.is_file():
        stored = read_json_object(file)
        if not resume:
            raise DestinationExistsError(
                f"{name!r} holds a search; add --resume to continue it, --overwrite to start again, or choose another --output."
            )
        if differing := [setting for setting in settings if stored.get(setting) != settings[setting]]:
            first = differing[0]
            before = f"{first}={stored.get(first)!r:.80}, not {settings[first]!r:.80}" if first != "text" else "another text"
            raise DestinationExistsError(
                f"The search in {name!r} was started with {before}; give the same settings, add --overwrite to start again, or choose "
                "another --output."
            )
    with staged_file(file) as stage:
        write_json(stage, settings)
