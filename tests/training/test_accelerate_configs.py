"""The configs for ``accelerate launch`` are what accelerate reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from hf_longattn.training.recipes import CONFIGS

FILES = sorted((CONFIGS / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_each_shipped_config_as_written(path: Path) -> None:
    load_config_from_file(str(path))
    args = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    args, _, _ = _validate_launch_command(args)
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert args.num_processes == written["num_processes"]
    assert args.mixed_precision == written["mixed_precision"]
    assert args.use_fsdp == (written["distributed_type"] == "FSDP")
    assert args.use_deepspeed == (written["distributed_type"] == "DEEPSPEED")
    for section in ("fsdp_config", "deepspeed_config", "parallelism_config"):
        for name, value in written.get(section, {}).items():
            assert str(getattr(args, name)).lower() == str(value).lower(), name


def test_accelerate_configs_are_ddp_fsdp2_zero2_and_zero3() -> None:
    assert [path.stem for path in FILES] == ["ddp", "fsdp2", "zero2", "zero3"]
