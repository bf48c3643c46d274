"""Files that make an exported run a Space of the Hub: `app.py`, its requirements, the metadata, held-out scores."""

from __future__ import annotations

from pathlib import Path

from simflow_plugin.app.answers import weights_digest
from simflow_plugin.app.likelihood_reference import LikelihoodReference
from simflow_plugin.evaluation.request import has_density
from simflow_plugin.runs.exported import load_exported
from simflow_plugin.runs.loaded_run import LoadedRun

APP = "app.py"
APP_SOURCE = '''"""The page of this run; needs the package: pip install 'simflow-plugin[app]'."""

from pathlib import Path

from simflow_plugin.app.page import serve_folder

serve_folder(Path(__file__).parent)
'''
REQUIREMENTS = "simflow-plugin[app]\n"
METADATA = "sdk: gradio\napp_file: app.py\n"
HEAD = "---\n"


def add_space(loaded: LoadedRun, folder: Path) -> None:
    """Complete the folder of an exported run.

    Scores of held-out images are measured now, since a Space has no data of the run. They are kept for the weights as
    they were written, which are fewer than the run's: an export leaves the alignment head out.

    Raises:
        DataError: if the run's images are not at hand.
    """
    if has_density(loaded):
        written = weights_digest(load_exported(folder, "cpu", loaded.averaged))
        LikelihoodReference.measure(loaded, written).save(folder)
    (folder / APP).write_text(APP_SOURCE, encoding="utf-8")
    (folder / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8")
    card.write_text(HEAD + METADATA + text.removeprefix(HEAD), encoding="utf-8")
