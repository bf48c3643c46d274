"""Measure the flow on this machine: GEMM speed, training step, every sampler, and ml-starflow beside it."""

from simflow_plugin.bench.benchmark import run_bench
from simflow_plugin.bench.result_table import BenchReport
from simflow_plugin.bench.setting import BenchSetting

__all__ = ["BenchReport", "BenchSetting", "run_bench"]
