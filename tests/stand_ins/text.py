"""Stand-ins for the pages on text: encoders, decoders, what is converted from them, tables and books."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.saved import label_config
from tests.stand_ins import Setting, made, page, stand_in

HOUSES = [("Ada", "red"), ("Bea", "green"), ("Carl", "blue"), ("Dora", "white")]


@stand_in("google-bert/bert-base-uncased")
def bert(folder: Path) -> None:
    """A BERT of 512 tokens."""
    small("bert", "BertForMaskedLM", folder, 512, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def small(base: str, head: str, folder: Path, length: int, pieces: str = "", **values: Any) -> Any:
    """A small checkpoint of an architecture with a tokenizer of its class, or of that of ``pieces``, saved; returns
    the model."""
    from scripts.dev.tools.small_models import Shape, small_values
    from tests.trained import tokenizer_of

    tokenizer = tokenizer_of(pieces or base, length)
    if tokenizer.pad_token_id is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    shape = Shape(inner=64, heads=2, tokens=length, vocabulary=len(tokenizer))
    special = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")
    }
    chosen = {name: number for name, number in special.items() if number is not None}
    torch.manual_seed(0)
    model = getattr(transformers, head)(
        getattr(transformers, head).config_class(**small_values(base, shape, **chosen, **values))
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@stand_in("gpt2", "openai-community/gpt2")
def gpt2(folder: Path) -> None:
    """With weights so large that its attention is far from even, as that of a trained one."""
    small("gpt2", "GPT2LMHeadModel", folder, 1024, initializer_range=0.2)


@stand_in("llama", "meta-llama/Llama-2-7b-hf")
def llama(folder: Path) -> None:
    small("llama", "LlamaForCausalLM", folder, 2048 if folder.name == "llama" else 4096, "gpt2")


@stand_in("sentence-transformers/all-MiniLM-L6-v2")
def minilm(folder: Path) -> None:
    """With mean pooling, normalisation and a limit of 256 tokens, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    plain = folder.with_name("minilm-plain")
    small("bert", "BertModel", plain, 512)
    SentenceTransformer(modules=[Transformer(str(plain), max_seq_length=256), Pooling(32), Normalize()]).save(
        str(folder)
    )


@stand_in("minilm-4096-embed")
def minilm_long(folder: Path) -> None:
    converted("sentence-transformers/all-MiniLM-L6-v2", folder, "longformer", max_length=4096)


@stand_in("bert-4096-reviews")
def bert_reviews(folder: Path) -> None:
    from hf_longattn import convert_checkpoint

    plain = folder.with_name("bert-reviews")
    small("bert", "BertForSequenceClassification", plain, 512, **label_config(["bad", "good"]))
    convert_checkpoint(plain, folder, mechanism="longformer", verify=False, window=512, max_length=4096)


@stand_in("dslim/bert-base-NER")
def tagger(folder: Path) -> None:
    labels = label_config(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
    small("bert", "BertForTokenClassification", folder, 512, **labels)


@stand_in("my-classifier", "my-nli-model", "my-reranker")
def classifier(folder: Path) -> None:
    names = ["score"] if folder.name == "my-reranker" else ["contradiction", "neutral", "entailment"]
    small("bert", "BertForSequenceClassification", folder, 512, **label_config(names))


@stand_in("my-reader")
def reader(folder: Path) -> None:
    small("bert", "BertForQuestionAnswering", folder, 512)


@stand_in("protectai/deberta-v3-base-prompt-injection-v2")
def guardrail(folder: Path) -> None:
    """Without a table of positions, as the published one."""
    values: dict[str, Any] = {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 256,
        "position_biased_input": False,
        **label_config(["SAFE", "INJECTION"]),
    }
    small("deberta-v2", "DebertaV2ForSequenceClassification", folder, 512, **values)


@stand_in("allenai/longformer-base-4096")
def longformer(folder: Path) -> None:
    """With the pickled weights of the published one."""
    from tests.trained import tokenizer_of

    tokenizer = tokenizer_of("roberta", 4096)
    torch.manual_seed(0)
    config = transformers.LongformerConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        attention_window=[64, 64],
        max_position_embeddings=4098,
        pad_token_id=1,
        sep_token_id=2,
        bos_token_id=0,
        eos_token_id=2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    pickled(transformers.LongformerForMaskedLM(config), folder)
    tokenizer.save_pretrained(folder)


@stand_in("google/bigbird-roberta-base")
def big_bird(folder: Path) -> None:
    """With the pickled weights of the published one."""
    from tests.trained import tokenizer_of

    tokenizer = tokenizer_of("big_bird", 4096)
    torch.manual_seed(0)
    config = transformers.BigBirdConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        block_size=16,
        max_position_embeddings=4096,
    )
    pickled(transformers.BigBirdForMaskedLM(config), folder)
    tokenizer.save_pretrained(folder)


def pickled(model: Any, folder: Path) -> None:
    """Save a model as repositories did before safetensors."""
    folder.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def converted(source: str, folder: Path, mechanism: str, **settings: Any) -> None:
    """A stand-in made from another one by a conversion."""
    from hf_longattn import convert_checkpoint

    convert_checkpoint(made(source), folder, mechanism=mechanism, verify=False, **settings)


@stand_in("bert-4096", "long-bert")
def bert_4096(folder: Path) -> None:
    converted("google-bert/bert-base-uncased", folder, "longformer", window=512, max_length=4096)


@stand_in("gpt2-4096")
def gpt2_4096(folder: Path) -> None:
    converted("gpt2", folder, "window", window=512, num_sinks=4, max_length=4096)


@stand_in("gpt2-xl-memory")
def gpt2_memory(folder: Path) -> None:
    converted("gpt2", folder, "transformer_xl", segment_length=256, memory_length=256, max_length=4096)


@stand_in("llama-8192", "llama-window")
def llama_long(folder: Path) -> None:
    converted("llama", folder, "window", window=512, max_length=8192 if folder.name == "llama-8192" else 4096)


@stand_in("hustvl/yolos-tiny")
def yolos(folder: Path) -> None:
    """An architecture without Long classes."""
    torch.manual_seed(0)
    config = transformers.YolosConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=[64, 64],
        patch_size=8,
        num_detection_tokens=4,
    )
    transformers.YolosForObjectDetection(config).save_pretrained(folder)
    transformers.YolosImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


@stand_in("my_texts")
def texts(folder: Path) -> None:
    """Three documents; one of them is several inputs of 512 tokens."""
    from tests.trained import REAL_TEXT

    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(REAL_TEXT[number * 100 :], encoding="utf-8")


@stand_in("notes.txt")
def notes(file: Path) -> None:
    file.write_text("The ferry leaves at noon. Bring the red notebook.\n", encoding="utf-8")


@stand_in("book.txt", "held_out.txt")
def book(file: Path) -> None:
    """Some ten thousand words."""
    from tests.trained import REAL_TEXT

    file.write_text(REAL_TEXT * 6, encoding="utf-8")


@stand_in("my_squad.json", "my_long.json", "dev.json")
def squad(file: Path) -> None:
    """Questions about houses, as SQuAD has them; fewer to be scored with, about other houses."""
    paragraphs = []
    for number, (name, colour) in enumerate(
        HOUSES * (1 if file.stem == "dev" else 4), start=100 * (file.stem == "dev")
    ):
        context = f"House {number} is old. {name} painted its door {colour}."
        answer = {"text": name, "answer_start": context.index(name)}
        paragraphs.append(
            {
                "context": context,
                "qas": [{"id": str(number), "question": "Who painted the door?", "answers": [answer]}],
            }
        )
    file.write_text(
        json.dumps({"version": "1.1", "data": [{"title": "houses", "paragraphs": paragraphs}]}), encoding="utf-8"
    )


def write_table(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


REVIEWS = [
    {"text": f"A {word} book, number {number}.", "label": label}
    for number in range(20)
    for word, label in (("fine", "good"), ("dull", "bad"))
]


@stand_in("reviews.csv", "test.csv")
def reviews(file: Path) -> None:
    write_table(file, REVIEWS)


@stand_in("stars.csv")
def stars(file: Path) -> None:
    write_table(file, [{"review": row["text"], "stars": row["label"]} for row in REVIEWS])


@stand_in("stanfordnlp/imdb")
def imdb(folder: Path) -> None:
    """Reviews with numbers for labels."""
    write_table(folder / "train.csv", [{**row, "label": int(row["label"] == "good")} for row in REVIEWS[:8]])


@stand_in("pairs.jsonl")
def pairs(file: Path) -> None:
    rows = [
        {"anchor": f"Who painted door {n}?", "positive": f"{HOUSES[n % 4][0]} painted door {n} {HOUSES[n % 4][1]}."}
        for n in range(40)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@stand_in("documents.jsonl", "queries.jsonl")
def documents(file: Path) -> None:
    """Three documents, or two queries about them."""
    queries = ["Who painted door 1?", "Whose house is old?"]
    texts = queries if file.stem == "queries" else [f"{name}'s door. " * 300 for name, _ in HOUSES[:3]]
    file.write_text(
        "".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts)), encoding="utf-8"
    )


@stand_in("results.json")
def results(file: Path) -> None:
    file.write_text(json.dumps([{"dataset": "squad", "metric": "f1", "value": 88.1}]), encoding="utf-8")


TEXTS = "--data my_texts/"
FEW_STEPS = {
    TEXTS + " --segments 512 --max-minutes 60": "--data ./my_texts/ --segments 128 --max-steps 2",
    "--max-minutes 60": "",
    TEXTS: TEXTS + " --max-steps 2 --max-length 512",
}
TWO_STEPS = {TEXTS: TEXTS + " --max-steps 2 --max-length 256 --max-train-samples 3 --max-eval-samples 2"}

MEMORY = """
import hf_longattn
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("gpt2-xl-memory")
segments = torch.randint(0, 500, (2, 1024)).split(512, dim=1)
"""

SHORT_TEXTS = {"[512, 4096]": "[512, 1024]"}
IN_MEMORY = """
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("google-bert/bert-base-uncased")
input_ids = torch.randint(5, 100, (1, 256))
"""

LONG_TALK = """
import numpy
import soundfile

soundfile.write("talks/long.wav", numpy.random.default_rng(0).normal(scale=0.1, size=16 * 16_000), 16_000)
"""

ROOT = Path(__file__).parents[2]
SERVED = f"""
import sys
sys.path.append({str(ROOT)!r})
from tests.examples.embedding_server import serving_embeddings
served = serving_embeddings(lambda text: [float(len(text)), float(hash(text))], 8086)
served.__enter__()
"""
"""A server of embeddings that reads every word."""
page("docs/how-to/server_reach.md", Setting(before=SERVED))
page(
    "docs/how-to/adapt.md",
    Setting(
        instead={
            **FEW_STEPS,
            "--num_processes 4": "--num_processes 2",
            "--num_processes 8": "--num_processes 2",
            "llama-merged --minutes 20": "llama-merged --minutes 0 --length 128 --measured 512 --texts 1",
            "--max-minutes 20": "--max-steps 1",
        },
        slow=True,
    ),
)
page("docs/how-to/train.md", Setting(instead={TEXTS: FEW_STEPS[TEXTS]}))
page(
    "docs/how-to/search.md",
    Setting(
        before=LONG_TALK,
        instead={
            "--budget 0.25 --output": "--budget 0.5 --candidate longformer:window=512 --output",
            "vit-base photos/ --image-size 1024": "vit-base photos/ --image-size 448 --budget 5s --candidate "
            "window2d:window=7",
            "talks/ --audio-seconds 300": "talks/ --audio-seconds 16 --budget 5s --candidate window:window=64",
            "--image-size 1024 --search-input photos/": "--image-size 448 --budget 5s --search-input photos/",
            "--audio-seconds 300 --search-input talks/": "--audio-seconds 16 --budget 5s --search-input talks/",
        },
        slow=True,
    ),
)
page("docs/how-to/linearise.md", Setting(instead=TWO_STEPS, before=MEMORY, slow=True))
page(
    "docs/how-to/positions.md",
    Setting(instead={"0-5:relative": "0:relative", "--max-length 16384": "--max-length 5120"}, slow=True),
)
page("docs/how-to/long_qa.md", Setting(before="document = 'The house is old. Ada built it. ' * 20", slow=True))
page("docs/how-to/export.md", Setting(slow=True))
page("docs/install.md", Setting(slow=True))  # makes a virtual environment
page("README.md", Setting(instead={"--data pairs.jsonl": "--data pairs.jsonl --max-steps 2"}))
page(
    "docs/how-to/embed.md",
    Setting(copies=40, instead={"--data pairs.jsonl": "--data pairs.jsonl --max-steps 4"}, slow=True),
)
SMALL_RAY = "import ray; ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20)"
page(
    "docs/how-to/retrieve.md",
    Setting(before=SMALL_RAY, instead={"--data pairs.jsonl": "--data pairs.jsonl --max-steps 2"}, slow=True),
)
page("docs/how-to/inspect.md", Setting(before=IN_MEMORY, instead=SHORT_TEXTS, slow=True))


@stand_in("answerdotai/ModernBERT-base", "nomic-ai/modernbert-embed-base")
def modern_bert(folder: Path) -> None:
    """Which has windows itself."""
    small("modernbert", "ModernBertForMaskedLM", folder, 8192, "roberta", local_attention=16)


@stand_in("google/gemma-3-270m")
def gemma3(folder: Path) -> None:
    small("gemma3_text", "Gemma3ForCausalLM", folder, 4096, "gpt2", sliding_window=16)


@stand_in("openai/privacy-filter")
def privacy_filter(folder: Path) -> None:
    """Which has windows and sinks, and no SDPA in transformers."""
    from tests.trained import tokenizer_of

    tokenizer = tokenizer_of("gpt2", 4096)
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "openai_privacy_filter",
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=16,
        num_key_value_heads=2,
        intermediate_size=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    transformers.AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


GLINER = """
from gliner import GLiNER
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import DebertaV2Config, ModernBertConfig, PreTrainedTokenizerFast, set_seed

def save_small(encoder, folder):
    # words w0 to w199; numbers of tokens are those of words
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    vocabulary = {word: number for number, word in enumerate([*special, *(f"w{number}" for number in range(200))])}
    splitter = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    splitter.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    splitter.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=splitter, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    tokenizer.save_pretrained(folder + "-words")
    sizes = dict(
        vocab_size=204,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        pad_token_id=0,
    )
    if encoder == "deberta-v2":
        config = DebertaV2Config(
            **sizes,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=16,
            max_position_embeddings=64,
            share_att_key=True, norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0,
        )
    else:
        config = ModernBertConfig(
            **sizes,
            max_position_embeddings=4096,
            local_attention=16,
            bos_token_id=1,
            cls_token_id=1,
            eos_token_id=2,
            sep_token_id=2,
        )
    set_seed(0)
    model = GLiNER.from_config(
        dict(
            model_name=folder + "-words",
            hidden_size=32,
            max_len=64,
            max_width=4,
            encoder_config=config.to_dict(),
            dropout=0.0,
        ),
        backbone_from_pretrained=False,
    )
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1)
    model.save_pretrained(folder)
"""
"""Python that defines ``save_small(encoder, folder)``, for a DeBERTa-v2 of 64 positions, or a ModernBERT of 4,096."""

page(
    "docs/how-to/gliner.md",
    Setting(
        before=GLINER
        + 'save_small("deberta-v2", "gliner-small")\ndocument = " ".join(f"w{number * 7 % 200}" for number in '
        "range(300))\n",
        instead={"urchade/gliner_medium-v2.1": "gliner-small"},
        slow=True,
    ),
)
