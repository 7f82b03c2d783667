"""The folder of a search: its settings, what was measured, the study, and the result. One search at a time works in it.

settings.json   what the measurements depend on; a search resumes with the same ones only
costs.json      seconds and bytes of the candidates in one layer
scores.json     what each candidate is worth in each layer
study.journal   trials of stage 2
report.json, report.md, design.yaml
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from torch import Tensor

from ..conversion.model_loading import chosen_device
from ..conversion.tensor_files import write_json
from ..errors import CheckpointError, DestinationExistsError, LongAttentionError
from ..reading import check_name, read_json_object
from ..staging import staged_file, write_text
from .candidates import read_candidates
from .config import SearchConfig
from .inputs import digest
from .result import SearchResult
from .study import STUDY

SETTINGS, COSTS, SCORES, LOCK = "settings.json", "costs.json", "scores.json", ".lock"
DESIGN, REPORT, PAGE = "design.yaml", "report.json", "report.md"
MEASURED = (SCORES, STUDY, f"{STUDY}.lock", DESIGN, REPORT, PAGE, SETTINGS)
"""Files that ``overwrite`` removes; costs stay, since they do not depend on model or text."""


class SearchFolder:
    """A folder that this process alone searches in, after :func:`opened_folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, name: str) -> Path:
        """The path of a file in it."""
        return self.path / name

    def write_object(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON object; it appears whole, in place of an earlier one."""
        with staged_file(self.file(name)) as stage:
            write_json(stage, values)

    def stored(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The JSON object of a file, or else what ``compute`` returns, which is written there."""
        if self.file(name).is_file():
            return read_json_object(self.file(name))
        values = compute()
        self.write_object(name, values)
        return values

    def write(self, result: SearchResult) -> None:
        """Recipe and report."""
        head = f"# {result.command}\n# {' '.join(result.reason.split())}\n"
        recipe = yaml.safe_dump(dict(result.recipe), sort_keys=False, allow_unicode=True, width=200)
        write_text(self.file(PAGE), result.to_markdown())
        self.write_object(REPORT, result.to_dict())
        write_text(self.file(DESIGN), head + recipe)

    def begin(self, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> bool:
        """Store the settings of a search, and return whether it is new.

        Raises:
            DestinationExistsError: see :func:`opened_folder`.
        """
        name, known = str(self.path), {LOCK, COSTS, *MEASURED}
        new = overwrite or not self.file(SETTINGS).is_file()
        if not self.file(SETTINGS).is_file() and not known.issuperset(path.name for path in self.path.iterdir()):
            raise DestinationExistsError(f"{name!r} holds files that are not a search's; choose another --output.")
        if overwrite:
            self.remove(MEASURED)
        elif not new:
            stored = read_json_object(self.file(SETTINGS))
            if not resume:
                raise DestinationExistsError(
                    f"{name!r} holds a search; add --resume to continue it, --overwrite to start again, or choose another --output."
                )
            if first := next((setting for setting in settings if stored.get(setting) != settings[setting]), None):
                before = f"{first}={stored.get(first)!r:.80}, not {settings[first]!r:.80}" if first != "text" else "another text"
                raise DestinationExistsError(
                    f"The search in {name!r} was started with {before}; give the same settings, add --overwrite to start again, or choose "
                    "another --output."
                )
        self.write_object(SETTINGS, settings)
        return new

    def remove(self, names: Iterable[str]) -> None:
        """Remove files of these names."""
        for name in names:
            self.file(name).unlink(missing_ok=True)


@contextmanager
def opened_folder(path: str | Path, model: str, text: str | Path | Tensor, config: SearchConfig) -> Iterator[SearchFolder]:
    """The folder of a search, made if it does not exist; one process at a time has it.

    A new search that is refused leaves no files there, but the measured costs in a folder that existed.

    Raises:
        DestinationExistsError: it holds a search and neither ``resume`` nor ``overwrite`` is set, other settings, or something else; or
            another process is searching in it.
        CheckpointError: it cannot be made, or what it holds is damaged.
    """
    check_name(path)
    settings, folder = settings_of(model, text, config), SearchFolder(Path(path).expanduser())
    new_folders = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.file(LOCK), timeout=0)
        lock.acquire()
    except Timeout as error:
        raise DestinationExistsError(f"Another search is working in {str(path)!r}; wait for it, or choose another --output.") from error
    except OSError as error:
        raise CheckpointError(f"The folder {str(path)!r} cannot be made ({error.strerror}); choose another --output.") from error
    new = False
    try:
        new = folder.begin(settings, resume=config.resume, overwrite=config.overwrite)
        yield folder
    except LongAttentionError:
        lock.release()  # Windows removes no file that is locked
        if new and not folder.file(STUDY).exists():
            folder.remove((*MEASURED, LOCK, *([COSTS] if new_folders else [])))
            with suppress(OSError):  # not empty
                for empty in new_folders or [folder.path]:
                    empty.rmdir()
        raise
    finally:
        lock.release()


def settings_of(model: str, text: str | Path | Tensor, config: SearchConfig) -> dict[str, Any]:
    """What a search that resumes must have in common with the one that was stopped."""
    sizes = {"image_size": config.image_size and str(config.image_size), "audio_seconds": config.audio_seconds}
    return {
        "model": model, "revision": config.revision, "text": digest(text), "budget": str(config.limit()), "mode": config.mode,
        "length": config.length, "positions": config.positions, **{name: size for name, size in sizes.items() if size is not None},
        "candidates": list(map(str, read_candidates(config.candidates))), "score": config.judged_by, "objective": config.objective,
        "pieces": config.pieces, "queries": config.queries, "compare_at": config.compare_at, "seed": config.seed,
        "device": str(chosen_device(config.device)),
    }  # fmt: skip
