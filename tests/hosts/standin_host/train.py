"""The stand-in's script: options, parts by name, and the loop: a step of the autoencoder, then one of the model."""

import argparse
import copy

import torch
from standin_host.autoencoders import VAES
from standin_host.models import MODELS
from standin_host.samplers import euler_sampler


def parse_args(words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=MODELS.keys())
    parser.add_argument("--vae", choices=["f8d4"], default="f8d4")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--encoder-depth", type=int, default=2)
    parser.add_argument("--vae-align-proj-coeff", type=float, default=1.5)
    parser.add_argument("--vae-learning-rate", type=float, default=1e-2)
    parser.add_argument("--proj-coeff", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=2)
    return parser.parse_args(words)


def build(args):
    if args.vae == "f8d4":
        in_channels, latent_size = 4, args.resolution // 8
    else:
        raise NotImplementedError
    model = MODELS[args.model](
        input_size=latent_size,
        in_channels=in_channels,
        num_classes=10,
        class_dropout_prob=0.1,
        z_dims=[6],
        encoder_depth=args.encoder_depth,
        bn_momentum=0.1,
        fused_attn=True,
        qk_norm=False,
    )
    return model, VAES[args.vae](), (in_channels, latent_size)


def update_ema(ema, model, decay=0.9):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            dict(ema.named_parameters())[name].mul_(decay).add_(parameter, alpha=1 - decay)
        for name, buffer in model.named_buffers():
            mine = dict(ema.named_buffers())[name]
            if buffer.is_floating_point():
                mine.mul_(decay).add_(buffer, alpha=1 - decay)
            else:
                mine.copy_(buffer)


def train(args, images, labels, features):
    torch.manual_seed(0)
    model, vae, (in_channels, latent_size) = build(args)
    ema = copy.deepcopy(model)
    model.init_bn(torch.ones(in_channels), torch.zeros(in_channels))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer_vae = torch.optim.AdamW(vae.parameters(), lr=args.vae_learning_rate)
    log = []
    for _ in range(args.steps):
        posterior, z, recon = vae(images)
        model.requires_grad_(False).eval()
        first = model(
            x=z, y=labels, zs=[features], loss_kwargs={"align_only": True}, time_input=None, noises=None
        )
        vae_loss = (recon - images).abs().mean() + 1e-6 * posterior.kl().mean()
        vae_loss = vae_loss + args.vae_align_proj_coeff * first["proj_loss"].mean()
        vae_loss.backward()
        optimizer_vae.step()
        optimizer_vae.zero_grad(set_to_none=True)
        model.requires_grad_(True).train()
        second = model(
            x=z.detach(),
            y=labels,
            zs=[features],
            loss_kwargs={"align_only": False},
            time_input=first["time_input"],
            noises=first["noises"],
        )
        loss = second["denoising_loss"].mean() + args.proj_coeff * second["proj_loss"].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_ema(ema, model)
        log.append((vae_loss.item(), loss.item()))
    ema.eval()
    samples = euler_sampler(
        ema, torch.randn(2, in_channels, latent_size, latent_size), torch.tensor([0, 1]), cfg_scale=2.0
    )
    statistics = ema.extract_latents_stats()
    scale, bias = (statistics[key].view(1, -1, 1, 1) for key in ("latents_scale", "latents_bias"))
    return {
        "log": log,
        "model": model,
        "ema": ema,
        "vae": vae,
        "images": vae.decode(samples / scale + bias).sample,
    }
