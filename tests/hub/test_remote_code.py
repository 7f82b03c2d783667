"""A model with the file of `--remote-code` loads in a program that does not import the package, as the package's own
class."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import CheckpointError
from hf_longattn.families import LongBertConfig, LongBertForMaskedLM, LongBertModel, LongMultimodalModel
from hf_longattn.files import read_json, write_json
from hf_longattn.hub import push_model, write_remote_code
from scripts.dev.tools.small_models import small_values

from ..fresh_processes import run_fresh
from ..hub_server import WRITER, Hub, serve
from ..permissions import bound_by_permissions
from .conftest import CASES

IDS = [[(7 * number) % 190 + 5 for number in range(90)]]
PROGRAM = """
import sys, json, torch, transformers
from pathlib import Path
from transformers import dynamic_module_utils
dynamic_module_utils.HF_MODULES_CACHE = "modules"
assert "hf_longattn" not in sys.modules
load = transformers.{auto}.from_pretrained
model = load({repo!r}, trust_remote_code=True).eval()
assert "hf_longattn" in sys.modules
assert type(model).__module__.startswith("hf_longattn."), type(model)
model.save_pretrained("saved")
assert [file.name for file in Path("saved").glob("*.py")] == [file.name for file in Path({repo!r}).glob("*.py")]
again = load("saved").eval()
ids = torch.tensor({ids})
with torch.no_grad():
    torch.save([model(ids)[0], again(ids)[0]], "outputs.pt")
{more}
"""


def with_code(converted: Callable[[str], Path], folder: Path, name: str) -> Path:
    shutil.copytree(converted(name), folder / name)
    write_remote_code(folder / name)
    return folder / name


def loaded_elsewhere(
    repo: Path | str, auto: str, folder: Path, more: str = "", **environment: str
) -> list[torch.Tensor]:
    program = PROGRAM.format(auto=auto, repo=str(repo), ids=IDS, more=more)
    done = run_fresh(
        "-c", program, env={**os.environ, "HF_HUB_OFFLINE": "1", **environment}, cwd=folder, level="transformers"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "outputs.pt", weights_only=True)


@pytest.mark.parametrize("name", ["bert", pytest.param("bart", marks=pytest.mark.thorough)])
def test_remote_code_loads_a_model_where_the_package_is_not_imported(
    name: str, converted: Callable[[str], Path], tmp_path: Path
) -> None:
    repo = with_code(converted, tmp_path, name)
    model = getattr(transformers, CASES[name].auto).from_pretrained(repo).eval()
    with torch.no_grad():
        expected = model(torch.tensor(IDS))[0]
    for found in loaded_elsewhere(repo, CASES[name].auto, tmp_path):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    auto_map = read_json(repo / "config.json")["auto_map"]
    assert {"AutoConfig", "AutoModel", CASES[name].auto} <= set(auto_map)
    assert set(auto_map.values()) <= {
        f"modeling_long_{name}.{line}" for line in dir(sys.modules[type(model).__module__])
    }


@pytest.mark.slow
def test_card_of_a_pushed_model_with_remote_code_can_be_followed(
    converted: Callable[[str], Path], hub: Callable[[str], None], tmp_path: Path
) -> None:
    repo = Path(shutil.copytree(converted("gpt2"), tmp_path / "gpt2"))
    with serve(Hub()) as server:
        hub(server.endpoint)
        push_model(repo, "writer/long-gpt2", remote_code=True, token=WRITER)
        card = server.repos["writer/long-gpt2"].branches["main"]["README.md"].decode()
        assert "passes `trust_remote_code=True` to `from_pretrained`" in card
        [code] = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        without = "".join(line for line in code.splitlines(keepends=True) if "import hf_longattn" not in line)
        without = without.replace(
            'LM.from_pretrained("writer/long-gpt2"', 'LM.from_pretrained("writer/long-gpt2", trust_remote_code=True'
        )
        online = {
            "HF_HOME": str(tmp_path / "home"),
            "HF_ENDPOINT": server.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        found, again = loaded_elsewhere("writer/long-gpt2", CASES["gpt2"].auto, tmp_path, without, **online)
    with torch.no_grad():
        expected = transformers.AutoModelForCausalLM.from_pretrained(repo).eval()(torch.tensor(IDS)).logits
    assert torch.equal(found, expected)
    assert torch.equal(again, expected)


def test_remote_code_says_in_one_sentence_that_the_package_is_missing(
    converted: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = with_code(converted, tmp_path, "bert") / "modeling_long_bert.py"
    monkeypatch.setitem(sys.modules, "hf_longattn", None)
    monkeypatch.delitem(sys.modules, "hf_longattn.families")
    with pytest.raises(
        ImportError,
        match=r"^This model needs hf_longattn; type: pip install \. in a clone of the hf_longattn repository\.$",
    ):
        exec(compile(file.read_text(), file, "exec"), {})


def test_conversion_with_remote_code_writes_its_file(converted: Callable[[str], Path], tmp_path: Path) -> None:
    source, long = converted("bert").with_name("source"), tmp_path / "long"
    convert_checkpoint(source, long, mechanism="window", window=16, verify=False, remote_code=True)
    assert (long / "modeling_long_bert.py").is_file()
    assert "trust_remote_code=True" in (long / "README.md").read_text()


@pytest.mark.parametrize("trusted", [None, False, True])
def test_imported_package_goes_before_remote_code(
    trusted: bool | None, converted: Callable[[str], Path], tmp_path: Path
) -> None:
    repo = with_code(converted, tmp_path, "bert")
    (repo / "modeling_long_bert.py").write_text("raise RuntimeError('it ran')")
    model = transformers.AutoModelForMaskedLM.from_pretrained(repo, trust_remote_code=trusted)
    assert type(model) is LongBertForMaskedLM


def test_remote_code_is_saved_with_a_model_that_was_loaded_beside_it(
    converted: Callable[[str], Path], tmp_path: Path
) -> None:
    repo = with_code(converted, tmp_path, "bert")
    model = LongBertForMaskedLM.from_pretrained(repo)
    for folder, settings in (("saved", {}), ("elsewhere", {"is_main_process": False})):
        model.save_pretrained(tmp_path / folder, **settings)
    assert not (tmp_path / "elsewhere" / "modeling_long_bert.py").exists()
    assert (tmp_path / "saved" / "modeling_long_bert.py").read_bytes() == (repo / "modeling_long_bert.py").read_bytes()
    maps = [read_json(folder / "config.json")["auto_map"] for folder in (repo, tmp_path / "saved")]
    assert maps[0] == maps[1]
    (repo / "modeling_long_bert.py").unlink()
    LongBertForMaskedLM.from_pretrained(repo).save_pretrained(tmp_path / "without")
    assert "auto_map" not in read_json(tmp_path / "without" / "config.json"), "it would name files that are not there"


def test_remote_code_is_saved_with_a_model_of_several_modalities(tmp_path: Path) -> None:
    images, again = tmp_path / "images", tmp_path / "saved"
    LongMultimodalModel.of(LongBertModel(LongBertConfig(**small_values("bert")))).save_pretrained(images)
    assert write_remote_code(images) == ["modeling_long_multimodal.py", "config.json"]
    LongMultimodalModel.from_pretrained(images).save_pretrained(again)
    first, second = (
        ((folder / "modeling_long_multimodal.py").read_text(), read_json(folder / "config.json"))
        for folder in (images, again)
    )
    assert (first[0], first[1]["auto_map"]) == (second[0], second[1]["auto_map"])


def test_writing_remote_code_again_replaces_its_file_alone(converted: Callable[[str], Path], tmp_path: Path) -> None:
    repo = with_code(converted, tmp_path, "llama")
    for name in ("mine.py", "modeling_long_mine.py"):
        (repo / name).write_text(f"# {name}\n")
    before = {path.name: path.read_bytes() for path in repo.iterdir()}
    assert write_remote_code(repo) == ["modeling_long_llama.py", "config.json"]
    assert {path.name: path.read_bytes() for path in repo.iterdir()} == before


def test_remote_code_does_not_replace_a_file_of_the_user(converted: Callable[[str], Path], tmp_path: Path) -> None:
    repo = shutil.copytree(converted("llama"), tmp_path / "llama")
    before = {path.name: path.read_bytes() for path in repo.iterdir()}
    taken = repo / "modeling_long_llama.py"
    for make, remove in ((lambda: taken.write_text("mine = 1\n"), taken.unlink), (taken.mkdir, taken.rmdir)):
        make()
        with pytest.raises(
            CheckpointError, match=r"modeling_long_llama\.py' would be replaced, but hf_longattn did not write it"
        ):
            write_remote_code(repo)
        remove()
        assert {path.name: path.read_bytes() for path in repo.iterdir()} == before


def test_remote_code_refuses_a_folder_without_a_long_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json' cannot be read: No such file"):
        write_remote_code(tmp_path)
    for model_type in ("bert", "long_generic_bert"):
        write_json(tmp_path / "config.json", {"model_type": model_type, "long_attention": {}})
        with pytest.raises(CheckpointError, match="needs no code of this package"):
            write_remote_code(tmp_path)


def test_remote_code_refuses_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "long_bert", "long_attention": {}}')
    tmp_path.chmod(0o500)
    with (
        bound_by_permissions(),
        pytest.raises(CheckpointError, match=r"Cannot write in .*: Permission denied; nothing was written"),
    ):
        write_remote_code(tmp_path)
