"""Named registries of parts, discovery of third-party parts by entry points, and parts as a configuration has them.

A part is a class (or factory) under a short name. Built-in parts register themselves with a decorator in
their own file; other distributions declare an entry point in the group `simflow_plugin.<kind>`. Nothing is
imported before a name is asked for.

A factory is called as `factory(options, context)`, where `options` is an instance of `factory.Options` (a subclass
of `simflow_plugin.options.Options`) and `context` is what the harness knows: see `simflow_plugin.contracts`.
Attention backends have no options and are called as `factory(context)`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_serializer, model_validator

from simflow_plugin import plugins
from simflow_plugin.errors import ConfigError, RegistryError
from simflow_plugin.options import CONTRACT_VERSION, Options, did_you_mean

T = TypeVar("T")

OWN_DISTRIBUTION = "simflow-plugin"


class Registry:
    """Parts of one kind by name.

    Args:
        kind: for example `models`; the entry-point group is `simflow_plugin.<kind>`.
        package: the package (or module) whose files hold the built-in parts.
        takes_options: False for parts that are called as `factory(context)`.
    """

    def __init__(self, kind: str, package: str, takes_options: bool = True) -> None:
        self._takes_options = takes_options
        self.kind = kind
        self.group = f"simflow_plugin.{kind}"
        self._package = package
        self._builtin: dict[str, Any] = {}
        self._builtins_imported = False

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

    def names(self) -> list[str]:
        """Return all names, sorted. Imports the built-in parts and no third-party one."""
        self._import_builtins()
        return sorted({*self._builtin, *(entry.name for entry in plugins.entry_points(self.group))})

    def builtin_parts(self) -> dict[str, Any]:
        """Return the factories of the built-in parts by name, sorted; other distributions are not looked at."""
        self._import_builtins()
        return dict(sorted(self._builtin.items()))

    def get(self, name: str) -> Any:
        """Return the factory registered as `name`; a third-party part is imported now.

        Raises:
            RegistryError: if the name is unknown (with the nearest match and the known names), claimed by two
                distributions, if its entry point does not import, or if the part declares no `Options`, was written
                for another version of the contracts, or lacks a member that the harness reads.
        """
        self._import_builtins()
        claims = [entry for entry in plugins.entry_points(self.group) if entry.name == name]
        owners = [plugins.owner(entry) for entry in claims]
        if name in self._builtin:
            owners.insert(0, OWN_DISTRIBUTION)
        if len(owners) > 1:
            raise RegistryError(
                f"{self.kind}: `{name}` is declared by more than one distribution: {', '.join(owners)}. "
                f"Uninstall one of them, or ask its authors to rename their entry point in `{self.group}`."
            )
        if not owners:
            raise RegistryError(f"{self.kind}: unknown name `{name}`.{did_you_mean(name, self.names())}")
        if name in self._builtin:
            return self._builtin[name]
        with plugins.blaming(f"{self.kind}: entry point `{name}`", f"{owners[0]} ({claims[0].value})"):
            part = claims[0].load()
            if self._takes_options:
                self._check_options(name, part, owners[0])
        self._check_contract(name, owners[0], lambda: plugins.check_class(self.kind, part))
        return part

    @contextmanager
    def blaming(self, name: str) -> Iterator[None]:
        """Within the block, whatever a third-party part called `name` raises is a `RegistryError` that names it."""
        owners = [plugins.owner(entry) for entry in plugins.entry_points(self.group) if entry.name == name]
        if name in self._builtin or not owners:
            yield
            return
        with plugins.blaming(f"{self.kind}: `{name}`", owners[0]):
            yield

    def build(self, name: str, *arguments: Any) -> Any:
        """Build a part: `factory(*arguments)`.

        Raises:
            RegistryError: see `get`; or if a third-party part fails, or lacks what the harness reads of it.
        """
        factory = self.get(name)
        if name in self._builtin:
            return factory(*arguments)
        with self.blaming(name):
            part = factory(*arguments)
        owner = next(plugins.owner(entry) for entry in plugins.entry_points(self.group) if entry.name == name)
        self._check_contract(name, owner, lambda: plugins.check_instance(self.kind, part))
        return part

    def _check_contract(self, name: str, owner: str, check: Callable[[], None]) -> None:
        """Say whose part it is that a check refuses, or that breaks when it is looked at."""
        with plugins.blaming(f"{self.kind}: `{name}`", owner):
            try:
                check()
            except RegistryError as error:
                raise RegistryError(f"{self.kind}: `{name}` of distribution {owner}: {error}.") from error

    def _check_options(self, name: str, part: Any, owner: str) -> None:
        declared = getattr(part, "Options", None)
        if not (isinstance(declared, type) and issubclass(declared, Options)):
            raise RegistryError(
                f"{self.kind}: `{name}` ({_defined_as(part)}, distribution {owner}) declares no options: found "
                f"Options = {declared!r}. Add to it `class Options(simflow_plugin.options.Options)` with one field an "
                "option, or with `pass`."
            )
        if declared.contract_version not in (None, CONTRACT_VERSION):
            raise RegistryError(
                f"{self.kind}: `{name}` of distribution {owner} was written for version "
                f"{declared.contract_version} of simflow_plugin.contracts, and this is version {CONTRACT_VERSION}. "
                f"Install a release of {owner} for this one, or another simflow-plugin."
            )

    def _import_builtins(self) -> None:
        if self._builtins_imported:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
            importlib.import_module(f"{self._package}.{module.name}")
        self._builtins_imported = (
            True  # only now: a part that did not import fails again, under its own error
        )


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

    def build(self, parts: Registry, context: Any) -> Any:
        """Build the part: `factory(options, context)`."""
        with parts.blaming(self.name):
            options = self.options_of(parts.get(self.name))
        return parts.build(self.name, options, context)


MODELS = Registry("models", "simflow_plugin.models")
AUTOENCODERS = Registry("autoencoders", "simflow_plugin.autoencoders")
POSTERIORS = Registry("posteriors", "simflow_plugin.posteriors")
ENCODERS = Registry("encoders", "simflow_plugin.alignment")
DATASETS = Registry("datasets", "simflow_plugin.data")
RECONSTRUCTION_LOSSES = Registry("reconstruction_losses", "simflow_plugin.losses")
GUIDANCE = Registry("guidance", "simflow_plugin.flow.guidance")
DIFFUSION_GUIDANCE = Registry("diffusion_guidance", "simflow_plugin.diffusion.guidance")
ATTENTION = Registry("attention", "simflow_plugin.flow.attention", takes_options=False)
JUDGES = Registry("judges", "simflow_plugin.evaluation.judges")
