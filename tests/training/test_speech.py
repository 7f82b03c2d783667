"""Speech: transcripts of every source, what CTC models, classifiers and Whisper are fed, and what they learn."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, Features, Value
from torch import Tensor
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperFeatureExtractor,
    pipeline,
)

from hf_longattn import LongWav2Vec2ForCTC, LongWhisperForConditionalGeneration
from hf_longattn.cli.train import train
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.audio import AudioCollator
from hf_longattn.data.sources import DataError
from hf_longattn.errors import CheckpointError, InputError, LongAttentionError, OptionError
from hf_longattn.training.tasks import classify, ctc, seq2seq
from hf_longattn.training.tasks.ctc import (
    CTCDataArguments,
    character_tokenizer,
    check_characters,
    output_frames,
    read_utterances,
)
from tests.training.conftest import checkpoint, quick, write_rows
from tests.training.speech import RATE, SHAPE, long_speech_checkpoint, sentences, speech, speech_checkpoint, spoken
from tests.whisper import whisper_checkpoint


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 recordings with metadata.csv, as ``datasets`` reads an audiofolder."""
    folder = tmp_path_factory.mktemp("speech")
    lines = [f"{row['audio']},{row['text']}" for row in spoken(folder, 24)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,transcription", *lines]) + "\n")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny Wav2Vec2 that knows two letters, "ctc"; the same with a window, "long"; one without a vocabulary and a
    head, "headless"."""
    folder = tmp_path_factory.mktemp("models")
    model = speech_checkpoint(folder / "ctc")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder / "headless")
    Wav2Vec2Model(Wav2Vec2Config(**SHAPE)).save_pretrained(folder / "headless")
    return {"ctc": model, "headless": str(folder / "headless"), "long": long_speech_checkpoint(folder / "long")}


start = partial(quick, "ctc", max_steps=2)


def loaded(folder: str | Path) -> tuple[Any, Any]:
    """The model in a folder, and its processor."""
    return AutoModelForCTC.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@pytest.fixture
def trainer_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """As ``start``, but returns the Trainer before its first step."""
    monkeypatch.setattr(ctc, "finish", lambda trainer, *_, **__: trainer)
    return start


@pytest.mark.thorough
def test_ctc_trains_a_model_that_reads_spectrograms(recordings: Path, tmp_path: Path) -> None:
    tokenizer, extractor = character_tokenizer(["ab"]), SeamlessM4TFeatureExtractor()
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    still = {"mask_time_prob": 0.0, "layerdrop": 0.0, "position_embeddings_type": "relative_key", "add_adapter": False}
    head = {"vocab_size": len(tokenizer), "pad_token_id": 0}
    torch.manual_seed(0)
    model = Wav2Vec2BertForCTC(Wav2Vec2BertConfig(**head, **shape, **still, feature_projection_input_dim=160))
    model.save_pretrained(tmp_path / "model")
    for part in (extractor, tokenizer):
        part.save_pretrained(tmp_path / "model")
    run = {"max_steps": 30, "learning_rate": 3e-3, "per_device_train_batch_size": 8, "validation": str(recordings)}
    log = start(str(tmp_path / "model"), tmp_path / "out", recordings, **run)
    assert log["utterances"] == log["scored_rows"]["n"] == 24
    assert log["metrics"]["after"]["loss"] < 0.7 * log["metrics"]["before"]["loss"]
    trained, processor = loaded(tmp_path / "out")
    assert type(trained) is type(model)
    inputs = processor([speech("ab ba", 99)], sampling_rate=RATE, return_tensors="pt")
    assert set(processor.tokenizer.batch_decode(trained(**inputs).logits.argmax(-1))[0]) <= {"a", "b", " "}


@pytest.mark.thorough
def test_ctc_model_learns_to_transcribe(recordings: Path, models: dict[str, str], tmp_path: Path) -> None:
    run = {"max_steps": 60, "learning_rate": 5e-3, "per_device_train_batch_size": 8, "freeze_feature_encoder": False}
    log = start(models["long"], tmp_path / "out", recordings, validation=str(recordings), **run)
    assert log["utterances"] == log["scored_rows"]["n"] == 24
    assert log["metrics"]["after"]["loss"] < 0.5 * log["metrics"]["before"]["loss"]
    assert log["metrics"]["after"]["cer"] < 20 < log["metrics"]["before"]["cer"]
    trained, processor = loaded(tmp_path / "out")
    assert isinstance(trained, LongWav2Vec2ForCTC)
    inputs = processor(speech("ab ba", 99), sampling_rate=RATE, return_tensors="pt")
    assert set(processor.batch_decode(trained(**inputs).logits.argmax(-1))[0]) <= {"a", "b", " "}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "utterances 24" in card
    assert "type: wer" in card


def test_ctc_makes_a_new_vocabulary_for_a_model_without_a_head(
    recordings: Path, models: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="has no vocabulary; add --new-vocabulary"):
        start(models["headless"], tmp_path / "out", recordings)
    log = start(models["headless"], tmp_path / "out", recordings, new_vocabulary=True)
    model, processor = loaded(tmp_path / "out")
    assert log["vocabulary"] == model.config.vocab_size == 5
    assert processor.tokenizer.get_vocab() == {"[PAD]": 0, "[UNK]": 1, "|": 2, "a": 3, "b": 4}
    assert model.config.pad_token_id == processor.tokenizer.pad_token_id == 0


@pytest.mark.thorough
def test_ctc_lora_changes_attention_and_the_head_alone(
    recordings: Path, models: dict[str, str], tmp_path: Path
) -> None:
    """LoRA updates the projections of attention; they are merged where the model is written, and the head is trained
    in full."""
    start(models["long"], tmp_path / "out", recordings, lora_rank=2, learning_rate=1e-2)
    before, after = (
        AutoModelForCTC.from_pretrained(folder).state_dict() for folder in (models["long"], tmp_path / "out")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert {"lm_head.weight", "wav2vec2.encoder.layers.0.attention.q_proj.weight"} <= changed
    assert not [name for name in changed if "feed_forward" in name or "feature_extractor" in name]


def test_ctc_command_prints_error_rates_and_utterances_left_out(
    recordings: Path,
    models: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "speech").mkdir()
    for number, text in enumerate(sentences(8)):
        soundfile.write(tmp_path / "speech" / f"{number}.flac", speech(text, number), RATE)
        (tmp_path / "speech" / f"{number}.txt").write_text(text if number else "ab" * 200)
    line = f"""--model {models["ctc"]} --data {tmp_path / "speech"} --validation {recordings}
        --output {tmp_path / "out"} --max-steps 1 --max-seconds 0.5"""
    assert train("ctc", line.split()) == 0
    said = capsys.readouterr().err
    assert "word error rate" in said
    assert re.search(r"3 of 8 utterances are longer than 0\.5 seconds or .* the first is .*0\.flac", caplog.text)


@pytest.mark.thorough
def test_utterances_are_the_same_from_every_kind_of_source(recordings: Path, tmp_path: Path) -> None:
    files = sorted(recordings.glob("*.wav"))
    texts = sentences(24)
    table = Dataset.from_dict({"path": [str(file.relative_to(recordings)) for file in files], "sentence": texts})
    table.to_csv(str(recordings / "table.csv"), index=False)
    manifest = [
        {"audio_filepath": str(file), "text": text, "duration": 1.0} for file, text in zip(files, texts, strict=True)
    ]
    write_rows(manifest, tmp_path / "manifest.jsonl")
    encoded = [{"path": None, "bytes": file.read_bytes()} for file in files]
    features = Features({"audio": {"bytes": Value("binary"), "path": Value("string")}, "text": Value("string")})
    stored = Dataset.from_dict({"audio": encoded, "text": texts}, features=features).cast_column("audio", Audio())
    stored.save_to_disk(str(tmp_path / "saved"))
    stored.to_parquet(str(tmp_path / "data.parquet"))
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "train").symlink_to(recordings)
    (tmp_path / "pairs").mkdir()
    for file, text in zip(files, texts, strict=True):
        (tmp_path / "pairs" / file.name).symlink_to(file)
        (tmp_path / "pairs" / file.with_suffix(".txt").name).write_text(f" {text.replace(' ', chr(10))}\n")
    sources = [
        recordings,
        tmp_path / "parts",
        recordings / "table.csv",
        tmp_path / "manifest.jsonl",
        tmp_path / "saved",
    ]
    for source in [*sources, tmp_path / "data.parquet", tmp_path / "pairs"]:
        args = CTCDataArguments(data=[str(source)])
        args.only_scores = True
        rows, _ = read_utterances(args, 0)
        assert rows["text"][:] == texts, source
        for row, file in zip(rows, files, strict=True):
            expected = soundfile.read(file, dtype="float32")[0]
            np.testing.assert_array_equal(AudioCollator(Wav2Vec2FeatureExtractor()).samples(row), expected)
    (recordings / "table.csv").unlink()


def test_ctc_batches_are_what_the_processor_of_transformers_makes(
    recordings: Path, models: dict[str, str], tmp_path: Path, trainer_of: Callable[..., Any]
) -> None:
    """As in transformers' example: the feature extractor pads the sound, and labels are padded with -100; a row's
    length is that of its logits."""
    model, processor = loaded(models["ctc"])
    trainer = trainer_of(models["ctc"], tmp_path / "out", recordings, validation=str(recordings))
    rows = trainer.train_dataset
    batch = trainer.data_collator([rows[0], rows[3]])
    sounds = [soundfile.read(rows[number]["audio"]["path"], dtype="float32")[0] for number in (0, 3)]
    expected = processor(sounds, sampling_rate=RATE, padding=True, return_tensors="pt")
    torch.testing.assert_close(batch["input_values"], expected["input_values"], rtol=0, atol=0)
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    labels = processor.tokenizer(sentences(4)[0])["input_ids"]
    assert batch["labels"][0].tolist() == labels + [-100] * (batch["labels"].shape[1] - len(labels))
    assert model(**batch).logits.shape[1] == rows[3]["length"]
    assert (
        processor.tokenizer.decode([label for label in batch["labels"][1] if label >= 0], group_tokens=False)
        == rows[3]["text"]
    )


def test_transcripts_longer_than_ctc_can_write_are_left_out(
    models: dict[str, str], tmp_path: Path, trainer_of: Callable[..., Any]
) -> None:
    frames = output_frames(AutoModelForCTC.from_pretrained(models["ctc"]), len(speech("a")))
    texts = ["a" * (frames // 2), "a" * (frames // 2 + 1), "a" * frames, "ab" * (frames // 2)]
    for number, text in enumerate(texts):
        soundfile.write(tmp_path / f"{number}.wav", speech("a"), RATE)
        (tmp_path / f"{number}.txt").write_text(text)
    trainer = trainer_of(models["ctc"], tmp_path / "out", tmp_path, validation=str(tmp_path))
    assert set(trainer.train_dataset["text"]) == {texts[0], texts[3]}
    assert torch.isfinite(trainer.model(**trainer.data_collator(list(trainer.train_dataset))).loss)


def test_characters_outside_the_vocabulary_are_refused(models: dict[str, str]) -> None:
    tokenizer = AutoProcessor.from_pretrained(models["ctc"]).tokenizer
    check_characters(["ab ba"], tokenizer)
    with pytest.raises(
        DataError, match=r"lacks: '!', 'c' \(first in 'ab c'\); leave them out of the data, or add --new-vocabulary\.$"
    ):
        check_characters(["ab", "ab c", "a!"], tokenizer)
    with pytest.raises(DataError, match=r"lacks: 'A', 'B' .*; add --letter-case lower\.$"):
        check_characters(["AB"], tokenizer)
    with pytest.raises(DataError, match="for the space between words"):
        character_tokenizer(["a|b"])


def test_ctc_refuses_recordings_and_options_that_do_not_fit(
    recordings: Path, models: dict[str, str], tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    def folder(name: str, sound: Any, text: str = "ab") -> list[str]:
        (tmp_path / name).mkdir()
        for file, heard, said in (*((number, speech("ab"), "ab") for number in range(3)), ("bad", sound, text)):
            soundfile.write(tmp_path / name / f"{file}.wav", heard, RATE)
            (tmp_path / name / f"{file}.txt").write_text(said)
        return [str(tmp_path / name)]

    (tmp_path / "gap.csv").write_text(f"audio,text\n{recordings}/00.wav,ab\n,ab\n")
    (tmp_path / "gone.csv").write_text("audio,text\nnone.wav,ab\nnone.wav,ab\n")
    cases: list[tuple[type[LongAttentionError], str, dict[str, Any]]] = [
        (InputError, "bad.wav.* is silent", {"data": folder("silent", np.zeros(4000))}),
        (DataError, "lacks: 'c'", {"data": folder("unknown", speech("ab"), text="abc")}),
        (DataError, "not 'sound'; name one with --columns audio=NAME", {"columns": ["audio=sound"]}),
        (DataError, "Row 2 of .*gap.csv has no audio", {"data": [str(tmp_path / "gap.csv")]}),
        (InputError, "none.wav does not exist", {"data": [str(tmp_path / "gone.csv")]}),
        (DataError, "None of the .* utterances can be used", {"max_seconds": 1e-3}),
        (OptionError, "--letter-case must be one of lower, upper, not 'keep'", {"letter_case": "keep"}),
    ]
    for error, words, changes in cases:
        with pytest.raises(error, match=words) as refused:
            start(models["ctc"], tmp_path / "o", **{"data": recordings, **changes})
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "o").exists()
    with pytest.raises(CheckpointError, match=r"\(bert\) has no head for CTC; give a model of speech"):
        start(checkpoint("mlm", tmp_path / "text", tokenizer), tmp_path / "o", recordings)


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 recordings with one sub-folder per class."""
    folder = tmp_path_factory.mktemp("tones")
    for letter in "ab":
        (folder / letter).mkdir()
        for number in range(12):
            soundfile.write(folder / letter / f"{number}.wav", speech(letter * (2 + number % 3), number), RATE)
    return folder


class TestAudioClassifier:
    """`longattn train classify` with a model of sound."""

    classify = staticmethod(partial(quick, "classify", max_steps=2))

    @pytest.mark.thorough
    def test_audio_classifier_learns_two_tones(self, tones: Path, models: dict[str, str], tmp_path: Path) -> None:
        run = {"max_steps": 30, "learning_rate": 3e-3, "per_device_train_batch_size": 4}
        log = self.classify(models["headless"], tmp_path / "out", tones, **run)
        assert log["classes"] == ["a", "b"]
        assert (log["metrics"]["after"]["accuracy"], log["metrics"]["after"]["n"]) == (100.0, 2)
        model = AutoModelForAudioClassification.from_pretrained(tmp_path / "out").eval()
        extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
        inputs = extractor(speech("bbb", 99), sampling_rate=RATE, return_tensors="pt")
        assert model.config.id2label[int(model(**inputs).logits.argmax())] == "b"

    def test_feature_extractors_of_fixed_length_cut_recordings(self, tones: Path) -> None:
        """AST's and Whisper's feature extractors fill up or cut every recording."""
        fixed, free = (
            AudioCollator(ASTFeatureExtractor(max_length=16, num_mel_bins=8)),
            AudioCollator(Wav2Vec2FeatureExtractor()),
        )
        assert (fixed.most_samples, AudioCollator(WhisperFeatureExtractor()).most_samples, free.most_samples) == (
            2560,
            480_000,
            None,
        )
        assert fixed.inputs([speech("ab"), speech("abab")])["input_values"].shape == (2, 16, 8)
        assert free.inputs([speech("ab"), speech("abab")])["input_values"].shape == (2, 3200)

    def test_spectrogram_transformer_trains_and_reports_cut_recordings(
        self, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shape = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "patch_size": 4,
        }
        config = ASTConfig(**shape, frequency_stride=4, time_stride=4, max_length=16, num_mel_bins=8)
        ASTForAudioClassification(config).save_pretrained(tmp_path / "model")
        extractor = ASTFeatureExtractor(max_length=16, num_mel_bins=8)
        extractor.save_pretrained(tmp_path / "model")
        said: list[str] = []
        monkeypatch.setattr(classify.logger, "warning", said.append)
        self.classify(str(tmp_path / "model"), tmp_path / "out", tones)
        assert "8 audio files are longer than the 0.16 seconds of the model's input and are cut." in said  # of 200 ms
        trained = AutoModelForAudioClassification.from_pretrained(tmp_path / "out")
        assert trained.config.id2label == {0: "a", 1: "b"}

    def test_classifiers_of_texts_and_sound_refuse_the_data_of_the_other(
        self, tones: Path, models: dict[str, str], tmp_path: Path, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        (tmp_path / "texts.csv").write_text("text,label\na,1\nb,2\n")
        for model, data, words in (
            (checkpoint("mlm", tmp_path / "text", tokenizer), tones, "holds no texts"),
            (
                models["headless"],
                tmp_path / "texts.csv",
                "not 'audio' or 'file_name'; name one with --columns audio=NAME",
            ),
        ):
            with pytest.raises(DataError, match=words):
                self.classify(model, tmp_path / "o", data)
            assert not (tmp_path / "o").exists()


@pytest.fixture(scope="module")
def recordings_of_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio files of up to 0.55 seconds, each with a .txt file; one of them is longer than the model's second."""
    folder = tmp_path_factory.mktemp("talks")
    for number, text in enumerate([*sentences(12), "ab " * 8]):
        soundfile.write(folder / f"{number:02}.wav", speech(text, number), RATE)
        (folder / f"{number:02}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return whisper_checkpoint(tmp_path_factory.mktemp("whisper"))


def start_of_whisper(model: str, output: Path, data: Path, **changes: Any) -> Any:
    """Run the task on all of the data, and evaluate on them."""
    values = {"max_steps": 2, "per_device_train_batch_size": 4, "validation": str(data), **changes}
    return quick("seq2seq", model, output, data, **values)


def as_the_example_prepares(
    folder: str, sounds: Sequence[np.ndarray[Any, Any]], texts: Sequence[str], mask: bool
) -> dict[str, Tensor]:
    """The batch of ``run_speech_recognition_seq2seq``: features of each sound, padded by the feature extractor;
    tokens, padded by the tokenizer, with -100 for padding, and without the first one where every row begins with the
    decoder's first token."""
    extractor, tokenizer = AutoFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = [extractor(sound, sampling_rate=RATE, return_attention_mask=mask) for sound in sounds]
    batch = extractor.pad([{"input_features": row["input_features"][0]} for row in rows], return_tensors="pt")
    if mask:
        batch["attention_mask"] = torch.tensor(np.stack([row["attention_mask"][0] for row in rows]))
    tokens = tokenizer.pad([{"input_ids": tokenizer(text).input_ids} for text in texts], return_tensors="pt")
    labels = tokens["input_ids"].masked_fill(tokens.attention_mask.ne(1), -100)
    first = AutoModelForSpeechSeq2Seq.from_pretrained(folder).config.decoder_start_token_id
    return {**batch, "labels": labels[:, 1:] if bool((labels[:, 0] == first).all()) else labels}


@pytest.mark.parametrize("augment", [False, True])
def test_whisper_batches_are_what_the_example_of_transformers_prepares(
    augment: bool,
    recordings_of_whisper: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With SpecAugment also the mask of the padding, as the example's ``forward_attention_mask``."""
    folder = whisper_checkpoint(tmp_path / "model", apply_spec_augment=augment)
    monkeypatch.setattr(seq2seq, "finish", lambda trainer, *_, **__: trainer)
    trainer = start_of_whisper(folder, tmp_path / "out", recordings_of_whisper)
    assert "1 of 13 utterances are longer than 1 seconds or have" in caplog.text
    assert f"left out; the first is {recordings_of_whisper / '12.wav'}." in caplog.text
    rows = [trainer.train_dataset[number] for number in (0, 3)]
    batch = trainer.data_collator(rows)
    files = [Path(row["audio"]["path"]) for row in rows]
    sounds = [soundfile.read(file, dtype="float32")[0] for file in files]
    expected = as_the_example_prepares(
        folder, sounds, [file.with_suffix(".txt").read_text() for file in files], augment
    )
    assert set(batch) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor.to(batch[name].dtype)), name


@pytest.mark.slow
def test_whisper_learns_to_transcribe(model: str, recordings_of_whisper: Path, tmp_path: Path) -> None:
    """A converted model reads the longest file, too."""
    settings_of_window = {
        "mechanism": "window",
        "window": 8,
        "audio_seconds": 2,
        "needs_training": True,
        "verify": False,
    }
    convert_checkpoint(model, tmp_path / "long", **settings_of_window)
    run = {"max_steps": 40, "learning_rate": 5e-3, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 13}
    log = start_of_whisper(str(tmp_path / "long"), tmp_path / "out", recordings_of_whisper, **run)
    assert log["rows"] == log["scored_rows"]["n"] == 13
    before, after = log["metrics"]["before"], log["metrics"]["after"]
    assert after["loss"] < 0.5 * before["loss"]
    assert after["cer"] < 0.7 * before["cer"]
    assert len((tmp_path / "out" / "predictions.txt").read_text().splitlines()) == 13
    trained, processor = (
        AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "out"),
        AutoProcessor.from_pretrained(tmp_path / "out"),
    )
    assert isinstance(trained, LongWhisperForConditionalGeneration)
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    said = pipeline("automatic-speech-recognition", model=trained, **parts)(
        {"raw": speech("ab ba", 99), "sampling_rate": RATE}
    )["text"]
    assert set(said) <= {"a", "b", " "}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "type: wer" in card


def test_transcribing_refuses_models_and_options_that_do_not_fit(
    model: str, recordings_of_whisper: Path, tmp_path: Path
) -> None:
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (OptionError, "--language en is for a multilingual Whisper", {"language": "en"}),
        (OptionError, "--prefix has no effect on a model that hears sound", {"prefix": "summarize: "}),
        (OptionError, "--letter-case must be one of lower, upper, not 'title'", {"letter_case": "title"}),
        (OptionError, "--max-target-length 41 exceeds the 40 tokens", {"max_target_length": 41}),
        (
            CheckpointError,
            "Wav2Vec2Config'> for this kind of AutoModel: AutoModelForSeq2SeqLM",
            {"model": speech_checkpoint(tmp_path / "ctc")},
        ),
    ]
    for error, words, changes in cases:
        with pytest.raises(error, match=words):
            start_of_whisper(**{"model": model, "output": tmp_path / "o", "data": recordings_of_whisper, **changes})
        assert not (tmp_path / "o").exists()
