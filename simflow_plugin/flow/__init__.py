"""The transformer autoregressive flow: usable without the rest of the package.

Names are imported when they are first used: the options of a flow load without torch.
"""

from typing import TYPE_CHECKING

from simflow_plugin.lazy import lazy_attributes

if TYPE_CHECKING:
    from simflow_plugin.flow.architecture import FlowArchitecture, FlowConfig
    from simflow_plugin.flow.conditioning import drop_labels
    from simflow_plugin.flow.flow import FlowOutput, TransformerFlow, standard_normal_log_prob
    from simflow_plugin.flow.patches import patchify, unpatchify
    from simflow_plugin.flow.sampling.methods import Auto, Cached, Jacobi, Naive, SamplingStatistics
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

_FLOW = "simflow_plugin.flow."
__getattr__ = lazy_attributes(
    __name__,
    {
        **dict.fromkeys(("FlowArchitecture", "FlowConfig"), _FLOW + "architecture"),
        **dict.fromkeys(("FlowOutput", "TransformerFlow", "standard_normal_log_prob"), _FLOW + "flow"),
        **dict.fromkeys(
            ("Auto", "Cached", "Jacobi", "Naive", "SamplingStatistics"), _FLOW + "sampling.methods"
        ),
        **dict.fromkeys(("patchify", "unpatchify"), _FLOW + "patches"),
        **dict.fromkeys(("FAMILIES", "SIZES"), _FLOW + "sizes"),
        "drop_labels": _FLOW + "conditioning",
    },
)
