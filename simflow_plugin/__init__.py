"""SimFlow as a plugin: end-to-end training of latent normalizing flows in the codebase you already have.

    run = simflow_plugin.load("runs/quickstart")
    simflow_plugin.to_pil(run.sample(10))[0].save("sample.png")

Importing this package is cheap: it imports neither torch nor any third-party part. The public names below are imported
when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simflow_plugin.lazy import lazy_attributes

if TYPE_CHECKING:
    from simflow_plugin.alignment.head import AlignmentHead as AlignmentHead
    from simflow_plugin.evaluation.drawing import to_pil as to_pil
    from simflow_plugin.flow import FlowConfig as FlowConfig
    from simflow_plugin.flow import TransformerFlow as TransformerFlow
    from simflow_plugin.objective import JointObjective as JointObjective
    from simflow_plugin.posteriors.fixed import FixedVarianceHead as FixedVarianceHead
    from simflow_plugin.run import Run as Run
    from simflow_plugin.run import load as load

__version__ = "0.1.0"

_MODULE_OF = {
    "AlignmentHead": "simflow_plugin.alignment.head",
    "FixedVarianceHead": "simflow_plugin.posteriors.fixed",
    "FlowConfig": "simflow_plugin.flow",
    "JointObjective": "simflow_plugin.objective",
    "Run": "simflow_plugin.run",
    "TransformerFlow": "simflow_plugin.flow",
    "load": "simflow_plugin.run",
    "to_pil": "simflow_plugin.evaluation.drawing",
}

__all__ = [*_MODULE_OF, "__version__"]

__getattr__ = lazy_attributes(__name__, _MODULE_OF)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
