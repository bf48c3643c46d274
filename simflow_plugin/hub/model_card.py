"""The model card of an exported run: README.md with the metadata that the Hub reads."""

from __future__ import annotations

import math
from typing import Any

import yaml

from simflow_plugin import __version__
from simflow_plugin.evaluation.report.metric_names import metric_name
from simflow_plugin.runs.environment import read_environments
from simflow_plugin.runs.exported import without_local_folders
from simflow_plugin.runs.loaded_run import LoadedRun

PAPER = "arXiv:2512.04084"
NAME_IN_EXAMPLES = "FOLDER_OR_HUB_NAME"
MOST_CLASSES = 20
TASK = "unconditional-image-generation"  # the Hub's name for models that take no text


def model_card(loaded: LoadedRun, summary: dict[str, Any], licence: str | None, has_picture: bool) -> str:
    """Return the text of README.md.

    Args:
        loaded: the run.
        summary: content of its summary.json; {} where nothing was measured.
        licence: identifier of the Hub (`apache-2.0`, ...); None leaves the field to the owner.
        has_picture: whether `samples.png` lies beside it.
    """
    config = loaded.config
    name = config.model.name if config.model is not None else "autoencoder"
    head: dict[str, Any] = {"library_name": "simflow-plugin", "pipeline_tag": TASK}
    head["tags"] = ["simflow-plugin", name, *(["diffusers"] if config.model is not None else [])]
    if licence is not None:
        head["license"] = licence
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {config.name}",
        _what(loaded, name),
        *(["![Samples: the first ones of each class, not chosen](samples.png)"] if has_picture else []),
        _data(loaded),
        _training(loaded, summary),
        _metrics(summary),
        _loading(loaded),
        _licence(licence),
    ]
    return "\n\n".join(sections) + "\n"


def _what(loaded: LoadedRun, name: str) -> str:
    size, shape = loaded.config.image_size, loaded.autoencoder.latent_shape(loaded.config.image_size)
    kind = (
        "An autoencoder"
        if loaded.model is None
        else f"A latent generative model (`{name}`) with its autoencoder"
    )
    return (
        f"{kind} for images of {size} x {size} pixels, with latents of {shape[0]} x {shape[1]} x {shape[2]}, trained "
        f"with simflow-plugin (SimFlow, {PAPER}). The weights are the {loaded.weights_name} ones of step "
        f"{loaded.checkpoint.step:,}."
    )


def _data(loaded: LoadedRun) -> str:
    data, state = loaded.config.data, loaded.checkpoint.state
    options = ", ".join(
        f"{key}: {value}" for key, value in without_local_folders(data.options).items() if value is not None
    )
    lines = ["## Data", f"`{data.name}`{f' ({options})' if options else ''}."]
    if state.get("num_images") is not None:
        lines.append(f"{state['num_images']:,} training images.")
    names = loaded.class_names
    if loaded.num_classes is None:
        lines.append("No classes.")
    elif names is not None:
        more = "" if len(names) <= MOST_CLASSES else ", ... (all in `config.json`)"
        lines.append(f"{len(names)} classes: {', '.join(names[:MOST_CLASSES])}{more}.")
    return f"{lines[0]}\n\n{' '.join(lines[1:])}"


def _training(loaded: LoadedRun, summary: dict[str, Any]) -> str:
    training, state = loaded.config.training, loaded.checkpoint.state
    facts = [
        f"{loaded.checkpoint.step:,} steps of {training.batch_size} images, precision {training.precision}"
    ]
    if "seconds" in state:
        facts.append(f"{float(state['seconds']):,.0f} s")
    if summary.get("parameters"):
        facts.append(
            ", ".join(f"{part} {count:,} parameters" for part, count in summary["parameters"].items())
        )
    records = read_environments(loaded.directory.environment_file)
    if records:
        last = records[-1]
        commit = last.get("commit")
        version = f"simflow-plugin {last['simflow_plugin']}"
        if commit:
            version += f" at commit {commit['id'][:12]}{' with changes' if commit['changed'] else ''}"
        torch_version = last.get("libraries", {}).get("torch", "?")
        facts.append(f"{version}, torch {torch_version}, on {', '.join(last.get('devices', []))}")
    text = "; ".join(facts)
    return (
        f"## Training\n\n{text}. Every option is in `config.yaml`. Exported by simflow-plugin {__version__}."
    )


def _metrics(summary: dict[str, Any]) -> str:
    measured_on = summary.get("measured_on", {})
    rows = [
        f"| {metric_name(key).title} | {summary[key]:.4g} | {on} |"
        for key, on in measured_on.items()
        if isinstance(summary.get(key), (int, float)) and math.isfinite(summary[key])
    ]
    if not rows:
        return "## Metrics\n\nNothing was measured."
    setting = (
        f"Step {summary['step']:,}, {summary['weights']} weights, guidance {summary['guidance']:g}, computed in "
        f"{summary['precision']}."
    )
    table = "\n".join(["| metric | value | measured on |", "|---|---|---|", *rows])
    notes = "\n".join(f"- {note}" for note in summary.get("notes", []))
    return "\n\n".join(filter(None, ["## Metrics", setting, table, notes]))


def _loading(loaded: LoadedRun) -> str:
    images = "run.sample(4)" if loaded.class_names is None else f"run.sample([{loaded.class_names[0]!r}])"
    if loaded.model is None:
        images = "run.decode(run.encode(images))"
    lines = [
        "## How to load it",
        "```python\n# pip install simflow-plugin\nimport simflow_plugin\n\n"
        f'run = simflow_plugin.load("{NAME_IN_EXAMPLES}")\nimages = {images}  # (B, 3, H, W) in [-1, 1]\n```',
    ]
    if loaded.model is not None:
        label = 4 if loaded.class_names is None else [loaded.class_names[0]]
        lines.append(
            "```python\nfrom diffusers import DiffusionPipeline  # simflow-plugin must be installed\n\n"
            f'pipeline = DiffusionPipeline.from_pretrained("{NAME_IN_EXAMPLES}", trust_remote_code=True)\n'
            f"images = pipeline({label!r}).images\n```"
        )
    return "\n\n".join(lines)


def _licence(licence: str | None) -> str:
    if licence is None:
        text = (
            "Not stated. Whoever publishes this sets `license` above, and looks at the licence of the data."
        )
    else:
        text = f"{licence}. The data have a licence of their own."
    return f"## Licence\n\n{text}"
