"""Pages of the documentation site that are made from the code: a hook of mkdocs (mkdocs.yml).

`reference/options.md` comes from where the options are declared, as `simflow config explain` does;
`reference/commands.md` from the command line itself; the notebook's page from the notebook. A comment
`<!-- README: Title -->` in a page is replaced by that section of the README, which so has one text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "notebooks/digits"
OPTIONS_BEGIN, OPTIONS_END = '<div class="options" markdown>', "</div>"
LONGEST_DEFAULT = 60
INCLUDED = re.compile(r"^<!-- README: (.+) -->$", re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    notebook = (Path(config.docs_dir) / f"{NOTEBOOK}.ipynb").read_text(encoding="utf-8")
    pages = {
        "reference/options.md": options_page(),
        "reference/commands.md": commands_page(),
        f"{NOTEBOOK}.md": notebook_page(json.loads(notebook)),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put sections of the README where a page asks for them."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return INCLUDED.sub(lambda found: readme_section(readme, found[1]), markdown)


def readme_section(readme: str, title: str) -> str:
    """Return the text below a heading of the README, with links as they are seen from docs/.

    Raises:
        ValueError: if there is no such heading.
    """
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"README.md has no section `{title}`")
    return LINK.sub(_seen_from_docs, found[1]).strip()


def _seen_from_docs(link: re.Match[str]) -> str:
    mark, text, target = link.groups()
    if "://" in target:
        return link[0]
    if target.startswith("docs/"):
        return f"{mark}[{text.removeprefix('docs/')}]({target.removeprefix('docs/')})"
    return text  # a source file, which is no page


def options_page() -> str:
    """Return the page of every option of a configuration."""
    from simflow_plugin.config.reference import all_options, section_summaries

    lines = [
        "# Options of a configuration",
        "",
        "Read from where each option is declared; `simflow config explain KEY` says the same, with the parts of other "
        "packages. A key is written as `--set` takes it.",
    ]
    options = list(all_options(third_party=False))
    of_section = {name: [one for one in options if one.way[0].name == name] for name in section_summaries()}
    alone = [name for name, own in of_section.items() if len(own) == 1]
    lines += _table_of_options("The run itself", "", [of_section[name][0] for name in alone])
    for section, summary in section_summaries().items():
        if section not in alone:
            lines += _table_of_options(section, summary, of_section[section])
    return "\n".join(lines) + "\n"


def _table_of_options(title: str, summary: str, options: list[Any]) -> list[str]:
    from simflow_plugin.config.explanation import merged, parts_in_words

    rows = []
    for option, parts in merged(options):
        allowed = ", ".join(filter(None, [option.type, option.range]))
        if option.choices:
            allowed += f": {', '.join(f'`{name}`' for name in option.choices)}"
        meaning = option.description + (f". For {parts_in_words(parts)}." if parts else "")
        default = option.default if len(option.default) < LONGEST_DEFAULT else "see the keys below"
        cells = (_key(option.key), _cell(allowed), _code(default), _cell(meaning.replace("..", ".")))
        rows.append(f"| {' | '.join(cells)} |")
    head = ["| key | type | default | meaning |", "|---|---|---|---|"]
    return ["", f"## {title}", "", _cell(summary), "", OPTIONS_BEGIN, "", *head, *rows, "", OPTIONS_END]


def commands_page() -> str:
    """Return the page of every command with its arguments and options."""
    import typer

    from simflow_plugin.cli.app import app

    lines = ["# Options of the commands", "", "What `simflow COMMAND --help` prints."]
    for name, command in _commands(typer.main.get_command(app), "simflow"):
        lines += ["", f"## {name}", "", command.help or ""]
        rows = [
            _parameter(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)
        ]
        if rows:
            head = ["| argument or option | default | meaning |", "|---|---|---|"]
            lines += ["", OPTIONS_BEGIN, "", *head, *rows, "", OPTIONS_END]
    return "\n".join(lines) + "\n"


def _commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    for child, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{name} {child}")
        else:
            yield f"{name} {child}", command


def _parameter(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    if not is_option:
        names = f"`{parameter.name.upper()}`"
    default = "(required)" if parameter.required else parameter.default
    shown = "" if default in (None, False, ()) or callable(default) else str(default)
    meaning = getattr(parameter, "help", None) or ""
    if is_option and "|" in (parameter.metavar or ""):
        meaning += f" One of {parameter.metavar.replace('|', ', ')}."
    return f"| {names} | {_code(shown)} | {_cell(meaning)} |"


def notebook_page(notebook: dict[str, Any]) -> str:
    """Return a notebook's cells as Markdown, without outputs."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    parts.append("Run it: [digits.ipynb](digits.ipynb).")
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    """Return text for a cell of a table, or a line: nothing in it is markup but code."""
    escaped = text.replace("|", "\\|").replace("<", "&lt;")
    return re.sub(r"(?<![`\w])\*|_(?=\w*\b_)", lambda found: f"\\{found[0]}", escaped)


def _key(key: str) -> str:
    """Return a key that may be broken after its dots."""
    return f"<code>{key.replace('.', '.<wbr>')}</code>"


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""
