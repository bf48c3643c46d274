"""State dicts in files: read without running code, compared with the network they are for, loaded strictly.

    tensors = read_tensors(path)
    load_strictly(network, tensors, str(path), "Check the option `depth`, or name another file.")

Every tensor of the network must be in the file, in its shape, of floating point where the network's is, and finite; the
file may hold no other. What DistributedDataParallel, torch.compile, FSDP and checkpoint wrappers add to names is taken
off on both sides. Errors name the file and the tensors, and for an unknown name the nearest one that is missing.
"""

from __future__ import annotations

import difflib
import pickle
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from simflow_plugin.errors import SimflowError, WeightsError

WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
UNREADABLE = (
    *(SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, OSError),
    *(LookupError, AttributeError, TypeError),  # what the unpickler stumbles over in a file that is no pickle
)


def read_tensors(
    path: Path, sections: Iterable[str] = (), numbers: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return all tensors of a `.safetensors`, `.pt`, `.pth`, `.ckpt` or `.bin` file, without wrappers in their names.

    Args:
        path: of the file. Nothing is unpickled but tensors and plain containers; nested names are joined by dots.
        sections: keys at the top of the file; of the first that is there, only what is below it is returned.
        numbers: keys whose plain numbers are returned as well, as float32 scalars.
    Raises:
        WeightsError: if there is no such file, it is torn, or it holds objects other than tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds more than tensors{_refused_class(error)}, or is torn. Python objects are not "
            "loaded from checkpoints; save the state dict alone, as safetensors"
        ) from error
    except UNREADABLE as error:
        raise WeightsError(
            f"{path}: cannot be read, perhaps torn: {_first_line(error)}; fetch it again"
        ) from error
    if isinstance(content, Mapping):
        content = next((content[key] for key in sections if content.get(key) is not None), content)
    try:
        tensors = dict(_flatten("", content, numbers))
    except RecursionError:
        raise WeightsError(f"{path}: is nested too deep to be a state dict, or holds itself") from None
    return without_wrappers(tensors, str(path))


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file.

    Raises:
        WeightsError: if there is no such file, or it is not one.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file: {error}") from error


def without_wrappers(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Take off what wrappers add to names, wherever in the name it stands.

    Raises:
        WeightsError: if two names become one.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = WRAPPERS.sub("", name)
        if short in plain:
            raise WeightsError(f"{source}: holds `{short}` twice, with and without a wrapper in its name")
        plain[short] = tensor
    return plain


def fitted_state(
    expected: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    source: str,
    remedy: str = "",
    error: type[SimflowError] = WeightsError,
) -> dict[str, Tensor]:
    """Return `tensors` by the names of `expected`, after comparing the two.

    Args:
        expected: of the network: its names, shapes and types count, not its values.
        tensors: found, on any device.
        source: the file, for messages.
        remedy: what to do about a difference; ends the message.
        error: raised in place of `WeightsError`.
    Raises:
        WeightsError: if names or shapes differ, or a tensor is not finite, or holds integers for weights.
    """
    names = {WRAPPERS.sub("", name): name for name in expected}
    found = {name if name in expected else names.get(name, name): tensor for name, tensor in tensors.items()}
    if any(WRAPPERS.search(name) for name in found.keys() - expected.keys()):
        plain = without_wrappers(tensors, source)
        found = {names.get(name, name): tensor for name, tensor in plain.items()}
    problems, broken = list(_differences(expected, found)), not_finite(found)
    if problems or broken:
        kind = "of another architecture" if problems else "of a network that diverged"
        if broken:
            problems.append(f"{len(broken)} not finite (NaN or infinite): {listed(broken)}")
        raise error(
            f"{source}: weights {kind}, or torn: of {len(expected)} tensors {'; '.join(problems)}."
            f"{f' {remedy}' if remedy else ''}"
        )
    return found


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that hold NaN or infinity."""
    return [name for name, tensor in tensors.items() if not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.float()  # torch does not ask float8 itself
    return bool(tensor.isfinite().all())


def load_strictly(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    remedy: str = "Check the options that shape the network against the file, or name another file.",
) -> None:
    """Copy `tensors` into `module`, every tensor of both or none; see `fitted_state`.

    Raises:
        WeightsError: naming the file and what differs.
    """
    module.load_state_dict(fitted_state(module.state_dict(), tensors, source, remedy))


def listed(names: Iterable[str], limit: int = 4) -> str:
    """Return the first names, separated by commas."""
    first = list(names)
    rest = f", ... ({len(first)})" if len(first) > limit else ""
    return ", ".join(first[:limit]) + rest if first else "(none)"


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterable[str]:
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shared = [name for name in expected if name in found]
    misshapen = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in shared
        if found[name].shape != expected[name].shape
    ]
    mistyped = [
        f"{name} {_type(found[name])} instead of {_type(expected[name])}"
        for name in shared
        if expected[name].is_floating_point() and not found[name].is_floating_point()
    ]
    if missing:
        yield f"{len(missing)} missing: {listed(missing)}"
    if unexpected:
        yield f"{len(unexpected)} unexpected: {listed(unexpected)}{_nearest(unexpected[0], missing)}"
    if misshapen:
        yield f"{len(misshapen)} of another shape: {listed(misshapen)}"
    if mistyped:
        yield f"{len(mistyped)} of another type: {listed(mistyped)}"


def _nearest(name: str, missing: list[str]) -> str:
    close = difflib.get_close_matches(name, missing, n=1)
    return f" (nearest to {name}: {close[0]})" if close else ""


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _flatten(prefix: str, content: Any, numbers: Collection[str]) -> Iterable[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _flatten(f"{prefix}.{name}" if prefix else str(name), value, numbers)
    elif isinstance(content, int | float) and prefix.rpartition(".")[2] in numbers:
        yield prefix, torch.tensor(float(content))


def _refused_class(error: Exception) -> str:
    """Return ` (name of the class)` of what torch refused to unpickle, if its message names it."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" ({found[1]})" if found else ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
