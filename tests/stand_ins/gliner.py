"""A small GLiNER with random weights, saved by its own package, which only the page of it installs."""

from __future__ import annotations

from tests.stand_ins import Setting, page

SMALL = """
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
    sizes = dict(vocab_size=204, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, pad_token_id=0)
    if encoder == "deberta-v2":
        config = DebertaV2Config(
            **sizes, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16, max_position_embeddings=64,
            share_att_key=True, norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0,
        )
    else:
        config = ModernBertConfig(
            **sizes, max_position_embeddings=4096, local_attention=16, bos_token_id=1, cls_token_id=1, eos_token_id=2, sep_token_id=2
        )
    set_seed(0)
    model = GLiNER.from_config(
        dict(model_name=folder + "-words", hidden_size=32, max_len=64, max_width=4, encoder_config=config.to_dict(), dropout=0.0),
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
        before=SMALL + 'save_small("deberta-v2", "gliner-small")\ndocument = " ".join(f"w{number * 7 % 200}" for number in range(300))\n',
        instead={"urchade/gliner_medium-v2.1": "gliner-small"},
        slow=True,
    ),
)
