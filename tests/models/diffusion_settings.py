"""A small backbone of SiT and DiT, the shape of its latents, and every sampler."""

BACKBONE = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 2}
SHAPE = (3, 4, 4)
SAMPLINGS = [
    ("sit", {"method": "euler"}),
    ("sit", {"method": "heun"}),
    ("sit", {"method": "euler_maruyama"}),
    ("dit", {"eta": 0.0}),
    ("dit", {"eta": 1.0}),
]
