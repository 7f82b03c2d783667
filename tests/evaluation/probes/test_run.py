"""`probe_model`: every kind of head, a grid of depths and lengths, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers

import hf_longattn
from hf_longattn.errors import CheckpointError, LengthError, LongAttentionError, OptionError
from hf_longattn.evaluation.probes import TextTask, probe_task
from tests.cells import every_cell

from .small import byte_tokenizer, small_decoder, small_encoder


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small checkpoints with their tokenizer, by head."""
    root, result = tmp_path_factory.mktemp("probed"), {}
    torch.manual_seed(0)
    models = {
        "decoder": small_decoder(),
        "long": small_decoder(mechanism="window", window=64),
        "masked": small_encoder("MaskedLM", 1024),
        "span": small_encoder("QuestionAnswering", 256),
        "classes": small_encoder("SequenceClassification"),
        "bare": small_encoder("MaskedLM").bert,
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        byte_tokenizer().save_pretrained(root / name)
        result[name] = str(root / name)
    return result


def test_depths_and_lengths_make_a_grid(saved: dict[str, str]) -> None:
    seen = []
    arguments: dict[str, Any] = {"tasks": ["passkey", "mqar"], "lengths": [600, 900], "depths": [0, 1], "samples": 2, "mode": "likelihood"}
    report = hf_longattn.probe_model(saved["long"], progress=seen.append, **arguments)
    assert report.cells == tuple(seen)
    expected = [
        ("passkey", 600, 0),
        ("passkey", 600, 1),
        ("passkey", 900, 0),
        ("passkey", 900, 1),
        ("mqar", 600, None),
        ("mqar", 900, None),
    ]
    assert [(cell.task, cell.length, cell.depth) for cell in report.cells] == expected
    for cell in report.cells:
        assert len(cell.records) == cell.samples == 2
        assert cell.score == sum(50 * record.score for record in cell.records)
        assert all(0.9 * cell.length < record.tokens <= cell.length for record in cell.records)
        assert cell.chance == pytest.approx(12.5, abs=3)
    assert [record.depth for record in report.cells[1].records] == [1, 1]
    assert report.score("passkey", 600) == (report.cells[0].score + report.cells[1].score) / 2
    assert report.score("passkey", 700) is None
    assert (report.tasks, report.lengths, report.class_name) == (["passkey", "mqar"], [600, 900], "LongLlamaForCausalLM")
    assert json.loads(json.dumps(report.to_dict()))["cells"][0]["task"] == "passkey"
    again = hf_longattn.probe_model(saved["long"], **arguments)
    assert [cell.records for cell in again.cells] == [cell.records for cell in report.cells]


def test_every_head_is_asked_in_its_way(saved: dict[str, str]) -> None:
    short: dict[str, Any] = {"tasks": ["passkey"], "lengths": [400], "samples": 1}
    for name, mode in {"decoder": "generate", "masked": "likelihood", "span": "span"}.items():
        report = hf_longattn.probe_model(saved[name], **short)
        assert report.mode == mode
        assert (report.cells[0].chance is None) == (mode != "likelihood")
    tokens = hf_longattn.probe_model(saved["masked"], tasks=["induction", "copy", "compositional"], lengths=[80], samples=2)
    assert [cell.records[0].tokens for cell in tokens.cells] == [80, 79, 79]


def test_an_encoder_decoder_is_asked(tokenizer: Any) -> None:
    config = transformers.BartConfig(
        vocab_size=260, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config)
    for mode in ("generate", "likelihood"):
        report = hf_longattn.probe_model(model, tokenizer=tokenizer, tasks=["passkey"], lengths=[400], samples=1, mode=mode)
        assert report.cells[0].records[0].tokens <= 400
    assert model.training, "the model is left as it was"
    with pytest.raises(LongAttentionError, match="rows of tokens"):
        hf_longattn.probe_model(model, tokenizer=tokenizer, tasks=["copy"], lengths=[400], samples=1)


NEW = (
    "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery", "json_kv", "infbench_passkey",
    "infbench_number_string", "infbench_kv_retrieval", "infbench_math_find", "infbench_math_calc", "infbench_code_run",
)  # fmt: skip


@pytest.mark.thorough
@every_cell("name", ["decoder", "masked", "span"])
def test_needles_objects_sums_and_code_are_asked_of_every_head(saved: dict[str, str], name: str) -> None:
    for mode in {"decoder": ("generate", "likelihood"), "masked": ("likelihood",), "span": ("span",)}[name]:
        tasks = [task for task in NEW if mode in probe_task(task).modes]
        assert set(NEW) - set(tasks) <= {"infbench_math_calc", "infbench_code_run"}
        report = hf_longattn.probe_model(saved[name], tasks=tasks, lengths=[1024], samples=1, mode=mode)  # of 1,024 positions, if masked
        assert report.tasks == tasks
        for cell in report.cells:
            (record,) = cell.records
            assert 0 <= record.score <= 1
            assert (cell.chance is None) == (mode != "likelihood")
            if mode != "span":
                assert record.tokens + cast("TextTask", probe_task(cell.task)).new_tokens > 700 or cell.task == "infbench_math_calc"
                assert record.tokens <= 1024


def test_an_essay_of_your_own_is_the_haystack(saved: dict[str, str], tmp_path: Path) -> None:
    essay = tmp_path / "essay.txt"
    essay.write_text("Nothing but dry grass. " * 40, encoding="utf-8")
    prompts = []
    for chosen in (None, essay):
        arguments: dict[str, Any] = {"tasks": ["niah_single_2"], "lengths": [700], "samples": 1, "mode": "likelihood", "essay": chosen}
        prompts.append(hf_longattn.probe_model(saved["decoder"], **arguments).cells[0].records[0])
    assert prompts[0].answers == prompts[1].answers
    assert prompts[0].tokens != prompts[1].tokens


@every_cell(
    ("name", "arguments", "error", "said"),
    [
        ("decoder", {"tasks": ["nih_single_1"]}, LongAttentionError, r"no probe 'nih_single_1'.*Did you mean 'niah_single_1'"),
        ("decoder", {"tasks": []}, OptionError, "give a --task"),
        ("decoder", {"lengths": [8]}, LengthError, "16 tokens or more, not 8"),
        ("decoder", {"tasks": ["niah_multikey_3"], "lengths": [300]}, LengthError, "'niah_multikey_3' does not fit into 300 tokens"),
        ("decoder", {"tasks": ["mqar"], "lengths": [20]}, LengthError, "'mqar' needs 32 tokens"),
        ("decoder", {"mode": "span"}, OptionError, "LlamaForCausalLM cannot be asked by 'span'.*generate or likelihood"),
        ("decoder", {"mode": "liklihood"}, OptionError, "Did you mean 'likelihood'"),
        ("decoder", {"depths": [0.5, 2]}, OptionError, "Depths are shares from 0"),
        ("decoder", {"tasks": ["cwe"], "depths": [0.5]}, OptionError, "None of cwe has one needle"),
        ("decoder", {"samples": 0}, OptionError, "1 to 10,000 samples"),
        ("decoder", {"samples": 99999999999999}, OptionError, "1 to 10,000 samples"),
        ("decoder", {"choices": 10_001}, OptionError, "2 to 10,000 choices, not 1 and 10,001"),
        ("masked", {"lengths": [2048]}, LengthError, "reads 1,024 tokens, not 2,048.*--max-length 2048"),
        ("masked", {"mode": "generate"}, OptionError, "BertForMaskedLM cannot be asked by 'generate'"),
        ("span", {"tasks": ["copy"]}, OptionError, "'copy' is asked by generate or likelihood, and .* by 'span'"),
        ("span", {"tasks": ["infbench_code_run"]}, OptionError, "'infbench_code_run' is asked by generate or likelihood, and .* by 'span'"),
        ("masked", {"tasks": ["infbench_math_calc"]}, OptionError, "'infbench_math_calc' is asked by generate, and .* by 'likelihood'"),
        ("decoder", {"essay": __file__}, OptionError, "None of passkey hides needles in an essay; leave out --essay"),
        ("decoder", {"essay": "/nowhere.txt", "tasks": ["niah_single_2"]}, CheckpointError, "The text '/nowhere.txt' cannot be read"),
        ("decoder", {"tasks": ["niah_multiquery"], "depths": [0.5]}, OptionError, "None of niah_multiquery has one needle"),
        ("classes", {}, LongAttentionError, "BertForSequenceClassification has no head that a probe can ask"),
        ("bare", {}, LongAttentionError, "BertModel has no head that a probe can ask"),
        ("/nowhere/llama", {}, CheckpointError, "There is no folder '/nowhere/llama'"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    saved: dict[str, str], name: str, arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as raised:
        hf_longattn.probe_model(saved.get(name, name), **{"tasks": ["passkey"], "lengths": [512], "samples": 1, **arguments})
    assert "\n" not in str(raised.value)


def test_a_model_in_memory_needs_its_tokenizer() -> None:
    with pytest.raises(OptionError, match="give tokenizer="):
        hf_longattn.probe_model(small_decoder(), tasks=["copy"], lengths=[64])


def test_a_checkpoint_without_its_head_is_refused(saved: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "headless"
    folder.mkdir()
    for path in Path(saved["bare"]).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForQuestionAnswering"]}))
    with pytest.raises(CheckpointError, match="lacks weights of BertForQuestionAnswering: qa_outputs"):
        hf_longattn.probe_model(str(folder), tasks=["passkey"], lengths=[512], samples=1)
