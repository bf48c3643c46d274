"""A judge is a part: written as a name, a name with a file or a mapping, and added by other packages."""

from pathlib import Path

import pytest

from simflow_plugin.config.checks import check_before_training
from simflow_plugin.errors import ConfigError
from tests.evaluation.runs import evaluate, make_run
from tests.training.tiny_runs import tiny_config, tiny_values

JUDGE_SOURCE = """
from simflow_plugin.errors import ConfigError
from simflow_plugin.evaluation.judges import Judgement
from simflow_plugin.options import Options


class LenientOptions(Options):
    share: float = 1.0


class Lenient:
    Options, data, num_classes = LenientOptions, None, None

    def __init__(self, options, context):
        self.share = options.share

    @classmethod
    def check_files(cls, options, data):
        if options.share > 1:
            raise ConfigError(f"evaluation.judge.share {options.share}: more than all of {data}")

    def __call__(self, samples, labels, train, test):
        return Judgement("a lenient one", self.share, 1.0, {}, {0: 0.5}, len(samples))
"""


def config_with(judge, **more):
    return tiny_config(values={**tiny_values(), "evaluation": {"judge": judge, "num_samples": 20, **more}})


def test_file_of_a_judge_is_an_option_however_it_is_written():
    beside = config_with("encoder", judge_checkpoint="judge.safetensors")
    assert beside == config_with({"name": "encoder", "checkpoint": "judge.safetensors"})
    assert beside.evaluation.judge.options["checkpoint"] == str(Path("judge.safetensors").resolve())
    assert "judge_checkpoint" not in beside.to_yaml()


def test_no_judge_is_written_as_none_or_null():
    assert config_with("none") == config_with(None) == config_with("none", judge_checkpoint=None)


@pytest.mark.parametrize(
    ("judge", "checkpoint", "message"),
    [
        ("none", "x", "judge_checkpoint goes with a judge"),
        ("encoder", None, r"evaluation\.judge\.checkpoint: required"),
        ("digits", "x", r"evaluation\.judge\.checkpoint: unknown key"),
        ("digitz", None, r"evaluation\.judge: judges: unknown name `digitz`.*Did you mean `digits`"),
        ({"name": "encoder", "checkpoint": "x", "nun_real": 3}, None, "Did you mean `num_real`"),
        ({"name": "encoder", "checkpoint": "x"}, "y", "give one of them"),
    ],
)
def test_mistake_in_a_judge_names_the_key(judge, checkpoint, message):
    with pytest.raises(ConfigError, match=message):
        config_with(judge, judge_checkpoint=checkpoint)


def test_judge_of_another_package_judges_by_name(tmp_path, install):
    install("lenient-judges", "lenient_judges", JUDGE_SOURCE, "lenient", "Lenient", kind="judges")
    with pytest.raises(ConfigError, match="more than all of digits"):
        check_before_training(config_with({"name": "lenient", "share": 2.0}), 10)
    evaluation = {"judge": {"name": "lenient", "share": 0.75}, "num_samples": 20}
    run = make_run(tmp_path / "run", evaluation=evaluation)
    found = evaluate(run, parts=("generation",))
    assert found.metrics["class_agreement"].value == 0.75
    assert "a lenient one" in found.metrics["class_agreement"].on
    assert found.details["judgement"]["diversity_by_class"] == {"0": 0.5}
