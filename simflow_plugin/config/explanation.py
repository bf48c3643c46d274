"""What `simflow config explain` prints: an option found by its key, or the keys nearest to a wrong one."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from simflow_plugin.config.reference import Option, all_options, section_summaries
from simflow_plugin.errors import ConfigError

NUM_NEAREST = 3
WIDTH = 110
LABEL = 10
"""Columns of the words `type`, `default`, ..."""
LONGEST_DEFAULT = 60
ONE_WORD = 0.9
"""Likeness of a last name that is one word of the other, as `lr` of `autoencoder_lr`."""
Key = tuple[str, ...]


def explain(key: str | None = None) -> str:
    """Explain an option, a section or a part; the log names parts that do not load and may have options of their own.

    Args:
        key: dotted, as `--set` takes it; `model.flow.width` means that option of every model that has it,
            `model.simflow.flow.width` that of one, `model.simflow` the model. None lists the sections.
    Raises:
        ConfigError: if there is no such key; the message names the nearest ones.
    """
    if key is None:
        return "\n".join(_sections())
    keys = tuple(key.strip().split("."))
    known = list(all_options(keys[0])) if keys[0] in section_summaries() else []
    blocks = _blocks(known, keys)
    if not blocks:
        everything = [option.key for option in all_options()]
        near = ", ".join(f"`{name}`" for name in nearest(key.strip(), everything))
        raise ConfigError(
            f"{key}: no such key. Nearest: {near}. `simflow config explain` lists the sections."
        )
    return "\n\n".join("\n".join(block) for block in blocks)


def nearest(key: str, known: Iterable[str]) -> list[str]:
    """Return the known keys that are most like a wrong one, as a whole and in their last name, best first."""
    wanted = key.lower()
    last = wanted.rpartition(".")[2]

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, wanted, candidate).ratio()
        end = difflib.SequenceMatcher(None, last, candidate.rpartition(".")[2]).ratio()
        if last in candidate.rpartition(".")[2].split("_"):
            end = max(end, ONE_WORD)
        # A last name alone, as `lr`, says nothing of the sections before it.
        return (whole + end) / 2 if "." in wanted else max(whole, end) + whole / 10

    return sorted(dict.fromkeys(known), key=likeness, reverse=True)[:NUM_NEAREST]


def merged(options: Iterable[Option]) -> list[tuple[Option, dict[str, list[str]]]]:
    """Put options together that differ only in the parts they belong to.

    Returns:
        The first of each, with the parts that have it: key of the part -> names.
    """
    groups: dict[tuple[object, ...], tuple[Option, dict[str, list[str]]]] = {}
    for option in options:
        same = (
            option.key,
            option.type,
            option.range,
            tuple(option.choices),
            option.default,
            option.description,
        )
        _, parts = groups.setdefault(same, (option, {}))
        for key, name in option.of:
            names = parts.setdefault(key, [])
            if name not in names:
                names.append(name)
    return list(groups.values())


def parts_in_words(parts: dict[str, list[str]]) -> str:
    """Return `model: simflow, starflow; model.sampling.guidance_rule: linear`."""
    return "; ".join(f"{key}: {', '.join(names)}" for key, names in parts.items())


def _blocks(known: Sequence[Option], keys: Key) -> list[list[str]]:
    """Return the lines about each option that a key means, or about the part that it ends in."""
    found = [option for option in known if option.answers_to(keys)]
    if found:
        return [list(_about_option(option, of, known)) for option, of in merged(found)]
    parts = {
        (option.key, option.choices[keys[-1]])
        for option in known
        if keys[-1] in option.choices and option.takes_parts and _holds(option, keys[:-1])
    }
    if parts:
        return [list(_about_part(key, keys[-1], summary, known)) for key, summary in sorted(parts)]
    of_part = keys[-1] == "name" and any(o.takes_parts and o.answers_to(keys[:-1]) for o in known)
    return _blocks(known, keys[:-1]) if of_part else []


def _holds(option: Option, keys: Key) -> bool:
    """Return whether a key means this option, or what holds it where it is a `kind`."""
    return option.answers_to(keys) or option.answers_to((*keys, "kind"))


def _about_option(option: Option, of: dict[str, list[str]], known: Sequence[Option]) -> Iterator[str]:
    below = [one for one in known if one.is_directly_below(option.way)]
    yield option.key
    if option.description:
        yield from textwrap.wrap(option.description, WIDTH, initial_indent="  ", subsequent_indent="  ")
    yield from _filled("type", option.type)
    if option.range:
        yield from _filled("range", option.range)
    yield from _choices(option)
    if not below or len(option.default) <= LONGEST_DEFAULT:
        yield from _filled("default", option.default)
    if of:
        yield from _filled("with", parts_in_words(of))
    yield from _keys(below, option)


def _about_part(key: str, name: str, summary: str, known: Sequence[Option]) -> Iterator[str]:
    place = key.removesuffix(".kind")
    yield f"{key}: {name}"
    if summary:
        yield from textwrap.wrap(summary, WIDTH, initial_indent="  ", subsequent_indent="  ")
    inside = [one for one in known if one.of and one.of[-1] == (place, name)]
    shallowest = min((one.depth for one in inside), default=0)
    below = [one for one in inside if one.depth == shallowest]
    if below:
        yield from _keys(below, below[0])
    else:
        yield "  no options"


def _choices(option: Option) -> Iterator[str]:
    if not any(option.choices.values()):
        yield from _filled("choices", ", ".join(option.choices)) if option.choices else ()
        return
    column = max(map(len, option.choices)) + 2
    for number, (name, summary) in enumerate(option.choices.items()):
        label = f"{'' if number else 'choices':<{LABEL}}{name}"
        yield from _filled(label, summary, LABEL + column)


def _keys(below: Sequence[Option], above: Option) -> Iterator[str]:
    """Yield a line for each key: the key, its default, the parts that have it beside those `above` is in."""
    if not below:
        return
    yield "  keys"
    rows = merged(below)
    column = max(len(one.key) for one, _ in rows) + 2
    for one, of in rows:
        default = one.default if len(one.default) <= LONGEST_DEFAULT else "..."
        inside = parts_in_words({key: names for key, names in of.items() if key not in dict(above.of)})
        yield f"    {one.key:<{column}}{default}{f'   ({inside})' if inside else ''}"


def _sections() -> Iterator[str]:
    yield "`simflow config explain KEY` explains one of these, or a key below it such as training.steps"
    yield ""
    for name, summary in section_summaries().items():
        yield from _filled(name, summary, column=16)


def _filled(label: str, text: str, column: int = LABEL) -> list[str]:
    start = f"  {label:<{column}}"
    lines = textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start))
    return lines or [start.rstrip()]
