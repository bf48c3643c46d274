"""The notebook runs from top to bottom; skipped without nbclient. SIMFLOW_NOTEBOOK_STEPS: training steps."""

import ast
import importlib
import json
import os
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "digits.ipynb"


def test_no_output_is_committed():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if "outputs" in cell)


def test_every_import_is_there():
    """Also where nbclient is not installed to run the cells."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    imported = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert imported
    for node in imported:
        module = importlib.import_module(node.module)
        assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


def test_every_cell_runs(monkeypatch, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    monkeypatch.setenv("SIMFLOW_NOTEBOOK_STEPS", os.environ.get("SIMFLOW_NOTEBOOK_STEPS", "2"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [one for one in outputs if "image/png" in one.get("data", {})]
    text = "".join(one.get("text", "") for one in outputs)
    assert len(pictures) == 2
    assert text.count("bits per dimension") == 2
    assert "the likeliest class is the right one" in text
