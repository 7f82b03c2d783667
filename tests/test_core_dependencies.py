"""What a plain installation is enough for, and what says which extra it needs."""

from __future__ import annotations

import re
import sys
import textwrap
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from hf_longattn.cli import main
from hf_longattn.errors import EXTRAS, LongAttentionError, MissingExtraError, check_extra
from hf_longattn.evaluation import load_metric
from hf_longattn.training.tasks import load_task, task_names
from tests.cases import every_case
from tests.fresh_processes import run_fresh

PACKAGES = (
    "jiwer",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "peft",
    "rouge_score",
    "sentence_transformers",
    "seqeval",
    "sklearn",
    "torchao",
)
WITHOUT = (
    f"import sys; assert not sys.modules.keys() & {{*{PACKAGES!r}}}; sys.modules.update(dict.fromkeys({PACKAGES!r}))\n"
)
"""As where none of these is installed: an import of them fails, and find_spec finds nothing."""


def python_without_extras(code: str, folder: Path) -> str:
    done = run_fresh("-c", WITHOUT + textwrap.dedent(code), cwd=folder, level="torch")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_commands_run_without_extras_and_export_names_its_extra(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(repository))
    found = python_without_extras(
        """
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import Whitespace
        from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast
        import hf_longattn
        from hf_longattn.cli import main

        shape = dict(vocab_size=99, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        BertForMaskedLM(BertConfig(**shape, max_position_embeddings=64)).save_pretrained("short")
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
        special = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
        backend = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
        backend.pre_tokenizer = Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **special).save_pretrained("short")
        open("texts.txt", "w").write("a b c d e f g h " * 200)

        def run(line):
            try:
                main(line.split())
            except SystemExit as ended:
                assert not ended.code, line

        run("convert short long --max-length 128 --mechanism window --option window=8")
        run("plan short --max-length 128")
        run("inspect long")
        run("mechanisms window")
        data = "--data texts.txt --validation texts.txt --output trained"
        run(f"train mlm --model long {data} --max-steps 1 --max-length 64 --batch-size 1")
        run("push --help")
        run("export long graph --format torch")
        try:
            hf_longattn.export_checkpoint("long", "graph.onnx")
        except hf_longattn.LongAttentionError as error:
            print(error)
        assert type(AutoModelForMaskedLM.from_pretrained("long")).__name__ == "LongBertForMaskedLM"
        print("all of them ran")
        """,
        tmp_path,
    )
    assert "pip install '.[onnx]'" in found
    assert "all of them ran" in found


def test_imports_without_extras_name_the_extra_to_install(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(repository))
    refused = """
        from hf_longattn.errors import MissingExtraError
        from hf_longattn.training import ModelArguments
        try:
            ModelArguments(model="short", lora_rank=8)
        except MissingExtraError as error:
            print(error)
        """
    assert python_without_extras(refused, tmp_path).count("type pip install '.[") == 1


COMMANDS = [
    ("export nowhere out", "onnxscript"),
    ("compress nowhere out --method int8", "torchao"),
    *(
        (f"train {task} --model nowhere", EXTRAS[x][0])
        for task in task_names()
        for x in getattr(load_task(task), "EXTRAS", ())
    ),
    ("train tokens --model nowhere --output out --data nothing", "seqeval"),
    ("train seq2seq --model nowhere --output out --data nothing", "rouge_score"),
    ("train ctc --model nowhere --output out --data nothing", "jiwer"),
    ("train mlm --model nowhere --output out --data nothing --lora-rank 8", "peft"),
]
"""Commands that would read a checkpoint that is not there, and a package that each needs."""


@every_case(("line", "package"), COMMANDS)
def test_commands_name_a_missing_extra_before_they_read_anything(
    line: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match="1"):
        main(line.split())
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("Error: The package")
    extra = said.removesuffix("]' in a clone of hf_longattn.").rpartition("type pip install '.[")[2]
    assert package in EXTRAS[extra]


def test_metrics_name_the_extra_that_computes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, package, prediction in (
        ("rouge", "rouge_score", "a"),
        ("entities", "seqeval", ["O"]),
        ("wer", "jiwer", "a"),
    ):
        for module in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=rf"'{package}.*'\.\[metrics\]'"):
            load_metric(name).compute(predictions=[prediction] * 2, references=[prediction] * 2)


def test_extras_of_errors_are_those_of_pyproject(repository: Path) -> None:
    declared = pytest.importorskip("tomllib").loads((repository / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    distributions = {"sklearn": "scikit-learn", "PIL": "pillow"}
    declared = {
        extra: {re.split("[><=; ]", requirement)[0] for requirement in requirements}
        for extra, requirements in declared.items()
    }
    for extra, packages in EXTRAS.items():
        names = {distributions.get(package, package.replace("_", "-")) for package in packages}
        assert {name for name in declared[extra] if not name.startswith("hf-longattn")} <= names, extra
        assert names <= set().union(*declared.values()), extra


LOWEST = Path(__file__).resolve().parent.parent / ".venv-lowest.txt"
"""The oldest versions that pyproject.toml allows, as uv resolves them; ``make test-lowest`` writes it."""


def direct_requirements(repository: Path) -> dict[str, Requirement]:
    """What pyproject.toml requires, with and without extras, by normalised name."""
    project = pytest.importorskip("tomllib").loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    optional = project["project"]["optional-dependencies"].values()
    lines = [*project["project"]["dependencies"], *(line for lines in optional for line in lines)]
    return {canonicalize_name(found.name): found for found in map(Requirement, lines)}


def lower_bound(requirement: Requirement) -> Version:
    return max(
        (Version(part.version) for part in requirement.specifier if part.operator == ">="), default=Version("0")
    )


@pytest.mark.skipif(not LOWEST.is_file(), reason="type make test-lowest")
def test_floors_are_those_that_a_resolver_answers(repository: Path) -> None:
    """A lower floor would be a version that nobody can install."""
    answer = re.findall(r"^(\S+)==(\S+)\n((?: +#.*\n)*)", LOWEST.read_text(encoding="utf-8"), re.MULTILINE)
    lowest = {name: Version(version) for name, version, required_by in answer if "(pyproject.toml)" in required_by}
    floors = {name: lower_bound(requirement) for name, requirement in direct_requirements(repository).items()}
    assert lowest.keys() <= floors.keys()
    assert len(lowest) > 20
    for name, found in lowest.items():
        assert found.release[: len(floors[name].release)] == floors[name].release, f"{name}: {found} is the lowest"


def test_floors_are_accepted_by_the_packages_that_are_installed_at_their_floor(repository: Path) -> None:
    """What one of our requirements at its own floor needs of another is no more than we declare."""
    direct = direct_requirements(repository)
    compared = 0
    for name, requirement in direct.items():
        try:
            installed, needs = Version(version(name)), map(Requirement, requires(name) or ())
        except PackageNotFoundError:
            continue
        if installed.release[: len(lower_bound(requirement).release)] != lower_bound(requirement).release:
            continue
        for need in needs:
            ours = direct.get(canonicalize_name(need.name))
            if ours is not None and (need.marker is None or need.marker.evaluate({"extra": ""})):
                assert lower_bound(need) <= lower_bound(ours), f"{name} {installed} needs {need}, we declare {ours}"
                assert need.specifier.contains(lower_bound(ours)), f"{name} {installed} refuses {ours}: {need}"
                compared += 1
    assert compared


def test_check_extra_raises_an_import_error_with_one_sentence() -> None:
    with pytest.raises(MissingExtraError, match=r"'no_such_package'.*pip install '\.\[peft\]'") as refused:
        check_extra("peft", "no_such_package")
    assert isinstance(refused.value, LongAttentionError)
    assert isinstance(refused.value, ImportError)
