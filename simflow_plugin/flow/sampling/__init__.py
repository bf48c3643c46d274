"""Inverting the flow: `naive`, `cached`, `jacobi` and `auto`, chosen per block."""

from typing import TYPE_CHECKING

from simflow_plugin.flow.sampling.methods import METHODS, Auto, Cached, Jacobi, Method, Naive, parse_methods
from simflow_plugin.lazy import lazy_attributes

if TYPE_CHECKING:
    from simflow_plugin.flow.sampling.decode_graph import release_graphs
    from simflow_plugin.flow.sampling.sampling_statistics import BlockStatistics, SamplingStatistics

__all__ = [
    "METHODS",
    "Auto",
    "BlockStatistics",
    "Cached",
    "Jacobi",
    "Method",
    "Naive",
    "SamplingStatistics",
    "parse_methods",
    "release_graphs",
]

_STATISTICS = "simflow_plugin.flow.sampling.sampling_statistics"
__getattr__ = lazy_attributes(
    __name__,
    {
        "BlockStatistics": _STATISTICS,
        "SamplingStatistics": _STATISTICS,
        "release_graphs": "simflow_plugin.flow.sampling.decode_graph",
    },
)
