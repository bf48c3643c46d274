"""Named registries of parts, discovery of third-party parts by entry points, and parts as a configuration has them.

A part is a class (or factory) under a short name. Built-in parts register themselves with a decorator in
their own file; other distributions declare an entry point in the group `simflow_plugin.<kind>`. Nothing is
imported before a name is asked for.

A built-in part has two halves: its options and facts, which a configuration is checked against and which import no
torch, are declared by name where they are defined; the part itself is imported when it is built.

A factory is called as `factory(options, context)`, where `options` is an instance of `factory.Options` (a subclass
of `simflow_plugin.options.Options`) and `context` is what the harness knows: see `simflow_plugin.contracts`.
Attention backends have no options and are called as `factory(context)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import EntryPoint
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_serializer, model_validator

from simflow_plugin import plugins
from simflow_plugin.errors import ConfigError, RegistryError
from simflow_plugin.options import Options, did_you_mean

T = TypeVar("T")
C = TypeVar("C", bound=type)

OWN_DISTRIBUTION = "simflow-plugin"


class Registry:
    """Parts of one kind by name.

    Args:
        kind: for example `models`; the entry-point group is `simflow_plugin.<kind>`.
        modules: those that declare (or register) the built-in parts when they are imported.
        takes_options: False for parts that are called as `factory(context)`.
    """

    def __init__(self, kind: str, *modules: str, takes_options: bool = True) -> None:
        self.kind = kind
        self.group = f"simflow_plugin.{kind}"
        self._modules = modules
        self._takes_options = takes_options
        self._declared: dict[str, tuple[str, Any]] = {}
        self._builtin: dict[str, Any] = {}
        self._is_ready = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate a built-in part to register it under `name`.

        Raises:
            RegistryError: if another built-in part has that name.
        """

        def decorate(part: T) -> T:
            known = self._builtin.get(name)
            # The same definition again: its file was imported a second time, since it failed further down.
            if known is not None and _defined_as(known) != _defined_as(part):
                raise RegistryError(
                    f"{self.kind}: `{name}` is registered twice in {OWN_DISTRIBUTION}: {_defined_as(known)} and "
                    f"{_defined_as(part)}"
                )
            self._builtin[name] = part
            return part

        return decorate

    def declare(self, name: str, module: str, summary: str | None = None) -> Callable[[C], C]:
        """Decorate the facts of a built-in part, which `module` registers when it is imported.

        Facts are a class with `Options` and what else configurations are checked against, which the part inherits; or
        the options alone.

        Args:
            name: of the part.
            module: full name.
            summary: of a part that shares its class with others, in a sentence; None: that of the class.
        Raises:
            RegistryError: if a part is declared under that name.
        """

        def decorate(facts: C) -> C:
            if name in self._declared:
                raise RegistryError(f"{self.kind}: `{name}` is declared twice in {OWN_DISTRIBUTION}.")
            held: type = facts
            if issubclass(facts, Options):
                held = type(f"{facts.__name__}Facts", (), {"Options": facts, "__doc__": summary})
            self._declared[name] = (module, held)
            return facts

        return decorate

    def names(self) -> list[str]:
        """Return all names, sorted. Imports no part that is declared and no third-party one."""
        self._import_declarations()
        return sorted(
            {*self._declared, *self._builtin, *(entry.name for entry in plugins.entry_points(self.group))}
        )

    def facts(self, name: str) -> Any:
        """Return `Options` and facts of a part: of a built-in one without importing it, else the factory itself.

        Raises:
            RegistryError: see `get`.
        """
        self._import_declarations()
        if name not in self._declared:
            return self.get(name)
        self._claims(name)
        return self._declared[name][1]

    def builtin_facts(self) -> dict[str, tuple[str, Any]]:
        """Return module and facts (see `facts`) of each built-in part; other distributions are not looked at."""
        self._import_declarations()
        own = {name: (part.__module__, part) for name, part in self._builtin.items()}
        return {**own, **self._declared}

    def get(self, name: str) -> Any:
        """Return the factory registered as `name`; a third-party part is imported now.

        Raises:
            RegistryError: if the name is unknown (with the nearest match and the known names), claimed by two
                distributions, if its entry point does not import, or if the part declares no `Options`, was written
                for another version of the contracts, or lacks a member that the harness reads.
        """
        claims, owners = self._claims(name)
        if self._is_own(name):
            if name not in self._builtin:
                importlib.import_module(self._declared[name][0])
            return self._builtin[name]
        owner, where = owners[0], f"{owners[0]} ({claims[0].value})"
        with plugins.blaming(f"{self.kind}: entry point `{name}`", where):
            part = claims[0].load()
        self._check_contract(
            name, where, lambda: plugins.check_class(self.kind, part, owner, self._takes_options)
        )
        return part

    def _claims(self, name: str) -> tuple[list[EntryPoint], list[str]]:
        """Return the entry points of a name and all of its owners, of which there must be one."""
        self._import_declarations()
        claims = [entry for entry in plugins.entry_points(self.group) if entry.name == name]
        owners = [plugins.owner(entry) for entry in claims]
        if self._is_own(name):
            owners.insert(0, OWN_DISTRIBUTION)
        if len(owners) > 1:
            raise RegistryError(
                f"{self.kind}: `{name}` is declared by more than one distribution: {', '.join(owners)}. "
                f"Uninstall one of them, or ask its authors to rename their entry point in `{self.group}`."
            )
        if not owners:
            raise RegistryError(f"{self.kind}: unknown name `{name}`.{did_you_mean(name, self.names())}")
        return claims, owners

    def _is_own(self, name: str) -> bool:
        return name in self._declared or name in self._builtin

    def _owner(self, name: str) -> str | None:
        """Return the distribution of a third-party part, None for a built-in one."""
        entries = [] if self._is_own(name) else plugins.entry_points(self.group)
        return next((plugins.owner(entry) for entry in entries if entry.name == name), None)

    @contextmanager
    def blaming(self, name: str) -> Iterator[None]:
        """Within the block, whatever a third-party part called `name` raises is a `RegistryError` that names it."""
        owner = self._owner(name)
        with plugins.blaming(f"{self.kind}: `{name}`", owner) if owner is not None else nullcontext():
            yield

    def build(self, name: str, *arguments: Any) -> Any:
        """Build a part: `factory(*arguments)`.

        Raises:
            RegistryError: see `get`; or if a third-party part fails, or lacks what the harness reads of it.
        """
        factory = self.get(name)
        with self.blaming(name):
            part = factory(*arguments)
        if (owner := self._owner(name)) is not None:
            self._check_contract(name, owner, lambda: plugins.check_instance(self.kind, part))
        return part

    def _check_contract(self, name: str, owner: str, check: Callable[[], None]) -> None:
        """Name the distribution of a part whose check fails, or that breaks when it is looked up."""
        with plugins.blaming(f"{self.kind}: `{name}`", owner):
            try:
                check()
            except RegistryError as error:
                raise RegistryError(f"{self.kind}: `{name}` of distribution {owner}: {error}.") from error

    def _import_declarations(self) -> None:
        if self._is_ready:
            return
        for module in self._modules:
            importlib.import_module(module)
        self._is_ready = True  # only now: what did not import fails again, under its own error


def _defined_as(part: Any) -> str:
    return f"{getattr(part, '__module__', '?')}.{getattr(part, '__qualname__', repr(part))}"


class Part(Options):
    """A part by name, with its options; written as `name` or as `{name: ..., option: ...}`.

    A field of options that holds a part names its registry beside the type, and its options are then validated with
    the configuration: `posterior: Annotated[Part, POSTERIORS]`.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_name_or_mapping(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            return {"name": value["name"], "options": {k: v for k, v in value.items() if k != "name"}}
        if isinstance(value, Part):
            return value
        raise ValueError("expected a name or a mapping with a name")

    @model_serializer
    def _to_mapping(self) -> Any:
        return {"name": self.name, **self.options} if self.options else self.name

    def options_of(self, factory: Any) -> Any:
        """Return the validated options of the part's factory.

        Raises:
            ConfigError: for an unknown or invalid option.
        """
        try:
            return factory.Options.model_validate(self.options)
        except ValidationError as error:
            raise ConfigError(f"{self.name}: {error}") from error

    def check_options(self, parts: Registry, context: Any) -> None:
        """Check the part's options against what it will be built with; see `Options.check`."""
        with parts.blaming(self.name):
            self.options_of(parts.facts(self.name)).check(context)

    def build(self, parts: Registry, context: Any) -> Any:
        """Build the part: `factory(options, context)`."""
        with parts.blaming(self.name):
            options = self.options_of(parts.get(self.name))
        return parts.build(self.name, options, context)


MODELS = Registry(
    "models",
    "simflow_plugin.models.flow_options",
    "simflow_plugin.models.diffusion_options",
    "simflow_plugin.models.learned_inverse_options",
)
AUTOENCODERS = Registry("autoencoders", "simflow_plugin.autoencoders.kl_options")
POSTERIORS = Registry("posteriors", "simflow_plugin.posteriors.options")
ENCODERS = Registry("encoders", "simflow_plugin.alignment.options")
DATASETS = Registry("datasets", "simflow_plugin.data.options")
RECONSTRUCTION_LOSSES = Registry("reconstruction_losses", "simflow_plugin.losses.options")
GUIDANCE = Registry("guidance", "simflow_plugin.flow.guidance_options")
DIFFUSION_GUIDANCE = Registry("diffusion_guidance", "simflow_plugin.diffusion.options")
ATTENTION = Registry(
    "attention",
    "simflow_plugin.flow.attention.backend_choice",
    "simflow_plugin.flow.attention.sdpa",
    "simflow_plugin.flow.attention.xformers",
    takes_options=False,
)
JUDGES = Registry("judges", "simflow_plugin.evaluation.judge_options")
