"""Find the latest complete checkpoint, from which a run can resume."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_longattn.errors import CheckpointError, flag
from hf_longattn.names import LOGGER

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
STATE = "trainer_state.json"
"""The file that is written last."""
OF_OPTIMIZER = frozenset(("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"))
"""Options whose values a resumed run takes from the checkpoint."""

logger = logging.get_logger(LOGGER)


def newest_checkpoint(folder: Path, resumes: bool = True) -> str | None:
    """The latest checkpoint in ``folder`` whose files are complete; ``None`` if there is no checkpoint.

    Args:
        resumes: whether a training continues from it; if so, a warning names newer checkpoints that are damaged.

    Raises:
        CheckpointError: there are checkpoints, but none is complete.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(folder)):
        why = damage(path)
        if why is None:
            if damaged and resumes:
                logger.warning_once(f"Resuming from {path}, because {'; '.join(damaged)}.")
            return str(path)
        damaged.append(f"{path.name} {why}")
    if damaged:
        reasons = "; ".join(damaged)
        raise CheckpointError(
            f"No checkpoint in {str(folder)!r} is complete: {reasons}; to start again, give --overwrite without --resume."
        )
    return None


def checkpoint_to_resume(folder: Path) -> str:
    """The latest complete checkpoint in ``folder``.

    Raises:
        CheckpointError: no checkpoint is complete.
    """
    newest = newest_checkpoint(folder)
    if newest is None:
        raise CheckpointError(f"There is no checkpoint in {str(folder)!r} to resume from; leave --resume out to start a new training.")
    return newest


def check_same_model(checkpoint: Path, model: str, args: Any = None, run: Any = None) -> None:
    """Refuse another model or learning rate than the checkpoint's, which a resumed training would keep.

    Args:
        checkpoint: to resume from. It is accepted if it does not name its model.
        model: the name or folder of the model to train.
        args: of the training that resumes.
        run: all its arguments, to compare the data also.

    Raises:
        CheckpointError: the checkpoint is of another model or other data, or its optimizer has other values than ``args``.
    """
    settings = _state(checkpoint).get("stateful_callbacks", {}).get("RunSettings", {}).get("attributes", {}).get("settings", {})
    check_same_name(settings.get("model"), model, checkpoint)
    if run is not None:
        check_same_data(settings, run, checkpoint)
    for name in OF_OPTIMIZER & args.explicit.keys() if settings and args is not None else ():
        before, now = settings.get(name, type(args).__dataclass_fields__[name].default), getattr(args, name)
        if before != now:
            raise CheckpointError(
                f"The optimizer in {str(checkpoint)!r} continues with {name}={before}, as saved, not {now}; leave the option out, or "
                f"start a new training with --model {checkpoint} and another --output."
            )


def check_same_data(earlier: dict[str, Any], run: Any, folder: Path) -> None:
    """Refuse other data options or another seed than ``earlier``, which decide the rows that are trained on and held out.

    Raises:
        CheckpointError: naming the option. Nothing is refused if ``earlier``, the settings of the run in ``folder``, is empty.
    """
    settings: dict[str, Any] = run.settings
    for name in sorted({*run.data.__dataclass_fields__, "seed"}) if earlier else ():
        before, now = ([value] if isinstance(value, str) else value for value in (earlier.get(name), settings.get(name)))
        if isinstance(before, list) and isinstance(now, list) and len(before) == len(now) and all(map(_same_place, before, now)):
            continue
        if before != now:
            raise CheckpointError(
                f"{str(folder)!r} continues a training with another {flag(name)} ({earlier.get(name, 'the default')}), and rows that it "
                "trained on could be held out; give its data options and seed, or start a new training with another --output."
            )


def place_or_name(model: str) -> str:
    """The absolute path of a folder, or a name on the Hub. The path shows that it was a folder after it moves."""
    return str(Path(model).resolve()) if Path(model).exists() else model


def check_same_name(earlier_model: str | None, model: str, folder: Path) -> None:
    """As :func:`check_same_model`, for a ``folder`` that was trained from ``earlier_model``."""
    if earlier_model is None or _same_place(earlier_model, model):
        return
    raise CheckpointError(
        f"{str(folder)!r} continues a training of {earlier_model!r}, not of {model!r}; give --model {earlier_model}, or "
        f"--overwrite without --resume to train {model!r} from the beginning."
    )


def _same_place(earlier: str, now: str) -> bool:
    """Whether two names are equal or of one file or folder, which may have moved."""
    if earlier == now or place_or_name(earlier) == place_or_name(now):
        return True
    before, path = Path(earlier), Path(now).resolve()
    return before.is_absolute() and not before.exists() and path.exists() and before.name == path.name


def _state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return state


def checkpoints(folder: Path) -> list[Path]:
    """Trainer's checkpoints in ``folder``, complete or not, the latest last."""
    numbered = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def check_checkpoint(checkpoint: Path) -> str:
    """Return a checkpoint that was named explicitly.

    Raises:
        CheckpointError: the checkpoint is missing or incomplete.
    """
    if not checkpoint.is_dir():
        beside = ", ".join(str(path) for path in checkpoints(checkpoint.parent))
        advice = f"give {beside}" if beside else "leave --resume-from-checkpoint out"
        raise CheckpointError(f"There is no checkpoint {str(checkpoint)!r}; {advice}.")
    why = damage(checkpoint)
    if why is not None:
        raise CheckpointError(
            f"The checkpoint {str(checkpoint)!r} {why}; give another one, or --resume, which finds the latest complete one."
        )
    return str(checkpoint)


def damage(checkpoint: Path) -> str | None:
    """Why a checkpoint was not saved to its end, in words; ``None`` if it was. Trainer writes its state last."""
    try:
        state = _state(checkpoint)
        step, callbacks = state["global_step"], state.get("stateful_callbacks", {})
        processes = int(callbacks.get("Processes", {}).get("attributes", {}).get("count", 1))  # 1 if it does not say
    except FileNotFoundError:
        return "has no trainer_state.json"
    except (OSError, ValueError, KeyError, TypeError):
        return "has a damaged trainer_state.json"
    if f"checkpoint-{step}" != checkpoint.name:
        return f"has the trainer_state.json of step {step}"
    if any(path.is_dir() for path in checkpoint.iterdir()):  # FSDP and DeepSpeed keep weights and optimiser in folders
        return None
    random_states = [f"rng_state_{rank}.pth" for rank in range(processes)] if processes > 1 else []
    missing = next((name for name in ("optimizer.pt", *random_states) if not (checkpoint / name).exists()), None)  # --save-only-model
    return None if missing is None else f"has no {missing}"
