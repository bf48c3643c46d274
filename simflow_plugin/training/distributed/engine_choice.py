"""Which engine runs the processes: torch's own, or DeepSpeed's by the stage of ZeRO that accelerate was told."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DistributedType

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.training.distributed.engine import TorchEngine


def make_engine(accelerator: Accelerator, config: RunConfig) -> TorchEngine:
    """Build the engine that accelerate was configured for.

    Raises:
        ConfigError: naming the engine or the setting that this loop does not run, and what to use in its place.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # Imported here: only these runs need the package, which is optional.
        if accelerator.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage"] == 3:
            from simflow_plugin.training.distributed.deepspeed_zero3 import Zero3Engine

            return Zero3Engine(accelerator, config)
        from simflow_plugin.training.distributed.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(accelerator, config)
    return TorchEngine(accelerator, config)
