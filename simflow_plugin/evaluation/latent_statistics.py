"""Statistics of latents as signals, robustness of the decoder to noise on them, and interpolation.

All four statistics see latents whose channels were brought to mean 0 and variance 1 over the whole set, so that they do
not depend on scale or shift. For white noise they are: spectral entropy 1 (a little less for few channels),
high-frequency ratio 1 - pi / 16 = 0.80 (of a large grid), total variation 2 / sqrt(pi) = 1.13, autocorrelation 0.

SimFlow (arXiv:2512.04084) reports for end-to-end training a high-frequency ratio that falls (0.24 to 0.09), a total
variation that falls (0.71 to 0.47) and an autocorrelation that rises (0.06 to 0.54). Its definitions may differ from
these: compare directions with those numbers, not digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simflow_plugin.contracts import Autoencoder
from simflow_plugin.errors import ShapeError
from simflow_plugin.evaluation.reconstruction_error import psnr
from simflow_plugin.randomness import Random

HALF_NYQUIST = 0.25
"""Cycles per latent position above which a frequency is high."""


def latent_statistics(latents: Tensor) -> dict[str, Tensor]:
    """Return the four statistics of every image's latents, (N,), float64, by name.

    Args:
        latents: (N, C, h, w), posterior means of many images; h and w at least 2.
    Raises:
        ShapeError: for another shape.
    """
    if latents.ndim != 4 or min(latents.shape[2:]) < 2 or len(latents) == 0:
        raise ShapeError(f"latents must be (N, C, h, w) with h, w of at least 2; got {tuple(latents.shape)}")
    latents = normalize_channels(latents)
    return {
        "spectral_entropy": spectral_entropy(latents),
        "high_frequency_ratio": high_frequency_ratio(latents),
        "total_variation": total_variation(latents),
        "autocorrelation": autocorrelation(latents),
    }


def normalize_channels(latents: Tensor) -> Tensor:
    """Bring each channel to mean 0 and variance 1 over images and positions; a constant channel is left out.

    Raises:
        ShapeError: if all channels are constant.
    """
    latents = latents.double()
    std, mean = torch.std_mean(latents, dim=(0, 2, 3), correction=0, keepdim=True)
    is_alive = (std > 1e-12).flatten()
    if not is_alive.any():
        raise ShapeError("latents: every channel is constant, so there is no signal to measure")
    return (latents - mean)[:, is_alive] / std[:, is_alive]


def power_spectrum(latents: Tensor) -> Tensor:
    """Return the share of power at each frequency but zero, (N, h w - 1), summing to 1, averaged over channels."""
    power = torch.fft.fft2(latents, norm="ortho").abs().square().mean(dim=1).flatten(1)[:, 1:]
    return power / power.sum(dim=1, keepdim=True).clamp(min=1e-300)


def power_by_radius(latents: Tensor) -> tuple[list[float], list[float]]:
    """Return the radial power spectrum of latents (N, C, h, w): (frequencies, mean power at them).

    Frequencies are in cycles per position, in rings one step of the grid wide; channels are normalised first, so white
    noise is flat at 1.
    """
    latents = normalize_channels(latents)
    power = torch.fft.fft2(latents, norm="ortho").abs().square().mean(dim=(0, 1))
    radius = _radius(latents)
    ring = (radius * min(latents.shape[2:])).round().long()
    rings = range(1, int(ring.max()) + 1)
    means = [
        (float(radius[ring == r].mean()), float(power[ring == r].mean())) for r in rings if (ring == r).any()
    ]
    return [frequency for frequency, _ in means], [mean for _, mean in means]


def spectral_entropy(latents: Tensor) -> Tensor:
    """Return -sum_f p_f log p_f / log F of the power spectrum p over F frequencies, (N,), in [0, 1].

    1 is a flat spectrum; a few strong frequencies are near 0.

    Args:
        latents: (N, C, h, w), normalised.
    """
    share = power_spectrum(latents)
    return torch.special.entr(share).sum(dim=1) / math.log(share.shape[1])


def high_frequency_ratio(latents: Tensor, cutoff: float = HALF_NYQUIST) -> Tensor:
    """Return the share of power at radial frequencies above the cutoff, (N,), in [0, 1].

    Args:
        latents: (N, C, h, w), normalised.
        cutoff: in cycles per position; half the Nyquist frequency by default.
    """
    return power_spectrum(latents)[:, _radius(latents).flatten()[1:] > cutoff].sum(dim=1)


def _radius(latents: Tensor) -> Tensor:
    """Return the radial frequency (h, w) of each coefficient of the spectrum, in cycles per position."""
    rows, columns = (torch.fft.fftfreq(size, dtype=torch.float64) for size in latents.shape[2:])
    return torch.hypot(rows[:, None], columns[None])


def total_variation(latents: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours, vertical and horizontal alike, (N,).

    Args:
        latents: (N, C, h, w), normalised, so in standard deviations of a channel.
    """
    vertical = latents.diff(dim=2).abs().flatten(1).mean(dim=1)
    horizontal = latents.diff(dim=3).abs().flatten(1).mean(dim=1)
    return (vertical + horizontal) / 2


def autocorrelation(latents: Tensor) -> Tensor:
    """Return the mean product of neighbours, vertical and horizontal alike, (N,).

    Its mean over the images that the channels were normalised on is the correlation at distance 1.

    Args:
        latents: (N, C, h, w), normalised.
    """
    vertical = (latents[:, :, 1:] * latents[:, :, :-1]).flatten(1).mean(dim=1)
    horizontal = (latents[..., 1:] * latents[..., :-1]).flatten(1).mean(dim=1)
    return (vertical + horizontal) / 2


@torch.no_grad()
def noise_robustness(
    autoencoder: Autoencoder,
    images: Tensor,
    noise_stds: Sequence[float],
    random: Random,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, dict[float, Tensor]]:
    """Return how close to the originals images are that are decoded from their posterior mean plus noise.

    Args:
        images: (B, 3, H, W), [-1, 1].
        noise_stds: in units of the normalised latents; 0 is the plain reconstruction.
        random: one draw, scaled for each size, so that the curve is smooth.
        lpips: a distance (B,) of two batches of images, or None.
    Returns:
        `psnr` in dB, and `lpips` if given: noise's standard deviation -> (B,).
    """
    mean = autoencoder.encode(images).mode()
    noise = random.normal("robustness", mean.shape, mean.device)
    metrics: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": psnr}
    if lpips is not None:
        metrics["lpips"] = lpips
    found: dict[str, dict[float, Tensor]] = {name: {} for name in metrics}
    for std in noise_stds:
        decoded = autoencoder.decode(mean + std * noise)
        for name, metric in metrics.items():
            found[name][std] = metric(decoded, images).cpu()
    return found


@torch.no_grad()
def interpolate(autoencoder: Autoencoder, starts: Tensor, ends: Tensor, num_steps: int = 8) -> Tensor:
    """Decode the straight line between the posterior means of image pairs.

    Args:
        starts: (B, 3, H, W), [-1, 1].
        ends: likewise.
        num_steps: images of a strip, both ends included; at least 2.
    Returns:
        (B, num_steps, 3, H, W), [-1, 1].
    """
    first, last = autoencoder.encode(starts).mode(), autoencoder.encode(ends).mode()
    weights = torch.linspace(0, 1, num_steps, device=first.device).tolist()
    return torch.stack([autoencoder.decode(torch.lerp(first, last, w)).clamp(-1, 1) for w in weights], dim=1)
