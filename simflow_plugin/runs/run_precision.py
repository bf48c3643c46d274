"""The precision that a run's networks compute in: decided here for training, sampling and every measurement.

Weights, averages, likelihood sums and metrics are float32 or more whatever is chosen; only the products of autocast
and, with TF32, those of float32 on CUDA are shorter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from simflow_plugin.config.schema import Training
from simflow_plugin.errors import ConfigError

Name = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Precision:
    """Precision of matrix products and convolutions on one kind of device.

    Args:
        name: `float32`, or what autocast computes in.
        tf32: whether products of float32 may use TF32; False except on CUDA.
        device_type: `cpu` or `cuda`.
    """

    name: Name
    tf32: bool
    device_type: str

    @classmethod
    def of_training(cls, training: Training, device_type: str) -> Precision:
        """Return the precision that a run trains in on a kind of device.

        Raises:
            ConfigError: for float16 without a GPU.
        """
        if training.precision == "float16" and device_type != "cuda":
            raise ConfigError("training.precision: float16 needs a GPU. Use float32 (or auto) on a CPU.")
        return cls(
            _resolve(training.precision, device_type), training.tf32 and device_type == "cuda", device_type
        )

    @classmethod
    def outside_training(cls, training: Training, device_type: str, override: str | None = None) -> Precision:
        """Return the precision to sample and measure a run in: that of its training, unless another is named.

        A run that trained in float16 is read in float32 where there is no GPU.

        Args:
            override: `auto` or a `Name`; None is the run's own.
        Raises:
            ConfigError: for an unknown name, or float16 without a GPU.
        """
        known = ("auto", *get_args(Name))
        if override is not None and override not in known:
            raise ConfigError(f"--precision {override}: expected one of {', '.join(known)}.")
        if override == "float16" and device_type != "cuda":
            raise ConfigError("--precision float16: needs a GPU. Use float32 (or auto) on a CPU.")
        if override is None and training.precision == "float16" and device_type != "cuda":
            override = "float32"
        wanted = training.model_copy(update={"precision": override or training.precision})
        return cls.of_training(wanted, device_type)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Compute in this precision within the block; the process's own settings come back after it."""
        before = _tf32()
        _set_tf32(self.tf32, self.tf32)
        dtype = torch.float16 if self.name == "float16" else torch.bfloat16
        try:
            with torch.autocast(self.device_type, dtype, enabled=self.name != "float32"):
                yield
        finally:
            _set_tf32(*before)

    def __str__(self) -> str:
        return f"{self.name} with TF32" if self.tf32 and self.name == "float32" else self.name


def _resolve(name: str, device_type: str) -> Name:
    if name != "auto":
        return name  # type: ignore[return-value]
    has_bfloat16 = device_type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bfloat16 else "float32"


def choose_kernels(deterministic: bool) -> None:
    """Let torch use, in this process and from now on, only kernels that repeat their results bit for bit, or any.

    An operation without such a kernel is then an error that names it. cuBLAS repeats its results with a workspace of
    fixed size only, which it reads from the environment when it is first used.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = False  # its choice is by measured time, another one each run
    # Filling new memory finds reads of what nobody wrote. It would be a kernel more for each, for other than our ends.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _tf32() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def _set_tf32(products: bool, convolutions: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions
