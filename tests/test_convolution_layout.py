"""Convolutions see channels last on a CPU, and compute what they did."""

import torch

from simflow_plugin.autoencoders.kl import KLAutoencoder
from simflow_plugin.convolution_layout import convolution_layout


def test_values_and_shape_stay():
    images = torch.randn(2, 3, 4, 5)
    assert torch.equal(convolution_layout(images), images)
    assert convolution_layout(images).is_contiguous(memory_format=torch.channels_last)


def test_autoencoder_gives_the_same_moments_and_images_in_either_layout():
    torch.manual_seed(0)
    options = KLAutoencoder.Options(factor=2, latent_channels=2, widths=[8, 8], layers_per_block=1)
    autoencoder = KLAutoencoder(options).double()
    images, latents = torch.randn(2, 3, 8, 8).double(), torch.randn(2, 2, 4, 4).double()
    torch.testing.assert_close(autoencoder.moments(images), autoencoder.network.encoder(images))
    torch.testing.assert_close(autoencoder.decode(latents), autoencoder.network.decode(latents).sample)


def test_weights_of_an_autoencoder_keep_the_plain_layout():
    options = KLAutoencoder.Options(factor=2, latent_channels=2, widths=[8, 8], layers_per_block=1)
    autoencoder = KLAutoencoder(options)
    autoencoder.decode(autoencoder.encode(torch.zeros(1, 3, 8, 8)).mean).sum().backward()
    assert all(parameter.is_contiguous() for parameter in autoencoder.parameters())
