"""A model with its code loads where the package is not installed, with equal outputs; code counts as published where the installed
distribution's record or git's last commit contains it."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.dynamic_module_utils import get_imports, get_relative_imports

import hf_longattn
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import CheckpointError, RemoteCodeError
from hf_longattn.families import LongBertConfig, LongBertForMaskedLM
from hf_longattn.hub import bundle_remote_code, push_model, remote_code
from hf_longattn.hub.remote_code import Provenance, provenance
from hf_longattn.modeling.family.registration import auto_class_name
from hf_longattn.staging import write_text

from ..hub_server import serve
from ..hub_state import WRITER, Hub
from ..permissions import bound_by_permissions
from ..reference import small_models
from ..warm import run_fresh
from .conftest import CASES, TEXT, Case

SCRIPT = Path(__file__).with_name("stranger.py")
IDS = [[(7 * number) % 190 + 5 for number in range(90)]]
OLDEST = "5.20.0"


def bundled(converted: Callable[[str], Path], folder: Path, name: str) -> Path:
    shutil.copytree(converted(name), folder / name)
    bundle_remote_code(folder / name, user_code=True)
    return folder / name


def loaded_by_a_stranger(
    folder: Path,
    models: Mapping[str, Path | str],
    paths: Sequence[str] = (),
    *,
    cases: Mapping[str, Case] = CASES,
    tokenizers: bool = True,
    program: str = "",
    endpoint: str | None = None,
) -> dict[str, Any]:
    offline = endpoint is None and not paths
    request: dict[str, Any] = {"paths": list(paths), "models": {}, "program": program}
    request["modules"] = str(folder / "modules") if offline else None
    for name, repo in models.items():
        case = cases[name]
        told = {"tokenizer": tokenizers and case.tokenizer is not None, "text": TEXT, "ids": IDS, "generates": case.generates}
        request["models"][name] = {"repo": str(repo), "auto": case.auto, **told}
    (folder / "request.json").write_text(json.dumps(request))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if not offline:
        environment["HF_HOME"] = str(folder / "home")
    if endpoint is not None:
        environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment.pop("PYTHONPATH", None)
    done = run_fresh(SCRIPT, folder / "request.json", env=environment, cwd=folder, level="interpreter" if paths else "transformers")
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "outputs.pt", weights_only=True)


def check_against_the_package(name: str, repo: Path, found: dict[str, Any], tokenizers: bool = True) -> None:
    case = CASES[name]
    model = getattr(transformers, case.auto).from_pretrained(repo).eval()
    assert type(model).__module__ == f"hf_longattn.families.{name}"
    tokens: Any = {"input_ids": torch.tensor(IDS)}
    if tokenizers and case.tokenizer is not None:
        tokens = transformers.AutoTokenizer.from_pretrained(repo)(TEXT, return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens).logits
    for which in ("logits", "again", "still", "back"):
        torch.testing.assert_close(found[which], expected, rtol=0, atol=1e-6)
    if case.generates:
        assert torch.equal(found["generated"], model.generate(**tokens, max_new_tokens=8, do_sample=False))
    assert found["config"] == type(model.config).__name__
    assert {"AutoConfig", "AutoModel", case.auto} <= set(found["heads"])


@pytest.mark.parametrize("names", [("bart", "bert"), pytest.param([*CASES], marks=pytest.mark.slow)], ids=" ".join)
def test_models_load_without_the_package(names: Sequence[str], converted: Callable[[str], Path], tmp_path: Path) -> None:
    """The quick test has an encoder, and one with a decoder, which generates."""
    repos = {name: bundled(converted, tmp_path, name) for name in names}
    results = loaded_by_a_stranger(tmp_path, repos)
    assert results["transformers"] == transformers.__version__
    for name, repo in repos.items():
        check_against_the_package(name, repo, results[name])


@pytest.mark.slow
def test_a_stranger_follows_the_card_of_a_pushed_model(
    converted: Callable[[str], Path], hub: Callable[[str], None], tmp_path: Path
) -> None:
    repo = Path(shutil.copytree(converted("gpt2"), tmp_path / "gpt2"))
    with serve(Hub()) as server:
        hub(server.endpoint)
        push_model(repo, "writer/long-gpt2", remote_code=True, user_code=True, token=WRITER)
        card = server.repos["writer/long-gpt2"].branches["main"]["README.md"].decode()
        with_package, without = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        assert "import hf_longattn" in with_package
        assert "trust_remote_code" not in with_package
        assert 'from_pretrained("writer/long-gpt2", trust_remote_code=True)' in without
        results = loaded_by_a_stranger(tmp_path, {"gpt2": "writer/long-gpt2"}, program=without, endpoint=server.endpoint)
    check_against_the_package("gpt2", repo, results["gpt2"])


@pytest.mark.slow
def test_models_load_on_the_oldest_transformers(converted: Callable[[str], Path], tmp_path: Path) -> None:
    target = tmp_path / "packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, f"transformers=={OLDEST}"]
    subprocess.run(install, check=True)
    repos = {name: bundled(converted, tmp_path, name) for name in CASES}
    results = loaded_by_a_stranger(tmp_path, repos, [str(target), *site.getsitepackages()])
    assert results["transformers"] == OLDEST
    for name, repo in repos.items():
        check_against_the_package(name, repo, results[name])


@pytest.mark.slow
def test_every_family_loads_without_the_package(tmp_path: Path) -> None:
    cases, models, repos = {}, {}, {}
    for base in small_models.BASES:
        head = small_models.LANGUAGE_MODELS[base]
        attention = {"mechanism": "window" if base in small_models.CAUSAL else "longformer", "window": 16}
        plain = small_models.plain_model(base, head)
        models[base], repos[base] = small_models.long_like(plain, base, attention), tmp_path / base
        models[base].save_pretrained(repos[base])
        bundle_remote_code(repos[base], user_code=True)
        auto = auto_class_name(models[base].config, type(models[base]).__name__)
        assert auto is not None
        cases[base] = Case(head, auto, {}, generates=False)
    results = loaded_by_a_stranger(tmp_path, repos, cases=cases)
    for base, model in models.items():
        with torch.no_grad():
            torch.testing.assert_close(results[base]["logits"], model(torch.tensor(IDS))[0], rtol=0, atol=1e-6)


def test_a_conversion_with_its_code_and_back(converted: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = converted("bert").with_name("source")
    arguments: dict[str, Any] = {"mechanism": "window", "window": 16, "verify": False, "remote_code": True}
    monkeypatch.setattr(remote_code, "provenance", lambda files: None)
    with pytest.raises(RemoteCodeError, match="--bundle-user-code"):
        convert_checkpoint(source, tmp_path / "long", **arguments)
    assert not (tmp_path / "long").exists()
    convert_checkpoint(source, tmp_path / "long", **arguments, user_code=True)
    assert (tmp_path / "long" / "modeling_long_bert.py").is_file()
    assert "trust_remote_code=True" in (tmp_path / "long" / "README.md").read_text()


def test_the_files_are_flat_and_say_what_they_are(converted: Callable[[str], Path], tmp_path: Path) -> None:
    repo = bundled(converted, tmp_path, "gpt2")
    before = {path.name for path in converted("gpt2").iterdir()}
    files = {path.stem: path for path in repo.glob("*.py")}
    assert {path.name for path in repo.iterdir()} == before | {path.name for path in files.values()}
    assert not any(part in files for part in ("longattn_hub", "longattn_conversion", "longattn_families_registration"))
    for path in files.values():
        text = path.read_text()
        assert "Licensed under the Apache License" in text
        assert f"hf_longattn {hf_longattn.__version__}" in text
        assert "sha256" in text
        assert "from .." not in text
        assert set(get_relative_imports(path)) <= set(files)
        assert set(get_imports(path)) - set(sys.stdlib_module_names) <= {
            "torch",
            "transformers",
            "huggingface_hub",
            "numpy",
            "typing_extensions",
        }  # the last comes with torch
    assert set(get_relative_imports(files["modeling_long_gpt2"])) == set(files) - {"modeling_long_gpt2"}
    auto_map = json.loads((repo / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForCausalLM"] == "modeling_long_gpt2.LongGPT2LMHeadModel"
    assert auto_map["AutoModelForSequenceClassification"] == "modeling_long_gpt2.LongGPT2ForSequenceClassification"


def test_the_installed_package_goes_before_the_code_in_the_repository(converted: Callable[[str], Path], tmp_path: Path) -> None:
    repo = bundled(converted, tmp_path, "bert")
    model = transformers.AutoModelForMaskedLM.from_pretrained(repo)
    assert type(model) is LongBertForMaskedLM
    model.save_pretrained(tmp_path / "saved")
    assert not json.loads((tmp_path / "saved" / "config.json").read_text()).get("auto_map"), "it would name files that are not there"


def test_bundling_again_replaces_the_files(converted: Callable[[str], Path], tmp_path: Path) -> None:
    """Files of the user stay, whatever their names are."""
    repo = bundled(converted, tmp_path, "llama")
    for name in ("mine.py", "longattn_mine.py", "modeling_long_mine.py"):
        (repo / name).write_text(f"# {name}\n")
    users = {path.name: path.read_bytes() for path in repo.iterdir()}
    (repo / "longattn_mechanisms_gone.py").write_text(f"{remote_code.MARK} by an older version\n")
    bundle_remote_code(repo, user_code=True)
    assert {path.name: path.read_bytes() for path in repo.iterdir()} == users


def test_a_file_or_folder_of_the_user_with_a_bundled_name_is_refused(converted: Callable[[str], Path], tmp_path: Path) -> None:
    repo = shutil.copytree(converted("llama"), tmp_path / "llama")
    before = {path.name: path.read_bytes() for path in repo.iterdir()}
    for make in (lambda path: path.write_text("mine = 1\n"), Path.mkdir):
        make(repo / "longattn_naming.py")
        with pytest.raises(CheckpointError, match=r"longattn_naming\.py' has the name of a file that is bundled"):
            bundle_remote_code(repo, user_code=True)
        (repo / "longattn_naming.py").unlink() if (repo / "longattn_naming.py").is_file() else (repo / "longattn_naming.py").rmdir()
        assert {path.name: path.read_bytes() for path in repo.iterdir()} == before


@pytest.mark.parametrize("again", [False, True])
def test_an_interrupted_bundle_names_no_code(
    again: bool, converted: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a folder without code, and of one with an earlier bundle."""
    repo = bundled(converted, tmp_path, "llama") if again else shutil.copytree(converted("llama"), tmp_path / "llama")
    written: list[str] = []

    def killed_in_the_middle(file: Path, text: str) -> None:
        written.append(file.name)
        if len(written) > 30:
            raise KeyboardInterrupt
        write_text(file, text)

    monkeypatch.setattr(remote_code, "write_text", killed_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        bundle_remote_code(repo, user_code=True)
    assert "auto_map" not in json.loads((repo / "config.json").read_text())
    monkeypatch.undo()
    bundle_remote_code(repo, user_code=True)
    assert len(remote_code.bundled_code(repo)) == len([*repo.glob("*.py")]) > 30


MINE = '''
from dataclasses import dataclass
from hf_longattn import register_mechanism
from hf_longattn.mechanisms.window import Window
{more}

@register_mechanism("mine")
class Mine(Window):
    """A window of the author's own."""
'''


@pytest.fixture
def my_model(own_registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """my_model(more code) -> the folder of a model with a mechanism from a file ``mine_attention.py``."""

    def build(more: str = "") -> Path:
        (tmp_path / "mine_attention.py").write_text(MINE.format(more=more))
        (tmp_path / "helper_of_mine.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "mine_attention", raising=False)
        __import__("mine_attention")
        sizes = {"vocab_size": 1000, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        config = LongBertConfig(**sizes, max_position_embeddings=256, long_attention={"mechanism": "mine", "window": 16})
        LongBertForMaskedLM(config).save_pretrained(tmp_path / "bert")
        return tmp_path / "bert"

    return build


def test_a_mechanism_of_the_users_own_is_bundled_when_that_is_said(my_model: Callable[[str], Path], tmp_path: Path) -> None:
    repo = my_model("")
    with pytest.raises(RemoteCodeError, match=r"custom mechanism.*mine_attention.*--bundle-user-code"):
        bundle_remote_code(repo)
    assert not list(repo.glob("*.py"))
    bundle_remote_code(repo, user_code=True)
    assert "not part of hf_longattn" in (repo / "longattn_user_mine_attention.py").read_text()
    assert "Licensed" not in (repo / "longattn_user_mine_attention.py").read_text()
    results = loaded_by_a_stranger(tmp_path, {"bert": repo}, tokenizers=False)
    check_against_the_package("bert", repo, results["bert"], tokenizers=False)


def test_a_users_file_must_stand_alone(my_model: Callable[[str], Path]) -> None:
    with pytest.raises(RemoteCodeError, match="imports 'helper_of_mine'"):
        bundle_remote_code(my_model("import helper_of_mine"), user_code=True)


def test_what_is_no_long_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no readable config\.json"):
        bundle_remote_code(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="needs no code of this package"):
        bundle_remote_code(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "long_multimodal"}')
    with pytest.raises(RemoteCodeError, match="omit --remote-code, and install hf_longattn where the model is loaded"):
        bundle_remote_code(tmp_path)


def test_a_folder_that_cannot_be_written_in_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "long_bert"}')
    tmp_path.chmod(0o500)
    with bound_by_permissions(), pytest.raises(CheckpointError, match=r"Cannot write in .*: Permission denied; nothing was written"):
        bundle_remote_code(tmp_path)


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
    assert provenance([good]) == Provenance(f"hf_longattn {hf_longattn.__version__}", ())
    bad.write_text("changed")
    assert provenance([good, bad, new]) == Provenance(f"hf_longattn {hf_longattn.__version__}", (bad, new))


def test_files_of_a_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    kept, changed, new = (tmp_path / name for name in ("kept.py", "changed.py", "new.py"))
    kept.write_text("1")
    changed.write_text("2")
    assert provenance([kept]) is None
    git("init")
    assert provenance([kept]) is None
    git("add", ".")
    git("commit", "-m", "first")
    known = provenance([kept, changed])
    assert known is not None
    assert not known.modified
    assert "git commit" in known.origin
    changed.write_text("3")
    new.write_text("4")
    known = provenance([kept, changed, new])
    assert known is not None
    assert known.modified == (changed, new)


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        (None, "Neither an installed distribution nor a git checkout"),
        (
            Provenance("hf_longattn 0.1.0", (Path("hf_longattn/engines/common/dense.py"),)),
            r"differs from the published version: \S*dense\.py",
        ),
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
