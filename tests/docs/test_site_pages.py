"""Pages of the site that are made from the code, and the code that hand-written pages show."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from simflow_plugin.config.reference import all_options
from simflow_plugin.options import Options

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def site_pages():
    specification = importlib.util.spec_from_file_location("site_pages", ROOT / "tools" / "site_pages.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_option_is_on_the_page(site_pages):
    page = site_pages.options_page().replace("<wbr>", "")
    assert not [o.key for o in all_options(third_party=False) if f"| <code>{o.key}</code> |" not in page]


def test_rows_of_the_pages_have_as_many_cells_as_their_heads(site_pages):
    for page, cells in ((site_pages.options_page(), 4), (site_pages.commands_page(), 3)):
        rows = [line for line in page.splitlines() if line.startswith("|")]
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {cells + 1}


def test_every_command_is_on_the_page(site_pages):
    from simflow_plugin.cli.app import app

    page = site_pages.commands_page()
    names = [command.name for command in app.registered_commands]
    assert not [
        name for name in [*names, "config show", "config explain"] if f"## simflow {name}\n" not in page
    ]


def test_sections_of_the_readme_have_the_links_of_docs(site_pages):
    readme = "## A\n[docs/data.md](docs/data.md), [`x.py`](simflow_plugin/x.py), [p](https://a.b)\n## B\nno\n"
    assert site_pages.readme_section(readme, "A") == "[data.md](data.md), `x.py`, [p](https://a.b)"
    with pytest.raises(ValueError, match="no section `C`"):
        site_pages.readme_section(readme, "C")


def test_every_section_that_a_page_asks_for_is_in_the_readme(site_pages):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    wanted = [
        name
        for page in (ROOT / "docs").glob("*.md")
        for name in site_pages.INCLUDED.findall(page.read_text())
    ]
    assert wanted
    assert all(site_pages.readme_section(readme, name) for name in wanted)


def test_sections_of_a_docstring_get_a_blank_line_before_them():
    pytest.importorskip("griffe", reason="griffe is not installed (extra `docs`)")
    specification = importlib.util.spec_from_file_location(
        "sections", ROOT / "tools" / "docstring_sections.py"
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    once = module.separated("One.\n\nArgs:\n    a: b.\nRaises:\n    C: if d.\nNo: e.")
    assert once == "One.\n\nArgs:\n    a: b.\n\nRaises:\n    C: if d.\nNo: e."
    assert module.separated(once) == once


def test_every_page_is_in_the_navigation():
    text = re.sub(r"!!python/\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = re.findall(r"[\w/]+\.md", str(yaml.safe_load(text)["nav"]))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= set(listed)


@pytest.mark.parametrize("page", ["own_loop.md", "plugins.md"])
def test_code_of_a_page_runs(page):
    blocks = BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert blocks
    for code in blocks:
        names = {}
        exec(compile(code, page, "exec"), names)
        classes = [
            value for value in names.values() if isinstance(value, type) and value.__module__ == "builtins"
        ]
        if page == "own_loop.md":
            assert names["encoder"].weight.grad.abs().sum() > 0
        for options in classes:
            assert issubclass(options, Options)
