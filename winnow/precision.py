"""Choice of the precision of a model's weights from the config's dtype, the checkpoint, the machine and the use.

    machine                                 auto, bfloat16 checkpoint                          named bfloat16 or float16
    CPU with bfloat16 units, recent GPU     bfloat16                                           obeyed
    CPU without bfloat16 units              float32                                            obeyed, with a warning
    GPU without bfloat16 units              float16; float32 for training                      obeyed

Checkpoints of every other precision keep it with `auto`. Importing this module imports no torch.
"""

import logging
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from winnow.config import Dtype

CPU_INFO = Path("/proc/cpuinfo")
X86_NAMES = frozenset({"x86_64", "AMD64", "i386", "i686"})
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
BFLOAT16_CAPABILITY = 80
"""Compute capability of the first NVIDIA GPUs with bfloat16 units, times ten."""

HALF_DTYPES = frozenset({"bfloat16", "float16"})

Use = Literal["scoring", "sampling", "training", "evaluation"]
"""Purpose that a model is loaded for."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machine:
    """A kind of processor that a model is put on, and its ability to multiply in bfloat16."""

    device: Literal["CPU", "GPU"]
    has_bfloat16: bool


@dataclass(frozen=True)
class Precision:
    """A dtype to load a model in (`auto`: the checkpoint's), with a line for the user if there is something to say."""

    dtype: Dtype
    note: str | None = None


def resolve_dtype(dtype: Dtype, checkpoint_dtype: str | None, machine: Machine, use: Use) -> Precision:
    """Return the precision of a model's weights.

    resolve_dtype("auto", "bfloat16", Machine("CPU", has_bfloat16=False), "scoring").dtype   -> "float32"
    """
    if machine.has_bfloat16:
        return Precision(dtype)
    if dtype == "auto":
        if checkpoint_dtype != "bfloat16":
            return Precision("auto")
        resolved = _replacement(machine, use)
        return Precision(
            resolved,
            f"dtype auto means {resolved} for {use} here: this {machine.device} has no bfloat16 units; "
            "name a dtype to choose another",
        )
    if machine.device == "CPU" and dtype in HALF_DTYPES:
        return Precision(
            dtype, f"dtype {dtype} is slow here: this CPU has no bfloat16 units; set dtype to float32 or auto"
        )
    return Precision(dtype)


def _replacement(machine: Machine, use: Use) -> Dtype:
    """Return the dtype that replaces bfloat16 on a machine that has none."""
    if machine.device == "GPU" and use != "training":
        return "float16"
    return "float32"


def choose_dtype(dtype: Dtype, checkpoint_dtype: str | None, machine: Machine, use: Use) -> Dtype:
    """Return the dtype of `resolve_dtype`, and log its note once in a process."""
    precision = resolve_dtype(dtype, checkpoint_dtype, machine, use)
    if precision.note is not None:
        _log_once(precision.note)
    return precision.dtype


@cache
def _log_once(note: str) -> None:
    log.warning("%s", note)


def cpu() -> Machine:
    """Return this machine's CPU."""
    return Machine("CPU", _cpu_has_bfloat16())


def torch_machine(device_map: str) -> Machine:
    """Return the processor that transformers puts a model on with a device map."""
    import torch

    if device_map == "cpu" or (device_map == "auto" and not torch.cuda.is_available()):
        return cpu()
    if not torch.cuda.is_available():  # another accelerator, or a fault that loading reports
        return Machine("GPU", has_bfloat16=True)
    return Machine("GPU", torch.cuda.is_bf16_supported(including_emulation=False))


def vllm_machine() -> Machine:
    """Return the processor that vLLM computes on; unlike PyTorch's answer, this one leaves the GPU untouched."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return cpu()
    if not current_platform.is_cuda():
        return Machine("GPU", has_bfloat16=True)
    return Machine("GPU", bool(current_platform.has_device_capability(BFLOAT16_CAPABILITY)))


@cache
def _cpu_has_bfloat16() -> bool:
    if platform.machine() not in X86_NAMES:
        return True
    try:
        return has_bfloat16_flag(CPU_INFO.read_text())
    except OSError:  # not Linux
        return True


def has_bfloat16_flag(cpu_info: str) -> bool:
    """Tell whether the text of /proc/cpuinfo of an x86 CPU names bfloat16 units; True if it names no flags."""
    for line in cpu_info.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return not BFLOAT16_FLAGS.isdisjoint(flags.split())
    return True
