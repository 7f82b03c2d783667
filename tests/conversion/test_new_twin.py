"""A native twin is one file dropped in place: examples/extend/olmo3.py is planned, written and compared like any other."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers

from hf_longattn.conversion import convert_checkpoint, plan_conversion, twins
from hf_longattn.conversion.twins import base
from hf_longattn.conversion.twins.own import OwnTwin
from hf_longattn.errors import ExportError, RegistrationError
from hf_longattn.lazy import load_modules

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def olmo3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example as a file of the package."""
    base.native_twins()  # those of the package, which stay
    (tmp_path / "dropped").mkdir()
    shutil.copy(ROOT / "examples" / "extend" / "olmo3.py", tmp_path / "dropped")
    monkeypatch.setattr(twins, "__path__", [*twins.__path__, str(tmp_path / "dropped")])
    monkeypatch.setattr(base, "TWINS", dict(base.TWINS))
    load_modules.cache_clear()
    yield
    load_modules.cache_clear()
    sys.modules.pop("hf_longattn.conversion.twins.olmo3", None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small OLMo 2 as transformers saves it."""
    config = transformers.Olmo2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=96, max_position_embeddings=64,
        pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.Olmo2ForCausalLM(config).save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.usefixtures("olmo3")
def test_the_example_of_extending_is_a_twin_like_any_other(source: Path, tmp_path: Path) -> None:
    planned = plan_conversion(source, mechanism="window", window=16, max_length=128).native_twin
    assert planned is not None
    assert planned.class_name == "Olmo3ForCausalLM"
    report = convert_checkpoint(source, tmp_path / "twin", mechanism="window", window=16, max_length=128, native=True)
    assert report.passed
    twin = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "twin")
    assert type(twin) is transformers.Olmo3ForCausalLM
    assert (twin.config.sliding_window, set(twin.config.layer_types)) == (16, {"sliding_attention"})


def test_without_the_file_there_is_none(source: Path) -> None:
    planned = plan_conversion(source, mechanism="window", window=16, max_length=128).native_twin
    assert planned is not None
    assert planned.twin is None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model_type": "olmoo3"}, r"has the model_type 'olmoo3', which transformers does not know\. Did you mean 'olmo3'\?"),
        ({"families": frozenset(("olmo22",))}, r"names 'olmo22' among its families, and there is no such family\. Did you mean 'olmo2'\?"),
    ],
)
def test_a_name_that_nobody_knows_is_refused(values: dict[str, object], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "TWINS", dict(base.TWINS))
    with pytest.raises(RegistrationError, match=sentence):
        base.register_twin("new")(type("New", (OwnTwin,), values))
    assert "new" not in base.TWINS


@pytest.mark.usefixtures("olmo3")
def test_a_tensor_that_only_the_twin_has_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = type(next(twin for twin in base.native_twins() if twin.model_type == "olmo3"))
    monkeypatch.setattr(twin, "class_name", lambda self, model: "Olmo3ForSequenceClassification")
    with pytest.raises(ExportError, match=r"needs the tensor 'score\.weight', which a LongOlmo2.* or let added\(\) of Olmo3 \(.*\) give"):
        convert_checkpoint(source, tmp_path / "twin", mechanism="window", window=16, max_length=128, native=True)
