"""The transformer autoregressive flow: usable without the rest of the package."""

from simflow_plugin.flow.architecture import FlowArchitecture, FlowConfig
from simflow_plugin.flow.conditioning import drop_labels
from simflow_plugin.flow.flow import FlowOutput, TransformerFlow, standard_normal_log_prob
from simflow_plugin.flow.patchify import patchify, unpatchify
from simflow_plugin.flow.sampling import Auto, Cached, Jacobi, Naive, SamplingStatistics
from simflow_plugin.flow.sizes import FAMILIES, SIZES

__all__ = [
    "FAMILIES",
    "SIZES",
    "Auto",
    "Cached",
    "FlowArchitecture",
    "FlowConfig",
    "FlowOutput",
    "Jacobi",
    "Naive",
    "SamplingStatistics",
    "TransformerFlow",
    "drop_labels",
    "patchify",
    "standard_normal_log_prob",
    "unpatchify",
]
