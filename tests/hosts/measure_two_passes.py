"""What the host's two calls for each batch cost against one joint pass: `python -m tests.hosts.measure_two_passes`.

CPU seconds of the flow (and its alignment) alone, forward and backward; the least of several rounds, in turn.
"""

import time
from types import SimpleNamespace

import torch

from simflow_plugin.hosts.hosted_flow import FlowKind
from simflow_plugin.hosts.repa_e_adapters import RepaEFlow

ROUNDS = 5
BATCH_SIZE = 2


def two_calls(model, latents, labels, features):
    """The loop of REPA-E: for the autoencoder with frozen parameters, then for the model with detached latents."""
    model.requires_grad_(False).eval()
    first = model(latents, labels, features, {"align_only": True})
    (1.5 * first["proj_loss"]).backward()
    model.requires_grad_(True).train()
    state = {"time_input": first["time_input"], "noises": first["noises"]}
    second = model(latents.detach(), labels, features, {"align_only": False}, **state)
    (second["denoising_loss"].mean() + 0.5 * second["proj_loss"]).backward()


def one_pass(model, latents, labels, features):
    """Our own harness: one forward, one backward, for parameters and latents together."""
    model.requires_grad_(True).train()
    result = model(latents, labels, features, {"align_only": False})
    (result["denoising_loss"].mean() + 0.5 * result["proj_loss"]).backward()


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = RepaEFlow(
        FlowKind("SimFlow", "S", 2),
        input_size=32,
        in_channels=4,
        num_classes=1000,
        class_dropout_prob=0.1,
        z_dims=[768],
        encoder_depth=8,
    )
    model.use_host_options(SimpleNamespace(vae_align_proj_coeff=1.5, vae="f8d4-fixedvar"))
    latents = torch.randn(BATCH_SIZE, 4, 32, 32, requires_grad=True)
    labels, features = torch.randint(1000, (BATCH_SIZE,)), [torch.randn(BATCH_SIZE, 256, 768)]
    seconds = {one_pass: [], two_calls: []}
    for _ in range(ROUNDS):
        for step, times in seconds.items():
            start = time.process_time()
            step(model, latents, labels, features)
            times.append(time.process_time() - start)
    one, two = (min(times) for times in seconds.values())
    print(f"one pass {one:.2f} s, two calls {two:.2f} s, ratio {two / one:.2f}")


if __name__ == "__main__":
    main()
