"""Run of a study: autoencoders first, then every variant, each in a run directory; finished stages are skipped.

    OUT/runs/<name>/                 one run directory each, for `simflow sample`, `evaluate` and `compare`
    OUT/autoencoders/<name>.safetensors   exported weights
    OUT/study.json  OUT/study.md     numbers and table, rewritten after every variant

Everything that a rerun needs to know is in these files; the same command continues.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.convert.autoencoder_export import export_autoencoder, std_before_scaling
from simflow_plugin.errors import RunDirectoryError
from simflow_plugin.files import read_json_object, write_text_atomically
from simflow_plugin.runs.loaded_run import load_run
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.studies import stages
from simflow_plugin.studies.definitions import Study, Variant
from simflow_plugin.studies.stages import StudySettings
from simflow_plugin.studies.table import to_markdown
from simflow_plugin.train import train


class StudyRunner:
    """Runs one study in one directory.

    Raises:
        RunDirectoryError: if the directory holds another study, or this one with other settings.
    """

    def __init__(self, study: Study, settings: StudySettings) -> None:
        self.study, self.settings = study, settings
        self.file = settings.out / "study.json"
        self.document = self._read()

    def run(self) -> dict[str, Any]:
        """Do what is left to do; return the content of study.json.

        Raises:
            Interrupted: after a signal, when the state was saved.
        """
        study, parts = self.study, [*self.study.autoencoders, *(v.name for v in self.study.variants)]
        # Every configuration is read before the first step is trained: a mistake shows now.
        plain = [stages.study_config(study.config_name(part), self.settings, []) for part in parts]
        stages.ensure_encoder(self.settings.encoder, plain[0], study.makes_encoder)
        for number, name in enumerate(study.autoencoders, 1):
            typer.echo(f"[{number}/{len(parts)}] {name}", err=True)
            self._autoencoder(name)
        for number, variant in enumerate(study.variants, 1 + len(study.autoencoders)):
            typer.echo(f"[{number}/{len(parts)}] {variant.name}", err=True)
            self._variant(variant)
        if "real" not in self.document:
            self.document["real"] = stages.measure_real(plain[0], self.settings)
            self._write()
        return self.document

    def _autoencoder(self, name: str) -> None:
        path = self._exported(name)
        run = self._directory(name)
        config = stages.study_config(self.study.config_name(name), self.settings, [])
        self._train(config, run)
        if not path.is_file():
            export_autoencoder(load_run(run.path), path)
        self.document["autoencoders"][name] = stages.autoencoder_cost(run, config)
        self._write()

    def _variant(self, variant: Variant) -> None:
        run = self._directory(variant.name)
        config = stages.study_config(
            self.study.config_name(variant.name), self.settings, self._overrides(variant)
        )
        self._train(config, run)
        if variant.name not in self.document["variants"]:
            measured = stages.measure_variant(run, self.settings, self.study.guidance)
            self.document["variants"][variant.name] = measured
        # An earlier version measured without it.
        self.document["variants"][variant.name].setdefault("batch_size", config.training.batch_size)
        self._write()

    def _train(self, config: RunConfig, run: RunDirectory) -> None:
        if stages.is_trained(run, config):
            typer.echo(f"  trained already: {run.path}", err=True)
            return
        train(config, run, [], report=False)  # the report waits for the study's own evaluation

    def _overrides(self, variant: Variant) -> list[str]:
        """Return what only the study knows: where the autoencoder is, and how large its latents are."""
        if variant.autoencoder is None:
            return []
        path = self._exported(variant.autoencoder)
        overrides = [f"autoencoder.pretrained={json.dumps(str(path))}"]
        if variant.noise_std is not None:
            overrides.append(f"autoencoder.posterior.std={std_before_scaling(path, variant.noise_std)}")
        return overrides

    def _directory(self, name: str) -> RunDirectory:
        return RunDirectory(self.settings.out / "runs" / name)

    def _exported(self, name: str) -> Path:
        return self.settings.out / "autoencoders" / f"{name}.safetensors"

    def _read(self) -> dict[str, Any]:
        expected = {"study": self.study.name, "settings": self.settings.what_decides()}
        if not self.file.is_file():
            return {**expected, "autoencoders": {}, "variants": {}}
        try:
            document = read_json_object(self.file, RunDirectoryError)
        except RunDirectoryError as error:
            raise RunDirectoryError(
                f"{error}. Delete it: the runs themselves are kept, and measured again."
            ) from error
        found = {key: document.get(key) for key in expected}
        if found != expected:
            raise RunDirectoryError(
                f"{self.settings.out}: holds the study {found}, but {expected} was asked for. Name another "
                "directory with --out, or ask for what it holds."
            )
        return document

    def _write(self) -> None:
        self.settings.out.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.file, json.dumps(self.document, indent=1) + "\n")
        write_text_atomically(self.settings.out / "study.md", to_markdown(self.study, self.document))
