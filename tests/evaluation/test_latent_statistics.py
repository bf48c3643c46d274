"""Statistics of latents at their known values: white noise, constants per image, single waves."""

import math

import pytest
import torch

from simflow_plugin.errors import ShapeError
from simflow_plugin.evaluation.latent_statistics import (
    high_frequency_ratio,
    interpolate,
    latent_statistics,
    noise_robustness,
    normalize_channels,
    power_by_radius,
)
from simflow_plugin.randomness import IndexedRandom
from tests.training.toys import LinearAutoencoder


def white(count=64, size=32):
    return torch.randn(count, 4, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def wave(frequency, size=32):
    """One horizontal cosine of `frequency` cycles per position, with another phase in each image."""
    phase = torch.linspace(0, 6, 8, dtype=torch.float64).view(8, 1, 1, 1)
    return torch.cos(2 * math.pi * frequency * torch.arange(size) + phase).expand(8, 1, size, size)


def test_white_noise_has_the_values_of_the_docstring():
    found = {name: float(values.mean()) for name, values in latent_statistics(white()).items()}
    assert found["spectral_entropy"] > 0.95
    assert found["high_frequency_ratio"] == pytest.approx(1 - math.pi / 16, abs=0.02)
    assert found["total_variation"] == pytest.approx(2 / math.sqrt(math.pi), abs=0.01)
    assert found["autocorrelation"] == pytest.approx(0, abs=0.01)


def test_a_wave_has_one_frequency():
    found = {name: float(values.mean()) for name, values in latent_statistics(wave(1 / 16)).items()}
    assert found["spectral_entropy"] == pytest.approx(math.log(2) / math.log(32 * 32 - 1), abs=1e-6)
    assert found["high_frequency_ratio"] == pytest.approx(0, abs=1e-9)


def test_a_wave_correlates_with_its_neighbours_by_its_cosine():
    # Vertical neighbours are equal, horizontal ones are a phase of 2 pi / 16 apart.
    found = latent_statistics(wave(1 / 16))["autocorrelation"].mean()
    assert float(found) == pytest.approx((1 + math.cos(2 * math.pi / 16)) / 2, abs=0.01)


def test_radial_spectrum_of_white_noise_is_flat_at_one():
    frequencies, power = power_by_radius(white())
    assert frequencies == sorted(frequencies)
    assert max(abs(p - 1) for p in power) < 0.1


def test_radial_spectrum_of_a_wave_is_at_its_frequency():
    frequencies, power = power_by_radius(wave(0.25))
    assert frequencies[power.index(max(power))] == pytest.approx(0.25, abs=0.02)


def test_fast_waves_are_high_frequencies():
    assert high_frequency_ratio(normalize_channels(wave(0.375))).min() > 0.999


def test_scale_and_shift_of_a_channel_and_dead_channels_do_not_matter():
    scale, shift = torch.tensor([1.0, 5.0, 0.1, 2.0]).view(4, 1, 1), torch.arange(4.0).view(4, 1, 1)
    latents = white(8)
    with_dead = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
    for other in (latents * scale + shift, with_dead):
        torch.testing.assert_close(latent_statistics(other), latent_statistics(latents))


@pytest.mark.parametrize("latents", [torch.zeros(2, 4, 1, 8), torch.zeros(2, 4), torch.ones(2, 4, 8, 8)])
def test_latents_without_signal_are_refused(latents):
    with pytest.raises(ShapeError, match="latents"):
        latent_statistics(latents)


def test_noise_costs_what_the_decoder_lets_through():
    images = torch.zeros(4, 3, 16, 16)
    random = IndexedRandom(0, (0, 1, 2, 3))
    found = noise_robustness(LinearAutoencoder.identity(), images, [0.0, 0.1, 0.2], random)["psnr"]
    assert (found[0.0] == 100).all()
    # The mean squared error of values in [0, 1] is (0.1 / 2)^2.
    assert float(found[0.1].mean()) == pytest.approx(-20 * math.log10(0.05), abs=0.3)
    assert float((found[0.1] - found[0.2]).mean()) == pytest.approx(20 * math.log10(2), abs=0.1)


def test_robustness_takes_a_perceptual_distance_along():
    images = torch.zeros(2, 3, 8, 8)

    def distance(decoded, originals):
        return (decoded - originals).abs().flatten(1).mean(1)

    found = noise_robustness(
        LinearAutoencoder.identity(), images, [0.0, 0.5], IndexedRandom(0, (0, 1)), distance
    )
    assert (found["lpips"][0.0] == 0).all()
    assert (found["lpips"][0.5] > 0.3).all()


def test_strips_start_and_end_at_the_images():
    starts, ends = torch.full((2, 3, 4, 4), -0.5), torch.full((2, 3, 4, 4), 0.5)
    strips = interpolate(LinearAutoencoder.identity(), starts, ends, 5)
    torch.testing.assert_close(strips[:, 0], starts)
    torch.testing.assert_close(strips[:, 2], torch.zeros_like(starts))
    torch.testing.assert_close(strips[:, -1], ends)
