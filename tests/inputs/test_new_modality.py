"""A new modality is one file: the example of CONTRIBUTING.md, put in place in a copy of the package."""

from __future__ import annotations

import re
from pathlib import Path

from tests.families.test_new_family import checkout as checkout
from tests.families.test_new_family import run

USE = """
import json, sys
from pathlib import Path
import torch
from transformers import ErnieForMaskedLM
from hf_longattn import convert_checkpoint, plan_conversion
from hf_longattn.errors import OptionError
from hf_longattn.inspect import inspect_checkpoint
from scripts.dev.tools.small_models import Shape, small_config

folder = Path(sys.argv[1])
torch.manual_seed(0)
ErnieForMaskedLM(small_config("ernie", Shape(tokens=32))).save_pretrained(folder / "short")
report = convert_checkpoint(folder / "short", folder / "long", max_length=128, mechanism="window", options={"window": 4})
assert report.verified and report.text == "random genomes", report
assert (report.plan["old_bases"], report.plan["new_bases"]) == (32, 128), report.plan
assert "It was made for genomes of up to 128 bases." in (folder / "long" / "README.md").read_text()
try:
    plan_conversion(folder / "short", image_size=64)
except OptionError as error:
    print(error)
print(inspect_checkpoint(folder / "long").longest_input)
"""


def test_the_example_of_a_new_modality_converts_a_checkpoint(checkout: Path, repository: Path) -> None:
    page = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add a modality")[2]
    modality, spec = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[:2]
    (checkout / "hf_longattn" / "inputs" / "genome_inputs.py").write_text(modality, encoding="utf-8")
    family = checkout / "hf_longattn" / "families" / "ernie.py"
    entry = "FAMILY = Family(LongErnieConfig,"
    code = family.read_text(encoding="utf-8").replace(entry, f"{spec}\n\n{entry} spec=GenomeSpec(),")
    family.write_text(code, encoding="utf-8")
    done = run(checkout, "-c", USE, str(checkout))
    assert done.stdout.splitlines()[-2:] == [
        "--image-size is the size of images, but a ErnieForMaskedLM reads genomes; leave it out.",
        "up to 128 bases, 128 tokens",
    ], done.stdout + done.stderr
