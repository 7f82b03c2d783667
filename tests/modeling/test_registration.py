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
from tests.alike import kind_of_family
from tests.cells import every_cell
from tests.grids import grid, quickly
from tests.reference.small_models import BASES, long_config, long_model, plain_config, plain_model
from tests.trained import tokenizer_of
from tests.warm import run_fresh

REGISTERED = (("BertConfig", "before"), ("AutoModel", "after"))
"""What is imported first, and when: of the quick tests."""


def in_a_new_process(code: str, level: str = "interpreter") -> str:
    """What the code prints in a process that has imported what ``level`` says (:mod:`tests.warm`)."""
    done = run_fresh("-c", code, level=level)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@every_cell("base", BASES)
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


@every_cell("base", BASES)
def test_tokenizers(base: str) -> None:
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
def test_registered_whatever_of_transformers_was_imported_before_or_after(first: str, order: str) -> None:
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


def test_importing_the_package_imports_neither_torch_nor_models() -> None:
    code = (
        "import sys, transformers; before = set(sys.modules); import hf_longattn; new = set(sys.modules) - before;"
        "print('torch' in new, [name for name in new if name.startswith('transformers')])"
    )
    assert in_a_new_process(code) == "False []"


def test_a_config_imports_its_own_family_and_no_compiler() -> None:
    code = (
        "import sys, hf_longattn; from transformers import AutoConfig; config = AutoConfig.for_model('long_bert');"
        "print([name in sys.modules for name in ('hf_longattn.families.bert', 'hf_longattn.families.llama', 'torch._dynamo')])"
    )
    assert in_a_new_process(code) == "[True, False, False]"


@pytest.mark.thorough
@pytest.mark.parametrize("order", quickly(["import hf_longattn, peft", "import peft, hf_longattn"], ["import peft, hf_longattn"]))
def test_every_recipe_of_peft_knows_the_long_types(order: str) -> None:
    code = f"""{order}
from peft.utils import constants
from hf_longattn.families import FAMILIES
tables = [value for name, value in vars(constants).items() if name.endswith("_MODULES_MAPPING")]
print(len(tables) > 20, all(table.get("long_" + base) == table.get(base) for table in tables for base in FAMILIES))
"""
    assert in_a_new_process("import sys; assert 'peft' not in sys.modules\n" + code, "torch") == "True True"


def test_peft_is_not_imported_for_it() -> None:
    assert in_a_new_process("import sys, hf_longattn; print('peft' in sys.modules)") == "False"


EXPERTS = ("mixtral", "qwen3_moe")
"""Bases for which peft fails without target modules: it looks for their experts, which are no modules in transformers 5."""


@pytest.mark.thorough
@every_cell("recipe", ["LoraConfig", "IA3Config"])
@every_cell("base", [base for base in BASES if base not in EXPERTS], of=4, alike=kind_of_family)
def test_a_recipe_without_target_modules_adapts_what_it_adapts_in_the_base(base: str, recipe: str) -> None:
    peft = pytest.importorskip("peft")
    chosen = []
    for model in (plain_model(base), long_model(base, None, {"mechanism": "window", "window": 16})):
        try:
            chosen.append(sorted(peft.get_peft_model(model, getattr(peft, recipe)()).targeted_module_names))
        except ValueError as error:  # peft has no recipe for this base
            chosen.append([str(error).partition(":")[0]])
    assert chosen[0] == chosen[1]


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
