"""A trained run in Python: the numbers of the commands, by other means."""

import csv
import subprocess
import sys

import numpy as np
import pytest
import torch

import simflow_plugin
from simflow_plugin.errors import DataError, EvaluationError, ShapeError
from simflow_plugin.evaluation.drawing import to_uint8
from simflow_plugin.evaluation.evaluator import RunEvaluator
from simflow_plugin.evaluation.request import EvaluationRequest
from simflow_plugin.runs.parts import build_dataset
from tests.commands import succeed
from tests.evaluation.runs import make_run


@pytest.fixture(scope="module")
def flow_run(tmp_path_factory):
    return simflow_plugin.load(make_run(tmp_path_factory.mktemp("runs") / "flow"))


@pytest.fixture(scope="module")
def sit_run(tmp_path_factory):
    return simflow_plugin.load(make_run(tmp_path_factory.mktemp("runs") / "sit", "sit"))


@pytest.fixture(scope="module")
def held_out(flow_run):
    test = build_dataset(flow_run.loaded.config, "test")
    examples = [test[index] for index in range(4)]
    return torch.stack([one.image for one in examples]), [one.label for one in examples]


@pytest.mark.parametrize("kind", ["flow_run", "sit_run"])
def test_samples_are_those_of_the_command_bit_for_bit(kind, request, tmp_path):
    run = request.getfixturevalue(kind)
    path = run.loaded.directory.path
    succeed("sample", path, "--num", "12", "--seed", "3", "--out", tmp_path / "s.npz")
    drawn = run.sample(12, seed=3)
    assert drawn.shape == (12, 3, 8, 8)
    assert np.array_equal(to_uint8(drawn).numpy(), np.load(tmp_path / "s.npz")["arr_0"])


def test_class_names_and_numbers_give_the_same_samples(flow_run):
    assert flow_run.classes == [str(digit) for digit in range(10)]
    assert torch.equal(flow_run.sample(["3", "7"]), flow_run.sample(torch.tensor([3, 7])))
    assert not torch.equal(flow_run.sample(["3"]), flow_run.sample(["3"], seed=1))


def test_other_methods_share_the_weights_and_draw_the_same_samples(flow_run):
    naive = flow_run.sample(3, method="naive")
    assert flow_run._with_method("naive").model.flow.config == flow_run.flow.config
    ours, others = flow_run.flow.parameters(), flow_run._with_method("naive").model.flow.parameters()
    assert all(one.data_ptr() == other.data_ptr() for one, other in zip(ours, others, strict=True))
    torch.testing.assert_close(naive, flow_run.sample(3), atol=1e-3, rtol=0)


def test_wrong_choices_name_the_right_ones(flow_run):
    with pytest.raises(DataError, match="classes are 0 to 9"):
        flow_run.sample([10])
    with pytest.raises(Exception, match="Known: auto, cached"):
        flow_run.sample(1, method="quick")
    with pytest.raises(DataError, match="expected a number >= 1"):
        flow_run.sample(0)


def test_encoding_is_the_mean_and_decoding_undoes_it(flow_run, held_out):
    images, _ = held_out
    latents = flow_run.encode(images)
    assert latents.shape == (4, 4, 4, 4)
    floats = images.float() / 127.5 - 1
    torch.testing.assert_close(latents, flow_run.autoencoder.encode(floats).mode())
    expected = flow_run.autoencoder.decode(latents).clamp(-1, 1)
    torch.testing.assert_close(flow_run.decode(latents), expected)
    distance = (flow_run.encode(images, seed=1) - latents).std()
    assert 0.3 < float(distance / flow_run.autoencoder.encode(floats).std.mean()) < 3
    with pytest.raises(ShapeError, match="floats from 0 to"):
        flow_run.encode(images.float())


def test_bits_per_dim_are_those_of_the_evaluation(flow_run):
    config = flow_run.loaded.config
    request = EvaluationRequest(("likelihood",), extractor=None)
    evaluator = RunEvaluator(flow_run.loaded, request)
    evaluator.measure()
    with (evaluator.evaluation.folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    test = build_dataset(config, "test")
    assert [int(row["index"]) for row in rows] == list(range(len(test)))
    examples = [test[index] for index in range(config.sampling.batch_size)]
    images, labels = torch.stack([one.image for one in examples]), [one.label for one in examples]
    found = flow_run.bits_per_dim(images, labels)
    expected = [float(row["image_bits_per_dim"]) for row in rows[: len(found)]]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_log_prob_is_the_mean_over_posterior_samples(flow_run, held_out):
    """Many draws with the control variate agree with many draws without, within their errors."""
    images, labels = held_out
    found = flow_run.log_prob(images, labels, draws=100)
    posterior = flow_run.autoencoder.encode(images.float() / 127.5 - 1)
    generator = torch.Generator().manual_seed(0)
    plain = torch.stack(
        [
            flow_run.model.log_prob(posterior.sample(generator), torch.tensor(labels)).double()
            for _ in range(200)
        ]
    )
    error = plain.std(0) / 200**0.5
    assert bool(((found - plain.mean(0)).abs() < 6 * error).all())
    bits = flow_run.bits_per_dim(images, labels, of="latent", draws=100)
    torch.testing.assert_close(bits, -found / (4 * 4 * 4 * np.log(2)))


def test_likelihood_of_a_model_without_density_is_refused(sit_run):
    with pytest.raises(EvaluationError, match="exact density"):
        sit_run.log_prob(sit_run.sample(2))
    with pytest.raises(EvaluationError, match="no flow"):
        _ = sit_run.flow
    ends = sit_run.sample(1), sit_run.sample(1, seed=1)
    assert sit_run.interpolate(*ends, 3).shape == (1, 3, 3, 8, 8)


def test_interpolation_starts_and_ends_at_the_reconstructions(flow_run, held_out):
    images, labels = held_out
    way = flow_run.interpolate(images[:2], images[2:], num=5, labels=labels[0])
    assert way.shape == (2, 5, 3, 8, 8)
    for end, given in ((way[:, 0], images[:2]), (way[:, -1], images[2:])):
        torch.testing.assert_close(end, flow_run.decode(flow_run.encode(given, seed=0)), atol=1e-3, rtol=0)
    with pytest.raises(ShapeError, match="as many at both ends"):
        flow_run.interpolate(images[:1], images)


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, simflow_plugin; assert 'load' in dir(simflow_plugin); assert 'torch' not in sys.modules; "
        "from simflow_plugin import TransformerFlow; assert 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_are_there():
    assert all(getattr(simflow_plugin, name) is not None for name in simflow_plugin.__all__)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = simflow_plugin.laod
