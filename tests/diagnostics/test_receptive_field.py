"""How far a model of pictures looks: fields that are known exactly, the definition by hand, the command, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_longattn import families
from hf_longattn.cli import main
from hf_longattn.diagnostics import measure_receptive_field
from hf_longattn.diagnostics.receptive_field import FeatureChanges, random_replacements
from hf_longattn.engines.common.grid import Grid
from hf_longattn.errors import BackendError, CheckpointError, GridError, LongAttentionError, OptionError
from hf_longattn.evaluation.probes import probe_model
from hf_longattn.families import FAMILIES
from tests.cells import every_cell

from ..evaluation.probes.small import byte_tokenizer, small_decoder
from ..modeling import grid_models

Image: Any = pytest.importorskip("PIL.Image")
LAYERS, CELLS = 2, 9
SIZES = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64, "patch_size": 4}
SIZES |= {"image_size": 4 * CELLS, "initializer_range": 0.3}


def long_vit(**attention: Any) -> Any:
    torch.manual_seed(0)
    return families.LongViTForImageClassification(families.LongViTConfig(**SIZES, long_attention=attention)).eval()


def pixels(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 4 * CELLS, 4 * CELLS, generator=torch.Generator().manual_seed(1))


def changes_of(model: Any, **settings: Any) -> FeatureChanges:
    return measure_receptive_field(model, pixels(), samples=CELLS**2, baseline=False, **settings).measured


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    long_vit(mechanism="window2d", window=3, prefix_tokens="none").save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 4 * CELLS, "width": 4 * CELLS}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(10):
        values = torch.randint(0, 256, (60, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        Image.fromarray(values.numpy()).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("attention", "furthest"),
    [
        ({"mechanism": "window2d", "window": 3}, 2),
        ({"mechanism": "window2d", "window": 3, "shift": "alternate"}, 4),  # 1 sees 3 in layer 1, which saw 5 before
        ({"mechanism": "local2d", "radius": 1}, LAYERS * 1),
        ({"mechanism": "local2d", "radius": 3}, LAYERS * 3),
        ({"mechanism": "full"}, CELLS - 1),
    ],
)
def test_nothing_changes_beyond_a_known_field(attention: dict[str, Any], furthest: int) -> None:
    separate = {} if attention["mechanism"] == "full" else {"prefix_tokens": "none"}
    changes = changes_of(long_vit(**attention, **separate))
    assert changes.furthest == furthest
    assert all(change > 0 for change in changes.changes[: furthest + 1])
    assert all(change == 0 for change in changes.changes[furthest + 1 :])
    assert changes.prefix_change is not None
    assert (changes.prefix_change > 0) == (not separate)
    assert (changes.prefix_pairs, sum(changes.pairs), changes.pairs[0]) == (CELLS**2, CELLS**4, CELLS**2)


def test_a_global_class_token_lets_every_patch_reach_every_other() -> None:
    assert changes_of(long_vit(mechanism="window2d", window=3)).furthest == CELLS - 1


def test_changes_are_those_of_the_definition_in_float64() -> None:
    torch.manual_seed(0)
    model, picture, side = ViTForImageClassification(ViTConfig(**SIZES)).eval(), pixels(), 4
    field = measure_receptive_field(model.double(), picture, samples=7, seed=3)
    assert (field.full, field.mechanisms, field.grid) == (None, (), Grid((CELLS, CELLS), prefix=1))
    sums, counts, of_class_token = [0.0] * CELLS, [0] * CELLS, 0.0
    for patch, source in random_replacements(field.grid, 7, "3 0"):
        (row, column), (from_row, from_column) = divmod(patch, CELLS), divmod(source, CELLS)
        assert patch != source
        changed = picture.clone()
        for y in range(side):
            for x in range(side):
                changed[..., row * side + y, column * side + x] = picture[..., from_row * side + y, from_column * side + x]
        with torch.no_grad():
            before, after = (model.vit(values.double()).last_hidden_state[0] for values in (picture, changed))
        for token in range(1 + CELLS**2):
            change = float((after[token] - before[token]).norm() / before[token].norm())
            if token == 0:
                of_class_token += change
                continue
            token_row, token_column = divmod(token - 1, CELLS)
            distance = max(abs(token_row - row), abs(token_column - column))
            sums[distance] += change
            counts[distance] += 1
    assert field.measured.pairs == tuple(counts)
    expected = [total / max(1, count) for total, count in zip(sums, counts, strict=True)]
    assert field.measured.changes == pytest.approx(expected, rel=1e-9)
    assert field.measured.prefix_change == pytest.approx(of_class_token / 7, rel=1e-9)


def test_bins_and_reach() -> None:
    changes = FeatureChanges((1.0, 0.4, 0.2, 0.1, 0.1, 0.02, 0.01, 0.0), (2, 4, 4, 4, 4, 2, 2, 0), None, 0, 6)
    rows = [(str(row), row.pairs, round(row.change, 6)) for row in changes.bins()]
    assert rows == [("0", 2, 1.0), ("1–2", 8, 0.3), ("3–4", 8, 0.1), ("5–7", 4, 0.015)]
    assert [changes.reach(share) for share in (0.01, 0.1, 0.5)] == [7, 4, 2]
    alone = FeatureChanges((1.0, 0.0, 0.0), (2, 4, 4), None, 0, 0)
    assert alone.reach() == 0


def test_full_attention_is_measured_next_to_it_and_the_layers_run_their_mechanism_afterwards() -> None:
    model, full = long_vit(mechanism="window2d", window=3, prefix_tokens="none"), long_vit(mechanism="full")
    full.load_state_dict(model.state_dict())
    before = model(pixels()).logits
    field = measure_receptive_field(model, pixels(2), samples=5)
    assert field.full == measure_receptive_field(full, pixels(2), samples=5).measured
    assert (field.measured.furthest, field.mechanisms, field.samples) == (2, ("window2d",), 5)
    assert torch.equal(model(pixels()).logits, before)
    assert field.conclusion() == (
        "Features change by at least 10% of what they change at 1–2 patches when a patch up to 2 patches away is replaced, 8 with full "
        "attention. Nothing changes further than 2 patches away."
    )


PICTURES = [base for base in grid_models.BASES if FAMILIES[base].rule.reads_pictures and base != "siglip2_vision_model"]


@every_cell("base", PICTURES, of=2)
def test_families_short_and_of_larger_pictures(base: str, photos: Path, tmp_path: Path) -> None:
    grid_models.saved(base, grid_models.base_model(base), tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    for size in (None, "48x64"):
        field = measure_receptive_field(tmp_path, photos / "0.png", samples=3, image_size=size)
        assert field.image_size == ((48, 64) if size else field.image_size)
        assert field.grid.sizes == tuple(side // cell for side, cell in zip(field.image_size, field.patch, strict=True))
        assert field.measured.furthest == max(field.grid.sizes) - 1 or base == "dinat"  # which looks around
        assert (field.measured.prefix_change is None) == (field.grid.prefix == 0)


def test_pictures_as_lists_of_patches(photos: Path, tmp_path: Path) -> None:
    """SigLIP 2's, which are the photo at the size that is probed; pixels in memory are the same picture."""
    base = "siglip2_vision_model"
    grid_models.saved(base, grid_models.base_model(base), tmp_path)
    processor = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=7)
    processor.save_pretrained(tmp_path)
    field = measure_receptive_field(tmp_path, photos / "0.png", samples=3, image_size="48x64")
    assert (field.image_size, field.grid, field.measured.furthest) == ((48, 64), Grid((12, 16)), 15)
    picture = Image.open(photos / "0.png").resize((64, 48), processor.resample)
    values = (torch.tensor(np.asarray(picture)) / 255 - 0.5) / 0.5
    model = grid_models.long_model(base, grid_models.base_model(base), tmp_path, long_attention={"mechanism": "local2d", "radius": 2})
    same = measure_receptive_field(model, values.permute(2, 0, 1)[None], samples=3)
    assert same.full is not None
    assert same.full.changes == pytest.approx(field.measured.changes, rel=1e-4)
    assert same.measured.furthest == 2 * grid_models.SHAPE.layers


def test_a_masked_autoencoder_reads_all_patches_and_leaves_them_out_again_afterwards(tmp_path: Path) -> None:
    grid_models.saved("vit_mae", "ViTMAEForPreTraining", tmp_path)
    model = grid_models.long_model("vit_mae", "ViTMAEForPreTraining", tmp_path, long_attention={"mechanism": "window2d", "window": 3})
    inputs = grid_models.inputs_of("vit_mae", (36, 36))
    before = model(**inputs).loss
    field = measure_receptive_field(model, inputs["pixel_values"], samples=5, baseline=False)
    assert (field.grid, sum(field.measured.pairs)) == (Grid((9, 9), prefix=1), 2 * 5 * 81)
    assert torch.equal(model(**inputs).loss, before)


def test_cells_of_the_last_stage_and_the_attention_of_the_base(tmp_path: Path) -> None:
    """A DiNAT's: each stage halves the grid; partial cells at borders are exchanged as far as both reach."""
    grid_models.saved("dinat", "DinatModel", tmp_path)
    model = grid_models.long_model("dinat", "DinatModel", tmp_path)
    values = torch.randn(2, 3, 132, 100, generator=torch.Generator().manual_seed(0))
    field = measure_receptive_field(model, values, samples=6)
    assert (field.grid, field.patch, field.full) == (Grid((17, 13)), (8, 8), None)
    assert field.measured.changes[0] > 0 == field.measured.changes[-1]
    other = grid_models.long_model("dinat", "DinatModel", tmp_path, long_attention={"mechanism": "window2d", "window": 4})
    compared = measure_receptive_field(other, values, samples=6)
    assert (compared.full, compared.base_attention) == (field.measured, "the base's attention")
    with pytest.raises(BackendError, match="A LongDinatBackbone returns feature maps of several layers; probe LongDinatModel instead"):
        measure_receptive_field(grid_models.long_model("dinat", "DinatBackbone", tmp_path), values)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["probe", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_the_command(
    folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, folder, photos / "0.png", "--samples", "4", "--save", tmp_path / "field.json")
    assert code == 0, err
    rows = {line.split("  ")[0].strip(): line.split() for line in out.splitlines()}
    assert rows["0"][1] == "4"
    assert rows["3–4"][2:] == ["0", rows["3–4"][3]]
    assert float(rows["3–4"][3]) > 0
    assert rows["class token"][2:4] == ["4", "0"]
    assert "full attention" in out
    assert "Nothing changes further than" in " ".join(out.split())
    record = json.loads((tmp_path / "field.json").read_text())
    assert (record["measured"]["furthest"] <= 2, record["full"]["furthest"], record["grid"]) == (True, 8, [9, 9])
    code, out, err = run(capsys, folder, "--images", photos, "--samples", "2", "--no-baseline", "--image-size", "48", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert (record["full"], record["image_size"], record["measured"]["pairs"][0]) == (None, [48, 48], 16)
    assert [Path(name).name for name in record["pictures"]] == [f"{number}.png" for number in (0, 1, 2, 3, 5, 6, 7, 9)]


@every_cell(
    ("arguments", "said", "code"),
    [
        (["no.png"], "does not exist", 1),
        (["PHOTO", "--image-size", "50"], "not a multiple of the patch's 4", 1),
        (["PHOTO", "--image-size", "4"], "The picture or sound is one patch", 1),
        (["PHOTO", "--dtype", "float15"], "Unknown dtype", 1),
        (["PHOTO", "--save", "no/such/f.json"], "does not exist; make it", 1),
        (["PHOTO", "--images", "PHOTO"], "in place of PHOTO", 2),
        (["PHOTO", "--task", "passkey"], "is for texts, but a photo or a recording was given", 2),
        (["--image-size", "64"], "give a photo or a recording after MODEL", 2),
        ([], "type longattn probe MODEL photo.jpg", 1),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], said: str, code: int, folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [str(photos / "0.png") if word == "PHOTO" else word for word in arguments]
    ended, out, err = run(capsys, folder, *typed)
    assert (ended, out) == (code, "")
    assert said in " ".join(err.replace("│", " ").split())
    assert code == 2 or err.count("\n") == 1


def test_what_cannot_be_probed_says_why(folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_decoder(mechanism="window", window=32).save_pretrained(tmp_path / "llama")
    byte_tokenizer().save_pretrained(tmp_path / "llama")
    capsys.readouterr()  # the progress of saving
    code, out, err = run(capsys, tmp_path / "llama", "--images", photos)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "is not a family of pictures or sound; leave the photo and --images out" in err
    with pytest.raises(BackendError, match="is not a family of pictures"):
        measure_receptive_field(tmp_path / "llama", photos)
    with pytest.raises(OptionError, match="A model in memory is probed with pixels"):
        measure_receptive_field(long_vit(mechanism="full"), photos)
    with pytest.raises(OptionError, match="replaces 1 patch or more"):
        measure_receptive_field(folder, photos, samples=0)
    with pytest.raises(GridError, match="The picture or sound is one patch"):
        random_replacements(Grid((1, 1)), 1, 0)
    (tmp_path / "bare").mkdir()
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / file).write_bytes((folder / file).read_bytes())
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        measure_receptive_field(tmp_path / "bare", photos)
    with pytest.raises(LongAttentionError, match="type longattn probe MODEL photo"):
        probe_model(folder, tasks=["passkey"])
