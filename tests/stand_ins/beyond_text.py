"""Stand-ins for the pages on images, speech, series and proteins."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.stand_ins import Setting, made, page, stand_in
from tests.stand_ins.text import converted

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
RATE = 16_000
ONE_EPOCH = {"--epochs 3": "--epochs 1"}

page(
    "docs/how-to/images.md",
    Setting(instead=ONE_EPOCH, slow=True),
)
page(
    "docs/how-to/classify.md",
    Setting(
        instead={
            **ONE_EPOCH,
            "--data reviews.csv": "--data reviews.csv --max-length 128",
            "--augmentation none": "--augmentation none --epochs 1",
            "label=topic": "label=topic --epochs 1",
        },
        slow=True,
    ),
)
page(
    "docs/how-to/multitask.md",
    Setting(
        instead={
            "--output bert-4096-senses": "--output bert-4096-senses --image-size 64 --max-steps 3 --max-length 128"
        },
        slow=True,
    ),
)
page("docs/how-to/generic.md", Setting(instead=ONE_EPOCH, slow=True))
page(
    "docs/how-to/image_text.md",
    Setting(instead={"batch_size=64": 'batch_size=4, max_steps=2, use_cpu=True, report_to="none"'}, slow=True),
)
page(
    "docs/how-to/speech.md",
    Setting(
        instead={**ONE_EPOCH, "--output wav2vec2-long-talks": "--output wav2vec2-long-talks --overwrite"}, slow=True
    ),
)


def save(name: str, config: Any, folder: Path, *parts: Any) -> None:
    """A model of this class with random weights, and its processor or tokenizer."""
    torch.manual_seed(0)
    getattr(transformers, name)(config).save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_labelled(file: Path, what: str, label: str, rows: list[tuple[Path, str]]) -> None:
    """A table of whole paths and their labels."""
    file.write_text(
        "\n".join([f"{what},{label}", *(f"{path.resolve()},{name}" for path, name in rows)]) + "\n", encoding="utf-8"
    )


# Images


def image(seed: int, size: tuple[int, int] = (300, 200)) -> Any:
    """Noise around a colour, (width, height) in pixels."""
    from PIL import Image

    numbers = np.random.default_rng(seed)
    noise = numbers.normal(numbers.integers(0, 256, 3), 40, (size[1], size[0], 3))
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8))


def sorted_files(folder: Path, labels: tuple[str, str], write: Callable[[Path, int], None]) -> None:
    """A folder with a sub-folder for each label."""
    for number in range(8):
        (folder / labels[number % 2]).mkdir(parents=True, exist_ok=True)
        write(folder / labels[number % 2], number)


@stand_in("google/vit-base-patch16-224", "vit-base")
def vit(folder: Path) -> None:
    config = transformers.ViTConfig(**SMALL, id2label={0: "cat", 1: "dog"})
    save(
        "ViTForImageClassification",
        config,
        folder,
        transformers.ViTImageProcessorPil(size={"height": 224, "width": 224}),
    )


@stand_in("vit-1024")
def vit_1024(folder: Path) -> None:
    converted("vit-base", folder, "window2d", image_size=1024)


@stand_in("photo.jpg")
def photo(file: Path) -> None:
    image(99, (640, 427)).save(file)


@stand_in("photos")
def photos(folder: Path) -> None:
    """Images with labels."""
    sorted_files(folder, ("cat", "dog"), lambda place, number: image(number).save(place / f"{number}.jpg"))


@stand_in("slides.csv")
def slides(file: Path) -> None:
    """Paths of images with labels, and the images."""
    write_labelled(
        file,
        "file",
        "label",
        [(made("photos") / ("cat", "dog")[n % 2] / f"{n}.jpg", ("text", "plot")[n % 2]) for n in range(8)],
    )


@stand_in("digits")
def digits(folder: Path) -> None:
    sorted_files(folder, ("3", "7"), lambda place, number: image(number, (64, 64)).save(place / f"{number}.png"))


@stand_in("captioned")
def captioned(folder: Path) -> None:
    """Images with captions, as ``datasets`` reads an imagefolder."""
    folder.mkdir()
    rows = []
    for number in range(8):
        image(number).save(folder / f"{number}.jpg")
        rows.append(
            {
                "file_name": f"{number}.jpg",
                "text": "a photo of a cat " * 40 + ("and one dog" if number % 2 else "in the park"),
            }
        )
    write_rows(folder / "metadata.jsonl", rows)


# Images with text


@stand_in("openai/clip-vit-base-patch32")
def clip(folder: Path) -> None:
    from tests.towers import LINES

    tokenizer = transformers.CLIPTokenizer().train_new_from_iterator(LINES, 90)
    tokenizer.model_max_length = 77
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}
    )
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 77, "projection_dim": 16, **ids}
    vision = {**SMALL, "patch_size": 32, "projection_dim": 16}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=16, initializer_factor=10.0
    )
    save("CLIPModel", config, folder, processor, tokenizer)


TEXT: dict[str, Any] = {
    **SMALL,
    "vocab_size": 200,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 199,
    "num_key_value_heads": 2,
}


@stand_in("llava-hf/llava-1.5-7b-hf")
def llava(folder: Path) -> None:
    vision = transformers.CLIPVisionConfig(**SMALL, image_size=336, patch_size=14)
    text = transformers.LlamaConfig(**TEXT, max_position_embeddings=4096)
    save(
        "LlavaForConditionalGeneration",
        transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=198),
        folder,
    )


@stand_in("Qwen/Qwen2-VL-2B-Instruct")
def qwen2_vl(folder: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 4]}
    special = {"image_token_id": 198, "video_token_id": 197, "vision_start_token_id": 196, "vision_end_token_id": 195}
    tower = {
        "depth": 2,
        "num_heads": 2,
        "patch_size": 14,
        "embed_dim": 32,
        "hidden_size": 32,
        "mlp_ratio": 2,
        "in_channels": 3,
    }
    config = transformers.Qwen2VLConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=tower, **special)
    save("Qwen2VLForConditionalGeneration", config, folder)


# Sound


@stand_in("facebook/wav2vec2-large-960h-lv60-self")
def wav2vec2(folder: Path) -> None:
    from scripts.dev.tools.small_models import Shape, small_audio_config

    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(
        json.dumps({letter: number for number, letter in enumerate(LETTERS)}), encoding="utf-8"
    )
    tokenizer: Any = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    processor = transformers.Wav2Vec2Processor(
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True), tokenizer
    )
    ids = {"vocab_size": len(LETTERS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = small_audio_config(
        "wav2vec2", Shape(layers=1, heads=2), do_stable_layer_norm=True, num_conv_pos_embeddings=16, **ids
    )
    save("Wav2Vec2ForCTC", config, folder, processor)


@stand_in("facebook/wav2vec2-base")
def pretrained_wav2vec2(folder: Path) -> None:
    """Which writes no text."""
    from scripts.dev.tools.small_models import Shape, small_audio_config

    config = small_audio_config("wav2vec2", Shape(layers=1, heads=2), feat_extract_norm="group")
    save("Wav2Vec2ForPreTraining", config, folder, transformers.Wav2Vec2FeatureExtractor())


@stand_in("wav2vec2-long", "wav2vec2-long-talks")
def wav2vec2_long(folder: Path) -> None:
    converted("facebook/wav2vec2-large-960h-lv60-self", folder, "window", audio_seconds=300)


@stand_in("openai/whisper-tiny.en")
def whisper(folder: Path) -> None:
    from tests.whisper import whisper_checkpoint

    whisper_checkpoint(folder, seconds=3)


def tone(seed: int, seconds: float) -> Any:
    """A tone that swells, in some noise, (samples,)."""
    numbers, times = np.random.default_rng(seed), np.arange(int(RATE * seconds)) / RATE
    return 0.3 * np.sin(2 * np.pi * (200 + 20 * seed) * times) * np.sin(np.pi * times) + numbers.normal(
        scale=0.01, size=len(times)
    )


@stand_in("talk.wav")
def talk(file: Path) -> None:
    import soundfile

    soundfile.write(file, tone(0, 20), RATE)


@stand_in("talks")
def talks(folder: Path) -> None:
    """Recordings with transcripts."""
    import soundfile

    folder.mkdir()
    for number in range(10):
        soundfile.write(folder / f"{number}.wav", tone(number, 2), RATE)
        (folder / f"{number}.txt").write_text(("TEA NOT", "ONE HAT")[number % 2], encoding="utf-8")


@stand_in("hubert-long")
def hubert_long(folder: Path) -> None:
    from scripts.dev.tools.small_models import Shape, small_audio_config

    config = small_audio_config("hubert", Shape(layers=1, heads=2), feat_extract_norm="group")
    source = folder.with_name("hubert-short")
    save("HubertModel", config, source, transformers.Wav2Vec2FeatureExtractor())
    from hf_longattn import convert_checkpoint

    convert_checkpoint(source, folder, mechanism="window", audio_seconds=300, verify=False)


@stand_in("sounds", "words")
def sounds(folder: Path) -> None:
    """Recordings with labels."""
    import soundfile

    sorted_files(
        folder, ("bark", "meow"), lambda place, number: soundfile.write(place / f"{number}.wav", tone(number, 1), RATE)
    )


@stand_in("calls.csv", "words.csv")
def calls(file: Path) -> None:
    """Paths of recordings with their topics, or words."""
    paths = [made("sounds") / ("bark", "meow")[n % 2] / f"{n}.wav" for n in range(8)]
    label = {"calls": "topic", "words": "word"}[file.stem]
    write_labelled(file, "file", label, [(path, ("bill", "order")[n % 2]) for n, path in enumerate(paths)])


@stand_in("sesame/csm-1b")
def csm(folder: Path) -> None:
    from tests.conversion.test_generic import FRAMES

    # frames that the codec can decode, whatever random weights choose
    codebook = {"vocab_size": 64, "codebook_pad_token_id": 63}
    decoder = {**FRAMES["depth_decoder_config"], "vocab_size": 64}
    values = {**FRAMES, **codebook, "depth_decoder_config": decoder, "max_position_embeddings": 2048}
    save("CsmForConditionalGeneration", transformers.CsmConfig(**values), folder)


@stand_in("nari-labs/Dia-1.6B-0626")
def dia(folder: Path) -> None:
    shape = {**SMALL, "head_dim": 16, "max_position_embeddings": 3072, "num_key_value_heads": 2}
    codes = {"vocab_size": 40, "num_channels": 3, "pad_token_id": 37, "eos_token_id": 36, "bos_token_id": 38}
    cross = {
        "cross_num_attention_heads": 2,
        "cross_num_key_value_heads": 2,
        "cross_head_dim": 16,
        "cross_hidden_size": 32,
    }
    decoder, encoder = {**shape, **codes, **cross}, {**shape, "vocab_size": 64}
    config = transformers.DiaConfig(encoder_config=encoder, decoder_config=decoder, delay_pattern=[0, 1, 2])
    save("DiaForConditionalGeneration", config, folder)


# Series and proteins


@stand_in("MCG-NJU/videomae-base-finetuned-kinetics")
def videomae(folder: Path) -> None:
    config = transformers.VideoMAEConfig(**SMALL, image_size=64, patch_size=8, num_frames=8)
    save("VideoMAEForVideoClassification", config, folder)


@stand_in("google/timesfm-2.5-200m-transformers")
def timesfm(folder: Path) -> None:
    from tests.conversion.test_generic import STEPS

    steps = {**STEPS, "patch_length": 32, "context_length": 16384, "num_hidden_layers": 20}
    save("TimesFm2_5ModelForPrediction", transformers.TimesFm2_5Config(**steps), folder)


@stand_in("facebook/esm2_t12_35M_UR50D")
def esm(folder: Path) -> None:
    from tests.trained import esm_tokenizer

    tokenizer = esm_tokenizer()
    tokenizer.model_max_length = 1026
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "mask_token_id")}
    sizes = {**SMALL, "num_hidden_layers": 12, "vocab_size": len(tokenizer), "max_position_embeddings": 1026}
    save(
        "EsmForMaskedLM",
        transformers.EsmConfig(**sizes, **ids, position_embedding_type="rotary", token_dropout=True),
        folder,
        tokenizer,
    )


@stand_in("chains.csv")
def chains(file: Path) -> None:
    """Residues with the class of their chain."""
    choose = random.Random(0)
    rows = [
        f"{''.join(choose.choices('ACDEFGHIKLMNPQRSTVWY', k=60))},{('membrane', 'soluble')[row % 2]}"
        for row in range(20)
    ]
    file.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
