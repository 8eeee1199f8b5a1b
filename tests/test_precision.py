"""`winnow.precision`: the dtype that models are loaded in, on machines with and without bfloat16 units."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from tests.tiny_models import make_model
from winnow import precision
from winnow.config import Dtype
from winnow.models import load_causal_lm
from winnow.precision import Machine, Use, choose_dtype, has_bfloat16_flag, resolve_dtype

OLD_CPU = Machine("CPU", has_bfloat16=False)
OLD_GPU = Machine("GPU", has_bfloat16=False)
USES: tuple[Use, ...] = get_args(Use)
# Flags of /proc/cpuinfo, shortened: Cascade Lake, Cooper Lake, Sapphire Rapids.
CASCADE_LAKE = "processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512f avx512_vnni\nbugs\t\t: avx512_bf16\n"
COOPER_LAKE = "processor\t: 0\nflags\t\t: fpu sse2 avx512f avx512_vnni avx512_bf16\n"
SAPPHIRE_RAPIDS = "processor\t: 0\nflags\t\t: fpu sse2 avx512f amx_bf16 amx_tile\n"


@pytest.fixture
def old_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this machine one without a GPU whose CPU has no bfloat16 units."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "_cpu_has_bfloat16", lambda: False)
    precision._log_once.cache_clear()


@pytest.mark.parametrize("use", USES)
def test_auto_means_float32_on_a_cpu_without_bfloat16_units(use: Use) -> None:
    result = resolve_dtype("auto", "bfloat16", OLD_CPU, use)
    assert result.dtype == "float32"
    assert result.note == (
        f"dtype auto means float32 for {use} here: this CPU has no bfloat16 units; name a dtype to choose another"
    )


@pytest.mark.parametrize(
    ("use", "expected"),
    [("scoring", "float16"), ("sampling", "float16"), ("evaluation", "float16"), ("training", "float32")],
)
def test_auto_on_a_gpu_without_bfloat16_units_depends_on_the_use(use: Use, expected: str) -> None:
    result = resolve_dtype("auto", "bfloat16", OLD_GPU, use)
    assert result.dtype == expected
    assert result.note is not None


@pytest.mark.parametrize("checkpoint_dtype", ["float32", "float16", None])
@pytest.mark.parametrize("machine", [OLD_CPU, OLD_GPU])
def test_auto_keeps_the_precision_of_checkpoints_that_are_not_bfloat16(
    machine: Machine, checkpoint_dtype: str | None
) -> None:
    for use in USES:
        assert resolve_dtype("auto", checkpoint_dtype, machine, use) == precision.Precision("auto")


@pytest.mark.parametrize("device", ["CPU", "GPU"])
def test_a_machine_with_bfloat16_units_keeps_every_dtype(device: str) -> None:
    machine = Machine("GPU", has_bfloat16=True)
    if device == "CPU":
        machine = Machine("CPU", has_bfloat16=True)
    for dtype in get_args(Dtype):
        assert resolve_dtype(dtype, "bfloat16", machine, "scoring") == precision.Precision(dtype)


def test_a_named_dtype_is_obeyed_with_a_warning_where_it_is_slow() -> None:
    for dtype in get_args(Dtype)[1:]:
        result = resolve_dtype(dtype, "bfloat16", OLD_CPU, "scoring")
        assert result.dtype == dtype
        assert (result.note is not None) == (dtype != "float32")
        assert resolve_dtype(dtype, "float32", OLD_GPU, "training") == precision.Precision(dtype)
    note = resolve_dtype("float16", "float32", OLD_CPU, "sampling").note
    assert note == "dtype float16 is slow here: this CPU has no bfloat16 units; set dtype to float32 or auto"


def test_the_flags_of_a_cpu_tell_its_units() -> None:
    results = [has_bfloat16_flag(text) for text in (CASCADE_LAKE, COOPER_LAKE, SAPPHIRE_RAPIDS, "")]
    assert results == [False, True, True, True]


def test_the_choice_is_logged_once_in_a_process(old_cpu: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "winnow.precision"):
        results = [choose_dtype("auto", "bfloat16", OLD_CPU, "scoring") for _ in range(2)]
    assert results == ["float32", "float32"]
    assert [record.getMessage() for record in caplog.records] == [
        "dtype auto means float32 for scoring here: this CPU has no bfloat16 units; name a dtype to choose another"
    ]


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_bfloat16_checkpoint_is_loaded_in_the_chosen_precision(
    old_cpu: None, tmp_path: Path, dtype: Dtype, expected: torch.dtype
) -> None:
    folder = bfloat16_model(tmp_path)
    loaded = load_causal_lm(str(folder), dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}


def test_a_config_without_a_dtype_leaves_the_choice_to_the_weights(old_cpu: None, tmp_path: Path) -> None:
    folder = bfloat16_model(tmp_path)
    config = folder / "config.json"
    text = config.read_text()
    assert '"dtype": "bfloat16",' in text
    config.write_text(text.replace('"dtype": "bfloat16",', ""))
    assert load_causal_lm(str(folder), dtype="auto").dtype == torch.float32


def test_auto_keeps_bfloat16_on_a_cpu_that_has_the_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_cpu_has_bfloat16", lambda: True)
    loaded = load_causal_lm(str(bfloat16_model(tmp_path)), dtype="auto", device_map="cpu")
    assert loaded.dtype == torch.bfloat16


def test_importing_the_modules_imports_no_torch() -> None:
    code = "import sys, winnow.models, winnow.precision; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def bfloat16_model(folder: Path) -> Path:
    """Save a tiny model in bfloat16."""
    made = make_model("llama", folder / "float32")
    load_causal_lm(str(made), dtype="bfloat16", device_map="cpu").save_pretrained(folder / "bfloat16")
    return folder / "bfloat16"
