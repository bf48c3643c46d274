"""The built-in autoencoders by name: options and facts, without their networks."""

from __future__ import annotations

from simflow_plugin.autoencoders.kl_options import KLFacts
from simflow_plugin.registry import AUTOENCODERS

AUTOENCODERS.declare("kl", "simflow_plugin.autoencoders.kl", KLFacts)
