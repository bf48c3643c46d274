"""Autoguidance: whether one generative model can guide another in place of its unconditional half.

The guide is a weaker model of the same kind: an earlier checkpoint, or one that is smaller or trained for less. It is
asked with the same labels; one without labels stands for an unconditional model.
Reference: Karras et al., arXiv:2406.02507.
"""

from __future__ import annotations

from collections.abc import Mapping

from simflow_plugin.contracts import GenerativeModel
from simflow_plugin.errors import ConfigError


def check_kind(model: GenerativeModel, guide: GenerativeModel) -> None:
    """Refuse a guide of another kind, whose predictions mean something else.

    Raises:
        ConfigError: naming both kinds.
    """
    if type(guide) is not type(model):
        raise ConfigError(
            f"autoguidance: the guide is a {type(guide).__name__}, but guides a {type(model).__name__}; name a run of "
            "the same model"
        )


def check_process(guide: Mapping[str, object], model: Mapping[str, object]) -> None:
    """Refuse a guide that was trained for another process: another noise, another interpolation.

    Args:
        guide: facts of the guide, by name.
        model: those of the model that it guides.
    Raises:
        ConfigError: naming the fact and both values.
    """
    for name, own in model.items():
        if (found := guide[name]) != own:
            raise ConfigError(
                f"autoguidance: the guide's {name} is {found}, the model's {own}; take a checkpoint of the same "
                "run, or a run that differs in size or training only"
            )


def check_classes(guide: int | None, model: int | None) -> None:
    """Refuse a guide with another number of classes; None, a guide without labels, fits every model.

    Raises:
        ConfigError: naming both numbers.
    """
    if guide is not None and guide != model:
        raise ConfigError(
            f"autoguidance: the guide's num_classes is {guide}, the model's {model}; name a run on the same classes, "
            "or one without labels"
        )
