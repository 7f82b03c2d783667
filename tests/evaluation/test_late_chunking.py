"""Late chunking against its definition, and pooling as sentence-transformers computes it."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertTokenizerFast, PreTrainedModel, PreTrainedTokenizerBase

import hf_longattn.families as families
from hf_longattn.errors import CheckpointError, InputError, LongAttentionError
from hf_longattn.evaluation.late_chunking import late_chunks
from hf_longattn.evaluation.pooling import OLD_KEYS, SentencePooling, sentence_pooling, write_for_servers
from hf_longattn.files import read_json, write_json
from tests.cases import every_case
from tests.reference.small_models import long_config
from tests.trained import tokenizer_of

WORDS = ["tree", "file", "node", "path", "line", "value", "name", "house", "river", "stone", ".", "read", "##er"]
DOCUMENT = "the tree reader .  a file node path. line value name house, river stone tree. " * 12


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    file: Path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", *WORDS]))
    return BertTokenizerFast(vocab=str(file), model_max_length=512)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    config = long_config("bert", {"mechanism": "longformer", "window": 16}, max_position_embeddings=512)
    torch.manual_seed(0)
    return families.LongBertModel(config).eval()


def passages(tokenizer: PreTrainedTokenizerBase, text: str, size: int) -> list[tuple[int, int]]:
    """Passages of ``size`` tokens, together the whole text."""
    starts = [
        start for start, _ in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ]
    return [*pairwise([0, *starts[size::size], len(text)])]


def hidden(model: PreTrainedModel, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).last_hidden_state[0]


def vector_of(states: Tensor) -> Tensor:
    """The vector of a passage with these states ``(T, D)``."""
    return torch.nn.functional.normalize(states.mean(0), dim=0)


def test_late_chunks_are_means_of_the_states_of_one_pass(model: PreTrainedModel, tokenizer: BertTokenizerFast) -> None:
    sentences = []
    for end in [at + 1 for at, letter in enumerate(DOCUMENT) if letter == "."]:
        sentences.append((sentences[-1][1] if sentences else 0, end))
    read = tokenizer(DOCUMENT, return_offsets_mapping=True)
    states = hidden(model, read["input_ids"])
    (chunks,) = late_chunks(model, tokenizer, [DOCUMENT], [sentences])
    for embedding, (start, end) in zip(chunks, sentences, strict=True):
        rows = [at for at, (first, last) in enumerate(read["offset_mapping"]) if last > first and start <= first < end]
        torch.testing.assert_close(embedding, vector_of(states[rows]))


def test_late_chunk_of_a_whole_text_is_the_vector_of_sentence_transformers(
    model: PreTrainedModel, tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    st = pytest.importorskip("sentence_transformers")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = st.SentenceTransformer(str(tmp_path), device="cpu")
    for prefix in ("", "the value "):
        for text in ("tree", DOCUMENT[:70]):
            ((chunk,),) = late_chunks(model, tokenizer, [text], [[(0, len(text))]], prefix=prefix)
            expected = torch.from_numpy(encoder.encode(text, prompt=prefix or None, normalize_embeddings=True))
            torch.testing.assert_close(chunk, expected)


def test_late_chunks_of_byte_level_tokenizers_begin_with_the_space_after_a_prefix() -> None:
    tokenizer = tokenizer_of("roberta", 512)
    config = long_config(
        "roberta", {"mechanism": "window", "window": 16}, max_position_embeddings=514, vocab_size=len(tokenizer)
    )
    model = families.LongRobertaModel(config).eval()
    prefix = "search_document: "
    read = tokenizer(prefix + DOCUMENT[:200], return_offsets_mapping=True)
    states = hidden(model, read["input_ids"])
    own = [at for at, (_, end) in enumerate(read["offset_mapping"]) if end > len(prefix)]
    second = read["offset_mapping"][own[10]][0] - len(prefix)
    (chunks,) = late_chunks(model, tokenizer, [DOCUMENT[:200]], [[(0, second), (second, 200)]], prefix=prefix)
    assert len(own) + len(tokenizer(prefix, add_special_tokens=False)["input_ids"]) > len(read["input_ids"]) - 2, (
        "one token has both"
    )
    torch.testing.assert_close(chunks[0], vector_of(states[own[:10]]))


def test_late_chunks_ignore_the_training_mode_of_the_model(tokenizer: BertTokenizerFast) -> None:
    config = long_config(
        "bert", {"mechanism": "window", "window": 16}, max_position_embeddings=512, hidden_dropout_prob=0.5
    )
    model = families.LongBertModel(config).eval()
    spans = [passages(tokenizer, DOCUMENT, 256)]
    (expected,) = late_chunks(model, tokenizer, [DOCUMENT], spans)
    model.train()
    (result,) = late_chunks(model, tokenizer, [DOCUMENT], spans)
    assert model.training
    torch.testing.assert_close(result, expected)


def test_late_chunks_of_longer_documents_come_from_window_with_most_context(
    model: PreTrainedModel, tokenizer: BertTokenizerFast
) -> None:
    ids = tokenizer(DOCUMENT, add_special_tokens=False)["input_ids"]
    length, overlap = 98, 24
    states = [torch.zeros(0)] * len(ids)
    furthest = [-1] * len(ids)
    step = length - 2 - overlap
    firsts = [first for first in range(0, len(ids), step) if first == 0 or first + overlap < len(ids)]
    for first in firsts:
        part = ids[first : first + length - 2]
        result = hidden(model, [2, *part, 3])[1:-1]
        for at in range(len(part)):
            margin = min(at if first else 10**6, len(part) - 1 - at if first != firsts[-1] else 10**6)
            if margin > furthest[first + at]:
                furthest[first + at], states[first + at] = margin, result[at]
    spans = [passages(tokenizer, DOCUMENT, 30)]
    (chunks,) = late_chunks(model, tokenizer, [DOCUMENT], spans, max_length=length)
    for number, chunk in enumerate(chunks):
        torch.testing.assert_close(chunk, vector_of(torch.stack(states[30 * number : 30 * number + 30])))
    whole = late_chunks(model, tokenizer, [DOCUMENT], spans)[0]
    assert not torch.allclose(whole[1], chunks[1])


def test_late_chunks_refuses_passages_and_lengths_that_do_not_fit(
    model: PreTrainedModel, tokenizer: BertTokenizerFast
) -> None:
    for words, spans in (
        (r"no passage \(5, 2\)", [[(5, 2)]]),
        ("no passage", [[(0, 10**6)]]),
        (r"No token of document 0 starts in the passage \(17, 18\)", [[(17, 18)]]),
        ("a list of texts, and for each of them a list of its passages", [[], []]),
        (r"A passage is \(start, end\) in characters, .* not 'ab'", [["ab"]]),
        (r"A passage is \(start, end\) in characters, .*; not 0", [(0, 5)]),
    ):
        with pytest.raises(LongAttentionError, match=words):
            late_chunks(model, tokenizer, [DOCUMENT], spans)  # type: ignore[arg-type]
    with pytest.raises(LongAttentionError, match="Late chunking takes a list of texts"):
        late_chunks(model, tokenizer, "tree", [[(0, 1)]] * 4)
    with pytest.raises(InputError, match="too short for an overlap"):
        late_chunks(model, tokenizer, [DOCUMENT], [[(0, 10)]], prefix="the " * 80, max_length=100)
    assert late_chunks(model, tokenizer, [""], [[]])[0].shape == (0, model.config.hidden_size)
    assert late_chunks(model, tokenizer, [], []) == []


@every_case("left", [False, True])
@every_case("mode", [*OLD_KEYS, ("cls", "mean")], ids=str)
def test_pooling_is_that_of_sentence_transformers(mode: str | tuple[str, ...], left: bool, tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    theirs = st.Pooling(8, mode)
    for name, module in (("1_Pooling", theirs), ("2_Normalize", st.Normalize())):
        (tmp_path / name).mkdir()
        module.save(str(tmp_path / name))
    modules = [
        {"path": "", "type": "x.Transformer"},
        {"path": "1_Pooling", "type": "x.Pooling"},
        {"path": "2_Normalize", "type": "x.Normalize"},
    ]
    write_json(tmp_path / "modules.json", modules)
    ours = sentence_pooling(tmp_path)
    assert isinstance(ours, SentencePooling)
    states, mask = torch.randn(3, 10, 8), torch.ones(3, 10, dtype=torch.long)
    mask[1, 4:], mask[2, 1:] = 0, 0
    mask = mask.flip(1) if left else mask
    features = {"token_embeddings": states, "attention_mask": mask}
    expected = st.Normalize()(theirs(features))["sentence_embedding"]
    torch.testing.assert_close(ours(states, mask), expected)
    write_json(tmp_path / "modules.json", modules[:2])
    assert not sentence_pooling(tmp_path).normalize  # type: ignore[union-attr]


def test_pooling_reads_old_files_and_none_of_other_modules(tmp_path: Path) -> None:
    assert sentence_pooling(tmp_path) is None
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    write_json(tmp_path / "modules.json", modules)
    assert sentence_pooling(tmp_path) is None
    (tmp_path / "1_Pooling").mkdir()
    settings = tmp_path / "1_Pooling" / "config.json"
    write_json(
        settings, {"word_embedding_dimension": 8, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    )
    assert sentence_pooling(tmp_path).modes == ("cls", "mean")  # type: ignore[union-attr]
    write_json(settings, {"pooling_mode": "mean", "include_prompt": False})
    assert sentence_pooling(tmp_path) is None
    write_json(tmp_path / "modules.json", [*modules, {"path": "2_Dense", "type": "x.Dense"}])
    assert sentence_pooling(tmp_path) is None
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(CheckpointError):
        sentence_pooling(tmp_path)


@pytest.mark.parametrize("mode", ["mean", ("cls", "max")], ids=str)
def test_pooling_files_for_servers_have_the_old_form(mode: str | tuple[str, ...], tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    (tmp_path / "1_Pooling").mkdir()
    st.Pooling(8, mode).save(str(tmp_path / "1_Pooling"))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        },
    ]
    write_json(tmp_path / "modules.json", modules)
    settings = tmp_path / "sentence_bert_config.json"
    write_json(settings, {"transformer_task": "feature-extraction", "do_lower_case": True, "modality_config": {}})
    write_for_servers(tmp_path, 4096)
    assert read_json(settings) == {"max_seq_length": 4096, "do_lower_case": True}
    written = read_json(tmp_path / "modules.json")
    assert [one["type"] for one in written] == [
        "sentence_transformers.models.Transformer",
        "sentence_transformers.models.Pooling",
    ]
    values = read_json(tmp_path / "1_Pooling" / "config.json")
    assert (values["word_embedding_dimension"], values["pooling_mode_mean_tokens"]) == (8, mode == "mean")
    assert sum(value for name, value in values.items() if name.startswith("pooling_mode")) == (
        1 if mode == "mean" else 2
    )
    again = sentence_pooling(tmp_path)
    assert again is not None
    assert set(again.modes) == ({mode} if isinstance(mode, str) else set(mode))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = st.Pooling.load(str(tmp_path / "1_Pooling"))
    assert loaded.get_embedding_dimension() == 8 * len(again.modes)


def test_pooling_files_for_servers_keep_the_task_of_a_cross_encoder(tmp_path: Path) -> None:
    write_for_servers(tmp_path, 64)
    write_json(tmp_path / "modules.json", [{"path": "", "type": "a.Transformer"}])
    settings = tmp_path / "sentence_bert_config.json"
    write_json(settings, {"transformer_task": "sequence-classification"})
    write_for_servers(tmp_path, 64)
    assert read_json(settings) == {"max_seq_length": 64, "transformer_task": "sequence-classification"}
    assert read_json(tmp_path / "modules.json") == [{"path": "", "type": "a.Transformer"}]
