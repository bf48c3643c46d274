"""One place decides the precision of a run: for its training and for everything that is measured afterwards."""

import pytest
import torch

from simflow_plugin.config.schema import Training
from simflow_plugin.errors import ConfigError
from simflow_plugin.evaluation.drawing import ImageSampler, class_labels
from simflow_plugin.runs.loaded_run import load_run
from simflow_plugin.runs.run_precision import Precision
from tests.evaluation.runs import make_run
from tests.training.tiny_runs import tiny_values


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that trained in bfloat16, by its configuration."""
    training = {**tiny_values()["training"], "steps": 2, "checkpoint_every": 2, "precision": "bfloat16"}
    return make_run(tmp_path_factory.mktemp("precision") / "run", training=training)


def drawn(loaded):
    return ImageSampler.of_run(loaded).draw([0, 1], class_labels([0, 1], 10))


def training(precision="auto", tf32=True):
    return Training(steps=1, precision=precision, tf32=tf32)


def test_run_is_sampled_in_the_precision_of_its_training_unless_another_is_named(run):
    own, full = load_run(run, "cpu"), load_run(run, "cpu", precision="float32")
    assert (str(own.precision), str(full.precision)) == ("bfloat16", "float32")
    images, of_float32 = drawn(own), drawn(full)
    assert images.dtype == of_float32.dtype == torch.float32
    assert not torch.equal(images, of_float32)
    torch.testing.assert_close(images, of_float32, atol=0.1, rtol=0)


def test_float16_run_is_read_in_float32_where_there_is_no_gpu_and_says_so():
    assert str(Precision.outside_training(training("float16"), "cpu")) == "float32"
    with pytest.raises(ConfigError, match="training.precision: float16 needs a GPU"):
        Precision.of_training(training("float16"), "cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [("half", "--precision half: expected one of auto, float32"), ("float16", "needs a GPU")],
)
def test_precision_that_is_not_there_is_refused(run, name, message):
    with pytest.raises(ConfigError, match=message):
        load_run(run, "cpu", precision=name)


def test_tf32_is_of_cuda_and_named():
    assert not Precision.of_training(training("float32"), "cpu").tf32
    assert str(Precision.of_training(training("float32"), "cuda")) == "float32 with TF32"
    assert str(Precision.of_training(training("float32", tf32=False), "cuda")) == "float32"


def test_settings_of_the_process_come_back():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with Precision("bfloat16", True, "cpu").active():
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
