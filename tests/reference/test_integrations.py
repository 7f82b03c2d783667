"""Long models with PyTorch and other libraries: compiled, exported, in several processes and threads, with adapters
and pipelines."""

from __future__ import annotations

import copy
import json
import math
import pickle
import threading
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import torch.distributed as dist
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    pipeline,
)

import hf_longattn.families as families
from hf_longattn import convert_checkpoint
from hf_longattn.errors import InputError
from scripts.dev.tools.small_models import small_values
from tests.byte_tokenizer import train_tokenizer
from tests.ranks import PAIR
from tests.reference.small_models import long_config, long_like, long_model, padding, plain_model, tokens
from tests.trained import tokenizer_of

LONGFORMER = {"mechanism": "longformer", "window": 32}


def encoder(head: str = "BertModel", **changes: Any) -> Any:
    return long_model("bert", head, LONGFORMER, **changes)


def test_lora_tunes_saves_and_loads_a_long_model(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = encoder("BertForSequenceClassification")
    ids = tokens(2, 80)
    with torch.no_grad():
        before = model(ids).logits
    tuned = peft.get_peft_model(
        model,
        peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=4, init_lora_weights="gaussian"),
    )
    is_global = torch.zeros_like(ids)
    is_global[:, 0] = 1
    tuned(ids, labels=torch.tensor([0, 1]), global_attention_mask=is_global).loss.backward()
    torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0).step()
    with torch.no_grad():
        after = tuned.eval()(ids).logits
        assert (after - before).abs().max() > 1e-4
        tuned.save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(encoder("BertForSequenceClassification"), tmp_path).eval()
        assert torch.allclose(again(ids).logits, after, atol=1e-6)


def test_adapter_of_a_saved_long_model_loads_with_an_allowlist(tmp_path: Path) -> None:
    """As docs/how-to/adapt.md says."""
    peft = pytest.importorskip("peft")
    encoder().save_pretrained(tmp_path / "base")
    model = families.LongBertModel.from_pretrained(tmp_path / "base")
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], r=4, init_lora_weights=False)).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    again = peft.AutoPeftModel.from_pretrained(tmp_path / "adapter", import_allowlist=["hf_longattn"]).eval()
    ids = tokens(2, 80)
    with torch.no_grad():
        torch.testing.assert_close(again(ids)[0], tuned(ids)[0])


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    """Save a LongBert of some head with a tokenizer of BERT's class."""

    def save(head: str, **changes: Any) -> Path:
        encoder(head, vocab_size=1000, max_position_embeddings=2048, **changes).save_pretrained(tmp_path)
        tokenizer_of("bert").save_pretrained(tmp_path)
        return tmp_path

    return save


TEXT = "The mechanism decides which keys a query can see. " * 60


def test_pipelines_read_as_far_as_a_converted_model_and_refuse_longer_texts_to_classify(tmp_path: Path) -> None:
    """The source's tokenizer states no length, so that transformers' own pipelines end in an error of tensors' sizes
    there."""
    long_word = "a" * 3000
    text, longer = (f"{TEXT} {long_word} the end" * times for times in (1, 4))
    tasks = {
        "token-classification": "BertForTokenClassification",
        "text-classification": "BertForSequenceClassification",
    }
    for (task, head), mechanism in zip(tasks.items(), ("window", "longformer"), strict=True):
        plain_model("bert", head, vocab_size=1000, max_position_embeddings=512).save_pretrained(tmp_path / "short")
        tokenizer_of("bert").save_pretrained(tmp_path / "short")
        convert_checkpoint(
            tmp_path / "short", tmp_path / task, mechanism=mechanism, window=32, max_length=4096, verify=False
        )
    assert AutoTokenizer.from_pretrained(tmp_path / "short").model_max_length > 10**9
    tag = pipeline(
        "token-classification",
        model=str(tmp_path / "token-classification"),
        aggregation_strategy="first",
        ignore_labels=[],
    )
    assert 512 < len(tag.tokenizer(text)["input_ids"]) <= tag.tokenizer.model_max_length == 4096
    end, longer_end = (words[-1]["end"] for words in tag([text, longer]))
    assert end == len(text) < longer_end < len(longer)
    classify = pipeline("text-classification", model=str(tmp_path / "text-classification"))
    assert classify(text) != classify(f"{text} or not")
    with pytest.raises(
        InputError, match=r"but this model has 4096; cut it with .* or convert the checkpoint with a longer"
    ):
        classify(longer)
    assert tag([" \n", ""]) == [[], []]


def test_the_text_generation_pipeline_runs_on_a_long_decoder(tmp_path: Path) -> None:
    tokenizer_of("gpt2").save_pretrained(tmp_path)
    long_model("gpt2", "GPT2LMHeadModel", {"mechanism": "window", "window": 16}, vocab_size=1000).save_pretrained(
        tmp_path
    )
    generator = pipeline("text-generation", model=str(tmp_path))
    generator.tokenizer.pad_token_id = generator.model.config.eos_token_id
    texts = generator(["A long document", "Another"], max_new_tokens=5, do_sample=False, batch_size=2)
    assert all(
        text[0]["generated_text"].startswith(prompt)
        for text, prompt in zip(texts, ["A long document", "Another"], strict=True)
    )


def test_trainer_keeps_the_global_attention_mask(saved: Any, tmp_path: Path) -> None:
    folder = saved("BertForSequenceClassification")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [dict(tokenizer(TEXT[: 200 * (i + 1)]), labels=i % 2, unknown="dropped") for i in range(4)]
    for row in rows:
        row["global_attention_mask"] = [1] + [0] * (len(row["input_ids"]) - 1)
    seen: list[torch.Size] = []

    def watch(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["global_attention_mask"].shape)

    model = families.LongBertForSequenceClassification.from_pretrained(folder)
    model.register_forward_pre_hook(watch, with_kwargs=True)

    data = datasets.Dataset.from_list(rows)

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        assert all("unknown" not in row for row in batch)
        longest = max(len(row["input_ids"]) for row in batch)
        names = ("input_ids", "attention_mask", "token_type_ids", "global_attention_mask")
        made = {name: torch.tensor([row[name] + [0] * (longest - len(row[name])) for row in batch]) for name in names}
        return made | {"labels": torch.tensor([row["labels"] for row in batch])}

    arguments = TrainingArguments(
        str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    result = Trainer(model, arguments, train_dataset=data, data_collator=collate).train()
    assert math.isfinite(result.training_loss)
    assert len(seen) == 2
    assert all(shape[1] > 30 for shape in seen)


def test_sentence_transformers_encodes_with_a_long_model(saved: Any) -> None:
    st = pytest.importorskip("sentence_transformers")
    folder = saved("BertModel")
    model = st.SentenceTransformer(str(folder), device="cpu")
    assert type(model[0].auto_model).__name__ == "LongBertModel"
    together = model.encode([TEXT, "A short one."])
    alone = model.encode(["A short one."])
    assert together.shape == (2, 64)
    assert abs(together[1] - alone[0]).max() < 1e-5


LONG = 4096


def plain_bert(head: str) -> Any:
    return plain_model("bert", head, vocab_size=1000, num_hidden_layers=2)


@pytest.mark.thorough
def test_a_converted_sentence_encoder_encodes_4096_tokens(tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    sentence = "the mechanism decides which keys a query can see while the river runs on to the sea"
    words = sentence.split()
    tokenizer = tokenizer_of("bert", 512, texts=[sentence] * 50)  # each word is one piece
    plain_bert("BertModel").save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    st.SentenceTransformer(str(tmp_path / "bert"), device="cpu").save(str(tmp_path / "short"))
    convert_checkpoint(
        tmp_path / "short", tmp_path / "long", mechanism="longformer", window=64, max_length=LONG, verify=False
    )
    model = st.SentenceTransformer(str(tmp_path / "long"), device="cpu")
    assert model.max_seq_length == LONG
    text = " ".join(words[i * i % len(words)] for i in range(LONG - 2))
    assert len(tokenizer(text)["input_ids"]) == LONG
    first, again, truncated = model.encode([text, text, " ".join(text.split()[:510])], batch_size=3)
    assert st.util.cos_sim(first, again).item() == pytest.approx(1, abs=1e-5)
    assert abs(first - truncated).max() > 1e-3


@pytest.mark.parametrize(
    ("base", "head"), [("llama", "LlamaForCausalLM"), ("bert", "BertModel"), ("t5", "T5ForConditionalGeneration")]
)
def test_the_auto_map_of_a_config_can_be_read_and_an_empty_one_is_not_saved(
    base: str, head: str, tmp_path: Path
) -> None:
    """TRL reads it of models whose class is not in transformers' namespace; transformers itself asks whether a class
    is in it."""
    long_class = families.FAMILIES[base].long_class_of(getattr(transformers, head))
    config = families.FAMILIES[base].config_class(**small_values(base), long_attention={"mechanism": "window"})
    long_class(config).save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.auto_map == {}
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert long_class.from_pretrained(tmp_path).config.auto_map == {}
    config.auto_map["AutoModel"] = "owner/name--file.Class"  # as `register_for_auto_class` does
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).auto_map == {"AutoModel": "owner/name--file.Class"}
    assert families.FAMILIES[base].config_class().auto_map == {}


def test_trl_trains_a_model_by_the_name_of_its_folder(tmp_path: Path) -> None:
    """Supervised fine-tuning, and preferences beside a reference model that TRL loads itself."""
    trl = pytest.importorskip("trl", reason="trl is not installed: pip install --no-deps trl")
    tokenizer = train_tokenizer(["the tree is here"], 280, 64)
    tokenizer.eos_token = "[SEP]"
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 3, "num_hidden_layers": 1}
    folder = str(tmp_path / "model")
    long_model("llama", "LlamaForCausalLM", {"mechanism": "window", "window": 16}, **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
    }
    texts = datasets.Dataset.from_list([{"text": "the tree is the tree"}] * 4)
    tuned = trl.SFTTrainer(folder, args=trl.SFTConfig(**settings, max_length=32), train_dataset=texts)
    tuned.train()
    assert type(tuned.model) is families.LongLlamaForCausalLM
    preferences = datasets.Dataset.from_list([{"prompt": "the", "chosen": " tree", "rejected": " is"}] * 4)
    for policy in (folder, AutoModelForCausalLM.from_pretrained(folder)):
        trainer = trl.DPOTrainer(
            policy, args=trl.DPOConfig(**settings), train_dataset=preferences, processing_class=tokenizer
        )
        trainer.train()
        assert type(trainer.model) is type(trainer.ref_model) is type(tuned.model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "head", "backend"),
    [
        ("bert", "BertForQuestionAnswering", "aot_eager"),
        pytest.param(
            "gpt2", "GPT2LMHeadModel", "eager", marks=pytest.mark.slow
        ),  # a decoder of one graph: tests/memory/test_static_decoding.py
    ],
)
def test_long_models_compile_to_one_graph(base: str, head: str, backend: str) -> None:
    model = long_model(base, head, LONGFORMER, num_hidden_layers=1)
    ids, mask = tokens(2, 300), padding(2, 300)
    is_global = torch.zeros(2, 300, dtype=torch.long)
    is_global[:, :4] = 1
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for inputs in ({"attention_mask": mask, "global_attention_mask": is_global}, {}):
        with torch.no_grad():
            expected, found = model(ids, use_cache=False, **inputs), compiled(ids, use_cache=False, **inputs)
        rows = mask.bool() if inputs else ...
        assert (expected[0] - found[0])[rows].abs().max() < 1e-4


@pytest.mark.slow
def test_a_long_model_compiled_with_inductor_has_the_same_gradients() -> None:
    model = long_model(
        "bert", "BertForMaskedLM", LONGFORMER, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ).train()
    ids = tokens(2, 300)
    model(ids, labels=ids).loss.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch._dynamo.reset()
    torch.compile(model, fullgraph=True)(ids, labels=ids).loss.backward()
    for gradient, parameter in zip(expected, model.parameters(), strict=True):
        assert (gradient - parameter.grad).abs().max() < 1e-4


@pytest.mark.slow
def test_a_long_model_exports_strictly_for_any_length() -> None:
    """tests/export/test_graphs.py exports not strictly, as `longattn export` does."""
    model = long_model("bert", "BertForSequenceClassification", LONGFORMER, num_hidden_layers=1, return_dict=False)
    length = torch.export.Dim("length", min=257, max=512)  # shorter inputs take the dense path, which is another graph
    exported = torch.export.export(
        model,
        (),
        kwargs={"input_ids": tokens(2, 300), "attention_mask": padding(2, 300)},
        dynamic_shapes={"input_ids": {1: length}, "attention_mask": {1: length}},
        strict=True,
    ).module()
    for n in (300, 257, 450):
        inputs = {"input_ids": tokens(2, n), "attention_mask": padding(2, n)}
        with torch.no_grad():
            assert (model(**inputs)[0] - exported(**inputs)[0]).abs().max() < 1e-4


def sums_after_two_steps() -> list[float]:
    """The sum of every parameter after two steps in DistributedDataParallel, each process with its row."""
    config = long_config("bert", LONGFORMER)
    model = torch.nn.parallel.DistributedDataParallel(families.LongBertForMaskedLM(config))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        ids = tokens(2, 100)[dist.get_rank() :][:1]
        model(ids, labels=ids, global_attention_mask=torch.zeros_like(ids)).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().double().sum().item() for parameter in model.parameters()]


def test_a_long_model_trains_in_ddp_without_find_unused_parameters() -> None:
    first, second = PAIR.run(sums_after_two_steps)
    assert first == second


@pytest.mark.thorough
def test_long_models_run_in_several_threads() -> None:
    plain = plain_model("bert")
    models = [
        long_like(plain, "bert", chosen)
        for chosen in (LONGFORMER, {"mechanism": "window", "window": 8}, {"mechanism": "full"})
    ]
    with torch.no_grad():
        expected = [model(tokens(), output_attentions=i == 0) for i, model in enumerate(models)]
    wrong: list[int] = []

    def run(i: int) -> None:
        for _ in range(15):
            with torch.no_grad():
                found = models[i](tokens(), output_attentions=i == 0)
            if not torch.equal(found.last_hidden_state, expected[i].last_hidden_state) or (
                found.attentions is None
            ) != (i != 0):
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
