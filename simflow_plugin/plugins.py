"""Code of other distributions: found by entry points, checked against the contracts, named when it fails.

Whatever such code does when it is imported, inspected or called, also leaving by `sys.exit`, becomes one
`RegistryError` that names its distribution; the parts of others are unharmed.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any, NamedTuple

from simflow_plugin.errors import RegistryError, SimflowError
from simflow_plugin.options import CONTRACT_VERSION, Options, is_subclass

log = logging.getLogger(__name__)

GROUPS = "simflow_plugin."
"""Prefix of the groups of entry points."""


class Member(NamedTuple):
    """A member that the harness reads of a part: `holds` says whether a value is one, `expected` says it in words."""

    holds: Callable[[Any], bool]
    expected: str


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


FUNCTION = Member(callable, "a method")
FLAG = Member(lambda value: isinstance(value, bool), "True or False")
COUNT = Member(_is_count, "a positive integer")
COUNT_OR_NONE = Member(lambda value: value is None or _is_count(value), "a positive integer, or None")
NAMES = Member(
    lambda value: isinstance(value, (set, frozenset, tuple, list)) and all(isinstance(v, str) for v in value),
    "a set of names",
)
NAME_OR_NONE = Member(lambda value: value is None or isinstance(value, str), "a name, or None")
NAMES_OR_NONE = Member(lambda value: value is None or NAMES.holds(value), "a list of names, or None")

OF_CLASSES: dict[str, dict[str, Member]] = {
    "models": {
        "coupled_terms": NAMES,
        "supports_alignment": FLAG,
        "training_losses": FUNCTION,
        "sample": FUNCTION,
    },
    "autoencoders": dict.fromkeys(
        ("geometry", "trained_part", "learns_variance", "shape_options", "encode", "decode"), FUNCTION
    ),
    "encoders": {"encode": FUNCTION},
    "datasets": dict.fromkeys(("__len__", "__getitem__"), FUNCTION),
    "judges": {"data": NAME_OR_NONE, "num_classes": COUNT_OR_NONE, "check_files": FUNCTION},
}
"""By kind of part, what the harness reads of the factory itself."""

OF_INSTANCES: dict[str, dict[str, Member]] = {
    "autoencoders": {"factor": COUNT, "latent_channels": COUNT},
    "encoders": {"feature_dim": COUNT},
    "datasets": {"num_classes": COUNT_OR_NONE, "class_names": NAMES_OR_NONE},
}
"""By kind of part, what it reads of a part that was built."""


def entry_points(group: str) -> list[metadata.EntryPoint]:
    """Return the entry points of a group; a distribution whose own list cannot be read is named in the log.

    Only lists that mention this package are parsed. A distribution that is found twice (an editable install and its
    source folder) counts once.
    """
    found: dict[tuple[str, str, str], metadata.EntryPoint] = {}
    for distribution in metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt")
            entries = list(distribution.entry_points) if text is not None and GROUPS in text else []
        except Exception as error:
            log.warning(
                "%s: its entry_points.txt cannot be read (%s); its parts are not known",
                _name(distribution),
                describe(error),
            )
            continue
        for entry in entries:
            if entry.group == group:
                found.setdefault((entry.name, entry.value, owner(entry)), entry)
    return list(found.values())


def owner(entry: metadata.EntryPoint) -> str:
    """Return the name of the distribution that declares an entry point."""
    return _name(entry.dist) if entry.dist is not None else "an unknown distribution"


def _name(distribution: metadata.Distribution) -> str:
    try:
        return distribution.metadata["Name"] or str(getattr(distribution, "_path", "a nameless distribution"))
    except Exception:
        return str(getattr(distribution, "_path", "a nameless distribution"))


@contextmanager
def blaming(part: str, distribution: str) -> Iterator[None]:
    """Within the block, whatever the code of a distribution raises becomes a `RegistryError` that names it.

    Args:
        part: for example "models: entry point `mine`".
        distribution: its name, and perhaps what it declares.
    """
    try:
        yield
    except (
        BaseException
    ) as error:  # also SystemExit and KeyboardInterrupt: sys.exit(0) would look like success
        if isinstance(error, SimflowError) and _message(error) is not None:
            raise
        raise RegistryError(
            f"{part} of distribution {distribution} failed: {describe(error)}. Mend or uninstall that distribution."
        ) from error


def check_class(kind: str, part: Any, distribution: str, takes_options: bool = True) -> None:
    """Refuse a factory without what the harness reads of it, or that was written for another version of the contracts.

    Raises:
        RegistryError: naming the member, what was found and what is expected.
    """
    if not callable(part):
        raise RegistryError(f"{part!r:.200} is no class or function")
    declared: Any = getattr(part, "Options", None)
    if takes_options and not is_subclass(declared, Options):
        raise RegistryError(
            f"it declares no options: found Options = {declared!r:.200}. Add `class Options("
            "simflow_plugin.options.Options)` to it, with one field an option, or with `pass`"
        )
    if takes_options and declared.contract_version not in (None, CONTRACT_VERSION):
        raise RegistryError(
            f"it was written for version {declared.contract_version} of simflow_plugin.contracts, and this is version "
            f"{CONTRACT_VERSION}. Install a release of {distribution} for this one, or another simflow-plugin"
        )
    missing = sorted(getattr(part, "__abstractmethods__", ()))
    if missing:
        raise RegistryError(f"it lacks {', '.join(missing)}, see simflow_plugin.contracts")
    _check_members(OF_CLASSES.get(kind, {}), part)


def check_instance(kind: str, part: Any) -> None:
    """Refuse a part that was built without what the harness reads of it.

    Raises:
        RegistryError: likewise.
    """
    _check_members(OF_INSTANCES.get(kind, {}), part)


def _check_members(members: dict[str, Member], part: Any) -> None:
    for name, member in members.items():
        if not hasattr(part, name):
            raise RegistryError(
                f"it has no `{name}`: expected {member.expected}, see simflow_plugin.contracts"
            )
        value = getattr(part, name)
        if not member.holds(value):
            raise RegistryError(
                f"its `{name}` is {value!r:.200}: expected {member.expected}, see simflow_plugin.contracts"
            )


def describe(error: BaseException) -> str:
    """Return kind, message and place of an error, even where its message cannot be made."""
    message = _message(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return (
        f"{type(error).__name__}: {'(its message cannot be printed)' if message is None else message}{place}"
    )


def _message(error: BaseException) -> str | None:
    try:
        return str(error)
    except BaseException:
        return None
