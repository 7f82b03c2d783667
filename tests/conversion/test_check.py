"""Verification finds what is wrong with the written files, says equal only of equal outputs, and a failed one leaves
no destination."""

from __future__ import annotations

import argparse
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertForQuestionAnswering,
    BertTokenizerFast,
    GPT2LMHeadModel,
)

from hf_longattn.cli.checkpoints import conversion_report
from hf_longattn.cli.terminal import show
from hf_longattn.conversion import check_texts, convert, convert_checkpoint, folders, plan_conversion
from hf_longattn.conversion.check import Comparison
from hf_longattn.conversion.check_texts import BEYOND, LanguageLoss, choose_lengths, decision
from hf_longattn.conversion.convert import check_result, labelled
from hf_longattn.conversion.folders import POSITIONS
from hf_longattn.conversion.tokenizer import VerificationText, load_tokenizer, text_inputs
from hf_longattn.errors import CheckpointError
from hf_longattn.evaluation.token_loss import verification_text
from hf_longattn.mechanisms import register_mechanism
from hf_longattn.mechanisms.window import Window
from hf_longattn.reports import Check, Difference, equality
from tests.conversion.conftest import LENGTH, damaged
from tests.reports import check_of
from tests.saved import change_json, change_tensors, read_json
from tests.trained import tokenizer_of

pytestmark = pytest.mark.usefixtures("own_registry")

Built = Callable[[str], Path]
Checkpoint = Callable[..., Path]
LOSS = LanguageLoss.name


def refused(source: Path, folder: Path, sentence: str, **arguments: Any) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        convert_checkpoint(
            source, folder / "long", max_length=200, **{"mechanism": "window", "window": 16, **arguments}
        )
    assert os.listdir(folder) == []


def test_verification_finds_a_damaged_value(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = built("BertModel")
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", damaged(save_file))
    refused(source, tmp_path, "differs from the source's values")


def broken(name: str, **methods: Any) -> str:
    """Register a window mechanism with something wrong in it."""
    register_mechanism(name)(type(name, (Window,), methods))
    return name


def test_verification_finds_a_mechanism_that_is_not_exact_as_it_claims(built: Built, tmp_path: Path) -> None:
    name = broken("boastful", covers=lambda self, length, causal=False: True)
    refused(built("BertForMaskedLM"), tmp_path, "but they must be equal", mechanism=name)


def test_verification_finds_a_mechanism_that_looks_at_padding(built: Built, tmp_path: Path) -> None:
    def forward(self: Window, q: Any, k: Any, v: Any, call: Any) -> Any:
        return Window.forward(self, q, k, v, call.with_mask(None))

    refused(built("BertModel"), tmp_path, "padded to 200", mechanism=broken("careless", forward=forward))


def test_verification_finds_numbers_that_are_not_finite(built: Built, tmp_path: Path) -> None:
    def forward(self: Window, q: Any, k: Any, v: Any, call: Any) -> Any:
        out = Window.forward(self, q, k, v, call)
        return out / 0 if k.shape[2] > LENGTH else out

    refused(built("BertModel"), tmp_path, "are not finite", mechanism=broken("infinite", forward=forward))


@pytest.mark.thorough
@pytest.mark.parametrize(("side", "end"), [("left", 0), ("right", -1)])
def test_verification_finds_a_model_changed_by_padding_on_one_side(
    side: str, end: int, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = check_texts.outputs

    def changed(model: Any, ids: torch.Tensor, **arguments: Any) -> dict[str, torch.Tensor]:
        found = run(model, ids, **arguments)
        mask = arguments.get("attention_mask", torch.ones_like(ids))
        return {name: state + (mask[:, end] == 0).float()[:, None, None] for name, state in found.items()}

    report = convert_checkpoint(
        built("BertForMaskedLM"), tmp_path / "long", mechanism="window", window=16, max_length=256
    )
    assert check_of(report, "padding changes nothing").values["sides"] == ["right", "left"]
    monkeypatch.setattr(check_texts, "outputs", changed)
    message = (
        r"padded to 256 on the right and on the left: largest difference .* of the largest value .*, but they "
        r"must be equal"
    )
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(built("BertForMaskedLM"), tmp_path / "wrong", mechanism="window", window=16, max_length=256)
    assert not (tmp_path / "wrong").exists()


def test_verification_skips_padding_for_a_base_without_hidden_states(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = check_texts.outputs

    def pooled(model: Any, ids: torch.Tensor, **arguments: Any) -> dict[str, torch.Tensor]:
        returned = run(model, ids, **arguments)
        return {name: value for name, value in returned.items() if not name.endswith("last_hidden_state")}

    monkeypatch.setattr(check_texts, "outputs", pooled)
    report = convert_checkpoint(built("BertModel"), tmp_path / "long", mechanism="window", window=16, max_length=256)
    padding = check_of(report, "padding changes nothing")
    assert (check_of(report, "finite at the new length").status, padding.status) == ("passed", "skipped")
    assert padding.detail == "the base returns no hidden states"


def test_verification_finds_a_wrong_tokenizer_limit(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint("BertForMaskedLM", tokenizer="bert")
    add = folders.add_source_files
    monkeypatch.setattr(
        convert, "add_source_files", lambda *given: add(*given[:3], replace(given[3], tokenizer_length=LENGTH))
    )
    (tmp_path / "results").mkdir()
    refused(source, tmp_path / "results", "model_max_length 64")


def test_loss_that_is_not_measured_says_why(built: Built, tmp_path: Path) -> None:
    report = convert_checkpoint(built("GPT2LMHeadModel"), tmp_path / "long", mechanism="full", max_length=128)
    check = check_of(report, LOSS)
    assert check.status == "skipped"
    assert check.detail.startswith("the source has no tokenizer, and real text is needed, so this cannot tell")


def test_loss_is_measured_on_a_text_that_does_not_repeat(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """In whole chunks of the source's length, though the result reads more than the text has."""
    source = checkpoint("GPT2LMHeadModel", tokenizer="gpt2")
    tokenizer, words = AutoTokenizer.from_pretrained(source), "Much ado about nothing."
    while len(tokenizer(words)["input_ids"]) < 2 * LENGTH + 9:
        words += " Much ado about nothing."
    (tmp_path / "mine.txt").write_text(words)
    report = convert_checkpoint(
        source, tmp_path / "long", mechanism="full", max_length=4 * LENGTH, verify_text=tmp_path / "mine.txt"
    )
    assert check_of(report, LOSS).values["tokens"] == 2 * LENGTH


def test_verification_does_not_compare_a_head_that_the_source_lacks(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("BertModel")
    change_json(source, architectures=["BertForQuestionAnswering"])
    report = convert_checkpoint(source, tmp_path / "long", mechanism="full", max_length=128)
    assert any("hidden states (the source has no weights for its head)" in check.detail for check in report.checks)


def test_verified_lengths_are_those_covered_and_affordable(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_conversion(built("BertModel"), mechanism="window", window=16, max_length=4096)
    text = text_inputs(plan.architecture.family, plan.config, plan.source.folder, verification_text(None))
    found = choose_lengths(plan, text)
    assert (found.covered, found.old, found.new, found.padded) == (9, LENGTH, 4096, 4096)
    monkeypatch.setattr(check_texts, "PADDED", 1e6)
    assert choose_lengths(plan, text).padded == check_texts.SHORTEST_PADDED
    monkeypatch.setattr(check_texts, "LONGEST", 2.5e7)
    assert LENGTH <= choose_lengths(plan, text).new < 4096


def chance_of(loss: LanguageLoss) -> Tensor:
    """The loss of each token that is read, by the tokens' frequencies alone."""
    text = loss.text
    frequencies = text.tokens(text.real_tokens())[0].bincount() / text.real_tokens()
    return -frequencies[text.tokens(loss.lengths.read)[0]].log()


def test_loss_of_a_decoder_is_compared_where_both_read_the_text_at_once(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two chunks take too long. Equal losses are no verdict on positions that nobody read."""
    source, settings = (
        checkpoint("GPT2LMHeadModel", tokenizer="gpt2"),
        {"mechanism": "window", "window": 16, "max_length": 4 * LENGTH},
    )
    plan = plan_conversion(source, **settings)
    text = VerificationText(*verification_text(None), load_tokenizer(source), plan.config.vocab_size)
    model = GPT2LMHeadModel.from_pretrained(source).eval()
    assert choose_lengths(plan, text).read == 4 * LENGTH
    for name in ("MEASUREMENT", "LEAST_MEASUREMENT"):
        monkeypatch.setattr(check_texts, name, 5e8)
    found = choose_lengths(plan, text)
    assert (found.read, found.chunk, found.every, found.covered, found.at_once) == (LENGTH, LENGTH, 1, 16, True)
    every, fourth = (
        LanguageLoss(plan, text, replace(found, every=number)).measure(model, LENGTH) for number in (1, 4)
    )
    predicted = ~fourth.isnan()
    assert predicted.nonzero().flatten().tolist() == [*range(4, LENGTH, 4)]
    torch.testing.assert_close(fourth[predicted], every[predicted])

    check = check_of(convert_checkpoint(source, tmp_path / "long", **settings), LOSS)
    buckets = [(bucket["from"], bucket["to"], bucket["predicted"]) for bucket in check.values["buckets"]]
    assert buckets == [(0, 16, 4 * 15), (16, 32, 4 * 16), (32, 64, 4 * 32)]  # of four texts
    first, *others = check.values["buckets"]
    assert first["result"] == pytest.approx(first["source_on_chunks"], rel=1e-5)
    assert all(bucket["result"] != bucket["source_on_chunks"] for bucket in others)
    assert "beyond 16 " in check.detail

    loss = LanguageLoss(plan, text, found)
    chance = chance_of(loss)[None]
    equal = loss.judge(chance / 2, chance / 2)
    assert (equal.values["verdict"], "no text of more than 64 tokens was read" in equal.detail) == (
        "cannot tell",
        True,
    )
    assert loss.judge(chance / 2, chance / 2 + 1).values["verdict"] == "train before use"
    same_length = plan_conversion(source, **{**settings, "max_length": LENGTH})
    assert LanguageLoss(same_length, text, found).judge(chance / 2, chance / 2).values["verdict"] == "ready to use"


def test_loss_of_a_large_decoder_is_measured_on_the_shortest_text_that_tells(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, settings = (
        checkpoint("GPT2LMHeadModel", tokenizer="gpt2"),
        {"mechanism": "window", "window": 8, "overwrite": True},
    )
    monkeypatch.setattr(check_texts, "MEASUREMENT", 1)
    check = check_of(convert_checkpoint(source, tmp_path / "long", **settings), LOSS)
    assert check.values["chunk"] == 2 * 8
    monkeypatch.setattr(check_texts, "LEAST_MEASUREMENT", 1)
    check = check_of(convert_checkpoint(source, tmp_path / "long", **settings), LOSS)
    assert check.status == "skipped"
    assert "16 tokens would take too long with a model of this size" in check.detail


def test_models_without_room_in_fp32_are_compared_in_their_dtype(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(built("LlamaForCausalLM"), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "source")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10 * model.num_parameters()))
    report = convert_checkpoint(tmp_path / "source", tmp_path / "long", mechanism="window", window=16)
    assert report.verified
    compared = [check for check in report.checks if "tolerance" in check.values]
    assert {check.values["tolerance"] for check in compared} == {8 * torch.finfo(torch.bfloat16).eps}
    assert any("in bfloat16 (memory has no room for both models in fp32)" in check.detail for check in compared)


def test_loss_of_a_decoder_is_listed_by_powers_of_two(checkpoint: Checkpoint) -> None:
    source = checkpoint("GPT2LMHeadModel", tokenizer="gpt2")
    plan = plan_conversion(source, mechanism="window", window=16)
    text = VerificationText(*verification_text(None), load_tokenizer(source), plan.config.vocab_size)
    check = LanguageLoss(plan, text, choose_lengths(plan, text)).judge(torch.ones(2, 1500), 2 * torch.ones(2, 1500))
    buckets = check.values["buckets"]
    assert [(one["from"], one["to"]) for one in buckets] == [(0, 256), (256, 512), (512, 1024), (1024, 1500)]
    assert all(
        (one["source_on_chunks"], one["result"], one["predicted"]) == (1, 2, 2 * (one["to"] - one["from"]))
        for one in buckets
    )
    assert "2 texts of 1500 tokens" in check.detail


def configured(folder: Path, **fields: Any) -> None:
    """Change options of the mechanism in a written folder."""
    change_json(folder, long_attention={**read_json(folder)["long_attention"], **fields})


LAYER, ROWS = "bert.encoder.layer.0.attention.self.", "bert.embeddings.position_embeddings.weight"
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "changed": (
        lambda folder: change_tensors(folder, lambda t: t[f"{LAYER}key.weight"][0].add_(1e-6)),
        "differs from",
    ),
    "swapped": (
        lambda folder: change_tensors(folder, lambda t: t["qa_outputs.weight"].copy_(t["qa_outputs.weight"].flip(0))),
        "differs from",
    ),
    "not finite": (
        lambda folder: change_tensors(folder, lambda t: t["qa_outputs.bias"].fill_(float("nan"))),
        "qa_outputs.bias differs from",
    ),
    "rows": (lambda folder: change_tensors(folder, lambda t: t[ROWS][40:42].zero_()), "lost its first 64 rows"),
    "new rows": (lambda folder: change_tensors(folder, lambda t: t[ROWS][-1].zero_()), f"{ROWS} differs from"),
    "lost": (lambda folder: change_tensors(folder, lambda t: t.pop(f"{LAYER}key.bias")), "key.bias is missing"),
    "copies": (
        lambda folder: change_tensors(folder, lambda t: t[f"{LAYER}long_attention.separate.key.weight"].add_(1)),
        "is no copy of",
    ),
    "short texts": (lambda folder: configured(folder, exact_length=8), "as for texts of up to 64"),
    "window": (lambda folder: configured(folder, window=2), ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault: str, built: Built, tmp_path: Path) -> None:
    settings = {
        "mechanism": "longformer",
        "window": 16,
        "max_length": 4 * LENGTH,
        "separate_global": fault == "copies",
    }
    plan = plan_conversion(built("BertForQuestionAnswering"), **settings)
    convert_checkpoint(built("BertForQuestionAnswering"), tmp_path / "long", verify=False, **settings)
    plant, sentence = FAULTS[fault]
    inputs = text_inputs(plan.architecture.family, plan.config, plan.source.folder, verification_text(None))
    source = BertForQuestionAnswering.from_pretrained(built("BertForQuestionAnswering"))

    def failed() -> list[str]:
        model, info = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "long", output_loading_info=True)
        checks = check_result(
            Comparison(
                plan, source.eval(), model.eval(), tmp_path / "long", inputs, lacking=frozenset(info["missing_keys"])
            )
        )
        return [check.detail for check in checks if check.status == "failed"]

    assert failed() == []
    plant(tmp_path / "long")
    assert [sentence in detail for detail in failed()] == [True]


@pytest.mark.parametrize(
    ("window", "change", "expected"),
    [
        (16, None, {"at the old length": "needs training"}),
        (16, False, {"at the old length": "measured"}),
        (16, True, {"at the old length": "needs training"}),
        (128, None, {POSITIONS: "needs training"}),
        (128, False, {POSITIONS: "measured"}),
        (128, True, {POSITIONS: "needs training"}),
    ],
)
def test_report_asks_for_training_by_a_measured_loss(
    window: int, change: bool | None, expected: dict[str, str], built: Built
) -> None:
    """A window that sees a position twice is labelled, though it is exact at the old length; a narrow one only if it
    is worse."""
    plan = plan_conversion(built("BertForMaskedLM"), mechanism="window", window=window, max_length=256)
    checks = [
        Check("tensors", "passed", ""),
        *([Check("at the old length", "needs training", "")] if window == 16 else []),
    ]
    if change is not None:
        checks.append(decision(LOSS, not change, "", {}))
    found = {check.name: check for check in labelled(plan, checks)}
    assert {name: found[name].status for name in expected} == expected
    assert found["tensors"].status == "passed"
    assert (POSITIONS in found) == (window == 128)
    if window == 128:
        assert ("the result is ready to use" in found[POSITIONS].detail) == (change is False)


@pytest.mark.parametrize(
    ("positions", "name", "tokenizer"),
    [("tile", "BertForMaskedLM", "bert"), ("interpolate", "GPT2LMHeadModel", "gpt2")],
)
def test_source_that_does_not_read_the_text_gets_no_verdict(
    positions: str,
    name: str,
    tokenizer: str,
    checkpoint: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An untrained model loses nothing by other positions. Report, JSON, card and printed lines agree, and name what
    would tell."""
    settings = {"mechanism": "window", "window": LENGTH // 2, "max_length": 4 * LENGTH, "positions": positions}
    report = convert_checkpoint(checkpoint(name, tokenizer=tokenizer), tmp_path / "long", **settings)
    check = check_of(report, LOSS)
    assert check.values["chance"] < check.values["change"]["before"]
    written = read_json(tmp_path / "long", "conversion_report.json")
    assert report.verdict == written["verdict"] == "cannot tell"
    assert [check.detail for check in report.checks if check.name == POSITIONS] == [
        *(
            [
                "interpolate changes the positions of every text, short ones too, so results become much worse; leave "
                "--positions interpolate out, or train the result"
            ]
            if positions == "interpolate"
            else []
        )
    ]
    show(report.to_dict(), conversion_report(report))
    card, printed = (tmp_path / "long" / "README.md").read_text(), " ".join(capsys.readouterr().out.split())
    assert (
        "Not known whether it is ready to use: --verify-text FILE with text that the source was trained to read would "
        "tell." in printed
    )
    assert "Whether it is ready to use as converted is not known" in card
    assert "--verify-text FILE" in card
    assert ("Next: longattn train" in printed) == report.needs_training == ("train it before use" in card)
    assert "Ready to use" not in printed


@pytest.mark.parametrize(
    ("share", "spread", "change", "noise", "verdict", "says"),
    [
        (2.0, 1.0, 0.0, 0.1, "cannot tell", "does not predict this text much better"),  # another language
        # which random positions improve
        (2.0, 1.0, -2.0, 0.1, "cannot tell", "does not predict this text much better"),
        (2.0, 1.0, 2.0, 0.1, "cannot tell", "does not predict this text much better"),
        # better than chance, but barely
        (0.95, 0.01, 0.0, 0.1, "cannot tell", "does not predict this text much better"),
        (0.8, 40.0, 0.0, 0.1, "cannot tell", "does not predict this text much better"),  # perhaps by chance
        (0.8, 1.0, 0.0, 9.0, "cannot tell", "could go unnoticed"),
        (0.8, 1.0, 0.0, 0.1, "ready to use", "the result is not worse"),
        (0.5, 1.0, 0.0, 0.1, "ready to use", "the result is not worse"),
        (0.5, 1.0, 0.5, 0.1, "train before use", "the result is worse"),
        (0.5, 1.0, float("inf"), 0.1, "train before use", "the result is worse"),
        (float("nan"), 1.0, 0.0, 0.1, "cannot tell", ""),
    ],
)
def test_loss_decides_only_well_below_that_of_the_tokens_frequencies(
    share: float, spread: float, change: float, noise: float, verdict: str, says: str, measured: LanguageLoss
) -> None:
    """The source's loss is ``share`` of chance, with a standard deviation of ``spread``; the result's is that and
    ``change``."""
    chance = chance_of(measured)
    drawn = torch.randn(2, len(chance), generator=torch.Generator().manual_seed(0))
    source = share * chance + spread * (drawn[0] - drawn[0].mean())
    result = source + change + noise * (drawn[1] - drawn[1].mean())
    check = measured.judge(source[None], result[None])
    assert (check.values["verdict"], says in check.detail) == (verdict, True), check.detail


@pytest.mark.parametrize(("share_of_gain", "verdict"), [(0.02, "ready to use"), (0.1, "train before use")])
def test_decoder_may_lose_a_little_of_its_gain_over_chance(
    share_of_gain: float, verdict: str, measured: LanguageLoss
) -> None:
    decoder = replace(measured, plan=replace(measured.plan, shape=replace(measured.plan.shape, causal=True)))
    chance = chance_of(measured)[None]
    check = decoder.judge(0.5 * chance, (0.5 + 0.5 * share_of_gain) * chance)
    assert check.values["verdict"] == verdict, check.detail


@pytest.fixture(scope="module")
def measured(built: Built, tmp_path_factory: pytest.TempPathFactory) -> LanguageLoss:
    source = Path(shutil.copytree(built("BertForMaskedLM"), tmp_path_factory.mktemp("losses") / "source"))
    tokenizer_of("bert", LENGTH).save_pretrained(source)
    plan = plan_conversion(source, mechanism="full", max_length=4 * LENGTH)
    text = VerificationText(*verification_text(None), load_tokenizer(source), plan.config.vocab_size)
    found = choose_lengths(plan, text)
    assert (found.read, found.chunk, found.every) == (4 * LENGTH, LENGTH, 1)
    return LanguageLoss(plan, text, found)


def test_loss_of_too_few_predicted_tokens_decides_nothing(measured: LanguageLoss) -> None:
    read = measured.lengths.read
    for predicted in (0, 1, 9):
        losses = torch.ones(1, read).masked_fill(torch.arange(read) >= predicted, float("nan"))
        check = measured.judge(losses, losses)
        assert (check.values["verdict"], "--verify-text FILE" in check.detail) == ("cannot tell", True)


def test_loss_is_not_measured_on_a_text_of_unknown_tokens(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As English by a vocabulary of another script; the reason names --verify-text."""
    source = checkpoint("BertForMaskedLM", tokenizer="bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(0x4E00, 0x4E00 + 500)), ".", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    for file in source.glob("tokenizer*"):
        file.unlink()
    BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=LENGTH).save_pretrained(source)
    settings = {"mechanism": "window", "window": 16, "max_length": 4 * LENGTH}
    check = check_of(convert_checkpoint(source, tmp_path / "long", **settings), LOSS)
    assert (check.status, check.values["verdict"]) == ("skipped", "cannot tell")
    assert check.detail.startswith("the source's tokenizer does not know most of the built-in English text")
    assert check.detail.endswith("--verify-text FILE with text that the source was trained to read would")
    (tmp_path / "own.txt").write_text("".join(map(chr, range(0x4E00, 0x4E00 + 500))))
    report = convert_checkpoint(source, tmp_path / "own", verify_text=tmp_path / "own.txt", **settings)
    assert check_of(report, LOSS).status == "measured"


@pytest.mark.parametrize(
    ("name", "exact_length", "status"),
    [
        *((name, None, "measured") for name in ("BertForQuestionAnswering", "BertForMaskedLM", "BertModel")),
        ("BertForQuestionAnswering", 0, "needs training"),
        ("BertForQuestionAnswering", 32, "needs training"),
        ("GPT2LMHeadModel", None, "needs training"),
    ],
)
def test_unused_encoder_outputs_need_no_training(
    name: str, exact_length: int | None, status: str, built: Built, tmp_path: Path
) -> None:
    """An encoder reads texts up to its source's length in full, whatever its head. Beyond, nothing can be measured
    without labels."""
    option = {} if exact_length is None else {"exact_length": exact_length}
    report = convert_checkpoint(
        built(name), tmp_path / "long", mechanism="window", window=16, max_length=128, **option
    )
    checks = {check.name: check for check in report.checks}
    assert (checks["at the old length"].status, report.needs_training) == (status, status == "needs training")
    assert (report.verdict, bool(report.train_command)) == ("cannot tell", True)
    if LOSS not in checks:
        assert "up to 128 tokens (longattn evaluate)" in checks[BEYOND].detail


def test_difference_is_relative_to_the_scale_of_its_output() -> None:
    ones, masked = torch.ones(4), torch.tensor([1.0, -1.0, -1e6, -1e6])
    cases: dict[str, tuple[dict[str, Tensor], dict[str, Tensor], float]] = {
        "small outputs": ({"a": ones * 0.03}, {"a": ones * 0.03 + 3e-5}, 1e-3),
        "large outputs": ({"a": ones * 100}, {"a": ones * 100 + 1e-3}, 1e-5),
        "a small output beside a large one": (
            {"a": ones * 100, "b": ones * 0.03},
            {"a": ones * 100, "b": ones * 0.03 + 3e-5},
            1e-3,
        ),
        "masked logits": ({"a": masked}, {"a": masked + torch.tensor([0.1, 0, 0, 0])}, 0.1),
        "equal infinities": ({"a": torch.tensor([1.0, -math.inf])}, {"a": torch.tensor([1.0, -math.inf])}, 0),
        "NaN": ({"a": ones}, {"a": ones * math.nan}, math.inf),
        "zeros": ({"a": ones * 0}, {"a": ones * 1e-9}, math.inf),
        "another shape": ({"a": ones}, {"a": ones[:2]}, math.inf),
        "a missing output": ({"a": ones, "b": ones}, {"a": ones}, math.inf),
        "nothing to compare": ({}, {"a": ones}, math.inf),
    }
    differences = {name: Difference.of(expected, measured) for name, (expected, measured, _) in cases.items()}
    wrong = {
        name: differences[name]
        for name, (_, _, relative) in cases.items()
        if not math.isclose(differences[name].relative, relative, rel_tol=1e-2)
    }
    assert not wrong
    assert (differences["a small output beside a large one"].output, differences["masked logits"].scale) == ("b", 1)


def test_equality_check_says_equal_only_of_what_must_be_equal() -> None:
    near, far, zero = (Difference(1e-6 * size, 1.0, 1e-6 * size, "logits") for size in (1, 1e3, 0))
    cases = [
        (near, "", "passed", "difference 1.0e-06 of the largest value 1 (logits), equal"),
        (
            near,
            "it is another one",
            "measured",
            "1.0e-06 of the largest value 1 (logits): not exact, since it is another one",
        ),
        (
            far,
            "it is another one",
            "needs training",
            "1.0e-03 of the largest value 1 (logits): not exact, since it is another one",
        ),
        (far, "", "failed", "1.0e-03 of the largest value 1 (logits), but they must be equal"),
        (Difference(math.nan, 1.0, math.inf, "logits"), "it is another one", "failed", "but they must be finite"),
        (Difference(), "", "failed", "but they must be equal"),
        (
            Difference(0.0, 0.0, 0.0, "logits"),
            "",
            "skipped",
            "is that of zeros, since the source's outputs are all zero",
        ),
        (zero, "", "passed", ", equal"),
    ]
    for difference, why, status, detail in cases:
        check = equality("outputs", "largest difference", difference, {}, why)
        assert (check.status, detail in check.detail) == (status, True), check


def test_model_without_its_pooler_is_compared_by_its_other_outputs(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint("BertModel")
    change_tensors(source, lambda tensors: [tensors.pop(f"pooler.dense.{name}") for name in ("weight", "bias")])
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=200)
    check = check_of(report, "equal at the old length with full attention")
    assert check.status == "passed"
    assert check.values["outputs"] == ["last_hidden_state"]


CHECKPOINTS = Path(__file__).resolve().parents[2] / "model_cards"


@pytest.mark.thorough
def test_tiled_positions_keep_the_loss_of_a_trained_model_beyond_its_length(
    random_positions: None, tmp_path: Path
) -> None:
    """Tiled positions with a window read 1,024 tokens about as well as the source reads chunks of 512; random ones do
    not."""
    if not (CHECKPOINTS / "bert-python-512" / "config.json").is_file():
        pytest.skip("model_cards/bert-python-512 has not been trained here yet")
    losses, reports = {}, {}
    for positions in ("tile", "random"):
        reports[positions] = convert_checkpoint(
            CHECKPOINTS / "bert-python-512",
            tmp_path / positions,
            mechanism="window",
            window=256,
            max_length=1024,
            positions=positions,
            verify_text=argparse.__file__,
        )
        check = next(check for check in reports[positions].checks if check.name.startswith("language-model loss"))
        losses[positions] = check.values["buckets"][-1]
    assert losses["tile"]["result"] < losses["tile"]["source_on_chunks"] * 1.1
    assert losses["random"]["result"] > losses["tile"]["result"] + 0.2
    assert reports["tile"].verified
    assert not reports["tile"].needs_training
