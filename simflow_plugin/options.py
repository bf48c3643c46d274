"""The base class of every part's options: typed, frozen, and strict about unknown keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

CONTRACT_VERSION = 1
"""Version of `simflow_plugin.contracts`: it grows when a part written for an earlier one would no longer work."""

OF_FIELD = "of_field"
"""Type of the errors of `Options` as a whole that are about one field, which their context names."""
LARGEST_INTEGER = 2**63 - 1

Size = Annotated[int, Field(gt=0, le=1 << 16)]
"""A count of channels, layers or heads, or a side in pixels: no network has more, so that more is a slip."""

MomentDecay = Annotated[float, Field(ge=0, lt=1)]
"""A beta of Adam: the decay per step of a running mean."""


@dataclass(frozen=True, eq=False)
class Choices:
    """The names that a field takes, written beside its type for the reference of options; a validator checks them.

    Args:
        by_name: what each name stands for; where that is a class of options, they stand beside the name.
    """

    by_name: Mapping[str, Any]


class Options(BaseModel):
    """Options of one part. An unknown key is an error: an option without effect is worse than none.

    Numbers are finite.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    contract_version: ClassVar[int | None] = None
    """`CONTRACT_VERSION` that the part was written for; the registry refuses another. None: not stated."""

    written_as: ClassVar[str] = "mapping"
    """What stands for these options in YAML, in words; a shorter way beside the mapping, if there is one."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_surprises(cls, values: Any) -> Any:
        """Take no true for 1, as Python would, and no number that nothing counts to."""
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if field is None or any(nested_options(field.annotation)):  # those answer for themselves
                continue
            numbers = list(_numbers(value))
            problem = None
            if any(isinstance(n, bool) for n in numbers) and not _takes_booleans(field.annotation):
                problem = "expected no true or false (in YAML also yes, no, on, off)"
            elif any(abs(number) > LARGEST_INTEGER for number in numbers):
                problem = f"expected no integer beyond {LARGEST_INTEGER}"
            if problem is not None:
                raise PydanticCustomError(OF_FIELD, "{problem}", {"problem": problem, "field": name})
        return values

    def resolved(self) -> Options:
        """Return the options with every default that depends on other options written out.

        Raises:
            ConfigError: if they clash.
        """
        return self

    def check(self, context: Any) -> None:
        """Refuse values that do not fit the run; called before anything is built, and by default refuses nothing.

        Args:
            context: as the part will be built with, as far as the configuration gives it: a `ModelContext` for models
                (its number of classes is None), a `PosteriorContext` for posteriors, else a `DataContext`.
        Raises:
            ConfigError: naming the option.
        """


def _numbers(value: Any) -> Iterator[int]:
    """Yield the booleans and integers in a value as it was written."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, (list, tuple)):
        for element in value:
            yield from _numbers(element)
    elif isinstance(value, dict):
        for element in value.values():
            yield from _numbers(element)


def _takes_booleans(annotation: Any) -> bool:
    """Return whether a value of this type may hold booleans."""
    if annotation in (bool, Any, object) or isinstance(annotation, bool):
        return True
    return any(_takes_booleans(part) for part in get_args(annotation))


def nested_options(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the classes of options that a value of this type may hold, at any depth."""
    if is_subclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from nested_options(part)


def is_subclass(annotation: Any, base: type) -> bool:
    """Return whether an annotation is a class below `base`; `list[int]`, to Python 3.10 a class, is none."""
    return get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, base)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean `x`? Known: a, b, x.' for a name that is not among `known`."""
    choices = sorted(known)
    matches = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" Did you mean `{matches[0]}`?" if matches else ""
    return f"{hint} Known: {', '.join(choices) if choices else '(none)'}."
