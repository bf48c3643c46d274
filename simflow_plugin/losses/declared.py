"""The built-in reconstruction losses by name, with their options."""

from __future__ import annotations

from simflow_plugin.losses.options import LPIPSOptions, PixelOptions, TimmLossOptions
from simflow_plugin.registry import RECONSTRUCTION_LOSSES

RECONSTRUCTION_LOSSES.declare("l1", "simflow_plugin.losses.pixel", PixelOptions)
RECONSTRUCTION_LOSSES.declare("l2", "simflow_plugin.losses.pixel", PixelOptions)
RECONSTRUCTION_LOSSES.declare("lpips", "simflow_plugin.losses.lpips_loss", LPIPSOptions)
RECONSTRUCTION_LOSSES.declare("timm", "simflow_plugin.losses.timm_loss", TimmLossOptions)
