"""The structure script on a toy package whose rooms, circle and sizes are known."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "tools" / "structure.py"
FILES = {
    "__init__.py": "",
    "errors.py": "class Wrong(Exception): ...\n",
    "data/__init__.py": "",
    "data/reader.py": "from toy.errors import Wrong\n\n\ndef read(path, *, size, dtype): ...\n",
    "data/names.py": "from . import reader\n",
    "model/__init__.py": "",
    "model/net.py": (
        "from ..data import reader, names\n\n\nclass Net:\n    def forward(self, x):\n"
        '        """One.\n\n        Two.\n        """\n        x = x\n        return x\n'
    ),
    "run.py": "import toy.model.net\nimport os\n\n\ndef main():\n    from toy.cli import names\n",
    "cli/__init__.py": "",
    "cli/names.py": "from toy.run import main, other\nfrom toy.errors import Wrong\nfrom toy.model.net import Net\n",
}


@pytest.fixture
def structure(monkeypatch):
    specification = importlib.util.spec_from_file_location("structure_script", PATH)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "structure_script", module)  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def toy(tmp_path):
    folder = tmp_path / "toy"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_rooms_arrows_and_floors(structure, toy):
    arrows = structure.room_arrows(structure.module_arrows(structure.read_package(toy), "toy"))
    assert {room: dict(to) for room, to in arrows.items()} == {
        "data": {"errors": 1},
        "model": {"data": 2},
        "run": {"model": 1, "cli": 1},
        "cli": {"run": 2, "errors": 1, "model": 1},
    }
    ordered = structure.order_of(["cli", "data", "errors", "model", "run"], arrows)
    assert ordered == ["errors", "data", "model", "run", "cli"]
    assert structure.floors(ordered, arrows) == {"errors": 0, "data": 1, "model": 2, "run": 3, "cli": 4}
    assert structure.circles(arrows) == [{"run", "cli"}]
    assert structure.against(ordered, arrows) == {("run", "cli"): 1}


def test_importers_names_and_sizes(structure, toy):
    sources = structure.read_package(toy)
    single = structure.single_importers(structure.module_arrows(sources, "toy"), sources)
    assert single == ["cli.names", "data.names", "run"]
    assert structure.same_names(sources) == {"names.py": ["cli.names", "data.names"]}
    by_name = dict(structure.functions(sources))
    assert structure.length(by_name["model.net:forward"]) == 3
    assert structure.width(by_name["data.reader:read"]) == 3
    assert structure.width(by_name["model.net:forward"]) == 1


def test_report_counts_and_lists(structure, toy):
    report = structure.describe(toy, lists=True)
    assert "    cli, run\n" in report
    assert "    run -> cli (1)\n" in report
    counts = dict(
        line.rsplit(maxsplit=1) for line in report.splitlines() if line.startswith(("files", "circles"))
    )
    assert counts == {"files": "10", "circles of rooms": "1"}
