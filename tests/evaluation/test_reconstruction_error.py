"""Reconstruction metrics against their definitions and an independent implementation."""

import math

import numpy as np
import pytest
import torch

from simflow_plugin.errors import ShapeError, WeightsError
from simflow_plugin.evaluation.reconstruction_error import LPIPSDistance, psnr, ssim, to_levels


def pair(size=24):
    generator = torch.Generator().manual_seed(0)
    originals = torch.rand(3, 3, size, size, generator=generator) * 2 - 1
    return (originals + 0.3 * torch.randn(originals.shape, generator=generator)).clamp(-1, 1), originals


def test_psnr_of_one_level_everywhere_is_known():
    originals = torch.zeros(2, 3, 8, 8)
    images = originals + 2 / 255
    torch.testing.assert_close(
        psnr(images, originals), torch.full((2,), 20 * math.log10(255), dtype=torch.float64)
    )


def test_psnr_matches_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    images, originals = pair()
    expected = [
        metrics.peak_signal_noise_ratio(to_levels(b).numpy(), to_levels(a).numpy(), data_range=1)
        for a, b in zip(images, originals, strict=True)
    ]
    np.testing.assert_allclose(psnr(images, originals).numpy(), expected, rtol=1e-10)


def test_ssim_matches_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    images, originals = pair()
    expected = [
        metrics.structural_similarity(
            to_levels(a).numpy(),
            to_levels(b).numpy(),
            data_range=1,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(images, originals, strict=True)
    ]
    np.testing.assert_allclose(ssim(images, originals).numpy(), expected, rtol=1e-8)


@pytest.mark.parametrize("size", [2, 8, 16])
def test_identical_images_are_perfect_at_any_size(size):
    _, originals = pair(size)
    torch.testing.assert_close(ssim(originals, originals), torch.ones(3, dtype=torch.float64))
    assert (psnr(originals, originals) == 100).all()


def test_different_shapes_are_refused():
    with pytest.raises(ShapeError, match="one shape"):
        psnr(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))


def test_missing_lpips_weights_name_file_and_address(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.pth.*https://"):
        LPIPSDistance(backbone_path=str(tmp_path / "nowhere.pth"))
