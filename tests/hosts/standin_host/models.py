"""The stand-in's models: one that predicts nothing but a scale, and the dictionary that others add to."""

import torch
from torch import nn


class Scale(nn.Module):
    """A one-parameter diffusion model with the interface that the loop asks for."""

    def __init__(self, input_size, in_channels, num_classes, class_dropout_prob, z_dims, encoder_depth, **_):
        super().__init__()
        self.in_channels = in_channels
        self.scale = nn.Parameter(torch.ones(()))
        self.bn = nn.BatchNorm2d(in_channels, affine=False)
        self.projectors = nn.ModuleList(nn.Linear(in_channels, dim) for dim in z_dims)

    def init_bn(self, latents_scale, latents_bias):
        self.bn.running_mean = latents_bias
        self.bn.running_var = latents_scale.pow(-2)

    def extract_latents_stats(self):
        return {"latents_scale": self.bn.running_var.rsqrt(), "latents_bias": self.bn.running_mean}

    def forward(self, x, y, zs, loss_kwargs, time_input=None, noises=None):
        latents = self.bn(x)
        time_input = torch.rand((len(x), 1, 1, 1)) if time_input is None else time_input
        noises = torch.randn_like(latents) if noises is None else noises
        output = self.scale * (latents + time_input * (noises - latents))
        projected = [projector(output.flatten(2).transpose(1, 2)) for projector in self.projectors]
        return {
            "zs_tilde": projected,
            "model_output": output,
            "denoising_loss": None
            if loss_kwargs["align_only"]
            else (output - noises).square().mean((1, 2, 3)),
            "proj_loss": sum(tokens.square().mean() for tokens in projected),
            "time_input": time_input,
            "noises": noises,
        }

    def inference(self, x, t, y):
        return self.scale * x


MODELS = {"Scale-S": Scale}
