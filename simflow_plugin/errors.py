"""One exception class per kind of mistake a user can make.

The command line prints the message of a `SimflowError` as one line and exits with `exit_status`; any other
exception is a defect of this package and keeps its traceback. A message names what was found, where, what was
expected and what to do.
"""


class SimflowError(Exception):
    """Base of every mistake a user can make and mend."""

    exit_status = 2


class ConfigError(SimflowError):
    """A configuration is not YAML, has an unknown key, a bad value, or values that clash."""


class RegistryError(SimflowError):
    """A part is unknown, registered twice, or its entry point does not import."""


class ShapeError(SimflowError, ValueError):
    """A tensor has the wrong shape, range or dtype; the message names it."""


class DataError(SimflowError):
    """A data set is missing, empty or unreadable."""


class EmptySplit(DataError):
    """A share of a data set without a split of its own is so small that no image is left in it."""


class WeightsError(SimflowError):
    """Pretrained weights are missing, truncated, or of another architecture."""


class CheckpointError(SimflowError):
    """A run's checkpoint is missing, torn, or from another configuration."""


class NotFiniteError(CheckpointError):
    """Weights or state of a run hold NaN or infinity: it diverged, and nothing can be made of it."""

    exit_status = 3


class RunDirectoryError(SimflowError):
    """A run directory cannot be used: locked, not writable, or it holds another run."""


class EvaluationError(SimflowError):
    """An evaluation or a comparison is impossible, or would be meaningless."""


class HostError(SimflowError):
    """A host's checkout cannot be patched, or an adapter was used in a way the host does not support."""


class TrainingError(SimflowError):
    """Training cannot go on: losses stay non-finite, or the disk is full."""

    exit_status = 3
