"""Draw the patch features of a photo: their first three principal components as red, green and blue.

    pip install '.[images]'
    longattn convert google/vit-base-patch16-224 vit-1024 --mechanism window2d --image-size 1024
    python examples/patch_features.py vit-1024 photo.jpg features.png

Patches that the model takes for alike have a like colour. Seams show where windows end.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel

import hf_longattn  # noqa: F401 (registers the Long models with transformers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a model of images, converted or not: a folder or a name on the Hub")
    parser.add_argument("photo", type=Path)
    parser.add_argument("drawing", type=Path, help="where to write, for example features.png")
    args = parser.parse_args()
    photo = ImageOps.exif_transpose(Image.open(args.photo)).convert("RGB")
    processor = AutoImageProcessor.from_pretrained(args.model, trust_remote_code=False)
    pixels = processor(photo, return_tensors="pt")["pixel_values"]
    model = AutoModel.from_pretrained(args.model, trust_remote_code=False).eval()
    rows, columns = (side // model.config.patch_size for side in pixels.shape[2:])
    with torch.no_grad():
        states = model(pixels).last_hidden_state[0, -rows * columns :]  # after the class token and registers
    states = states - states.mean(0)
    colours = states @ torch.linalg.svd(states, full_matrices=False).Vh[:3].T
    low, high = colours.quantile(torch.tensor([0.02, 0.98]), 0)
    shades = (255 * (colours - low) / (high - low)).clamp(0, 255).byte().view(rows, columns, 3)
    Image.fromarray(shades.numpy()).resize(photo.size, Image.Resampling.NEAREST).save(args.drawing)


if __name__ == "__main__":
    main()
