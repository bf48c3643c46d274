"""Run directories for tests: the real loop for a few steps, on digits at 8 x 8."""

import shutil

from simflow_plugin.evaluation.evaluator import RunEvaluator
from simflow_plugin.evaluation.request import EvaluationRequest
from simflow_plugin.runs.loaded_run import load_run
from tests.training.tiny_runs import make_trainer, tiny_config, tiny_values


def make_run(path, model="simflow", **changes):
    """Train a tiny run into `path`, with top-level keys of its configuration replaced."""
    values = tiny_values(model, steps=4, log_every=1, sample_every=100, checkpoint_every=2)
    values["evaluation"] = {"judge": "digits", "num_samples": 20, "num_likelihood": 20}
    config = tiny_config(values={**values, **changes})
    make_trainer(config, path).train()
    return path


def copy_run(run, path):
    """Copy a run that a test is going to change."""
    return shutil.copytree(run, path)


def request(**changes):
    """Ask for few samples and images, and no features."""
    return EvaluationRequest(**{"num_samples": 24, "extractor": None, "num_held_out": 12, **changes})


def evaluate(run, **changes):
    """Measure what `request` asks for, with changes to it."""
    evaluator = RunEvaluator(load_run(run, "cpu"), request(**changes))
    evaluator.make_samples()
    return evaluator.measure()
