"""Long models in the tables of transformers, peft and sentence-transformers."""

from __future__ import annotations

import copyreg
import importlib
import itertools
import logging
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, BertConfig, T5ForConditionalGeneration
from transformers.models.auto import modeling_auto
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

import hf_longattn.families as families
from hf_longattn import convert_checkpoint
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.family.registration import TABLES
from scripts.dev.tools.small_models import Shape, small_config
from tests.cases import every_case
from tests.fresh_processes import run_fresh
from tests.grids import grid
from tests.modeling import pickled_models
from tests.reference.small_models import BASES, long_config, long_model, plain_config, plain_model
from tests.trained import tokenizer_of

REGISTERED = (("BertConfig", "before"), ("AutoModel", "after"))
"""What is imported first, and when: of the quick tests."""


def in_a_new_process(code: str, level: str = "interpreter") -> str:
    """What the code prints in a process that has imported what ``level`` says (:mod:`tests.fresh_processes`)."""
    done = run_fresh("-c", code, level=level)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def several(entry: Any) -> tuple[Any, ...]:
    """The entry of a table, which is one class or a tuple of classes."""
    return entry if isinstance(entry, tuple) else (entry,)


@every_case("base", [*BASES, *(base for base in FAMILIES if FAMILIES[base].spec.reads != "text")])
def test_every_auto_class_of_the_base_knows_the_long_class(base: str) -> None:
    family = FAMILIES[base]
    known = set[str]()
    plain: Any = family.base_config_class
    long: Any = family.config_class
    for auto in vars(modeling_auto).values():
        mapping = getattr(auto, "_model_mapping", None)
        if not isinstance(auto, type) or mapping is None or plain not in mapping:
            continue
        heads = {head.__name__ for head in several(mapping[plain])} & family.model_classes.keys()
        if heads:
            found = {head.__name__ for head in several(mapping[long])}
            assert found == {family.model_classes[head] for head in heads}, auto.__name__
            known |= heads
    # a part of other models, which transformers loads by its class alone
    if plain not in modeling_auto.MODEL_MAPPING:
        assert modeling_auto.MODEL_MAPPING[long].__name__ == f"Long{family.base_model_name}"
        return
    entries = [table.get(base) for name, table in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")]
    automatic = {name for entry in entries for name in several(entry)}
    assert known == automatic & family.model_classes.keys()


@every_case("base", BASES)
def test_a_long_config_has_the_tokenizer_of_its_base(base: str) -> None:
    assert TOKENIZER_MAPPING.get(families.FAMILIES[base].config_class, None) is TOKENIZER_MAPPING.get(
        type(plain_config(base)), None
    )


@pytest.mark.parametrize("base", ["bert", "gpt2"])
def test_a_tokenizer_is_found_by_model_type(base: str, tmp_path: Path) -> None:
    own = tokenizer_of(base)
    own.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()  # it would name the class
    long_config(base, None).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is type(own)
    assert (
        tokenizer.decode(tokenizer("the longest document")["input_ids"], skip_special_tokens=True)
        == "the longest document"
    )


def test_registering_twice_changes_nothing() -> None:
    before = len(sys.meta_path)
    families.register()
    assert len(sys.meta_path) == before
    assert AutoConfig.for_model("long_bert").model_type == "long_bert"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "order"),
    grid(
        itertools.product(("BertConfig", "AutoModel"), ("before", "after")),
        lambda first, order: (first, order) in REGISTERED,
    ),
)
def test_long_models_are_registered_before_or_after_transformers_is_imported(first: str, order: str) -> None:
    ours = "import hf_longattn"
    theirs = f"from transformers import {first}"
    lines = [
        "import sys; assert 'transformers' not in sys.modules",
        *([theirs, ours] if order == "after" else [ours, theirs]),
    ]
    lines.append(
        "from transformers import AutoConfig; config = AutoConfig.for_model('long_bert', hidden_size=12, vocab_size=5)"
    )
    if first == "BertConfig":  # no model is imported
        assert in_a_new_process("; ".join([*lines, "print(type(config).__name__)"]), "torch") == "LongBertConfig"
        return
    lines.append("from transformers import AutoModel, AttentionInterface; model = AutoModel.from_config(config)")
    check = "print(type(model).__name__, 'longattn' in AttentionInterface._global_mapping)"
    assert in_a_new_process("; ".join([*lines, check]), "torch") == "LongBertModel True"


IMPORTS = """
import pathlib, sys, transformers
before = {*sys.modules}
import hf_longattn
new = {*sys.modules} - before
assert not new & {"torch", "peft"}
assert not [name for name in new if name.startswith("transformers")]
transformers.AutoConfig.for_model("long_bert")
assert "hf_longattn.families.bert" in sys.modules
assert "hf_longattn.families.llama" not in sys.modules
# transformers 5.20 itself imports it, with every model
masks = pathlib.Path(transformers.__file__).with_name("masking_utils.py").read_text()
assert "\\nfrom torch._dynamo" in masks or "torch._dynamo" not in sys.modules
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
    (tmp_path / "torchao" / "kernels.py").write_text(
        NOISE.format(logger="torch.utils._pytree", name="an enum").replace("kernels", "more")
    )
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


BUT = {
    ("peft.utils.transformers_weight_conversion", "_MOE_TARGET_MODULE_MAPPING"): {"mixtral", "qwen2_moe"},
    ("peft.utils.transformers_weight_conversion", "_MOE_FUSED_TARGETS"): {"mixtral", "qwen2_moe"},
    ("transformers.models.auto.modeling_auto", "MODEL_FOR_DECISION_MAPPING_NAMES"): {"qwen2", "qwen3_5_text"},
    ("transformers.models.auto.configuration_auto", "SPECIAL_MODEL_TYPE_TO_MODULE_NAME"): set(FAMILIES),
    ("transformers.models.auto.image_processing_auto", "MISSING_IMAGE_PROCESSOR_MAPPING_NAMES"): set(FAMILIES),
    ("transformers.models.auto.feature_extraction_auto", "MISSING_FEATURE_EXTRACTOR_MAPPING_NAMES"): set(FAMILIES),
    ("transformers.models.auto.processing_auto", "MISSING_PROCESSOR_MAPPING_NAMES"): set(FAMILIES),
}
"""(module, table) -> bases whose Long types need not be there: architectures that model types are mapped to; a head of
another model; transformers' own packages; names that are entered into the table next to them."""


@every_case("module", TABLES)
def test_every_table_that_knows_a_base_knows_its_long_type(module: str) -> None:
    tables = vars(pytest.importorskip(module))
    for name, table in tables.items():
        keys = set(table) if type(table) in (dict, OrderedDict, set, frozenset) else set()
        # without a package that is not installed
        keys -= {key for key in keys if isinstance(table, dict) and table[key] is None}
        keys |= {part for key in keys if isinstance(key, tuple) for part in key}
        missing = {base for base in FAMILIES if base in keys and f"long_{base}" not in keys}
        assert missing <= BUT.get((module, name), set()), name


@pytest.mark.thorough
def test_sentence_transformers_loads_the_encoder_of_a_long_encoder_decoder(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    tokenizer = tokenizer_of("t5", 512)
    config = small_config("t5", Shape(tokens=512, vocabulary=len(tokenizer)), pad_token_id=tokenizer.pad_token_id)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    convert_checkpoint(
        tmp_path / "short", tmp_path / "long", mechanism="window", window=2048, max_length=1024, verify=False
    )
    texts = ["The keeper lights the lamp. " * 8, "A short one."]
    embeddings = []
    for folder, name in (("short", "T5EncoderModel"), ("long", "LongAttentionT5EncoderModel")):
        model = sentence_transformers.SentenceTransformer(str(tmp_path / folder), device="cpu")
        assert type(model[0].model).__name__ == name
        embeddings.append(model.encode(texts, convert_to_tensor=True))
    torch.testing.assert_close(embeddings[0], embeddings[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("base", "head", "experts"),
    [
        ("mixtral", "MixtralForCausalLM", ["w1", "w2", "w3"]),
        ("qwen3_moe", "Qwen3MoeForCausalLM", ["gate_proj", "up_proj", "down_proj"]),
    ],
)
def test_experts_are_adapted_by_their_old_names(base: str, head: str, experts: list[str]) -> None:
    peft = pytest.importorskip("peft")
    trained = []
    for model in (plain_model(base, head), long_model(base, head, {"mechanism": "window", "window": 16})):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=experts, r=4))
        trained.append(sorted(name for name, parameter in adapted.named_parameters() if parameter.requires_grad))
    assert trained[0]
    assert trained[0] == trained[1]


def pickles_are_read(cells: list[tuple[str, str, bool]], folder: Path) -> None:
    for name, writer, runs_before in cells:
        pickled_models.write(folder / f"{name} {writer} {runs_before}", name, writer, runs_before=runs_before)
    done = run_fresh(pickled_models.read, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == sorted(path.name for path in folder.iterdir())


def test_an_unpickled_model_knows_longattn_before_and_after_its_first_forward_pass(tmp_path: Path) -> None:
    pickles_are_read([("bert", "pickle", False), ("mistral", "torch", True), ("long", "cloudpickle", True)], tmp_path)


@pytest.mark.slow
def test_every_pickled_model_equals_its_original_in_a_process_that_imports_nothing(tmp_path: Path) -> None:
    cells = [(name, "pickle", True) for name in pickled_models.MODELS]
    cells += [(name, "copy", False) for name in pickled_models.MODELS]
    cells += [("bert", writer, False) for writer in pickled_models.WRITERS]
    pickles_are_read(cells, tmp_path)


@pytest.mark.slow
def test_spawned_workers_know_longattn(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, pickled_models.__file__], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "equal in every worker"


POOL = """
import hf_longattn, sys, torch
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", model_kwargs={"attn_implementation": "longattn"})
texts = ["A lamp.", "The keeper lights the lamp at dusk."]
expected = model.encode(texts)
pool = model.start_multi_process_pool(["cpu"])
torch.testing.assert_close(torch.tensor(model.encode(texts, pool=pool)), torch.tensor(expected))
model.stop_multi_process_pool(pool)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_long", [False, True])
def test_a_pool_of_sentence_transformers_knows_longattn(is_long: bool, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue("real_long" if is_long else "real_folder")
    done = subprocess.run(
        [sys.executable, "-c", POOL, str(folder)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "equal"


def test_pickles_of_other_configs_do_not_name_this_package() -> None:
    config = BertConfig()
    assert b"hf_longattn" not in pickle.dumps(config)
    assert pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()
    config._attn_implementation = "longattn"
    assert b"hf_longattn" in pickle.dumps(config)


def test_configs_in_another_package_carry_the_import_if_their_file_is_named_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from transformers import PreTrainedConfig\nclass OurConfig(PreTrainedConfig): pass\nclass Other: pass\n"
    (tmp_path / "configuration_ours.py").write_text(source)
    (tmp_path / "configuration_without_transformers.py").write_text("import dataclasses\nclass Settings: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    ours = importlib.import_module("configuration_ours")
    assert b"hf_longattn" in pickle.dumps(ours.OurConfig(attn_implementation="longattn"))
    assert ours.Other not in copyreg.dispatch_table
    importlib.import_module("configuration_without_transformers")
