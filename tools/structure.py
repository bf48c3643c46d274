"""Structure of a Python package, read from its syntax trees: rooms, imports between them, circles and sizes.

    python tools/structure.py simflow_plugin [--list]

A room is a file or a folder at the top of the package. An arrow leads from a room to one that it imports from, whether
at the top of a file or inside a function. A circle is a set of rooms that reach each other. Rooms are put in the order
in which the fewest import statements run against it, and those that do are counted: in a package without circles there
are none. Files `__init__.py` count as files, not as modules with an importer.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Arrows = dict[str, Counter[str]]
"""Importing name -> imported names with the number of import statements."""


@dataclass(frozen=True)
class Source:
    """One file: `module` is its dotted name below the package, '' for the package's `__init__.py`."""

    path: Path
    module: str
    tree: ast.Module
    num_lines: int

    @property
    def room(self) -> str:
        return self.module.partition(".")[0]


def read_package(folder: Path) -> list[Source]:
    """Read and parse every `.py` file below `folder`."""
    sources = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        sources.append(Source(path, module, ast.parse(text, str(path)), len(text.splitlines())))
    return sources


def imported_modules(source: Source, package: str, known: set[str]) -> Iterator[str]:
    """Yield the modules of the package that a file imports, once per imported name."""
    is_init = source.path.name == "__init__.py"
    here = [package, *source.module.split(".")] if source.module else [package]
    for node in ast.walk(source.tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = node.level - is_init
            base = here[: len(here) - up] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{origin}.{alias.name}" for alias in node.names]
        for name in names:
            below = name.removeprefix(f"{package}.") if name.startswith(f"{package}.") else None
            while below is not None and below not in known:
                below = below.rpartition(".")[0] if "." in below else ("" if below else None)
            if below is not None and below != source.module:
                yield below


def module_arrows(sources: Iterable[Source], package: str) -> Arrows:
    """Return which module imports which."""
    sources = list(sources)
    known = {source.module for source in sources}
    return {source.module: Counter(imported_modules(source, package, known)) for source in sources}


def room_arrows(arrows: Arrows) -> Arrows:
    """Return which room imports from which other; the package's own `__init__.py` is no room."""
    rooms: Arrows = defaultdict(Counter)
    for module, imported in arrows.items():
        room = module.partition(".")[0]
        for other, count in imported.items():
            target = other.partition(".")[0]
            if room and target and target != room:
                rooms[room][target] += count
    return rooms


def circles(arrows: Arrows) -> list[set[str]]:
    """Return the sets of two or more names that reach each other."""
    reached = {name: _reachable(name, arrows) for name in arrows}
    found: list[set[str]] = []
    for name, others in reached.items():
        circle = {other for other in others if name in reached.get(other, set())} | {name}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def _reachable(name: str, arrows: Arrows) -> set[str]:
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        for other in arrows.get(waiting.pop(), ()):
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return seen


def order_of(names: Iterable[str], arrows: Arrows) -> list[str]:
    """Return the names, importers after what they import, as far as circles allow.

    Where none is free of imports from the remaining ones, the next is the one with the fewest in excess of those that
    lead to it: the heuristic of Eades, Lin and Smyth, 1993.
    """
    remaining = set(names)
    ordered: list[str] = []
    while remaining:

        def excess(name: str) -> tuple[bool, int, str]:
            out = sum(count for other, count in arrows.get(name, Counter()).items() if other in remaining)
            into = sum(arrows.get(other, Counter())[name] for other in remaining)
            return out > 0, out - into, name

        ordered.append(min(remaining, key=excess))
        remaining.remove(ordered[-1])
    return ordered


def against(ordered: list[str], arrows: Arrows) -> dict[tuple[str, str], int]:
    """Return the arrows that lead to a later name of the order, with their import statements."""
    place = {name: number for number, name in enumerate(ordered)}
    return {
        (name, other): count
        for name in ordered
        for other, count in arrows.get(name, Counter()).items()
        if place[other] > place[name]
    }


def floors(ordered: list[str], arrows: Arrows) -> dict[str, int]:
    """Return for each room the longest chain of imports below it, arrows against the order left out."""
    floor: dict[str, int] = {}
    for name in ordered:
        below = [floor[other] for other in arrows.get(name, ()) if other in floor]
        floor[name] = 1 + max(below, default=-1)
    return floor


def single_importers(arrows: Arrows, sources: Iterable[Source]) -> list[str]:
    """Return the modules that one other module of the package imports."""
    importers: dict[str, set[str]] = defaultdict(set)
    for module, imported in arrows.items():
        for other in imported:
            importers[other].add(module)
    plain = {source.module for source in sources if source.path.name != "__init__.py"}
    return sorted(module for module, others in importers.items() if len(others) == 1 and module in plain)


def same_names(sources: Iterable[Source]) -> dict[str, list[str]]:
    """Return the file names (not `__init__.py`) that several modules share."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        if source.path.name != "__init__.py":
            by_name[source.path.name].append(source.module)
    return {name: modules for name, modules in sorted(by_name.items()) if len(modules) > 1}


def functions(sources: Iterable[Source]) -> Iterator[tuple[str, Function]]:
    """Yield each function and method with `<module>:<name>`."""
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, Function):
                yield f"{source.module}:{node.name}", node


def length(function: Function) -> int:
    """Return the lines of a function from `def` to its end, without its docstring."""
    assert function.end_lineno is not None
    first = function.body[0]
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = 0
    if is_text and isinstance(first.value.value, str) and first.end_lineno is not None:
        docstring = first.end_lineno - first.lineno + 1
    return function.end_lineno - function.lineno + 1 - docstring


def width(function: Function) -> int:
    """Return the number of arguments, `self` and `cls` left out."""
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    return len(names) - (names[:1] in (["self"], ["cls"])) + len(given.kwonlyargs)


def describe(folder: Path, lists: bool = False) -> str:
    """Return the report on a package, one fact a line.

    Args:
        folder: of the package; its name is the package's.
        lists: also name what is counted.
    """
    sources = read_package(folder)
    arrows = module_arrows(sources, folder.name)
    rooms = room_arrows(arrows)
    names = {source.room for source in sources if source.room}
    ordered = order_of(names, rooms)
    up = against(ordered, rooms)
    floor = floors(ordered, rooms)
    single, same = single_importers(arrows, sources), same_names(sources)
    longest = max(functions(sources), key=lambda found: length(found[1]), default=None)
    widest = max(functions(sources), key=lambda found: width(found[1]), default=None)
    found = circles(rooms)
    facts: list[tuple[str, object, Iterable[str]]] = [
        ("rooms", len(names), ()),
        ("floors", 1 + max(floor.values(), default=-1), _by_floor(floor)),
        ("arrows between rooms", sum(map(len, rooms.values())), ()),
        ("circles of rooms", len(found), (", ".join(sorted(circle)) for circle in found)),
        ("arrows against the order", len(up), (f"{a} -> {b} ({n})" for (a, b), n in up.items())),
        ("files", len(sources), ()),
        ("lines", sum(source.num_lines for source in sources), ()),
        ("modules with one importer", len(single), single),
        ("file names used twice", len(same), (f"{name}: {', '.join(at)}" for name, at in same.items())),
    ]
    if longest is not None and widest is not None:
        facts.append(("longest function, lines", f"{length(longest[1])} {longest[0]}", ()))
        facts.append(("widest signature, arguments", f"{width(widest[1])} {widest[0]}", ()))
    rows = []
    for name, value, items in facts:
        rows.append(f"{name:28} {value}")
        rows += [f"    {item}" for item in items] if lists else []
    return "\n".join(rows)


def _by_floor(floor: dict[str, int]) -> Iterator[str]:
    for level in sorted(set(floor.values())):
        yield f"{level:2} {', '.join(sorted(name for name in floor if floor[name] == level))}"


def main() -> None:
    """Print the report of the package that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", type=Path, help="folder of the package")
    parser.add_argument("--list", action="store_true", help="name what is counted")
    options = parser.parse_args()
    print(describe(options.package, options.list))


if __name__ == "__main__":
    main()
