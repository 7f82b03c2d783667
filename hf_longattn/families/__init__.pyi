# Written by `python -m tools.class_stubs` (part of `make format`) with transformers 5.23.0; do not edit.
"""Long<Base> families: the models of transformers with long attention, one short file per base architecture."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithCrossAttentions, BaseModelOutputWithPast, BaseModelOutputWithPastAndCrossAttentions, BaseModelOutputWithPooling, BaseModelOutputWithPoolingAndCrossAttentions, CausalLMOutputWithCrossAttentions, CausalLMOutputWithPast, MaskedLMOutput, MultipleChoiceModelOutput, NextSentencePredictorOutput, QuestionAnsweringModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput, Seq2SeqQuestionAnsweringModelOutput, Seq2SeqSequenceClassifierOutput, SequenceClassifierOutput, SequenceClassifierOutputWithPast, TokenClassifierOutput
from transformers.models.albert.configuration_albert import AlbertConfig
from transformers.models.albert.modeling_albert import AlbertForMaskedLM, AlbertForMultipleChoice, AlbertForPreTraining, AlbertForPreTrainingOutput, AlbertForQuestionAnswering, AlbertForSequenceClassification, AlbertForTokenClassification, AlbertModel
from transformers.models.bart.configuration_bart import BartConfig
from transformers.models.bart.modeling_bart import BartForCausalLM, BartForConditionalGeneration, BartForQuestionAnswering, BartForSequenceClassification, BartModel
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertForMaskedLM, BertForMultipleChoice, BertForNextSentencePrediction, BertForPreTraining, BertForPreTrainingOutput, BertForQuestionAnswering, BertForSequenceClassification, BertForTokenClassification, BertLMHeadModel, BertModel
from transformers.models.big_bird.configuration_big_bird import BigBirdConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdForCausalLM, BigBirdForMaskedLM, BigBirdForMultipleChoice, BigBirdForPreTraining, BigBirdForPreTrainingOutput, BigBirdForQuestionAnswering, BigBirdForQuestionAnsweringModelOutput, BigBirdForSequenceClassification, BigBirdForTokenClassification, BigBirdModel
from transformers.models.bigbird_pegasus.configuration_bigbird_pegasus import BigBirdPegasusConfig
from transformers.models.bigbird_pegasus.modeling_bigbird_pegasus import BigBirdPegasusForCausalLM, BigBirdPegasusForConditionalGeneration, BigBirdPegasusForQuestionAnswering, BigBirdPegasusForSequenceClassification, BigBirdPegasusModel
from transformers.models.camembert.configuration_camembert import CamembertConfig
from transformers.models.camembert.modeling_camembert import CamembertForCausalLM, CamembertForMaskedLM, CamembertForMultipleChoice, CamembertForQuestionAnswering, CamembertForSequenceClassification, CamembertForTokenClassification, CamembertModel
from transformers.models.deberta_v2.configuration_deberta_v2 import DebertaV2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2ForMaskedLM, DebertaV2ForMultipleChoice, DebertaV2ForQuestionAnswering, DebertaV2ForSequenceClassification, DebertaV2ForTokenClassification, DebertaV2Model
from transformers.models.distilbert.configuration_distilbert import DistilBertConfig
from transformers.models.distilbert.modeling_distilbert import DistilBertForMaskedLM, DistilBertForMultipleChoice, DistilBertForQuestionAnswering, DistilBertForSequenceClassification, DistilBertForTokenClassification, DistilBertModel
from transformers.models.electra.configuration_electra import ElectraConfig
from transformers.models.electra.modeling_electra import ElectraForCausalLM, ElectraForMaskedLM, ElectraForMultipleChoice, ElectraForPreTraining, ElectraForPreTrainingOutput, ElectraForQuestionAnswering, ElectraForSequenceClassification, ElectraForTokenClassification, ElectraModel
from transformers.models.esm.configuration_esm import EsmConfig
from transformers.models.esm.modeling_esm import EsmForMaskedLM, EsmForSequenceClassification, EsmForTokenClassification, EsmModel
from transformers.models.gemma.configuration_gemma import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaForCausalLM, GemmaForSequenceClassification, GemmaForTokenClassification, GemmaModel
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2ForCausalLM, Gemma2ForSequenceClassification, Gemma2ForTokenClassification, Gemma2Model
from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3ForCausalLM, Gemma3TextForSequenceClassification, Gemma3TextModel
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2DoubleHeadsModel, GPT2DoubleHeadsModelOutput, GPT2ForQuestionAnswering, GPT2ForSequenceClassification, GPT2ForTokenClassification, GPT2LMHeadModel, GPT2Model
from transformers.models.gpt_neox.configuration_gpt_neox import GPTNeoXConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXForCausalLM, GPTNeoXForQuestionAnswering, GPTNeoXForSequenceClassification, GPTNeoXForTokenClassification, GPTNeoXModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaForQuestionAnswering, LlamaForSequenceClassification, LlamaForTokenClassification, LlamaModel
from transformers.models.marian.configuration_marian import MarianConfig
from transformers.models.marian.modeling_marian import MarianForCausalLM, MarianMTModel, MarianModel
from transformers.models.mbart.configuration_mbart import MBartConfig
from transformers.models.mbart.modeling_mbart import MBartForCausalLM, MBartForConditionalGeneration, MBartForQuestionAnswering, MBartForSequenceClassification, MBartModel
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.mistral.modeling_mistral import MistralForCausalLM, MistralForQuestionAnswering, MistralForSequenceClassification, MistralForTokenClassification, MistralModel
from transformers.models.modernbert.configuration_modernbert import ModernBertConfig
from transformers.models.modernbert.modeling_modernbert import ModernBertForMaskedLM, ModernBertForMultipleChoice, ModernBertForQuestionAnswering, ModernBertForSequenceClassification, ModernBertForTokenClassification, ModernBertModel
from transformers.models.mpnet.configuration_mpnet import MPNetConfig
from transformers.models.mpnet.modeling_mpnet import MPNetForMaskedLM, MPNetForMultipleChoice, MPNetForQuestionAnswering, MPNetForSequenceClassification, MPNetForTokenClassification, MPNetModel
from transformers.models.nystromformer.configuration_nystromformer import NystromformerConfig
from transformers.models.nystromformer.modeling_nystromformer import NystromformerForMaskedLM, NystromformerForMultipleChoice, NystromformerForQuestionAnswering, NystromformerForSequenceClassification, NystromformerForTokenClassification, NystromformerModel
from transformers.models.opt.configuration_opt import OPTConfig
from transformers.models.opt.modeling_opt import OPTForCausalLM, OPTForQuestionAnswering, OPTForSequenceClassification, OPTModel
from transformers.models.pegasus.configuration_pegasus import PegasusConfig
from transformers.models.pegasus.modeling_pegasus import PegasusForCausalLM, PegasusForConditionalGeneration, PegasusModel
from transformers.models.phi.configuration_phi import PhiConfig
from transformers.models.phi.modeling_phi import PhiForCausalLM, PhiForSequenceClassification, PhiForTokenClassification, PhiModel
from transformers.models.phi3.configuration_phi3 import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3ForCausalLM, Phi3ForSequenceClassification, Phi3ForTokenClassification, Phi3Model
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM, Qwen2ForQuestionAnswering, Qwen2ForSequenceClassification, Qwen2ForTokenClassification, Qwen2Model
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM, Qwen3ForQuestionAnswering, Qwen3ForSequenceClassification, Qwen3ForTokenClassification, Qwen3Model
from transformers.models.roberta.configuration_roberta import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaForCausalLM, RobertaForMaskedLM, RobertaForMultipleChoice, RobertaForQuestionAnswering, RobertaForSequenceClassification, RobertaForTokenClassification, RobertaModel
from transformers.models.smollm3.configuration_smollm3 import SmolLM3Config
from transformers.models.smollm3.modeling_smollm3 import SmolLM3ForCausalLM, SmolLM3ForQuestionAnswering, SmolLM3ForSequenceClassification, SmolLM3ForTokenClassification, SmolLM3Model
from transformers.models.xlm_roberta.configuration_xlm_roberta import XLMRobertaConfig
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaForCausalLM, XLMRobertaForMaskedLM, XLMRobertaForMultipleChoice, XLMRobertaForQuestionAnswering, XLMRobertaForSequenceClassification, XLMRobertaForTokenClassification, XLMRobertaModel

from ..configuration import LongAttentionConfig
from ..memory import SegmentMemory
from ..modeling.config import LongConfig, LongEncoderConfig, LongEncoderDecoderConfig
from ..modeling.family import FAMILIES as FAMILIES
from ..modeling.family import AttentionNames as AttentionNames
from ..modeling.family import Family as Family
from ..modeling.family import PositionTable as PositionTable
from ..modeling.generic import enable_long_attention as enable_long_attention
from ..modeling.generic import load_generic as load_generic
from ..modeling.mixin import LongAttentionMixin, LongBaseModelMixin, LongGenerationMixin
from ..modeling.registration import register as register

__all__ = [
    "LongAlbertConfig",
    "LongAlbertForMaskedLM",
    "LongAlbertForMultipleChoice",
    "LongAlbertForPreTraining",
    "LongAlbertForQuestionAnswering",
    "LongAlbertForSequenceClassification",
    "LongAlbertForTokenClassification",
    "LongAlbertModel",
    "LongBartConfig",
    "LongBartForCausalLM",
    "LongBartForConditionalGeneration",
    "LongBartForQuestionAnswering",
    "LongBartForSequenceClassification",
    "LongBartModel",
    "LongBertConfig",
    "LongBertForMaskedLM",
    "LongBertForMultipleChoice",
    "LongBertForNextSentencePrediction",
    "LongBertForPreTraining",
    "LongBertForQuestionAnswering",
    "LongBertForSequenceClassification",
    "LongBertForTokenClassification",
    "LongBertLMHeadModel",
    "LongBertModel",
    "LongBigBirdConfig",
    "LongBigBirdForCausalLM",
    "LongBigBirdForMaskedLM",
    "LongBigBirdForMultipleChoice",
    "LongBigBirdForPreTraining",
    "LongBigBirdForQuestionAnswering",
    "LongBigBirdForSequenceClassification",
    "LongBigBirdForTokenClassification",
    "LongBigBirdModel",
    "LongBigBirdPegasusConfig",
    "LongBigBirdPegasusForCausalLM",
    "LongBigBirdPegasusForConditionalGeneration",
    "LongBigBirdPegasusForQuestionAnswering",
    "LongBigBirdPegasusForSequenceClassification",
    "LongBigBirdPegasusModel",
    "LongCamembertConfig",
    "LongCamembertForCausalLM",
    "LongCamembertForMaskedLM",
    "LongCamembertForMultipleChoice",
    "LongCamembertForQuestionAnswering",
    "LongCamembertForSequenceClassification",
    "LongCamembertForTokenClassification",
    "LongCamembertModel",
    "LongDebertaV2Config",
    "LongDebertaV2ForMaskedLM",
    "LongDebertaV2ForMultipleChoice",
    "LongDebertaV2ForQuestionAnswering",
    "LongDebertaV2ForSequenceClassification",
    "LongDebertaV2ForTokenClassification",
    "LongDebertaV2Model",
    "LongDistilBertConfig",
    "LongDistilBertForMaskedLM",
    "LongDistilBertForMultipleChoice",
    "LongDistilBertForQuestionAnswering",
    "LongDistilBertForSequenceClassification",
    "LongDistilBertForTokenClassification",
    "LongDistilBertModel",
    "LongElectraConfig",
    "LongElectraForCausalLM",
    "LongElectraForMaskedLM",
    "LongElectraForMultipleChoice",
    "LongElectraForPreTraining",
    "LongElectraForQuestionAnswering",
    "LongElectraForSequenceClassification",
    "LongElectraForTokenClassification",
    "LongElectraModel",
    "LongEsmConfig",
    "LongEsmForMaskedLM",
    "LongEsmForSequenceClassification",
    "LongEsmForTokenClassification",
    "LongEsmModel",
    "LongGPT2Config",
    "LongGPT2DoubleHeadsModel",
    "LongGPT2ForQuestionAnswering",
    "LongGPT2ForSequenceClassification",
    "LongGPT2ForTokenClassification",
    "LongGPT2LMHeadModel",
    "LongGPT2Model",
    "LongGPTNeoXConfig",
    "LongGPTNeoXForCausalLM",
    "LongGPTNeoXForQuestionAnswering",
    "LongGPTNeoXForSequenceClassification",
    "LongGPTNeoXForTokenClassification",
    "LongGPTNeoXModel",
    "LongGemma2Config",
    "LongGemma2ForCausalLM",
    "LongGemma2ForSequenceClassification",
    "LongGemma2ForTokenClassification",
    "LongGemma2Model",
    "LongGemma3ForCausalLM",
    "LongGemma3TextConfig",
    "LongGemma3TextForSequenceClassification",
    "LongGemma3TextModel",
    "LongGemmaConfig",
    "LongGemmaForCausalLM",
    "LongGemmaForSequenceClassification",
    "LongGemmaForTokenClassification",
    "LongGemmaModel",
    "LongLlamaConfig",
    "LongLlamaForCausalLM",
    "LongLlamaForQuestionAnswering",
    "LongLlamaForSequenceClassification",
    "LongLlamaForTokenClassification",
    "LongLlamaModel",
    "LongMBartConfig",
    "LongMBartForCausalLM",
    "LongMBartForConditionalGeneration",
    "LongMBartForQuestionAnswering",
    "LongMBartForSequenceClassification",
    "LongMBartModel",
    "LongMPNetConfig",
    "LongMPNetForMaskedLM",
    "LongMPNetForMultipleChoice",
    "LongMPNetForQuestionAnswering",
    "LongMPNetForSequenceClassification",
    "LongMPNetForTokenClassification",
    "LongMPNetModel",
    "LongMarianConfig",
    "LongMarianForCausalLM",
    "LongMarianMTModel",
    "LongMarianModel",
    "LongMistralConfig",
    "LongMistralForCausalLM",
    "LongMistralForQuestionAnswering",
    "LongMistralForSequenceClassification",
    "LongMistralForTokenClassification",
    "LongMistralModel",
    "LongModernBertConfig",
    "LongModernBertForMaskedLM",
    "LongModernBertForMultipleChoice",
    "LongModernBertForQuestionAnswering",
    "LongModernBertForSequenceClassification",
    "LongModernBertForTokenClassification",
    "LongModernBertModel",
    "LongNystromformerConfig",
    "LongNystromformerForMaskedLM",
    "LongNystromformerForMultipleChoice",
    "LongNystromformerForQuestionAnswering",
    "LongNystromformerForSequenceClassification",
    "LongNystromformerForTokenClassification",
    "LongNystromformerModel",
    "LongOPTConfig",
    "LongOPTForCausalLM",
    "LongOPTForQuestionAnswering",
    "LongOPTForSequenceClassification",
    "LongOPTModel",
    "LongPegasusConfig",
    "LongPegasusForCausalLM",
    "LongPegasusForConditionalGeneration",
    "LongPegasusModel",
    "LongPhi3Config",
    "LongPhi3ForCausalLM",
    "LongPhi3ForSequenceClassification",
    "LongPhi3ForTokenClassification",
    "LongPhi3Model",
    "LongPhiConfig",
    "LongPhiForCausalLM",
    "LongPhiForSequenceClassification",
    "LongPhiForTokenClassification",
    "LongPhiModel",
    "LongQwen2Config",
    "LongQwen2ForCausalLM",
    "LongQwen2ForQuestionAnswering",
    "LongQwen2ForSequenceClassification",
    "LongQwen2ForTokenClassification",
    "LongQwen2Model",
    "LongQwen3Config",
    "LongQwen3ForCausalLM",
    "LongQwen3ForQuestionAnswering",
    "LongQwen3ForSequenceClassification",
    "LongQwen3ForTokenClassification",
    "LongQwen3Model",
    "LongRobertaConfig",
    "LongRobertaForCausalLM",
    "LongRobertaForMaskedLM",
    "LongRobertaForMultipleChoice",
    "LongRobertaForQuestionAnswering",
    "LongRobertaForSequenceClassification",
    "LongRobertaForTokenClassification",
    "LongRobertaModel",
    "LongSmolLM3Config",
    "LongSmolLM3ForCausalLM",
    "LongSmolLM3ForQuestionAnswering",
    "LongSmolLM3ForSequenceClassification",
    "LongSmolLM3ForTokenClassification",
    "LongSmolLM3Model",
    "LongXLMRobertaConfig",
    "LongXLMRobertaForCausalLM",
    "LongXLMRobertaForMaskedLM",
    "LongXLMRobertaForMultipleChoice",
    "LongXLMRobertaForQuestionAnswering",
    "LongXLMRobertaForSequenceClassification",
    "LongXLMRobertaForTokenClassification",
    "LongXLMRobertaModel",
]

# albert

class LongAlbertConfig(LongEncoderConfig, AlbertConfig):
    """AlbertConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 30000, embedding_size: int = 128, hidden_size: int = 4096, num_hidden_layers: int = 12, num_hidden_groups: int = 1, num_attention_heads: int = 64, intermediate_size: int = 16384, inner_group_num: int = 1, hidden_act: str = 'gelu_new', hidden_dropout_prob: int | float = 0.0, attention_probs_dropout_prob: int | float = 0.0, max_position_embeddings: int = 512, type_vocab_size: int = 2, initializer_range: float = 0.02, layer_norm_eps: float = 1e-12, classifier_dropout_prob: int | float = 0.1, pad_token_id: int | None = 0, bos_token_id: int | None = 2, eos_token_id: int | list[int] | None = 3, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongAlbertForMaskedLM(LongAttentionMixin, AlbertForMaskedLM):
    """AlbertForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of AlbertForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of AlbertForMaskedLM instead.
    """
    config: LongAlbertConfig
    def __init__(self, config: LongAlbertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongAlbertForMultipleChoice(LongAttentionMixin, AlbertForMultipleChoice):
    """AlbertForMultipleChoice with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of AlbertForMultipleChoice, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of AlbertForMultipleChoice instead.
    """
    config: LongAlbertConfig
    def __init__(self, config: LongAlbertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> AlbertForPreTrainingOutput: ...
    __call__ = forward

class LongAlbertForPreTraining(LongAttentionMixin, AlbertForPreTraining):
    """AlbertForPreTraining with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of AlbertForPreTraining, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of AlbertForPreTraining instead.
    """
    config: LongAlbertConfig
    def __init__(self, config: LongAlbertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, sentence_order_label: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> AlbertForPreTrainingOutput: ...
    __call__ = forward

class LongAlbertForQuestionAnswering(LongAttentionMixin, AlbertForQuestionAnswering):
    """AlbertForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of AlbertForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of AlbertForQuestionAnswering instead.
    """
    config: LongAlbertConfig
    def __init__(self, config: LongAlbertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> AlbertForPreTrainingOutput: ...
    __call__ = forward

class LongAlbertForSequenceClassification(LongAttentionMixin, AlbertForSequenceClassification):
    """AlbertForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of AlbertForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of AlbertForSequenceClassification instead.
    """
    config: LongAlbertConfig
    def __init__(self, config: LongAlbertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongAlbertForTokenClassification(LongAttentionMixin, AlbertForTokenClassification):
    """AlbertForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of AlbertForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of AlbertForTokenClassification instead.
    """
    config: LongAlbertConfig
    def __init__(self, config: LongAlbertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongAlbertModel(LongBaseModelMixin, AlbertModel):
    """AlbertModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of AlbertModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of AlbertModel instead.
    """
    config: LongAlbertConfig
    def __init__(self, config: LongAlbertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPooling: ...
    __call__ = forward

# bart

class LongBartConfig(LongEncoderDecoderConfig, BartConfig):
    """BartConfig with ``long_attention``, ``decoder_long_attention`` and ``max_decoder_position_embeddings``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, is_encoder_decoder: bool | None = True, vocab_size: int = 50265, max_position_embeddings: int = 1024, encoder_layers: int | None = 12, encoder_ffn_dim: int | None = 4096, encoder_attention_heads: int | None = 16, decoder_layers: int | None = 12, decoder_ffn_dim: int | None = 4096, decoder_attention_heads: int | None = 16, encoder_layerdrop: float | None = 0.0, decoder_layerdrop: float | None = 0.0, activation_function: str | None = 'gelu', d_model: int | None = 1024, dropout: float | int | None = 0.1, attention_dropout: float | int | None = 0.0, activation_dropout: float | int | None = 0.0, init_std: float | None = 0.02, classifier_dropout: float | int | None = 0.0, scale_embedding: bool | None = False, use_cache: bool = True, pad_token_id: int | None = 1, bos_token_id: int | None = 0, eos_token_id: int | list[int] | None = 2, decoder_start_token_id: int | None = 2, forced_eos_token_id: int | list[int] | None = 2, is_decoder: bool | None = False, tie_word_embeddings: bool = True, num_attention_heads: int | None = 16, hidden_size: int | None = 1024, num_hidden_layers: int | None = 12, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ..., decoder_long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., max_decoder_position_embeddings: int | None = ...) -> None: ...

class LongBartForCausalLM(LongGenerationMixin, LongAttentionMixin, BartForCausalLM, GenerationMixin):
    """BartForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BartForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BartForCausalLM instead.
    """
    config: LongBartConfig
    def __init__(self, config: LongBartConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithCrossAttentions: ...
    __call__ = forward

class LongBartForConditionalGeneration(LongGenerationMixin, LongAttentionMixin, BartForConditionalGeneration, GenerationMixin):
    """BartForConditionalGeneration with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BartForConditionalGeneration, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BartForConditionalGeneration instead.
    """
    config: LongBartConfig
    def __init__(self, config: LongBartConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: list[Tensor] | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqLMOutput: ...
    __call__ = forward

class LongBartForQuestionAnswering(LongAttentionMixin, BartForQuestionAnswering):
    """BartForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BartForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BartForQuestionAnswering instead.
    """
    config: LongBartConfig
    def __init__(self, config: LongBartConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: list[Tensor] | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqQuestionAnsweringModelOutput: ...
    __call__ = forward

class LongBartForSequenceClassification(LongAttentionMixin, BartForSequenceClassification):
    """BartForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BartForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BartForSequenceClassification instead.
    """
    config: LongBartConfig
    def __init__(self, config: LongBartConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: list[Tensor] | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqSequenceClassifierOutput: ...
    __call__ = forward

class LongBartModel(LongAttentionMixin, BartModel):
    """BartModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BartModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BartModel instead.
    """
    config: LongBartConfig
    def __init__(self, config: LongBartConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: list[Tensor] | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqModelOutput: ...
    __call__ = forward

# bert

class LongBertConfig(LongConfig, BertConfig):
    """BertConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 30522, hidden_size: int = 768, num_hidden_layers: int = 12, num_attention_heads: int = 12, intermediate_size: int = 3072, hidden_act: str = 'gelu', hidden_dropout_prob: float | int = 0.1, attention_probs_dropout_prob: float | int = 0.1, max_position_embeddings: int = 512, type_vocab_size: int = 2, initializer_range: float = 0.02, layer_norm_eps: float = 1e-12, pad_token_id: int | None = 0, use_cache: bool = True, classifier_dropout: float | int | None = None, is_decoder: bool = False, add_cross_attention: bool = False, bos_token_id: int | None = None, eos_token_id: int | list[int] | None = None, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongBertForMaskedLM(LongAttentionMixin, BertForMaskedLM):
    """BertForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BertForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BertForMaskedLM instead.
    """
    config: LongBertConfig
    def __init__(self, config: LongBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongBertForMultipleChoice(LongAttentionMixin, BertForMultipleChoice):
    """BertForMultipleChoice with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BertForMultipleChoice, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BertForMultipleChoice instead.
    """
    config: LongBertConfig
    def __init__(self, config: LongBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MultipleChoiceModelOutput: ...
    __call__ = forward

class LongBertForNextSentencePrediction(LongAttentionMixin, BertForNextSentencePrediction):
    """BertForNextSentencePrediction with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BertForNextSentencePrediction, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BertForNextSentencePrediction instead.
    """
    config: LongBertConfig
    def __init__(self, config: LongBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> NextSentencePredictorOutput: ...
    __call__ = forward

class LongBertForPreTraining(LongAttentionMixin, BertForPreTraining):
    """BertForPreTraining with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BertForPreTraining, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BertForPreTraining instead.
    """
    config: LongBertConfig
    def __init__(self, config: LongBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, next_sentence_label: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BertForPreTrainingOutput: ...
    __call__ = forward

class LongBertForQuestionAnswering(LongAttentionMixin, BertForQuestionAnswering):
    """BertForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BertForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BertForQuestionAnswering instead.
    """
    config: LongBertConfig
    def __init__(self, config: LongBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongBertForSequenceClassification(LongAttentionMixin, BertForSequenceClassification):
    """BertForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BertForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BertForSequenceClassification instead.
    """
    config: LongBertConfig
    def __init__(self, config: LongBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongBertForTokenClassification(LongAttentionMixin, BertForTokenClassification):
    """BertForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BertForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BertForTokenClassification instead.
    """
    config: LongBertConfig
    def __init__(self, config: LongBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongBertLMHeadModel(LongGenerationMixin, LongAttentionMixin, BertLMHeadModel, GenerationMixin):
    """BertLMHeadModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BertLMHeadModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BertLMHeadModel instead.
    """
    config: LongBertConfig
    def __init__(self, config: LongBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, labels: Tensor | None = None, past_key_values: Cache | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithCrossAttentions: ...
    __call__ = forward

class LongBertModel(LongBaseModelMixin, BertModel):
    """BertModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BertModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BertModel instead.
    """
    config: LongBertConfig
    def __init__(self, config: LongBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, past_key_values: Cache | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPoolingAndCrossAttentions: ...
    __call__ = forward

# big_bird

class LongBigBirdConfig(LongConfig, BigBirdConfig):
    """BigBirdConfig with ``long_attention``; the mechanism is ``bigbird`` unless another one is given.

    ``attention_type`` is always ``"original_full"``, the path of transformers' code that leaves the attention to its interface.
    """
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 50358, hidden_size: int = 768, num_hidden_layers: int = 12, num_attention_heads: int = 12, intermediate_size: int = 3072, hidden_act: str = 'gelu_new', hidden_dropout_prob: float | int = 0.1, attention_probs_dropout_prob: float | int = 0.1, max_position_embeddings: int = 4096, type_vocab_size: int = 2, initializer_range: float = 0.02, layer_norm_eps: float = 1e-12, use_cache: bool = True, pad_token_id: int | None = 0, bos_token_id: int | None = 1, eos_token_id: int | list[int] | None = 2, sep_token_id: int | None = 66, attention_type: str = 'block_sparse', use_bias: bool = True, rescale_embeddings: bool = False, block_size: int = 64, num_random_blocks: int = 3, classifier_dropout: float | int | None = None, is_decoder: bool = False, add_cross_attention: bool = False, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongBigBirdForCausalLM(LongGenerationMixin, LongAttentionMixin, BigBirdForCausalLM, GenerationMixin):
    """BigBirdForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdForCausalLM instead.
    """
    config: LongBigBirdConfig
    def __init__(self, config: LongBigBirdConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, past_key_values: Cache | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithCrossAttentions: ...
    __call__ = forward

class LongBigBirdForMaskedLM(LongAttentionMixin, BigBirdForMaskedLM):
    """BigBirdForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdForMaskedLM instead.
    """
    config: LongBigBirdConfig
    def __init__(self, config: LongBigBirdConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongBigBirdForMultipleChoice(LongAttentionMixin, BigBirdForMultipleChoice):
    """BigBirdForMultipleChoice with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdForMultipleChoice, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdForMultipleChoice instead.
    """
    config: LongBigBirdConfig
    def __init__(self, config: LongBigBirdConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MultipleChoiceModelOutput: ...
    __call__ = forward

class LongBigBirdForPreTraining(LongAttentionMixin, BigBirdForPreTraining):
    """BigBirdForPreTraining with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdForPreTraining, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdForPreTraining instead.
    """
    config: LongBigBirdConfig
    def __init__(self, config: LongBigBirdConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, next_sentence_label: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BigBirdForPreTrainingOutput: ...
    __call__ = forward

class LongBigBirdForQuestionAnswering(LongAttentionMixin, BigBirdForQuestionAnswering):
    """BigBirdForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdForQuestionAnswering instead.
    """
    config: LongBigBirdConfig
    def __init__(self, config: LongBigBirdConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, question_lengths: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BigBirdForQuestionAnsweringModelOutput: ...
    __call__ = forward

class LongBigBirdForSequenceClassification(LongAttentionMixin, BigBirdForSequenceClassification):
    """BigBirdForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdForSequenceClassification instead.
    """
    config: LongBigBirdConfig
    def __init__(self, config: LongBigBirdConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongBigBirdForTokenClassification(LongAttentionMixin, BigBirdForTokenClassification):
    """BigBirdForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdForTokenClassification instead.
    """
    config: LongBigBirdConfig
    def __init__(self, config: LongBigBirdConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongBigBirdModel(LongBaseModelMixin, BigBirdModel):
    """BigBirdModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdModel instead.
    """
    config: LongBigBirdConfig
    def __init__(self, config: LongBigBirdConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, past_key_values: Cache | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPoolingAndCrossAttentions: ...
    __call__ = forward

# bigbird_pegasus

class LongBigBirdPegasusConfig(LongEncoderDecoderConfig, BigBirdPegasusConfig):
    """BigBirdPegasusConfig with ``long_attention`` (``bigbird`` unless another one is given), ``decoder_long_attention`` and
    ``max_decoder_position_embeddings``.

    ``attention_type`` is always ``"original_full"``, the path of transformers' code that leaves the attention to its module.
    ``sparse_attention_dropout`` is the dropout on the encoder's weights; transformers' block-sparse attention has none.
    """
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, is_encoder_decoder: bool = True, vocab_size: int = 96103, max_position_embeddings: int = 4096, encoder_layers: int = 16, encoder_ffn_dim: int = 4096, encoder_attention_heads: int = 16, decoder_layers: int = 16, decoder_ffn_dim: int = 4096, decoder_attention_heads: int = 16, encoder_layerdrop: float | int = 0.0, decoder_layerdrop: float | int = 0.0, use_cache: bool = True, activation_function: str = 'gelu_new', d_model: int = 1024, dropout: float | int = 0.1, attention_dropout: float | int = 0.0, activation_dropout: float | int = 0.0, init_std: float = 0.02, decoder_start_token_id: int = 2, classifier_dropout: float | int = 0.0, scale_embedding: bool = True, pad_token_id: int | None = 0, bos_token_id: int | None = 2, eos_token_id: int | list[int] | None = 1, attention_type: str = 'block_sparse', block_size: int = 64, num_random_blocks: int = 3, use_bias: bool = False, is_decoder: bool = False, tie_word_embeddings: bool = True, num_attention_heads: int = 16, hidden_size: int = 1024, attention_probs_dropout_prob: float | int = 0.0, num_hidden_layers: int = 16, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ..., decoder_long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., max_decoder_position_embeddings: int | None = ...) -> None: ...

class LongBigBirdPegasusForCausalLM(LongGenerationMixin, LongAttentionMixin, BigBirdPegasusForCausalLM, GenerationMixin):
    """BigBirdPegasusForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdPegasusForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdPegasusForCausalLM instead.
    """
    config: LongBigBirdPegasusConfig
    def __init__(self, config: LongBigBirdPegasusConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithCrossAttentions: ...
    __call__ = forward

class LongBigBirdPegasusForConditionalGeneration(LongGenerationMixin, LongAttentionMixin, BigBirdPegasusForConditionalGeneration, GenerationMixin):
    """BigBirdPegasusForConditionalGeneration with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdPegasusForConditionalGeneration, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdPegasusForConditionalGeneration instead.
    """
    config: LongBigBirdPegasusConfig
    def __init__(self, config: LongBigBirdPegasusConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: list[Tensor] | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqLMOutput: ...
    __call__ = forward

class LongBigBirdPegasusForQuestionAnswering(LongAttentionMixin, BigBirdPegasusForQuestionAnswering):
    """BigBirdPegasusForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdPegasusForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdPegasusForQuestionAnswering instead.
    """
    config: LongBigBirdPegasusConfig
    def __init__(self, config: LongBigBirdPegasusConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: list[Tensor] | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqQuestionAnsweringModelOutput: ...
    __call__ = forward

class LongBigBirdPegasusForSequenceClassification(LongAttentionMixin, BigBirdPegasusForSequenceClassification):
    """BigBirdPegasusForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdPegasusForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdPegasusForSequenceClassification instead.
    """
    config: LongBigBirdPegasusConfig
    def __init__(self, config: LongBigBirdPegasusConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: list[Tensor] | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqSequenceClassifierOutput: ...
    __call__ = forward

class LongBigBirdPegasusModel(LongAttentionMixin, BigBirdPegasusModel):
    """BigBirdPegasusModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdPegasusModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdPegasusModel instead.
    """
    config: LongBigBirdPegasusConfig
    def __init__(self, config: LongBigBirdPegasusConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: list[Tensor] | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqModelOutput: ...
    __call__ = forward

# camembert

class LongCamembertConfig(LongConfig, CamembertConfig):
    """CamembertConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 30522, hidden_size: int = 768, num_hidden_layers: int = 12, num_attention_heads: int = 12, intermediate_size: int = 3072, hidden_act: str = 'gelu', hidden_dropout_prob: float | int = 0.1, attention_probs_dropout_prob: float | int = 0.1, max_position_embeddings: int = 512, type_vocab_size: int = 2, initializer_range: float = 0.02, layer_norm_eps: float = 1e-12, pad_token_id: int | None = 1, bos_token_id: int | None = 0, eos_token_id: int | list[int] | None = 2, use_cache: bool = True, classifier_dropout: float | int | None = None, is_decoder: bool = False, add_cross_attention: bool = False, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongCamembertForCausalLM(LongGenerationMixin, LongAttentionMixin, CamembertForCausalLM, GenerationMixin):
    """CamembertForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of CamembertForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of CamembertForCausalLM instead.
    """
    config: LongCamembertConfig
    def __init__(self, config: LongCamembertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, labels: Tensor | None = None, past_key_values: tuple[tuple[Tensor]] | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithCrossAttentions: ...
    __call__ = forward

class LongCamembertForMaskedLM(LongAttentionMixin, CamembertForMaskedLM):
    """CamembertForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of CamembertForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of CamembertForMaskedLM instead.
    """
    config: LongCamembertConfig
    def __init__(self, config: LongCamembertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongCamembertForMultipleChoice(LongAttentionMixin, CamembertForMultipleChoice):
    """CamembertForMultipleChoice with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of CamembertForMultipleChoice, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of CamembertForMultipleChoice instead.
    """
    config: LongCamembertConfig
    def __init__(self, config: LongCamembertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, token_type_ids: Tensor | None = None, attention_mask: Tensor | None = None, labels: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MultipleChoiceModelOutput: ...
    __call__ = forward

class LongCamembertForQuestionAnswering(LongAttentionMixin, CamembertForQuestionAnswering):
    """CamembertForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of CamembertForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of CamembertForQuestionAnswering instead.
    """
    config: LongCamembertConfig
    def __init__(self, config: LongCamembertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongCamembertForSequenceClassification(LongAttentionMixin, CamembertForSequenceClassification):
    """CamembertForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of CamembertForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of CamembertForSequenceClassification instead.
    """
    config: LongCamembertConfig
    def __init__(self, config: LongCamembertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongCamembertForTokenClassification(LongAttentionMixin, CamembertForTokenClassification):
    """CamembertForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of CamembertForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of CamembertForTokenClassification instead.
    """
    config: LongCamembertConfig
    def __init__(self, config: LongCamembertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongCamembertModel(LongBaseModelMixin, CamembertModel):
    """CamembertModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of CamembertModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of CamembertModel instead.
    """
    config: LongCamembertConfig
    def __init__(self, config: LongCamembertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, past_key_values: Cache | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPoolingAndCrossAttentions: ...
    __call__ = forward

# deberta-v2

class LongDebertaV2Config(LongEncoderConfig, DebertaV2Config):
    """DebertaV2Config with ``long_attention``; the mechanism is ``window`` unless another one is given.

    ``max_relative_positions`` is written out, since it must not grow with ``max_position_embeddings``, which it is taken from otherwise.
    """
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 128100, hidden_size: int = 1536, num_hidden_layers: int = 24, num_attention_heads: int = 24, intermediate_size: int = 6144, hidden_act: str = 'gelu', hidden_dropout_prob: float | int = 0.1, attention_probs_dropout_prob: float | int = 0.1, max_position_embeddings: int = 512, type_vocab_size: int = 0, initializer_range: float = 0.02, layer_norm_eps: float = 1e-07, relative_attention: bool = False, max_relative_positions: int = -1, pad_token_id: int | None = 0, bos_token_id: int | None = None, eos_token_id: int | list[int] | None = None, position_biased_input: bool = True, pos_att_type: str | list[str] | None = None, pooler_dropout: float | int = 0.0, pooler_hidden_act: str = 'gelu', legacy: bool = True, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongDebertaV2ForMaskedLM(LongAttentionMixin, DebertaV2ForMaskedLM):
    """DebertaV2ForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DebertaV2ForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DebertaV2ForMaskedLM instead.
    """
    config: LongDebertaV2Config
    def __init__(self, config: LongDebertaV2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongDebertaV2ForMultipleChoice(LongAttentionMixin, DebertaV2ForMultipleChoice):
    """DebertaV2ForMultipleChoice with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DebertaV2ForMultipleChoice, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DebertaV2ForMultipleChoice instead.
    """
    config: LongDebertaV2Config
    def __init__(self, config: LongDebertaV2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> MultipleChoiceModelOutput: ...
    __call__ = forward

class LongDebertaV2ForQuestionAnswering(LongAttentionMixin, DebertaV2ForQuestionAnswering):
    """DebertaV2ForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DebertaV2ForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DebertaV2ForQuestionAnswering instead.
    """
    config: LongDebertaV2Config
    def __init__(self, config: LongDebertaV2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongDebertaV2ForSequenceClassification(LongAttentionMixin, DebertaV2ForSequenceClassification):
    """DebertaV2ForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DebertaV2ForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DebertaV2ForSequenceClassification instead.
    """
    config: LongDebertaV2Config
    def __init__(self, config: LongDebertaV2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongDebertaV2ForTokenClassification(LongAttentionMixin, DebertaV2ForTokenClassification):
    """DebertaV2ForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DebertaV2ForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DebertaV2ForTokenClassification instead.
    """
    config: LongDebertaV2Config
    def __init__(self, config: LongDebertaV2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongDebertaV2Model(LongBaseModelMixin, DebertaV2Model):
    """DebertaV2Model with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DebertaV2Model, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DebertaV2Model instead.
    """
    config: LongDebertaV2Config
    def __init__(self, config: LongDebertaV2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> BaseModelOutput: ...
    __call__ = forward

# distilbert

class LongDistilBertConfig(LongEncoderConfig, DistilBertConfig):
    """DistilBertConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 30522, max_position_embeddings: int = 512, sinusoidal_pos_embds: bool = False, n_layers: int = 6, n_heads: int = 12, dim: int = 768, hidden_dim: int = 3072, dropout: float | int = 0.1, attention_dropout: float | int = 0.1, activation: str = 'gelu', initializer_range: float = 0.02, qa_dropout: float | int = 0.1, seq_classif_dropout: float | int = 0.2, pad_token_id: int | None = 0, eos_token_id: int | list[int] | None = None, bos_token_id: int | None = None, tie_word_embeddings: bool = True, hidden_size: int = 768, num_attention_heads: int = 12, num_hidden_layers: int = 6, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongDistilBertForMaskedLM(LongAttentionMixin, DistilBertForMaskedLM):
    """DistilBertForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DistilBertForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DistilBertForMaskedLM instead.
    """
    config: LongDistilBertConfig
    def __init__(self, config: LongDistilBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, position_ids: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongDistilBertForMultipleChoice(LongAttentionMixin, DistilBertForMultipleChoice):
    """DistilBertForMultipleChoice with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DistilBertForMultipleChoice, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DistilBertForMultipleChoice instead.
    """
    config: LongDistilBertConfig
    def __init__(self, config: LongDistilBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, position_ids: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MultipleChoiceModelOutput: ...
    __call__ = forward

class LongDistilBertForQuestionAnswering(LongAttentionMixin, DistilBertForQuestionAnswering):
    """DistilBertForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DistilBertForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DistilBertForQuestionAnswering instead.
    """
    config: LongDistilBertConfig
    def __init__(self, config: LongDistilBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, position_ids: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongDistilBertForSequenceClassification(LongAttentionMixin, DistilBertForSequenceClassification):
    """DistilBertForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DistilBertForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DistilBertForSequenceClassification instead.
    """
    config: LongDistilBertConfig
    def __init__(self, config: LongDistilBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, position_ids: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongDistilBertForTokenClassification(LongAttentionMixin, DistilBertForTokenClassification):
    """DistilBertForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DistilBertForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DistilBertForTokenClassification instead.
    """
    config: LongDistilBertConfig
    def __init__(self, config: LongDistilBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, position_ids: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongDistilBertModel(LongBaseModelMixin, DistilBertModel):
    """DistilBertModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DistilBertModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DistilBertModel instead.
    """
    config: LongDistilBertConfig
    def __init__(self, config: LongDistilBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None, position_ids: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutput: ...
    __call__ = forward

# electra

class LongElectraConfig(LongConfig, ElectraConfig):
    """ElectraConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 30522, embedding_size: int = 128, hidden_size: int = 256, num_hidden_layers: int = 12, num_attention_heads: int = 4, intermediate_size: int = 1024, hidden_act: str = 'gelu', hidden_dropout_prob: float | int = 0.1, attention_probs_dropout_prob: float | int = 0.1, max_position_embeddings: int = 512, type_vocab_size: int = 2, initializer_range: float = 0.02, layer_norm_eps: float = 1e-12, summary_type: str = 'first', summary_use_proj: bool = True, summary_activation: str = 'gelu', summary_last_dropout: float | int = 0.1, pad_token_id: int | None = 0, use_cache: bool = True, classifier_dropout: float | int | None = None, is_decoder: bool = False, add_cross_attention: bool = False, bos_token_id: int | None = None, eos_token_id: int | list[int] | None = None, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongElectraForCausalLM(LongGenerationMixin, LongAttentionMixin, ElectraForCausalLM, GenerationMixin):
    """ElectraForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ElectraForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ElectraForCausalLM instead.
    """
    config: LongElectraConfig
    def __init__(self, config: LongElectraConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, labels: Tensor | None = None, past_key_values: Cache | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithCrossAttentions: ...
    __call__ = forward

class LongElectraForMaskedLM(LongAttentionMixin, ElectraForMaskedLM):
    """ElectraForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ElectraForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ElectraForMaskedLM instead.
    """
    config: LongElectraConfig
    def __init__(self, config: LongElectraConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongElectraForMultipleChoice(LongAttentionMixin, ElectraForMultipleChoice):
    """ElectraForMultipleChoice with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ElectraForMultipleChoice, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ElectraForMultipleChoice instead.
    """
    config: LongElectraConfig
    def __init__(self, config: LongElectraConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MultipleChoiceModelOutput: ...
    __call__ = forward

class LongElectraForPreTraining(LongAttentionMixin, ElectraForPreTraining):
    """ElectraForPreTraining with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ElectraForPreTraining, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ElectraForPreTraining instead.
    """
    config: LongElectraConfig
    def __init__(self, config: LongElectraConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> ElectraForPreTrainingOutput: ...
    __call__ = forward

class LongElectraForQuestionAnswering(LongAttentionMixin, ElectraForQuestionAnswering):
    """ElectraForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ElectraForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ElectraForQuestionAnswering instead.
    """
    config: LongElectraConfig
    def __init__(self, config: LongElectraConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongElectraForSequenceClassification(LongAttentionMixin, ElectraForSequenceClassification):
    """ElectraForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ElectraForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ElectraForSequenceClassification instead.
    """
    config: LongElectraConfig
    def __init__(self, config: LongElectraConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongElectraForTokenClassification(LongAttentionMixin, ElectraForTokenClassification):
    """ElectraForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ElectraForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ElectraForTokenClassification instead.
    """
    config: LongElectraConfig
    def __init__(self, config: LongElectraConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongElectraModel(LongBaseModelMixin, ElectraModel):
    """ElectraModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ElectraModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ElectraModel instead.
    """
    config: LongElectraConfig
    def __init__(self, config: LongElectraConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, past_key_values: list[Tensor] | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithCrossAttentions: ...
    __call__ = forward

# esm

class LongEsmConfig(LongConfig, EsmConfig):
    """EsmConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int | None = None, mask_token_id: int | None = None, pad_token_id: int | None = None, hidden_size: int = 768, num_hidden_layers: int = 12, num_attention_heads: int = 12, intermediate_size: int = 3072, hidden_dropout_prob: float | None = 0.1, attention_probs_dropout_prob: float | None = 0.1, max_position_embeddings: int = 1026, rope_theta: float = 10000.0, initializer_range: float = 0.02, layer_norm_eps: float | None = 1e-12, position_embedding_type: str | None = 'absolute', use_cache: bool = True, emb_layer_norm_before: bool | None = None, token_dropout: bool | None = False, is_folding_model: bool | None = False, esmfold_config: dict[str, Any] | Any | None = None, vocab_list: list[str] | tuple[str, ...] | None = None, is_decoder: bool | None = False, add_cross_attention: bool | None = False, tie_word_embeddings: bool = True, bos_token_id: int | None = None, eos_token_id: int | list[int] | None = 2, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongEsmModel(LongBaseModelMixin, EsmModel):
    """EsmModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of EsmModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of EsmModel instead.
    """
    config: LongEsmConfig
    def __init__(self, config: LongEsmConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPoolingAndCrossAttentions: ...
    __call__ = forward

class LongEsmForMaskedLM(LongAttentionMixin, EsmForMaskedLM):
    """EsmForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of EsmForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of EsmForMaskedLM instead.
    """
    config: LongEsmConfig
    def __init__(self, config: LongEsmConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongEsmForSequenceClassification(LongAttentionMixin, EsmForSequenceClassification):
    """EsmForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of EsmForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of EsmForSequenceClassification instead.
    """
    config: LongEsmConfig
    def __init__(self, config: LongEsmConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongEsmForTokenClassification(LongAttentionMixin, EsmForTokenClassification):
    """EsmForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of EsmForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of EsmForTokenClassification instead.
    """
    config: LongEsmConfig
    def __init__(self, config: LongEsmConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

# gemma

class LongGemmaConfig(LongConfig, GemmaConfig):
    """GemmaConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 256000, hidden_size: int = 3072, intermediate_size: int = 24576, num_hidden_layers: int = 28, num_attention_heads: int = 16, num_key_value_heads: int = 16, head_dim: int = 256, hidden_act: str = 'gelu_pytorch_tanh', max_position_embeddings: int = 8192, initializer_range: float = 0.02, rms_norm_eps: float = 1e-06, use_cache: bool = True, pad_token_id: int | None = 0, eos_token_id: int | list[int] | None = 1, bos_token_id: int | None = 2, tie_word_embeddings: bool = True, rope_parameters: dict[str, Any] | dict[str, Any] | None = None, attention_bias: bool = False, attention_dropout: float | int = 0.0, use_bidirectional_attention: bool | None = None, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongGemmaForCausalLM(LongGenerationMixin, LongAttentionMixin, GemmaForCausalLM, GenerationMixin):
    """GemmaForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GemmaForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GemmaForCausalLM instead.
    """
    config: LongGemmaConfig
    def __init__(self, config: LongGemmaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithPast: ...
    __call__ = forward

class LongGemmaForSequenceClassification(LongAttentionMixin, GemmaForSequenceClassification):
    """GemmaForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GemmaForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GemmaForSequenceClassification instead.
    """
    config: LongGemmaConfig
    def __init__(self, config: LongGemmaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

class LongGemmaForTokenClassification(LongAttentionMixin, GemmaForTokenClassification):
    """GemmaForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GemmaForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GemmaForTokenClassification instead.
    """
    config: LongGemmaConfig
    def __init__(self, config: LongGemmaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongGemmaModel(LongBaseModelMixin, GemmaModel):
    """GemmaModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GemmaModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GemmaModel instead.
    """
    config: LongGemmaConfig
    def __init__(self, config: LongGemmaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPast: ...
    __call__ = forward

# gemma2

class LongGemma2Config(LongConfig, Gemma2Config):
    """Gemma2Config with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 256000, hidden_size: int = 2304, intermediate_size: int = 9216, num_hidden_layers: int = 26, num_attention_heads: int = 8, num_key_value_heads: int = 4, head_dim: int = 256, hidden_activation: str = 'gelu_pytorch_tanh', max_position_embeddings: int = 8192, initializer_range: float = 0.02, rms_norm_eps: float = 1e-06, use_cache: bool = True, pad_token_id: int | None = 0, eos_token_id: int | list[int] | None = 1, bos_token_id: int | None = 2, tie_word_embeddings: bool = True, rope_parameters: dict[str, Any] | dict[str, Any] | None = None, attention_bias: bool = False, attention_dropout: int | float | None = 0.0, query_pre_attn_scalar: int = 256, sliding_window: int | None = 4096, layer_types: list[str] | None = None, final_logit_softcapping: float | None = 30.0, attn_logit_softcapping: float | None = 50.0, use_bidirectional_attention: bool | None = None, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongGemma2ForCausalLM(LongGenerationMixin, LongAttentionMixin, Gemma2ForCausalLM, GenerationMixin):
    """Gemma2ForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Gemma2ForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Gemma2ForCausalLM instead.
    """
    config: LongGemma2Config
    def __init__(self, config: LongGemma2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithPast: ...
    __call__ = forward

class LongGemma2ForSequenceClassification(LongAttentionMixin, Gemma2ForSequenceClassification):
    """Gemma2ForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Gemma2ForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Gemma2ForSequenceClassification instead.
    """
    config: LongGemma2Config
    def __init__(self, config: LongGemma2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

class LongGemma2ForTokenClassification(LongAttentionMixin, Gemma2ForTokenClassification):
    """Gemma2ForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Gemma2ForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Gemma2ForTokenClassification instead.
    """
    config: LongGemma2Config
    def __init__(self, config: LongGemma2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongGemma2Model(LongBaseModelMixin, Gemma2Model):
    """Gemma2Model with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Gemma2Model, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Gemma2Model instead.
    """
    config: LongGemma2Config
    def __init__(self, config: LongGemma2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPast: ...
    __call__ = forward

# gemma3_text

class LongGemma3TextConfig(LongConfig, Gemma3TextConfig):
    """Gemma3TextConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 262208, hidden_size: int = 2304, intermediate_size: int = 9216, num_hidden_layers: int = 26, num_attention_heads: int = 8, num_key_value_heads: int = 4, head_dim: int = 256, hidden_activation: str = 'gelu_pytorch_tanh', max_position_embeddings: int = 131072, initializer_range: float = 0.02, rms_norm_eps: float = 1e-06, use_cache: bool = True, pad_token_id: int | None = 0, eos_token_id: int | list[int] | None = 1, bos_token_id: int | None = 2, tie_word_embeddings: bool = True, rope_parameters: dict[str, Any] | None = None, attention_bias: bool = False, attention_dropout: int | float | None = 0.0, query_pre_attn_scalar: int = 256, sliding_window: int | None = 4096, layer_types: list[str] | None = None, final_logit_softcapping: float | None = None, attn_logit_softcapping: float | None = None, use_bidirectional_attention: bool | None = False, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongGemma3TextModel(LongBaseModelMixin, Gemma3TextModel):
    """Gemma3TextModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Gemma3TextModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Gemma3TextModel instead.
    """
    config: LongGemma3TextConfig
    def __init__(self, config: LongGemma3TextConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPast: ...
    __call__ = forward

class LongGemma3ForCausalLM(LongGenerationMixin, LongAttentionMixin, Gemma3ForCausalLM, GenerationMixin):
    """Gemma3ForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Gemma3ForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Gemma3ForCausalLM instead.
    """
    config: LongGemma3TextConfig
    def __init__(self, config: LongGemma3TextConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithPast: ...
    __call__ = forward

class LongGemma3TextForSequenceClassification(LongAttentionMixin, Gemma3TextForSequenceClassification):
    """Gemma3TextForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Gemma3TextForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Gemma3TextForSequenceClassification instead.
    """
    config: LongGemma3TextConfig
    def __init__(self, config: LongGemma3TextConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

# gpt2

class LongGPT2Config(LongConfig, GPT2Config):
    """GPT2Config with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 50257, n_positions: int = 1024, n_embd: int = 768, n_layer: int = 12, n_head: int = 12, n_inner: int | None = None, activation_function: str = 'gelu_new', resid_pdrop: float | int = 0.1, embd_pdrop: float | int = 0.1, attn_pdrop: float | int = 0.1, layer_norm_epsilon: float = 1e-05, initializer_range: float = 0.02, summary_type: str = 'cls_index', summary_use_proj: bool = True, summary_activation: str | None = None, summary_proj_to_labels: bool = True, summary_first_dropout: float | int = 0.1, scale_attn_weights: bool = True, use_cache: bool = True, bos_token_id: int | None = 50256, eos_token_id: int | list[int] | None = 50256, pad_token_id: int | None = None, scale_attn_by_inverse_layer_idx: bool = False, reorder_and_upcast_attn: bool = False, add_cross_attention: bool = False, tie_word_embeddings: bool = True, hidden_size: int = 768, max_position_embeddings: int = 1024, num_attention_heads: int = 12, num_hidden_layers: int = 12, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongGPT2DoubleHeadsModel(LongGenerationMixin, LongAttentionMixin, GPT2DoubleHeadsModel, GenerationMixin):
    """GPT2DoubleHeadsModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPT2DoubleHeadsModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPT2DoubleHeadsModel instead.
    """
    config: LongGPT2Config
    def __init__(self, config: LongGPT2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, past_key_values: Cache | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, mc_token_ids: Tensor | None = None, labels: Tensor | None = None, mc_labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> GPT2DoubleHeadsModelOutput: ...
    __call__ = forward

class LongGPT2ForQuestionAnswering(LongAttentionMixin, GPT2ForQuestionAnswering):
    """GPT2ForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPT2ForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPT2ForQuestionAnswering instead.
    """
    config: LongGPT2Config
    def __init__(self, config: LongGPT2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongGPT2ForSequenceClassification(LongAttentionMixin, GPT2ForSequenceClassification):
    """GPT2ForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPT2ForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPT2ForSequenceClassification instead.
    """
    config: LongGPT2Config
    def __init__(self, config: LongGPT2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, past_key_values: Cache | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

class LongGPT2ForTokenClassification(LongAttentionMixin, GPT2ForTokenClassification):
    """GPT2ForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPT2ForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPT2ForTokenClassification instead.
    """
    config: LongGPT2Config
    def __init__(self, config: LongGPT2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, past_key_values: Cache | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongGPT2LMHeadModel(LongGenerationMixin, LongAttentionMixin, GPT2LMHeadModel, GenerationMixin):
    """GPT2LMHeadModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPT2LMHeadModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPT2LMHeadModel instead.
    """
    config: LongGPT2Config
    def __init__(self, config: LongGPT2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, past_key_values: Cache | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithCrossAttentions: ...
    __call__ = forward

class LongGPT2Model(LongBaseModelMixin, GPT2Model):
    """GPT2Model with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPT2Model, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPT2Model instead.
    """
    config: LongGPT2Config
    def __init__(self, config: LongGPT2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, past_key_values: Cache | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPastAndCrossAttentions: ...
    __call__ = forward

# gpt_neox

class LongGPTNeoXConfig(LongConfig, GPTNeoXConfig):
    """GPTNeoXConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 50432, hidden_size: int = 6144, num_hidden_layers: int = 44, num_attention_heads: int = 64, intermediate_size: int = 24576, hidden_act: str = 'gelu', attention_dropout: float | int = 0.0, hidden_dropout: float | int = 0.0, classifier_dropout: float | int = 0.1, max_position_embeddings: int = 2048, initializer_range: float = 0.02, layer_norm_eps: float = 1e-05, use_cache: bool = True, bos_token_id: int | None = 0, eos_token_id: int | list[int] | None = 2, pad_token_id: int | None = None, tie_word_embeddings: bool = False, use_parallel_residual: bool = True, rope_parameters: dict[str, Any] | dict[str, Any] | None = None, attention_bias: bool = True, is_decoder: bool = False, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongGPTNeoXForCausalLM(LongGenerationMixin, LongAttentionMixin, GPTNeoXForCausalLM, GenerationMixin):
    """GPTNeoXForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTNeoXForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTNeoXForCausalLM instead.
    """
    config: LongGPTNeoXConfig
    def __init__(self, config: LongGPTNeoXConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, past_key_values: Cache | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithPast: ...
    __call__ = forward

class LongGPTNeoXForQuestionAnswering(LongAttentionMixin, GPTNeoXForQuestionAnswering):
    """GPTNeoXForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTNeoXForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTNeoXForQuestionAnswering instead.
    """
    config: LongGPTNeoXConfig
    def __init__(self, config: LongGPTNeoXConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongGPTNeoXForSequenceClassification(LongAttentionMixin, GPTNeoXForSequenceClassification):
    """GPTNeoXForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTNeoXForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTNeoXForSequenceClassification instead.
    """
    config: LongGPTNeoXConfig
    def __init__(self, config: LongGPTNeoXConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, past_key_values: Cache | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

class LongGPTNeoXForTokenClassification(LongAttentionMixin, GPTNeoXForTokenClassification):
    """GPTNeoXForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTNeoXForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTNeoXForTokenClassification instead.
    """
    config: LongGPTNeoXConfig
    def __init__(self, config: LongGPTNeoXConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, past_key_values: Cache | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongGPTNeoXModel(LongBaseModelMixin, GPTNeoXModel):
    """GPTNeoXModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTNeoXModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTNeoXModel instead.
    """
    config: LongGPTNeoXConfig
    def __init__(self, config: LongGPTNeoXConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, past_key_values: Cache | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPast: ...
    __call__ = forward

# llama

class LongLlamaConfig(LongConfig, LlamaConfig):
    """LlamaConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 32000, hidden_size: int = 4096, intermediate_size: int = 11008, num_hidden_layers: int = 32, num_attention_heads: int = 32, num_key_value_heads: int | None = None, hidden_act: str = 'silu', max_position_embeddings: int = 2048, initializer_range: float = 0.02, rms_norm_eps: float = 1e-06, use_cache: bool = True, pad_token_id: int | None = None, bos_token_id: int | None = 1, eos_token_id: int | list[int] | None = 2, pretraining_tp: int | None = 1, tie_word_embeddings: bool = False, rope_parameters: dict[str, Any] | dict[str, Any] | None = None, attention_bias: bool = False, attention_dropout: int | float | None = 0.0, mlp_bias: bool = False, head_dim: int | None = None, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongLlamaForCausalLM(LongGenerationMixin, LongAttentionMixin, LlamaForCausalLM, GenerationMixin):
    """LlamaForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of LlamaForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of LlamaForCausalLM instead.
    """
    config: LongLlamaConfig
    def __init__(self, config: LongLlamaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithPast: ...
    __call__ = forward

class LongLlamaForQuestionAnswering(LongAttentionMixin, LlamaForQuestionAnswering):
    """LlamaForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of LlamaForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of LlamaForQuestionAnswering instead.
    """
    config: LongLlamaConfig
    def __init__(self, config: LongLlamaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongLlamaForSequenceClassification(LongAttentionMixin, LlamaForSequenceClassification):
    """LlamaForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of LlamaForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of LlamaForSequenceClassification instead.
    """
    config: LongLlamaConfig
    def __init__(self, config: LongLlamaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

class LongLlamaForTokenClassification(LongAttentionMixin, LlamaForTokenClassification):
    """LlamaForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of LlamaForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of LlamaForTokenClassification instead.
    """
    config: LongLlamaConfig
    def __init__(self, config: LongLlamaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongLlamaModel(LongBaseModelMixin, LlamaModel):
    """LlamaModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of LlamaModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of LlamaModel instead.
    """
    config: LongLlamaConfig
    def __init__(self, config: LongLlamaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPast: ...
    __call__ = forward

# marian

class LongMarianConfig(LongEncoderDecoderConfig, MarianConfig):
    """MarianConfig with ``long_attention``, ``decoder_long_attention`` and ``max_decoder_position_embeddings``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, is_encoder_decoder: bool = True, vocab_size: int = 58101, decoder_vocab_size: int | None = None, max_position_embeddings: int = 1024, encoder_layers: int = 12, encoder_ffn_dim: int = 4096, encoder_attention_heads: int = 16, decoder_layers: int = 12, decoder_ffn_dim: int = 4096, decoder_attention_heads: int = 16, encoder_layerdrop: float | int = 0.0, decoder_layerdrop: float | int = 0.0, use_cache: bool = True, activation_function: str = 'gelu', d_model: int = 1024, dropout: float | int = 0.1, attention_dropout: float | int = 0.0, activation_dropout: float | int = 0.0, init_std: float = 0.02, decoder_start_token_id: int = 58100, scale_embedding: bool = False, pad_token_id: int | None = 58100, eos_token_id: int | list[int] | None = 0, bos_token_id: int | None = None, forced_eos_token_id: int | list[int] | None = 0, share_encoder_decoder_embeddings: bool = True, is_decoder: bool = False, tie_word_embeddings: bool = True, num_attention_heads: int = 16, hidden_size: int = 1024, num_hidden_layers: int = 12, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ..., decoder_long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., max_decoder_position_embeddings: int | None = ...) -> None: ...

class LongMarianForCausalLM(LongGenerationMixin, LongAttentionMixin, MarianForCausalLM, GenerationMixin):
    """MarianForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MarianForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MarianForCausalLM instead.
    """
    config: LongMarianConfig
    def __init__(self, config: LongMarianConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithCrossAttentions: ...
    __call__ = forward

class LongMarianMTModel(LongGenerationMixin, LongAttentionMixin, MarianMTModel, GenerationMixin):
    """MarianMTModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MarianMTModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MarianMTModel instead.
    """
    config: LongMarianConfig
    def __init__(self, config: LongMarianConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: tuple[Tensor] | BaseModelOutput | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqLMOutput: ...
    __call__ = forward

class LongMarianModel(LongAttentionMixin, MarianModel):
    """MarianModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MarianModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MarianModel instead.
    """
    config: LongMarianConfig
    def __init__(self, config: LongMarianConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: tuple[Tensor] | BaseModelOutput | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqModelOutput: ...
    __call__ = forward

# mbart

class LongMBartConfig(LongEncoderDecoderConfig, MBartConfig):
    """MBartConfig with ``long_attention``, ``decoder_long_attention`` and ``max_decoder_position_embeddings``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, is_encoder_decoder: bool = True, vocab_size: int = 50265, max_position_embeddings: int = 1024, encoder_layers: int = 12, encoder_ffn_dim: int = 4096, encoder_attention_heads: int = 16, decoder_layers: int = 12, decoder_ffn_dim: int = 4096, decoder_attention_heads: int = 16, encoder_layerdrop: float | int = 0.0, decoder_layerdrop: float | int = 0.0, use_cache: bool = True, activation_function: str = 'gelu', d_model: int = 1024, dropout: float | int = 0.1, attention_dropout: float | int = 0.0, activation_dropout: float | int = 0.0, init_std: float = 0.02, classifier_dropout: float | int = 0.0, scale_embedding: bool = False, pad_token_id: int | None = 1, bos_token_id: int | None = 0, eos_token_id: int | list[int] | None = 2, decoder_start_token_id: int | None = None, forced_eos_token_id: int | list[int] | None = 2, is_decoder: bool = False, tie_word_embeddings: bool = True, num_attention_heads: int = 16, hidden_size: int = 1024, num_hidden_layers: int = 12, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ..., decoder_long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., max_decoder_position_embeddings: int | None = ...) -> None: ...

class LongMBartForCausalLM(LongGenerationMixin, LongAttentionMixin, MBartForCausalLM, GenerationMixin):
    """MBartForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MBartForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MBartForCausalLM instead.
    """
    config: LongMBartConfig
    def __init__(self, config: LongMBartConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithCrossAttentions: ...
    __call__ = forward

class LongMBartForConditionalGeneration(LongGenerationMixin, LongAttentionMixin, MBartForConditionalGeneration, GenerationMixin):
    """MBartForConditionalGeneration with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MBartForConditionalGeneration, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MBartForConditionalGeneration instead.
    """
    config: LongMBartConfig
    def __init__(self, config: LongMBartConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: tuple[tuple[Tensor]] | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None) -> Seq2SeqLMOutput: ...
    __call__ = forward

class LongMBartForQuestionAnswering(LongAttentionMixin, MBartForQuestionAnswering):
    """MBartForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MBartForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MBartForQuestionAnswering instead.
    """
    config: LongMBartConfig
    def __init__(self, config: LongMBartConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: list[Tensor] | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqQuestionAnsweringModelOutput: ...
    __call__ = forward

class LongMBartForSequenceClassification(LongAttentionMixin, MBartForSequenceClassification):
    """MBartForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MBartForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MBartForSequenceClassification instead.
    """
    config: LongMBartConfig
    def __init__(self, config: LongMBartConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: list[Tensor] | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqSequenceClassifierOutput: ...
    __call__ = forward

class LongMBartModel(LongAttentionMixin, MBartModel):
    """MBartModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MBartModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MBartModel instead.
    """
    config: LongMBartConfig
    def __init__(self, config: LongMBartConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: tuple[tuple[Tensor]] | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, use_cache: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None) -> Seq2SeqModelOutput: ...
    __call__ = forward

# mistral

class LongMistralConfig(LongConfig, MistralConfig):
    """MistralConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 32000, hidden_size: int = 4096, intermediate_size: int = 14336, num_hidden_layers: int = 32, num_attention_heads: int = 32, num_key_value_heads: int = 8, head_dim: int | None = None, hidden_act: str = 'silu', max_position_embeddings: int = 131072, initializer_range: float = 0.02, rms_norm_eps: float = 1e-06, use_cache: bool = True, pad_token_id: int | None = None, bos_token_id: int | None = 1, eos_token_id: int | list[int] | None = 2, tie_word_embeddings: bool = False, rope_parameters: dict[str, Any] | dict[str, Any] | None = None, sliding_window: int | None = 4096, attention_dropout: float | int = 0.0, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongMistralForCausalLM(LongGenerationMixin, LongAttentionMixin, MistralForCausalLM, GenerationMixin):
    """MistralForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MistralForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MistralForCausalLM instead.
    """
    config: LongMistralConfig
    def __init__(self, config: LongMistralConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithPast: ...
    __call__ = forward

class LongMistralForQuestionAnswering(LongAttentionMixin, MistralForQuestionAnswering):
    """MistralForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MistralForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MistralForQuestionAnswering instead.
    """
    config: LongMistralConfig
    def __init__(self, config: LongMistralConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongMistralForSequenceClassification(LongAttentionMixin, MistralForSequenceClassification):
    """MistralForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MistralForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MistralForSequenceClassification instead.
    """
    config: LongMistralConfig
    def __init__(self, config: LongMistralConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

class LongMistralForTokenClassification(LongAttentionMixin, MistralForTokenClassification):
    """MistralForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MistralForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MistralForTokenClassification instead.
    """
    config: LongMistralConfig
    def __init__(self, config: LongMistralConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongMistralModel(LongBaseModelMixin, MistralModel):
    """MistralModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MistralModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MistralModel instead.
    """
    config: LongMistralConfig
    def __init__(self, config: LongMistralConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPast: ...
    __call__ = forward

# modernbert

class LongModernBertConfig(LongEncoderConfig, ModernBertConfig):
    """ModernBertConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 50368, hidden_size: int = 768, intermediate_size: int = 1152, num_hidden_layers: int = 22, num_attention_heads: int = 12, hidden_activation: str = 'gelu', max_position_embeddings: int = 8192, initializer_range: float = 0.02, initializer_cutoff_factor: float = 2.0, norm_eps: float = 1e-05, norm_bias: bool = False, pad_token_id: int | None = 50283, eos_token_id: int | list[int] | None = 50282, bos_token_id: int | None = 50281, cls_token_id: int | None = 50281, sep_token_id: int | None = 50282, attention_bias: bool = False, attention_dropout: float | int = 0.0, layer_types: list[str] | None = None, rope_parameters: dict[Literal['full_attention', 'sliding_attention'], dict[str, Any]] | None = None, local_attention: int = 128, embedding_dropout: float | int = 0.0, mlp_bias: bool = False, mlp_dropout: float | int = 0.0, decoder_bias: bool = True, classifier_pooling: Literal['cls', 'mean'] = 'cls', classifier_dropout: float | int = 0.0, classifier_bias: bool = False, classifier_activation: str = 'gelu', deterministic_flash_attn: bool = False, sparse_prediction: bool = False, sparse_pred_ignore_index: int = -100, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongModernBertForMaskedLM(LongAttentionMixin, ModernBertForMaskedLM):
    """ModernBertForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ModernBertForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ModernBertForMaskedLM instead.
    """
    config: LongModernBertConfig
    def __init__(self, config: LongModernBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongModernBertForMultipleChoice(LongAttentionMixin, ModernBertForMultipleChoice):
    """ModernBertForMultipleChoice with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ModernBertForMultipleChoice, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ModernBertForMultipleChoice instead.
    """
    config: LongModernBertConfig
    def __init__(self, config: LongModernBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MultipleChoiceModelOutput: ...
    __call__ = forward

class LongModernBertForQuestionAnswering(LongAttentionMixin, ModernBertForQuestionAnswering):
    """ModernBertForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ModernBertForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ModernBertForQuestionAnswering instead.
    """
    config: LongModernBertConfig
    def __init__(self, config: LongModernBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongModernBertForSequenceClassification(LongAttentionMixin, ModernBertForSequenceClassification):
    """ModernBertForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ModernBertForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ModernBertForSequenceClassification instead.
    """
    config: LongModernBertConfig
    def __init__(self, config: LongModernBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongModernBertForTokenClassification(LongAttentionMixin, ModernBertForTokenClassification):
    """ModernBertForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ModernBertForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ModernBertForTokenClassification instead.
    """
    config: LongModernBertConfig
    def __init__(self, config: LongModernBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongModernBertModel(LongBaseModelMixin, ModernBertModel):
    """ModernBertModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ModernBertModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ModernBertModel instead.
    """
    config: LongModernBertConfig
    def __init__(self, config: LongModernBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutput: ...
    __call__ = forward

# mpnet

class LongMPNetConfig(LongEncoderConfig, MPNetConfig):
    """MPNetConfig with ``long_attention``; the mechanism is ``window`` unless another one is given."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 30527, hidden_size: int = 768, num_hidden_layers: int = 12, num_attention_heads: int = 12, intermediate_size: int = 3072, hidden_act: str = 'gelu', hidden_dropout_prob: float | int = 0.1, attention_probs_dropout_prob: float | int = 0.1, max_position_embeddings: int = 512, initializer_range: float = 0.02, layer_norm_eps: float = 1e-12, relative_attention_num_buckets: int = 32, pad_token_id: int | None = 1, bos_token_id: int | None = 0, eos_token_id: int | list[int] | None = 2, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongMPNetForMaskedLM(LongAttentionMixin, MPNetForMaskedLM):
    """MPNetForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MPNetForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MPNetForMaskedLM instead.
    """
    config: LongMPNetConfig
    def __init__(self, config: LongMPNetConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongMPNetForMultipleChoice(LongAttentionMixin, MPNetForMultipleChoice):
    """MPNetForMultipleChoice with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MPNetForMultipleChoice, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MPNetForMultipleChoice instead.
    """
    config: LongMPNetConfig
    def __init__(self, config: LongMPNetConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> MultipleChoiceModelOutput: ...
    __call__ = forward

class LongMPNetForQuestionAnswering(LongAttentionMixin, MPNetForQuestionAnswering):
    """MPNetForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MPNetForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MPNetForQuestionAnswering instead.
    """
    config: LongMPNetConfig
    def __init__(self, config: LongMPNetConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongMPNetForSequenceClassification(LongAttentionMixin, MPNetForSequenceClassification):
    """MPNetForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MPNetForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MPNetForSequenceClassification instead.
    """
    config: LongMPNetConfig
    def __init__(self, config: LongMPNetConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongMPNetForTokenClassification(LongAttentionMixin, MPNetForTokenClassification):
    """MPNetForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MPNetForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MPNetForTokenClassification instead.
    """
    config: LongMPNetConfig
    def __init__(self, config: LongMPNetConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongMPNetModel(LongBaseModelMixin, MPNetModel):
    """MPNetModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MPNetModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MPNetModel instead.
    """
    config: LongMPNetConfig
    def __init__(self, config: LongMPNetConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> BaseModelOutputWithPooling: ...
    __call__ = forward

# nystromformer

class LongNystromformerConfig(LongEncoderConfig, NystromformerConfig):
    """NystromformerConfig with ``long_attention``; the mechanism is ``nystrom`` with the config's numbers unless another one is given."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 30000, hidden_size: int = 768, num_hidden_layers: int = 12, num_attention_heads: int = 12, intermediate_size: int = 3072, hidden_act: str = 'gelu_new', hidden_dropout_prob: float | int = 0.1, attention_probs_dropout_prob: float | int = 0.1, max_position_embeddings: int = 510, type_vocab_size: int = 2, segment_means_seq_len: int = 64, num_landmarks: int = 64, conv_kernel_size: int = 65, inv_coeff_init_option: bool = False, initializer_range: float = 0.02, layer_norm_eps: float = 1e-05, pad_token_id: int | None = 1, bos_token_id: int | None = 0, eos_token_id: int | list[int] | None = 2, add_cross_attention: bool = False, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongNystromformerForMaskedLM(LongAttentionMixin, NystromformerForMaskedLM):
    """NystromformerForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of NystromformerForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of NystromformerForMaskedLM instead.
    """
    config: LongNystromformerConfig
    def __init__(self, config: LongNystromformerConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongNystromformerForMultipleChoice(LongAttentionMixin, NystromformerForMultipleChoice):
    """NystromformerForMultipleChoice with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of NystromformerForMultipleChoice, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of NystromformerForMultipleChoice instead.
    """
    config: LongNystromformerConfig
    def __init__(self, config: LongNystromformerConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> MultipleChoiceModelOutput: ...
    __call__ = forward

class LongNystromformerForQuestionAnswering(LongAttentionMixin, NystromformerForQuestionAnswering):
    """NystromformerForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of NystromformerForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of NystromformerForQuestionAnswering instead.
    """
    config: LongNystromformerConfig
    def __init__(self, config: LongNystromformerConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongNystromformerForSequenceClassification(LongAttentionMixin, NystromformerForSequenceClassification):
    """NystromformerForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of NystromformerForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of NystromformerForSequenceClassification instead.
    """
    config: LongNystromformerConfig
    def __init__(self, config: LongNystromformerConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongNystromformerForTokenClassification(LongAttentionMixin, NystromformerForTokenClassification):
    """NystromformerForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of NystromformerForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of NystromformerForTokenClassification instead.
    """
    config: LongNystromformerConfig
    def __init__(self, config: LongNystromformerConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongNystromformerModel(LongBaseModelMixin, NystromformerModel):
    """NystromformerModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of NystromformerModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of NystromformerModel instead.
    """
    config: LongNystromformerConfig
    def __init__(self, config: LongNystromformerConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> BaseModelOutputWithPastAndCrossAttentions: ...
    __call__ = forward

# opt

class LongOPTConfig(LongConfig, OPTConfig):
    """OPTConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 50272, hidden_size: int = 768, num_hidden_layers: int = 12, ffn_dim: int = 3072, max_position_embeddings: int = 2048, do_layer_norm_before: bool = True, _remove_final_layer_norm: bool = False, word_embed_proj_dim: int | None = None, dropout: float | int = 0.1, attention_dropout: float | int = 0.0, num_attention_heads: int = 12, activation_function: str = 'relu', layerdrop: float | int = 0.0, init_std: float = 0.02, use_cache: bool = True, pad_token_id: int | None = 1, bos_token_id: int | None = 2, eos_token_id: int | list[int] | None = 2, enable_bias: bool = True, layer_norm_elementwise_affine: bool = True, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongOPTForCausalLM(LongGenerationMixin, LongAttentionMixin, OPTForCausalLM, GenerationMixin):
    """OPTForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of OPTForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of OPTForCausalLM instead.
    """
    config: LongOPTConfig
    def __init__(self, config: LongOPTConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, position_ids: Tensor | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithPast: ...
    __call__ = forward

class LongOPTForQuestionAnswering(LongAttentionMixin, OPTForQuestionAnswering):
    """OPTForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of OPTForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of OPTForQuestionAnswering instead.
    """
    config: LongOPTConfig
    def __init__(self, config: LongOPTConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, use_cache: bool | None = None, position_ids: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongOPTForSequenceClassification(LongAttentionMixin, OPTForSequenceClassification):
    """OPTForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of OPTForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of OPTForSequenceClassification instead.
    """
    config: LongOPTConfig
    def __init__(self, config: LongOPTConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, position_ids: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

class LongOPTModel(LongBaseModelMixin, OPTModel):
    """OPTModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of OPTModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of OPTModel instead.
    """
    config: LongOPTConfig
    def __init__(self, config: LongOPTConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None, position_ids: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPast: ...
    __call__ = forward

# pegasus

class LongPegasusConfig(LongEncoderDecoderConfig, PegasusConfig):
    """PegasusConfig with ``long_attention``, ``decoder_long_attention`` and ``max_decoder_position_embeddings``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, is_encoder_decoder: bool = True, vocab_size: int = 50265, max_position_embeddings: int = 1024, encoder_layers: int = 12, encoder_ffn_dim: int = 4096, encoder_attention_heads: int = 16, decoder_layers: int = 12, decoder_ffn_dim: int = 4096, decoder_attention_heads: int = 16, encoder_layerdrop: float | int = 0.0, decoder_layerdrop: float | int = 0.0, use_cache: bool = True, activation_function: str = 'gelu', d_model: int = 1024, dropout: float | int = 0.1, attention_dropout: float | int = 0.0, activation_dropout: float | int = 0.0, init_std: float = 0.02, decoder_start_token_id: int | None = 0, scale_embedding: bool = False, pad_token_id: int | None = 0, eos_token_id: int | list[int] | None = 1, forced_eos_token_id: int | list[int] | None = 1, is_decoder: bool = False, tie_word_embeddings: bool = True, num_attention_heads: int = 16, hidden_size: int = 1024, num_hidden_layers: int = 12, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ..., decoder_long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., max_decoder_position_embeddings: int | None = ...) -> None: ...

class LongPegasusForCausalLM(LongGenerationMixin, LongAttentionMixin, PegasusForCausalLM, GenerationMixin):
    """PegasusForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of PegasusForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of PegasusForCausalLM instead.
    """
    config: LongPegasusConfig
    def __init__(self, config: LongPegasusConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithCrossAttentions: ...
    __call__ = forward

class LongPegasusForConditionalGeneration(LongGenerationMixin, LongAttentionMixin, PegasusForConditionalGeneration, GenerationMixin):
    """PegasusForConditionalGeneration with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of PegasusForConditionalGeneration, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of PegasusForConditionalGeneration instead.
    """
    config: LongPegasusConfig
    def __init__(self, config: LongPegasusConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: tuple[Tensor] | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqLMOutput: ...
    __call__ = forward

class LongPegasusModel(LongAttentionMixin, PegasusModel):
    """PegasusModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of PegasusModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of PegasusModel instead.
    """
    config: LongPegasusConfig
    def __init__(self, config: LongPegasusConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: tuple[Tensor] | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqModelOutput: ...
    __call__ = forward

# phi

class LongPhiConfig(LongConfig, PhiConfig):
    """PhiConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 51200, hidden_size: int = 2048, intermediate_size: int = 8192, num_hidden_layers: int = 24, num_attention_heads: int = 32, num_key_value_heads: int | None = None, resid_pdrop: float | int = 0.0, embd_pdrop: float | int = 0.0, attention_dropout: float | int | None = 0.0, hidden_act: str = 'gelu_new', max_position_embeddings: int = 2048, initializer_range: float = 0.02, layer_norm_eps: float = 1e-05, use_cache: bool = True, tie_word_embeddings: bool = False, rope_parameters: dict[str, Any] | dict[str, Any] | None = None, qk_layernorm: bool = False, bos_token_id: int | None = 1, eos_token_id: int | list[int] | None = 2, pad_token_id: int | None = None, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongPhiForCausalLM(LongGenerationMixin, LongAttentionMixin, PhiForCausalLM, GenerationMixin):
    """PhiForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of PhiForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of PhiForCausalLM instead.
    """
    config: LongPhiConfig
    def __init__(self, config: LongPhiConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithPast: ...
    __call__ = forward

class LongPhiForSequenceClassification(LongAttentionMixin, PhiForSequenceClassification):
    """PhiForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of PhiForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of PhiForSequenceClassification instead.
    """
    config: LongPhiConfig
    def __init__(self, config: LongPhiConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

class LongPhiForTokenClassification(LongAttentionMixin, PhiForTokenClassification):
    """PhiForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of PhiForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of PhiForTokenClassification instead.
    """
    config: LongPhiConfig
    def __init__(self, config: LongPhiConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongPhiModel(LongBaseModelMixin, PhiModel):
    """PhiModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of PhiModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of PhiModel instead.
    """
    config: LongPhiConfig
    def __init__(self, config: LongPhiConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPast: ...
    __call__ = forward

# phi3

class LongPhi3Config(LongConfig, Phi3Config):
    """Phi3Config with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 32064, hidden_size: int = 3072, intermediate_size: int = 8192, num_hidden_layers: int = 32, num_attention_heads: int = 32, num_key_value_heads: int | None = None, resid_pdrop: float | int = 0.0, embd_pdrop: float | int = 0.0, attention_dropout: float | int = 0.0, hidden_act: str = 'silu', max_position_embeddings: int = 4096, original_max_position_embeddings: int = 4096, initializer_range: float = 0.02, rms_norm_eps: float = 1e-05, use_cache: bool = True, tie_word_embeddings: bool = False, rope_parameters: dict[str, Any] | dict[str, Any] | None = None, bos_token_id: int | None = 1, eos_token_id: int | list[int] | None = 32000, pad_token_id: int | None = 32000, sliding_window: int | None = None, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongPhi3ForCausalLM(LongGenerationMixin, LongAttentionMixin, Phi3ForCausalLM, GenerationMixin):
    """Phi3ForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Phi3ForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Phi3ForCausalLM instead.
    """
    config: LongPhi3Config
    def __init__(self, config: LongPhi3Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithPast: ...
    __call__ = forward

class LongPhi3ForSequenceClassification(LongAttentionMixin, Phi3ForSequenceClassification):
    """Phi3ForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Phi3ForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Phi3ForSequenceClassification instead.
    """
    config: LongPhi3Config
    def __init__(self, config: LongPhi3Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

class LongPhi3ForTokenClassification(LongAttentionMixin, Phi3ForTokenClassification):
    """Phi3ForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Phi3ForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Phi3ForTokenClassification instead.
    """
    config: LongPhi3Config
    def __init__(self, config: LongPhi3Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongPhi3Model(LongBaseModelMixin, Phi3Model):
    """Phi3Model with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Phi3Model, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Phi3Model instead.
    """
    config: LongPhi3Config
    def __init__(self, config: LongPhi3Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPast: ...
    __call__ = forward

# qwen2

class LongQwen2Config(LongConfig, Qwen2Config):
    """Qwen2Config with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 151936, hidden_size: int = 4096, intermediate_size: int = 22016, num_hidden_layers: int = 32, num_attention_heads: int = 32, num_key_value_heads: int | None = 32, hidden_act: str = 'silu', max_position_embeddings: int = 32768, initializer_range: float = 0.02, rms_norm_eps: float = 1e-06, use_cache: bool = True, tie_word_embeddings: bool = False, rope_parameters: dict[str, Any] | dict[str, Any] | None = None, use_sliding_window: bool = False, sliding_window: int | None = 4096, max_window_layers: int = 28, layer_types: list[str] | None = None, attention_dropout: float | int = 0.0, pad_token_id: int | None = None, bos_token_id: int | None = None, eos_token_id: int | list[int] | None = None, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongQwen2ForCausalLM(LongGenerationMixin, LongAttentionMixin, Qwen2ForCausalLM, GenerationMixin):
    """Qwen2ForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Qwen2ForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Qwen2ForCausalLM instead.
    """
    config: LongQwen2Config
    def __init__(self, config: LongQwen2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithPast: ...
    __call__ = forward

class LongQwen2ForQuestionAnswering(LongAttentionMixin, Qwen2ForQuestionAnswering):
    """Qwen2ForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Qwen2ForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Qwen2ForQuestionAnswering instead.
    """
    config: LongQwen2Config
    def __init__(self, config: LongQwen2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongQwen2ForSequenceClassification(LongAttentionMixin, Qwen2ForSequenceClassification):
    """Qwen2ForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Qwen2ForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Qwen2ForSequenceClassification instead.
    """
    config: LongQwen2Config
    def __init__(self, config: LongQwen2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

class LongQwen2ForTokenClassification(LongAttentionMixin, Qwen2ForTokenClassification):
    """Qwen2ForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Qwen2ForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Qwen2ForTokenClassification instead.
    """
    config: LongQwen2Config
    def __init__(self, config: LongQwen2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongQwen2Model(LongBaseModelMixin, Qwen2Model):
    """Qwen2Model with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Qwen2Model, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Qwen2Model instead.
    """
    config: LongQwen2Config
    def __init__(self, config: LongQwen2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPast: ...
    __call__ = forward

# qwen3

class LongQwen3Config(LongConfig, Qwen3Config):
    """Qwen3Config with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 151936, hidden_size: int = 4096, intermediate_size: int = 22016, num_hidden_layers: int = 32, num_attention_heads: int = 32, num_key_value_heads: int | None = 32, head_dim: int = 128, hidden_act: str = 'silu', max_position_embeddings: int = 32768, initializer_range: float = 0.02, rms_norm_eps: float = 1e-06, use_cache: bool = True, tie_word_embeddings: bool = False, rope_parameters: dict[str, Any] | dict[str, Any] | None = None, attention_bias: bool = False, use_sliding_window: bool = False, sliding_window: int | None = 4096, max_window_layers: int = 28, layer_types: list[str] | None = None, attention_dropout: float | int = 0.0, pad_token_id: int | None = None, bos_token_id: int | None = None, eos_token_id: int | list[int] | None = None, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongQwen3ForCausalLM(LongGenerationMixin, LongAttentionMixin, Qwen3ForCausalLM, GenerationMixin):
    """Qwen3ForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Qwen3ForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Qwen3ForCausalLM instead.
    """
    config: LongQwen3Config
    def __init__(self, config: LongQwen3Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithPast: ...
    __call__ = forward

class LongQwen3ForQuestionAnswering(LongAttentionMixin, Qwen3ForQuestionAnswering):
    """Qwen3ForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Qwen3ForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Qwen3ForQuestionAnswering instead.
    """
    config: LongQwen3Config
    def __init__(self, config: LongQwen3Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongQwen3ForSequenceClassification(LongAttentionMixin, Qwen3ForSequenceClassification):
    """Qwen3ForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Qwen3ForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Qwen3ForSequenceClassification instead.
    """
    config: LongQwen3Config
    def __init__(self, config: LongQwen3Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

class LongQwen3ForTokenClassification(LongAttentionMixin, Qwen3ForTokenClassification):
    """Qwen3ForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Qwen3ForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Qwen3ForTokenClassification instead.
    """
    config: LongQwen3Config
    def __init__(self, config: LongQwen3Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongQwen3Model(LongBaseModelMixin, Qwen3Model):
    """Qwen3Model with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Qwen3Model, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Qwen3Model instead.
    """
    config: LongQwen3Config
    def __init__(self, config: LongQwen3Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPast: ...
    __call__ = forward

# roberta

class LongRobertaConfig(LongConfig, RobertaConfig):
    """RobertaConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 50265, hidden_size: int = 768, num_hidden_layers: int = 12, num_attention_heads: int = 12, intermediate_size: int = 3072, hidden_act: str = 'gelu', hidden_dropout_prob: float | int = 0.1, attention_probs_dropout_prob: float | int = 0.1, max_position_embeddings: int = 512, type_vocab_size: int = 2, initializer_range: float = 0.02, layer_norm_eps: float = 1e-12, pad_token_id: int | None = 1, bos_token_id: int | None = 0, eos_token_id: int | list[int] | None = 2, use_cache: bool = True, classifier_dropout: float | int | None = None, is_decoder: bool = False, add_cross_attention: bool = False, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongRobertaForCausalLM(LongGenerationMixin, LongAttentionMixin, RobertaForCausalLM, GenerationMixin):
    """RobertaForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of RobertaForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of RobertaForCausalLM instead.
    """
    config: LongRobertaConfig
    def __init__(self, config: LongRobertaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, labels: Tensor | None = None, past_key_values: tuple[tuple[Tensor]] | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithCrossAttentions: ...
    __call__ = forward

class LongRobertaForMaskedLM(LongAttentionMixin, RobertaForMaskedLM):
    """RobertaForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of RobertaForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of RobertaForMaskedLM instead.
    """
    config: LongRobertaConfig
    def __init__(self, config: LongRobertaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongRobertaForMultipleChoice(LongAttentionMixin, RobertaForMultipleChoice):
    """RobertaForMultipleChoice with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of RobertaForMultipleChoice, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of RobertaForMultipleChoice instead.
    """
    config: LongRobertaConfig
    def __init__(self, config: LongRobertaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, token_type_ids: Tensor | None = None, attention_mask: Tensor | None = None, labels: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MultipleChoiceModelOutput: ...
    __call__ = forward

class LongRobertaForQuestionAnswering(LongAttentionMixin, RobertaForQuestionAnswering):
    """RobertaForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of RobertaForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of RobertaForQuestionAnswering instead.
    """
    config: LongRobertaConfig
    def __init__(self, config: LongRobertaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongRobertaForSequenceClassification(LongAttentionMixin, RobertaForSequenceClassification):
    """RobertaForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of RobertaForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of RobertaForSequenceClassification instead.
    """
    config: LongRobertaConfig
    def __init__(self, config: LongRobertaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongRobertaForTokenClassification(LongAttentionMixin, RobertaForTokenClassification):
    """RobertaForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of RobertaForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of RobertaForTokenClassification instead.
    """
    config: LongRobertaConfig
    def __init__(self, config: LongRobertaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongRobertaModel(LongBaseModelMixin, RobertaModel):
    """RobertaModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of RobertaModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of RobertaModel instead.
    """
    config: LongRobertaConfig
    def __init__(self, config: LongRobertaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, past_key_values: Cache | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPoolingAndCrossAttentions: ...
    __call__ = forward

# smollm3

class LongSmolLM3Config(LongConfig, SmolLM3Config):
    """SmolLM3Config with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 128256, hidden_size: int = 2048, intermediate_size: int = 11008, num_hidden_layers: int = 36, num_attention_heads: int = 16, num_key_value_heads: int | None = 4, hidden_act: str = 'silu', max_position_embeddings: int = 32768, initializer_range: float = 0.02, rms_norm_eps: float = 1e-06, use_cache: bool = True, pad_token_id: int | None = 128004, bos_token_id: int | None = 128000, eos_token_id: int | list[int] | None = 128001, rope_parameters: dict[str, Any] | dict[str, Any] | None = None, use_sliding_window: bool = False, sliding_window: int | None = None, no_rope_layers: list[int] | None = None, no_rope_layer_interval: int = 4, layer_types: list[str] | None = None, attention_bias: bool = False, attention_dropout: float | int = 0.0, mlp_bias: bool = False, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongSmolLM3ForCausalLM(LongGenerationMixin, LongAttentionMixin, SmolLM3ForCausalLM, GenerationMixin):
    """SmolLM3ForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of SmolLM3ForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of SmolLM3ForCausalLM instead.
    """
    config: LongSmolLM3Config
    def __init__(self, config: LongSmolLM3Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithPast: ...
    __call__ = forward

class LongSmolLM3ForQuestionAnswering(LongAttentionMixin, SmolLM3ForQuestionAnswering):
    """SmolLM3ForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of SmolLM3ForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of SmolLM3ForQuestionAnswering instead.
    """
    config: LongSmolLM3Config
    def __init__(self, config: LongSmolLM3Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongSmolLM3ForSequenceClassification(LongAttentionMixin, SmolLM3ForSequenceClassification):
    """SmolLM3ForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of SmolLM3ForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of SmolLM3ForSequenceClassification instead.
    """
    config: LongSmolLM3Config
    def __init__(self, config: LongSmolLM3Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

class LongSmolLM3ForTokenClassification(LongAttentionMixin, SmolLM3ForTokenClassification):
    """SmolLM3ForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of SmolLM3ForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of SmolLM3ForTokenClassification instead.
    """
    config: LongSmolLM3Config
    def __init__(self, config: LongSmolLM3Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongSmolLM3Model(LongBaseModelMixin, SmolLM3Model):
    """SmolLM3Model with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of SmolLM3Model, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of SmolLM3Model instead.
    """
    config: LongSmolLM3Config
    def __init__(self, config: LongSmolLM3Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPast: ...
    __call__ = forward

# xlm-roberta

class LongXLMRobertaConfig(LongConfig, XLMRobertaConfig):
    """XLMRobertaConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 30522, hidden_size: int = 768, num_hidden_layers: int = 12, num_attention_heads: int = 12, intermediate_size: int = 3072, hidden_act: str = 'gelu', hidden_dropout_prob: float | int = 0.1, attention_probs_dropout_prob: float | int = 0.1, max_position_embeddings: int = 512, type_vocab_size: int = 2, initializer_range: float = 0.02, layer_norm_eps: float = 1e-12, pad_token_id: int | None = 1, bos_token_id: int | None = 0, eos_token_id: int | list[int] | None = 2, use_cache: bool = True, classifier_dropout: float | int | None = None, is_decoder: bool = False, add_cross_attention: bool = False, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongXLMRobertaForCausalLM(LongGenerationMixin, LongAttentionMixin, XLMRobertaForCausalLM, GenerationMixin):
    """XLMRobertaForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of XLMRobertaForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of XLMRobertaForCausalLM instead.
    """
    config: LongXLMRobertaConfig
    def __init__(self, config: LongXLMRobertaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, labels: Tensor | None = None, past_key_values: tuple[tuple[Tensor]] | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithCrossAttentions: ...
    __call__ = forward

class LongXLMRobertaForMaskedLM(LongAttentionMixin, XLMRobertaForMaskedLM):
    """XLMRobertaForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of XLMRobertaForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of XLMRobertaForMaskedLM instead.
    """
    config: LongXLMRobertaConfig
    def __init__(self, config: LongXLMRobertaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongXLMRobertaForMultipleChoice(LongAttentionMixin, XLMRobertaForMultipleChoice):
    """XLMRobertaForMultipleChoice with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of XLMRobertaForMultipleChoice, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of XLMRobertaForMultipleChoice instead.
    """
    config: LongXLMRobertaConfig
    def __init__(self, config: LongXLMRobertaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, token_type_ids: Tensor | None = None, attention_mask: Tensor | None = None, labels: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MultipleChoiceModelOutput: ...
    __call__ = forward

class LongXLMRobertaForQuestionAnswering(LongAttentionMixin, XLMRobertaForQuestionAnswering):
    """XLMRobertaForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of XLMRobertaForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of XLMRobertaForQuestionAnswering instead.
    """
    config: LongXLMRobertaConfig
    def __init__(self, config: LongXLMRobertaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongXLMRobertaForSequenceClassification(LongAttentionMixin, XLMRobertaForSequenceClassification):
    """XLMRobertaForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of XLMRobertaForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of XLMRobertaForSequenceClassification instead.
    """
    config: LongXLMRobertaConfig
    def __init__(self, config: LongXLMRobertaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongXLMRobertaForTokenClassification(LongAttentionMixin, XLMRobertaForTokenClassification):
    """XLMRobertaForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of XLMRobertaForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of XLMRobertaForTokenClassification instead.
    """
    config: LongXLMRobertaConfig
    def __init__(self, config: LongXLMRobertaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongXLMRobertaModel(LongBaseModelMixin, XLMRobertaModel):
    """XLMRobertaModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of XLMRobertaModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of XLMRobertaModel instead.
    """
    config: LongXLMRobertaConfig
    def __init__(self, config: LongXLMRobertaConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, past_key_values: Cache | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPoolingAndCrossAttentions: ...
    __call__ = forward
