"""DeepSpeed ZeRO: its engine reduces, clips and steps, with this run's settings and this run's optimizer.

DeepSpeed keeps the optimizer's state, and a float32 copy of the weights that it updates, as one flat tensor for each
parameter group, a piece of it on each process. Its public helpers give and take them whole, parameter by parameter, so
that a checkpoint is the same file as of any other engine. A step whose gradient is not finite it skips by itself.

Mixed precision is autocast here too: with `bf16.enabled` DeepSpeed would turn the module itself into bfloat16, and
log-determinants and losses with it. A discriminator is none of its business: DistributedDataParallel averages it, and
its own optimizer steps.

Reference: ZeRO, arXiv:1910.02054.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from packaging.version import Version
from torch import Tensor, nn

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.errors import CheckpointError, ConfigError
from simflow_plugin.training.distributed.engine import TorchEngine
from simflow_plugin.training.ema import trained_parameters

OLDEST = "0.19.8"
"""The only one tried: of others it is not known whether they skip a step that is not finite in float32 too."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state beside `step`, of which DeepSpeed keeps one for all parameters of a group."""


def run_settings(config: RunConfig, num_processes: int) -> dict[str, Any]:
    """Return what DeepSpeed calls by its own names and this run's configuration decides."""
    training = config.training
    return {
        "train_batch_size": training.batch_size,
        "train_micro_batch_size_per_gpu": training.batch_size // (num_processes * training.accumulation),
        "gradient_accumulation_steps": training.accumulation,
        "gradient_clipping": config.optimizer.max_grad_norm or 0.0,
    }


def check_settings(settings: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuse what would have no effect, or another one than the run's configuration says.

    Args:
        settings: DeepSpeed's, as accelerate read them.
        ours: from `run_settings`.
    Raises:
        ConfigError: naming the setting and what to do.
    """
    where = "DeepSpeed settings"
    owners = {
        "optimizer": "the section `optimizer` of the run's configuration",
        "scheduler": "`optimizer.schedule` of the run's configuration",
        "torch_autocast": "`training.precision`",
    }
    for name, owner in owners.items():
        if name in settings:
            raise ConfigError(f"{where}: {name}: decided by {owner}. Remove it there.")
    for name, value in ours.items():
        found = settings.get(name, "auto")
        if found != "auto" and found != value:
            raise ConfigError(
                f"{where}: {name} is {found}, the run's configuration says {value}. Remove it, or set it to auto."
            )
    zero = settings.get("zero_optimization", {})
    if zero.get("stage") not in (1, 2, 3):
        raise ConfigError(
            f"{where}: zero_stage is {zero.get('stage')}; 1, 2 and 3 shard something. For none of it use "
            "configs/accelerate/ddp.yaml."
        )
    for name in ("offload_optimizer", "offload_param"):
        device = (zero.get(name) or {}).get("device") or "none"
        if device != "none":
            raise ConfigError(
                f"{where}: {name} to {device} replaces the optimizer by DeepSpeed's own. Set {name}_device: none."
            )
    if settings.get("fp16", {}).get("enabled"):
        raise ConfigError(
            "training.precision: float16 is not supported with DeepSpeed, whose loss scale is not this run's. "
            "Use bfloat16, or configs/accelerate/ddp.yaml."
        )


def check_version() -> None:
    """Refuse versions older than the one that was tried.

    Raises:
        ConfigError: naming the version found and the one to install.
    """
    found = metadata.version("deepspeed")
    if Version(found) < Version(OLDEST):
        raise ConfigError(
            f"deepspeed {found} is older than {OLDEST}. Run: pip install -U 'simflow-plugin[deepspeed]'."
        )


class DeepSpeedEngine(TorchEngine):
    """ZeRO 1 and 2 through accelerate: parameters stay whole.

    Args:
        accelerator: configured for DeepSpeed.
        config: resolved.
    Raises:
        ConfigError: naming the version or the setting that does not fit.
    """

    def __init__(self, accelerator: Accelerator, config: RunConfig) -> None:
        super().__init__(accelerator, config)
        check_version()
        settings = accelerator.deepspeed_plugin.deepspeed_config
        ours = run_settings(config, accelerator.num_processes)
        check_settings(settings, ours)
        settings.update(ours)
        accelerator.gradient_accumulation_steps = config.training.accumulation  # else accelerate warns
        self._lower_precision = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
        if self._lower_precision is not None:
            settings["bf16"] = {"enabled": False}
            # No modules named: gradients are reduced in float32, as by the other engines.
            settings["torch_autocast"] = {
                "enabled": True,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            }

    def prepare(self, joint: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Hand both to DeepSpeed, which puts its flat tensors in the place of the optimizer's parameters."""
        self._grouped = [list(group["params"]) for group in optimizer.param_groups]
        super().prepare(joint, optimizer)
        self.optimizer = optimizer
        return self.wrapped

    def autocast(self) -> AbstractContextManager[None]:
        """As accelerate's, which does nothing under DeepSpeed."""
        dtype = self._lower_precision
        return torch.autocast(self.accelerator.device.type, dtype, enabled=dtype is not None)

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        """Tell DeepSpeed where a step ends."""
        self.wrapped.set_gradient_accumulation_boundary(is_last)  # type: ignore[operator]
        yield

    def backward(self, loss: Tensor) -> None:
        """Let DeepSpeed go back; the loss is a share of the step already."""
        self.wrapped.backward(loss, scale_wrt_gas=False)  # type: ignore[operator]

    def step(self) -> tuple[dict[str, Tensor], Tensor]:
        """Let DeepSpeed clip, step or skip, and clear; it waits for the device, and knows no norms by part."""
        engine: Any = self.wrapped
        engine.step()
        device = self.accelerator.device
        applied = engine.was_step_applied()
        # Of a step that it skips DeepSpeed keeps no norm; what it returns then is an older one.
        norm = engine.get_global_grad_norm() if applied else float("nan")
        norm = torch.as_tensor(norm, dtype=torch.float32, device=device).detach()
        return {"grad_norm": norm}, torch.tensor(applied, device=device)

    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        """Gather the state of one parameter after the other; nothing before the first step."""
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = [state["step"] for flat in self._flat() if (state := self.optimizer.state.get(flat))]
        if not steps:
            return
        self._link()
        for name, parameter in trained_parameters(self.joint).items():
            yield f"{name}/step", steps[0].clone()
            for key in MOMENTS:
                yield f"{name}/{key}", safe_get_full_optimizer_state(parameter, key)

    def restore_weights(self, tensors: dict[str, Tensor], source: Path) -> None:
        """Copy into the module, and from there into DeepSpeed's own copy."""
        from deepspeed.utils import safe_set_full_fp32_param

        super().restore_weights(tensors, source)
        for parameter in trained_parameters(self.joint).values():
            safe_set_full_fp32_param(parameter, parameter.detach())

    def restore_optimizer(self, tensors: dict[str, Tensor], source: Path) -> None:
        """Make the state that the first step would make, and hand each process its pieces."""
        trained = trained_parameters(self.joint)
        unknown = {name.rpartition("/")[0] for name in tensors} - trained.keys()
        if unknown:
            raise CheckpointError(f"{source}: optimizer state of an unknown parameter `{min(unknown)}`.")
        steps = {float(tensor) for name, tensor in tensors.items() if name.endswith("/step")}
        if len(steps) > 1:
            raise CheckpointError(
                f"{source}: parameters took different numbers of optimizer steps, {sorted(steps)[:3]}, and DeepSpeed "
                "keeps one for all. Go on with configs/accelerate/ddp.yaml or an FSDP2 file."
            )
        if not steps:
            return
        step = torch.tensor(steps.pop(), device=self.accelerator.device)
        for flat in self._flat():
            state = {"step": step.clone(), **{key: torch.zeros_like(flat) for key in MOMENTS}}
            self.optimizer.state[flat] = state
        self._link()
        for name, parameter in trained.items():
            for key in MOMENTS:
                if f"{name}/{key}" in tensors:
                    self._set_moment(name, parameter, tensors[f"{name}/{key}"], key)

    def _set_moment(self, name: str, parameter: Tensor, whole: Tensor, key: str) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, whole.to(parameter.device), key)

    def _flat(self) -> list[Tensor]:
        """Return this process's flat pieces, by which the optimizer's state is kept: one for each parameter group."""
        return [group["params"][0] for group in self.optimizer.param_groups]

    def _link(self) -> None:
        """Tell each parameter where its state is.

        DeepSpeed does so by itself, but after the step of the first group, when the others had no state yet.
        """
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        for group, flat in zip(self._grouped, self._flat(), strict=True):
            lazy_init_hp_params_optimizer_state(group, flat, self.optimizer.state)
