"""Inverting the flow: `naive`, `cached`, `jacobi` and `auto`, chosen per block."""

from simflow_plugin.flow.sampling.decode_graph import release_graphs
from simflow_plugin.flow.sampling.methods import METHODS, Auto, Cached, Jacobi, Method, Naive, parse_methods
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
