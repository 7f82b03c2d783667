"""transformers' own ModelTesterMixin on the Long families. Runs inside the unpacked sdist, where
`run_transformers_tests.py` puts it beside the replacements; it is no test module of this project's own suite."""

from __future__ import annotations

import inspect
import json
import os
import unittest
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from transformers.testing_utils import require_torch, torch_device

import hf_longattn.families as long_families
from scripts.dev.tools.small_models import (
    Shape,
    small_audio_config,
    small_image_config,
    small_towers_config,
    small_values,
)

from ...test_backbone_common import BackboneTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor, random_attention_mask

SKIPPED: dict[str, dict[str, str]] = json.loads(Path(os.environ["LONGATTN_SKIPS"]).read_text(encoding="utf-8"))
SHAPE = Shape(width=32, layers=2, heads=4, inner=37, tokens=512, vocabulary=99)
BACKBONE = "Backbone"
FOUR_LAYERS = ("beit",)
"""Bases whose heads for segmentation read four of them."""
TOKENS = {
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "cls_token_id": 0,
    "sep_token_id": 2,
    "decoder_start_token_id": 2,
}
TEXT_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
COMMON = {**TOKENS, "forced_eos_token_id": None, "num_key_value_heads": 2}
SLIDING = {"query_pre_attn_scalar": 1, "sliding_window": 3}
OWN: dict[str, dict[str, Any]] = {
    "modernbert": {"local_attention": 4},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "gpt_neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "opt": {"word_embed_proj_dim": 20},
    "qwen2": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    "gemma2": SLIDING,
    "gemma3_text": {**SLIDING, "layer_types": ["sliding_attention", "full_attention"]},
    "smollm3": {"no_rope_layer_interval": 2},
    "esm": {"mask_token_id": 4, "position_embedding_type": "rotary"},
}
"""What the suite should meet and the default config of a base has not."""
WITHOUT_LOSS = (
    "ForImageClassificationWithTeacher",
    "BeitForMaskedImageModeling",
    "ForXVector",
    "ForAudioFrameClassification",
    "ModelWithProjection",
)
"""Ends of the names of classes that are for inference, or get no labels from the suite; their base's own tests leave
them out of these:"""
MAPPED_WITH_A_HEAD = ("beit",)
"""Bases whose renaming of tensors shows in models with a head only."""
NEEDS_LOSS = ("test_training", "test_problem_types")
PARTS_WITHOUT_LOSS = ("gpt2", "esm", "big_bird")
"""The second head of two has another loss; the contact head has none; BigBird's heads build a pooler that they do not
use."""
MECHANISMS = {"bart": "longformer", "mpnet": "window", "deberta-v2": "window"}
"""Of the others it is longformer where there is a masked-language head, and window in decoders."""

ANY_IMPLEMENTATION = (
    "test_attn_implementation_",
    "test_can_set_attention_dynamically",
    "test_config_attn_implementation_setter",
    "test_eager_",
    "test_flash_",
    "test_flex_",
    "test_retain_grad_hidden_states_attentions",
    "test_sdpa_",
)
"""Beginnings of the names of tests that compare attention implementations, which a Long model takes where its
mechanisms are the base's attention."""
ALL_LAYERS_SLIDE = ("mistral",)
"""Bases whose default is a window in every layer, which these keep where nothing is chosen."""


def is_backbone(head: str) -> bool:
    """Whether the class is a backbone, for which transformers has another suite."""
    return head.endswith(BACKBONE)


class Tester:
    """Tiny configs and inputs of one family, with the attribute names that the mixin reads."""

    batch_size = 13
    seq_length = 7
    num_choices = 4
    num_labels = 3
    num_hidden_layers = SHAPE.layers
    hidden_size = SHAPE.width
    num_attention_heads = SHAPE.heads
    vocab_size = SHAPE.vocabulary
    is_training = True

    def __init__(self, parent: unittest.TestCase, base: str, plain: bool) -> None:
        self.parent, self.base, self.plain = parent, base, plain
        if long_families.FAMILIES[base].two_stacks:
            self.encoder_seq_length = self.decoder_seq_length = self.key_length = self.seq_length

    def get_config(self):
        family = long_families.FAMILIES[self.base]
        shape = {**small_values(self.base, SHAPE, **COMMON), **OWN.get(self.base, {})}
        if self.plain:
            return family.base_config_class(**shape)
        masked = any(head.endswith("ForMaskedLM") for head in family.model_classes)
        mechanism = MECHANISMS.get(self.base, "longformer" if masked and not family.two_stacks else "window")
        chosen = {"mechanism": mechanism, "window": 4}
        if self.parent._testMethodName.startswith(ANY_IMPLEMENTATION):
            chosen = None if self.base in ALL_LAYERS_SLIDE else {"mechanism": "full"}
        return family.config_class(**shape, long_attention=chosen)

    def prepare_config_and_inputs_for_common(self):
        ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 2) + 2
        ids = ids.clamp(max=self.vocab_size - 2)
        mask = random_attention_mask([self.batch_size, self.seq_length])
        inputs = {"input_ids": ids.to(torch_device), "attention_mask": mask.to(torch_device)}
        config = self.get_config()
        inputs |= long_families.FAMILIES[self.base].spec.further_inputs(config, self.batch_size, self.seq_length)
        if long_families.FAMILIES[self.base].two_stacks:
            inputs["input_ids"] = inputs["input_ids"].clamp(min=3)
            inputs["input_ids"][:, -1] = 2  # classification reads the decoder where the text ends
            inputs["decoder_input_ids"] = inputs["input_ids"]
            inputs["decoder_attention_mask"] = inputs["attention_mask"]
        return config, inputs


class ImageTester(Tester):
    """Tiny configs and inputs of one family that reads images."""

    image_size, patch_size, num_channels = 32, 4, 3

    def __init__(self, parent: unittest.TestCase, base: str, plain: bool) -> None:
        super().__init__(parent, base, plain)
        self.num_hidden_layers = 4 if base in FOUR_LAYERS else SHAPE.layers
        config, spec = self.get_config(), long_families.FAMILIES[base].spec
        cells = (self.image_size // self.patch_size) ** 2
        self.seq_length = cells + spec.prefix_of(config)

    def get_config(self):
        shape = Shape(width=32, layers=self.num_hidden_layers, heads=4, inner=37)
        config = small_image_config(self.base, shape, self.patch_size, self.image_size // self.patch_size)
        if self.plain:
            return config
        family, chosen = long_families.FAMILIES[self.base], {"mechanism": "window2d", "window": 3}
        if self.parent._testMethodName.startswith(ANY_IMPLEMENTATION):
            chosen = {"mechanism": "full"}
        values = {name: value for name, value in config.to_dict().items() if name != "model_type"}
        return family.config_class(**values, long_attention=chosen)

    def prepare_config_and_inputs_for_common(self):
        pixels = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        return self.get_config(), {"pixel_values": pixels}


class TowersTester(Tester):
    """Tiny configs and inputs of one family of towers: as many texts as images, and the loss of all pairs of them."""

    image_size, patch_size = 32, 4

    def get_config(self):
        values = {
            "patch_size": self.patch_size,
            "image_size": self.image_size,
        }
        config = small_towers_config(self.base, SHAPE, **values, **{name: TOKENS[name] for name in TEXT_TOKENS})
        if self.plain:
            return config
        chosen = {"text": {"mechanism": "window", "window": 4}, "vision": {"mechanism": "window2d", "window": 3}}
        if self.parent._testMethodName.startswith(ANY_IMPLEMENTATION):
            chosen = {name: {"mechanism": "full"} for name in chosen}
        fields = {name: value for name, value in config.to_dict().items() if name != "model_type"}
        return long_families.FAMILIES[self.base].config_class(**fields, long_attention={"towers": chosen})

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        inputs = {
            "input_ids": ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 3) + 3,
            "return_loss": True,
        }
        inputs["input_ids"][:, -1] = TOKENS["eos_token_id"]  # at which CLIP's text is read
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["pixel_values"] = floats_tensor([self.batch_size, 3, self.image_size, self.image_size])
        return config, inputs


class AudioTester(Tester):
    """Tiny configs and inputs of one family that reads sound; where it writes text, ``decoder_seq_length`` tokens of
    it."""

    samples, rows, decoder_seq_length = 4000, 96, 7

    def __init__(self, parent: unittest.TestCase, base: str, plain: bool) -> None:
        super().__init__(parent, base, plain)
        spec = long_families.FAMILIES[base].spec
        self.length = self.samples if spec.features is None else self.rows
        self.seq_length = self.encoder_seq_length = self.key_length = spec.frames(self.get_config(), self.length)

    def get_config(self):
        sizes = Shape(width=32, layers=SHAPE.layers, heads=4, inner=37)
        config = small_audio_config(self.base, sizes, max_source_positions=self.rows // 2)
        if self.plain:
            return config
        family, chosen = long_families.FAMILIES[self.base], {"mechanism": "window", "window": 4}
        if self.parent._testMethodName.startswith(ANY_IMPLEMENTATION):
            chosen = {"mechanism": "full"}
        values = {name: value for name, value in config.to_dict().items() if name != "model_type"}
        return family.config_class(**values, long_attention=chosen)

    def prepare_config_and_inputs_for_common(self):
        config, spec = self.get_config(), long_families.FAMILIES[self.base].spec
        shape = [self.batch_size, self.length] + ([] if spec.features is None else [spec.features(config)])
        inputs = {spec.input: spec.as_input(floats_tensor(shape)).contiguous()}
        inputs["attention_mask"] = torch.ones(self.batch_size, self.length, dtype=torch.long, device=torch_device)
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids_tensor([self.batch_size, self.decoder_seq_length], self.vocab_size - 2)
            inputs["decoder_attention_mask"] = torch.ones_like(inputs["decoder_input_ids"])
        return config, inputs


def make(base: str, *, plain: bool) -> type[unittest.TestCase]:
    """The suite on the Long classes of a family, or on the base's own for comparison."""
    family = long_families.FAMILIES[base]
    config_class = family.base_config_class if plain else family.config_class

    @require_torch
    class FamilyTest(ModelTesterMixin, unittest.TestCase):
        all_model_classes = tuple(
            family.base_class(name) if plain else family.model_class(name)
            for name in family.model_classes
            if not is_backbone(name)
            if not family.two_stacks
            or (family.has_encoder(name) and family.has_decoder(name))  # one alone takes other inputs: tests/modeling
        )
        is_encoder_decoder = bool(family.base_config_class.is_encoder_decoder)
        test_resize_embeddings = family.spec.reads == "text" and not family.towers
        if family.towers:  # which have outputs of their own
            test_attention_outputs = False
        _is_composite = bool(family.towers)
        # a mask token has none without masks
        test_all_params_have_gradient = base not in PARTS_WITHOUT_LOSS and family.spec.reads == "text"

        def setUp(self) -> None:
            reads_images, reads_sound = family.spec.reads == "grid", family.spec.reads == "sound"
            reasons = {**SKIPPED["all"], **SKIPPED.get(base, {}), **({} if plain else SKIPPED["long"])}
            kind = "images" if reads_images else "sounds" if reads_sound else "towers" if family.towers else ""
            skip_for_a_reason(self, reasons | SKIPPED.get(kind, {}))
            if self._testMethodName.startswith(NEEDS_LOSS):
                self.all_model_classes = tuple(
                    kind for kind in self.all_model_classes if not kind.__name__.endswith(WITHOUT_LOSS)
                )
            testers = {"images": ImageTester, "sounds": AudioTester, "towers": TowersTester}
            self.model_tester = testers.get(kind, Tester)(self, base, plain)
            width = "d_model" if family.two_stacks else config_class.attribute_map.get("hidden_size", "hidden_size")
            heads = config_class.attribute_map.get("num_attention_heads", "num_attention_heads")
            values = {width: 32, **({heads: 4} if family.rope or family.spec.reads != "text" else {})}
            if family.towers:  # which have the sizes
                values = {"common_properties": []}
            self.config_tester = ConfigTester(
                self,
                config_class=config_class,
                has_text_modality=family.spec.reads == "text" and not family.towers,
                **values,
            )

        def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
            """Labels of the two heads that the suite leaves to the models' own tests."""
            inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
            batch, length, choices = (
                self.model_tester.batch_size,
                self.model_tester.seq_length,
                self.model_tester.num_choices,
            )
            if return_labels and model_class.__name__.endswith("ForPreTraining"):
                inputs["labels"] = torch.zeros(batch, length, dtype=torch.long, device=torch_device)
                pair = {"next_sentence_label", "sentence_order_label"} & set(
                    inspect.signature(model_class.forward).parameters
                )
                inputs |= {name: torch.zeros(batch, dtype=torch.long, device=torch_device) for name in pair}
            if (
                return_labels
                and family.spec.reads == "sound"
                and model_class.__name__.endswith("ForConditionalGeneration")
            ):
                inputs["labels"] = inputs["decoder_input_ids"]
            if return_labels and model_class.__name__.endswith("DoubleHeadsModel"):
                text = torch.zeros(batch, choices, length, dtype=torch.long, device=torch_device)
                inputs |= {
                    "input_ids": text,
                    "labels": text,
                    "token_type_ids": text,
                    "attention_mask": torch.ones_like(text),
                }
                inputs["mc_token_ids"] = torch.zeros(batch, choices, dtype=torch.long, device=torch_device)
                inputs["mc_labels"] = torch.zeros(batch, dtype=torch.long, device=torch_device)
            return inputs

        def test_inputs_embeds(self) -> None:
            """Classification by an encoder and a decoder looks for the end token among the ids: the base refuses
            embeddings."""
            if family.two_stacks:
                self.all_model_classes = tuple(
                    one for one in self.all_model_classes if "SequenceClassification" not in one.__name__
                )
            super().test_inputs_embeds()

        def test_reverse_loading_mapping(self) -> None:
            """Our conversion changes the length of a table, not its name: the case for which the suite has this
            argument."""
            super().test_reverse_loading_mapping(
                check_keys_were_modified=plain, skip_base_model=base in MAPPED_WITH_A_HEAD
            )

        def test_config(self) -> None:
            self.config_tester.run_common_tests()

    FamilyTest.__name__ = FamilyTest.__qualname__ = f"{'Plain' if plain else 'Long'}{base.capitalize()}Test"
    return FamilyTest


def make_backbone(base: str, *, plain: bool) -> type[unittest.TestCase]:
    """transformers' suite of backbones on the Long ones of a family that has some, or on the base's own for
    comparison."""
    family = long_families.FAMILIES[base]

    @require_torch
    class BackboneTest(BackboneTesterMixin, unittest.TestCase):
        all_model_classes = tuple(
            family.base_class(name) if plain else family.model_class(name)
            for name in family.model_classes
            if is_backbone(name)
        )
        config_class = family.base_config_class if plain else family.config_class

        def setUp(self) -> None:
            skip_for_a_reason(self, SKIPPED.get(f"{base} backbone", {}))
            self.model_tester = ImageTester(self, base, plain)

    BackboneTest.__name__ = BackboneTest.__qualname__ = (
        f"{'Plain' if plain else 'Long'}{base.capitalize()}{BACKBONE}Test"
    )
    return BackboneTest


def skip_for_a_reason(case: unittest.TestCase, reasons: dict[str, str]) -> None:
    """Skip a test whose name has a reason; a name that ends in a star stands for all that begin so."""
    if (found := next((name for name in reasons if fnmatch(case._testMethodName, name)), None)) is not None:
        case.skipTest(f"skip list: {reasons[found]}")


PLAIN = (False, True) if os.environ["LONGATTN_WITH_BASE"] == "1" else (False,)
BASES = os.environ["LONGATTN_FAMILIES"].split(",")
CASES = [make(base, plain=plain) for base in BASES for plain in PLAIN]
WITH_BACKBONE = [base for base in BASES if any(map(is_backbone, long_families.FAMILIES[base].model_classes))]
CASES += [make_backbone(base, plain=plain) for base in WITH_BACKBONE for plain in PLAIN]
globals().update({case.__name__: case for case in CASES})
