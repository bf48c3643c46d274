"""The reference of all options: what `simflow config explain` prints, and the page of the documentation.

It is read from where the options are declared: the sections' fields, and the `Options` of registered parts. One key may
mean an option of several parts (`model.flow.width`, of simflow and of starflow): there is an `Option` for each.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from simflow_plugin.config.option_facts import (
    REQUIRED,
    bounds,
    default_of,
    description_of,
    element_types,
    literals,
    members,
    summary_of,
    summary_of_part,
    type_in_words,
)
from simflow_plugin.config.schema import RunConfig, WeightedLoss
from simflow_plugin.errors import RegistryError
from simflow_plugin.options import Choices, Options, is_subclass
from simflow_plugin.registry import Part, Registry

log = logging.getLogger(__name__)

LOSS_OPTIONS = "options"
KIND = "kind"


@dataclass(frozen=True)
class Step:
    """One step of the way to an option.

    Args:
        name: key in the configuration, or the name of a part, which a key may leave out.
        may_be_left_out: in a key that is asked for.
        is_written: in the configuration, as a key of its own.
    """

    name: str
    may_be_left_out: bool = False
    is_written: bool = True


@dataclass(frozen=True)
class Option:
    """One option of a section or a part.

    Args:
        way: steps to it.
        of: the parts on the way, as (`model`, `simflow`).
        type: in words.
        range: that a number must lie in; '' for none.
        choices: name -> summary of what it stands for ('' for a plain value).
        default: as YAML, or `(required)`.
        description: of the field.
        takes_parts: whether the choices are parts, or kinds of mappings, with options of their own.
    """

    way: tuple[Step, ...]
    of: tuple[tuple[str, str], ...]
    type: str
    range: str
    choices: Mapping[str, str]
    default: str
    description: str
    takes_parts: bool = False

    @property
    def key(self) -> str:
        """Dotted key, as `--set` takes it."""
        return ".".join(step.name for step in self.way if step.is_written)

    @property
    def depth(self) -> int:
        """Number of keys on the way, without those that may be left out."""
        return sum(not step.may_be_left_out for step in self.way)

    def is_directly_below(self, way: tuple[Step, ...]) -> bool:
        """Return whether this is a key of the section, or of a part that may stand, at the end of `way`."""
        between = self.way[len(way) : -1]
        return (
            len(self.way) > len(way)
            and self.way[: len(way)] == way
            and all(s.may_be_left_out for s in between)
        )

    def answers_to(self, keys: tuple[str, ...]) -> bool:
        """Return whether a key that is split at its dots means this option."""
        return _leads_along(self.way, keys)


@dataclass(frozen=True)
class _Place:
    """Where the walk through the options is: steps, parts and the registries whose parts it is inside of."""

    way: tuple[Step, ...] = ()
    of: tuple[tuple[str, str], ...] = ()
    registries: tuple[Registry, ...] = ()

    def at(self, name: str) -> _Place:
        return replace(self, way=(*self.way, Step(name)))

    def inside(self, name: str, registry: Registry | None = None) -> _Place:
        """Return the place within the part (or kind of section) called `name`."""
        key = ".".join(step.name for step in self.way if step.is_written)
        way = (*self.way, Step(name, may_be_left_out=True, is_written=False))
        registries = self.registries if registry is None else (*self.registries, registry)
        return _Place(way, (*self.of, (key, name)), registries)


def all_options(section: str | None = None, third_party: bool = True) -> Iterator[Option]:
    """Yield every option, those of a section after the section itself.

    Args:
        section: of the configuration; the parts of no other one are imported. None is all.
        third_party: parts of other distributions too, which are imported; the log names those that do not load.
    """
    yield from _Walk(third_party).fields(RunConfig, _Place(), section)


def section_summaries() -> dict[str, str]:
    """Return what each top-level key is for; no part is imported."""
    return {name: description_of(field) for name, field in RunConfig.model_fields.items()}


class _PartFacts(NamedTuple):
    summary: str
    options: type[BaseModel]


@dataclass(frozen=True)
class _Walk:
    """The walk; `known` keeps the parts of each kind, since one kind stands in several places."""

    third_party: bool
    known: dict[str, dict[str, _PartFacts]] = field(default_factory=dict)

    def fields(self, options: type[BaseModel], place: _Place, only: str | None = None) -> Iterator[Option]:
        for name, declared in options.model_fields.items():
            if only is None or name == only:
                yield from self.option(declared, default_of(options, name, declared), place.at(name))

    def option(self, field: FieldInfo, default: str, place: _Place) -> Iterator[Option]:
        registry = next((entry for entry in field.metadata if isinstance(entry, Registry)), None)
        yield Option(
            place.way,
            place.of,
            _type_of(field),
            bounds(field.metadata),
            self.choices(field, registry),
            default,
            description_of(field),
            takes_parts=any(isinstance(entry, (Registry, Choices)) for entry in field.metadata),
        )
        yield from self.below(field, registry, place)

    def below(self, field: FieldInfo, registry: Registry | None, place: _Place) -> Iterator[Option]:
        """Yield the options inside a field: of a section, of each part, of each named choice."""
        kinds = members(field.annotation)
        if registry is not None and any(is_subclass(kind, Part) for kind in kinds):
            yield from self.parts(registry, place)
        elif registry is not None and any(get_origin(kind) is dict for kind in kinds):
            yield from self.losses(registry, place)
        for entry in field.metadata:
            if isinstance(entry, Choices):
                for name, options in entry.by_name.items():
                    if is_subclass(options, BaseModel):
                        yield from _without("name", self.fields(options, place.inside(name)))
        sections = [kind for kind in element_types(field.annotation) if not issubclass(kind, Part)]
        if len(sections) > 1:
            yield from self.kinds(sections, place)
        for section in sections if len(sections) == 1 else []:
            yield from self.fields(section, place)

    def kinds(self, sections: list[type[BaseModel]], place: _Place) -> Iterator[Option]:
        """Yield `kind`, which tells sections apart that may stand in one place, and what each of them has beside it."""
        kinds = {_kind(section): section for section in sections}
        default = next(
            (name for name, one in kinds.items() if not one.model_fields[KIND].is_required()), REQUIRED
        )
        summaries = {name: summary_of(section) for name, section in kinds.items()}
        description = "which of these the mapping is; it decides the other keys"
        yield Option(
            place.at(KIND).way, place.of, "name", "", summaries, default, description, takes_parts=True
        )
        for name, section in kinds.items():
            yield from _without(KIND, self.fields(section, place.inside(name)))

    def parts(self, registry: Registry, place: _Place) -> Iterator[Option]:
        if registry in place.registries:
            return  # a part that holds a part of its own kind: its options stand where that kind stands
        for name, part in self.facts(registry).items():
            yield from self.fields(part.options, place.inside(name, registry))

    def losses(self, registry: Registry, place: _Place) -> Iterator[Option]:
        """Yield the reconstruction losses, whose names are keys; their options lie one level further down."""
        for name, part in self.facts(registry).items():
            loss = place.at(name)
            below = replace(loss, way=(*loss.way, Step(LOSS_OPTIONS, may_be_left_out=True)))
            yield Option(loss.way, loss.of, "number > 0, or mapping", "", {}, "(not used)", part.summary)
            yield from self.fields(WeightedLoss, loss)
            yield from self.fields(part.options, below)

    def facts(self, registry: Registry) -> dict[str, _PartFacts]:
        """Return the parts of a registry by name; one that does not load is named in the log.

        Of the built-in ones only the declarations are imported, and where there are none (attention) the parts.
        """
        if registry.kind not in self.known:
            own = registry.builtin_facts()
            found = self.known[registry.kind] = {}
            for name in registry.names() if self.third_party else sorted(own):
                module, facts = own.get(name, (None, None))
                try:
                    facts = facts or registry.facts(name)
                except RegistryError as error:
                    log.warning("not looked into: %s", error)
                    continue
                summary = (summary_of_part(name, module) if module else "") or summary_of(facts)
                found[name] = _PartFacts(summary, getattr(facts, "Options", Options))
        return self.known[registry.kind]

    def choices(self, field: FieldInfo, registry: Registry | None) -> dict[str, str]:
        if registry is not None:
            return {name: part.summary for name, part in self.facts(registry).items()}
        for entry in field.metadata:
            if isinstance(entry, Choices):
                return {name: summary_of(value) for name, value in entry.by_name.items()}
        return dict.fromkeys(literals(field.annotation), "")


def _leads_along(way: tuple[Step, ...], keys: tuple[str, ...]) -> bool:
    if not way:
        return not keys
    first, rest = way[0], way[1:]
    if keys and keys[0] == first.name and _leads_along(rest, keys[1:]):
        return True
    return first.may_be_left_out and bool(rest) and _leads_along(rest, keys)


def _without(name: str, options: Iterator[Option]) -> Iterator[Option]:
    """Leave out the key by which the choice itself was written."""
    return (option for option in options if option.way[-1].name != name)


def _kind(section: type[BaseModel]) -> str:
    return str(get_args(section.model_fields[KIND].annotation)[0])


def _type_of(field: FieldInfo) -> str:
    words = type_in_words(field.annotation)
    if any(isinstance(entry, (Registry, Choices)) for entry in field.metadata):
        words = words.replace("text", "name", 1)
    return words
