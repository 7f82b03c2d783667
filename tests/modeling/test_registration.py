"""Importing is cheap, and afterwards transformers knows everything."""

from __future__ import annotations

import importlib
import itertools
import logging
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto import modeling_auto
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

import hf_longattn.families as families
from tests.cases import every_case
from tests.fresh_processes import run_fresh
from tests.grids import grid
from tests.reference.small_models import BASES, long_config, plain_config
from tests.trained import tokenizer_of

REGISTERED = (("BertConfig", "before"), ("AutoModel", "after"))
"""What is imported first, and when: of the quick tests."""


def in_a_new_process(code: str, level: str = "interpreter") -> str:
    """What the code prints in a process that has imported what ``level`` says (:mod:`tests.fresh_processes`)."""
    done = run_fresh("-c", code, level=level)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@every_case("base", BASES)
def test_every_auto_class_of_the_base_knows_the_long_class(base: str) -> None:
    plain, config, known = plain_config(base), long_config(base, None), 0
    for auto in vars(modeling_auto).values():
        mapping = getattr(auto, "_model_mapping", None)
        if not isinstance(auto, type) or mapping is None or type(plain) not in mapping:
            continue
        if mapping[type(plain)].__name__ in families.FAMILIES[base].model_classes:
            assert mapping[type(config)].__name__ == f"Long{mapping[type(plain)].__name__}", auto.__name__
            known += 1
    if type(plain) not in modeling_auto.MODEL_MAPPING:  # a part of other models, which transformers loads by its class alone
        name = families.FAMILIES[base].base_model_name
        assert modeling_auto.MODEL_MAPPING[type(config)].__name__ == f"Long{name}"
        return
    assert known >= min(3, len(families.FAMILIES[base].model_classes))


@every_case("base", BASES)
def test_a_long_config_has_the_tokenizer_of_its_base(base: str) -> None:
    assert TOKENIZER_MAPPING.get(families.FAMILIES[base].config_class, None) is TOKENIZER_MAPPING.get(type(plain_config(base)), None)


@pytest.mark.parametrize("base", ["bert", "gpt2"])
def test_a_tokenizer_is_found_by_model_type(base: str, tmp_path: Path) -> None:
    own = tokenizer_of(base)
    own.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()  # it would name the class
    long_config(base, None).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is type(own)
    assert tokenizer.decode(tokenizer("the longest document")["input_ids"], skip_special_tokens=True) == "the longest document"


def test_registering_twice_changes_nothing() -> None:
    before = len(sys.meta_path)
    families.register()
    assert len(sys.meta_path) == before
    assert AutoConfig.for_model("long_bert").model_type == "long_bert"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "order"),
    grid(itertools.product(("BertConfig", "AutoModel"), ("before", "after")), lambda first, order: (first, order) in REGISTERED),
)
def test_long_models_are_registered_before_or_after_transformers_is_imported(first: str, order: str) -> None:
    ours = "import hf_longattn"
    theirs = f"from transformers import {first}"
    lines = ["import sys; assert 'transformers' not in sys.modules", *([theirs, ours] if order == "after" else [ours, theirs])]
    lines.append("from transformers import AutoConfig; config = AutoConfig.for_model('long_bert', hidden_size=12, vocab_size=5)")
    if first == "BertConfig":  # no model is imported
        assert in_a_new_process("; ".join([*lines, "print(type(config).__name__)"]), "torch") == "LongBertConfig"
        return
    lines.append("from transformers import AutoModel, AttentionInterface; model = AutoModel.from_config(config)")
    check = "print(type(model).__name__, 'longattn' in AttentionInterface._global_mapping)"
    assert in_a_new_process("; ".join([*lines, check]), "torch") == "LongBertModel True"


IMPORTS = """
import sys, transformers
before = {*sys.modules}
import hf_longattn
new = {*sys.modules} - before
assert not new & {"torch", "peft"}
assert not [name for name in new if name.startswith("transformers")]
transformers.AutoConfig.for_model("long_bert")
assert "hf_longattn.families.bert" in sys.modules
assert not {"hf_longattn.families.llama", "torch._dynamo"} & {*sys.modules}
print("as told")
"""


def test_the_import_takes_no_torch_and_no_peft_and_a_config_its_own_family_alone() -> None:
    assert in_a_new_process(IMPORTS) == "as told"


NOISE = """
import logging
from . import kernels
logging.getLogger("{logger}").warning("failed to load {name}")
"""


def test_torchao_is_imported_without_its_warnings_and_logs_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stand-in for the package, whose modules warn as they are executed. A level that somebody has set is kept."""
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text(NOISE.format(logger="torchao", name="a.so"))
    (tmp_path / "torchao" / "kernels.py").write_text(NOISE.format(logger="torch.utils._pytree", name="an enum").replace("kernels", "more"))
    (tmp_path / "torchao" / "more.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    modules = [name for name in sys.modules if name.partition(".")[0] == "torchao"]

    def imported() -> list[str]:
        caplog.clear()
        for name in [*modules, "torchao", "torchao.kernels", "torchao.more"]:
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.import_module("torchao")
        return [record.getMessage() for record in caplog.records]

    for logger in loggers:
        monkeypatch.setattr(logger, "propagate", True)
        monkeypatch.setattr(logging.getLogger("torch"), "propagate", True)
    before = [logger.level for logger in loggers]
    assert imported() == []
    assert [logger.level for logger in loggers] == before == [logging.NOTSET] * 2
    loggers[0].warning("a later message")
    assert caplog.messages == ["a later message"]
    loggers[0].setLevel(logging.INFO)
    try:
        assert imported() == ["failed to load a.so"]
        assert loggers[0].level == logging.INFO
    finally:
        loggers[0].setLevel(logging.NOTSET)
