"""A posterior of another distribution needs one class: it trains, samples, resumes, and is exported or refused."""

import pytest
import torch
from safetensors.torch import load_file

from simflow_plugin.autoencoders.kl import KLAutoencoder
from simflow_plugin.convert.autoencoder_export import export_autoencoder
from simflow_plugin.errors import ConfigError, WeightsError
from simflow_plugin.runs.loaded_run import load_run
from simflow_plugin.runs.parts import build_parts
from simflow_plugin.training.interrupts import Interrupted
from tests.training.tiny_runs import StopAfter, assert_runs_equal, make_trainer, tiny_config, tiny_values

HEADER = """
import torch
from pydantic import Field
from simflow_plugin.contracts import CONTRACT_VERSION, MomentsMap, PosteriorHead
from simflow_plugin.errors import ConfigError
from simflow_plugin.options import Options
from simflow_plugin.posteriors.gaussian import LearnedVariancePosterior
"""

PER_TOKEN = (
    HEADER
    + '''
class PerToken(PosteriorHead):
    """One variance per position, from one more output of the encoder."""

    class Options(Options):
        contract_version = CONTRACT_VERSION
        max_std: float = Field(2.0, gt=0)

        def check(self, context):
            if context.latent_channels < 2:
                raise ConfigError("posterior.max_std: per_token needs two latent channels")

    learns_variance = True

    @property
    def num_moments(self):
        return self.latent_channels + 1

    def posterior(self, moments):
        log_std = moments[:, -1:].clamp(max=torch.tensor(self.options.max_std).log().item())
        return LearnedVariancePosterior(moments[:, :-1], 2 * log_std)
'''
)

PER_CHANNEL = (
    HEADER
    + '''
class PerChannel(PosteriorHead):
    """One trained variance per channel, the same for every image."""

    class Options(Options):
        pass

    learns_variance = True

    def __init__(self, options, context):
        super().__init__(options, context)
        self.log_std = torch.nn.Parameter(torch.full((context.latent_channels,), -0.7))

    def posterior(self, moments):
        return LearnedVariancePosterior(moments, 2 * self.log_std[:, None, None])

    def as_moments(self):
        zeros = torch.zeros(self.latent_channels)
        identity = torch.eye(self.latent_channels)
        return MomentsMap(
            torch.cat([identity, torch.zeros_like(identity)]), torch.cat([zeros, 2 * self.log_std.detach().cpu()])
        )
'''
)


@pytest.fixture
def per_token(install):
    install("token-posterior", "token_posterior", PER_TOKEN, "per_token", "PerToken", "posteriors")
    return "per_token"


@pytest.fixture
def per_channel(install):
    install("channel-posterior", "channel_posterior", PER_CHANNEL, "per_channel", "PerChannel", "posteriors")
    return "per_channel"


@pytest.fixture(params=["per_token", "per_channel"])
def name(request):
    return request.getfixturevalue(request.param)


def values_with(posterior, model="simflow"):
    values = tiny_values(model, steps=2, checkpoint_every=1, sample_every=2)
    values["autoencoder"]["posterior"] = posterior
    return values


def trained(posterior, path, model="simflow", **arguments):
    make_trainer(tiny_config(values=values_with(posterior, model)), path, **arguments).train()
    return load_run(path, "cpu")


def test_it_trains_two_steps_samples_and_resumes_bit_for_bit(name, tmp_path):
    trained(name, tmp_path / "once")
    assert list((tmp_path / "once" / "samples").iterdir())
    with pytest.raises(Interrupted):
        trained(name, tmp_path / "twice", stop=StopAfter(1))
    trained(name, tmp_path / "twice")
    assert_runs_equal(tmp_path / "once", tmp_path / "twice")


def test_trained_variance_moves(per_channel, tmp_path):
    head = trained(per_channel, tmp_path / "run").autoencoder.head
    assert (head.log_std != -0.7).all()


def test_variance_per_token_is_shared_by_the_channels(per_token):
    autoencoder = build_parts(tiny_config(values=values_with(per_token)), 10).joint.autoencoder
    posterior = autoencoder.encode(torch.rand(2, 3, 8, 8))
    assert posterior.std.shape == posterior.mean.shape
    assert torch.equal(posterior.std[:, :1].expand_as(posterior.std), posterior.std)
    assert posterior.std.unique().numel() > 1


def test_frozen_autoencoder_freezes_the_head_too(per_channel):
    values = values_with(per_channel, "sit")
    autoencoder = build_parts(tiny_config(values=values), 10).joint.autoencoder
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())


def test_export_of_a_variance_per_channel_is_read_back_and_by_diffusers(per_channel, tmp_path):
    loaded = trained(per_channel, tmp_path / "run", None)
    options = export_autoencoder(loaded, tmp_path / "a.safetensors", None)
    assert options.pop("name") == "kl"
    again = KLAutoencoder(KLAutoencoder.Options.model_validate(options)).eval()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = loaded.autoencoder.encode(images)
    assert torch.equal(again.encode(images).std, expected.std)
    theirs = loaded.autoencoder.to_diffusers().encode(images).latent_dist
    torch.testing.assert_close(theirs.std, expected.std)


def test_export_of_a_variance_per_token_is_a_file_and_no_diffusers_folder(per_token, tmp_path):
    loaded = trained({"name": per_token, "max_std": 1.0}, tmp_path / "run", None)
    options = export_autoencoder(loaded, tmp_path / "a.safetensors", None)
    assert options["posterior"] == {"name": "per_token", "max_std": 1.0}
    assert len(load_file(tmp_path / "a.safetensors")["network.encoder.conv_out.weight"]) == 5
    with pytest.raises(WeightsError, match=r"PerToken.*diffusers.*\.safetensors"):
        export_autoencoder(loaded, tmp_path / "vae", None)
    assert not (tmp_path / "vae").exists()


def test_its_options_and_its_own_check_are_errors_of_the_configuration(per_token):
    with pytest.raises(ConfigError, match=r"autoencoder\.posterior\.max_std: .*greater than 0; found -1"):
        tiny_config(values=values_with({"name": per_token, "max_std": -1}))
    values = values_with(per_token)
    values["autoencoder"]["latent_channels"] = 1
    with pytest.raises(ConfigError, match=r"autoencoder: .*per_token needs two latent channels"):
        tiny_config(values=values)


def test_part_written_for_another_version_of_the_contracts_is_refused(install):
    source = PER_TOKEN.replace(
        "contract_version = CONTRACT_VERSION", "contract_version = CONTRACT_VERSION + 1"
    )
    install("future-posterior", "future_posterior", source, "future", "PerToken", "posteriors")
    with pytest.raises(
        ConfigError, match=r"future-posterior .*: it was written for version 2 .* this is version 1"
    ):
        build_parts(tiny_config(values=values_with("future")), 10)
