"""Autoguidance: a weaker generative model guides another in place of its unconditional half.

The guide is a weaker model of the same kind: an earlier checkpoint, or one that is smaller or trained for less. It is
asked with the same labels; one without labels stands for an unconditional model.
Reference: Karras et al., arXiv:2406.02507.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from simflow_plugin.errors import ConfigError


class HasProcess(Protocol):
    """A model with facts that it and its guide must share for their predictions to be combined."""

    def process_facts(self) -> dict[str, object]:
        """Return the facts by name."""


M = TypeVar("M", bound=HasProcess)


def with_guide(model: M, guide: Any) -> M:
    """Return a model, its weights shared, with a weaker one in place of the unconditional half of its guidance.

    Raises:
        ConfigError: for a guide of another kind, or with other facts.
    """
    if type(guide) is not type(model):
        raise ConfigError(
            f"autoguidance: the guide is a {type(guide).__name__}, but guides a {type(model).__name__}; name a run of "
            "the same model"
        )
    check_facts(guide.process_facts(), model.process_facts())
    twin = copy.copy(model)
    # No submodule: the state of this model stays its own.
    twin.__dict__ |= {"guide": guide, "supports_guidance": True}
    return twin


def check_facts(guide: Mapping[str, object], model: Mapping[str, object]) -> None:
    """Refuse a guide whose facts differ from the model's; a `num_classes` of None, no labels, fits every model.

    Raises:
        ConfigError: naming the fact and both values.
    """
    for name, own in model.items():
        if (found := guide[name]) != own and (name, found) != ("num_classes", None):
            raise ConfigError(
                f"autoguidance: the guide's {name} is {found}, the model's {own}; take a checkpoint of the same "
                "run, or a run that differs in size or training only"
            )
