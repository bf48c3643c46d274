"""The stand-in's sampler: Euler steps along the model's velocity."""


def euler_sampler(
    model,
    latents,
    y,
    num_steps=2,
    heun=False,
    cfg_scale=1.0,
    guidance_low=0.0,
    guidance_high=1.0,
    path_type="linear",
):
    for _ in range(num_steps):
        latents = latents - model.inference(latents, None, y) / num_steps
    return latents
