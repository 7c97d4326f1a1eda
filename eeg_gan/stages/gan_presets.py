"""Published settings of the generator as groups of keys that a config is laid over.

Karras et al. 2020 (arXiv 1912.04958, 2006.06676); wacv2024 is what Singh & Raman trained with: the CIFAR setting at 128
pixels, 5.5 million images (6.5 for ThoughtViz: total_images), every transform, no path lengths, and Adam slowed as if
there were some.

Left to the user: micro_batch, which changes no number (published runs hold mbstd_group images at a time on a GPU), and
precision, bfloat16 in the four highest resolutions where published runs have float16.
"""

NAMES = ("auto", "stylegan2", "paper256", "paper512", "paper1024", "cifar", "wacv2024")
FIXED = {  # thousands of images, batch, mbstd group, feature maps, lr, R1 gamma, EMA thousands, EMA ramp, mapping
    "stylegan2": (25_000, 32, 4, 1.0, 2e-3, 10.0, 10, None, 8),
    "paper256": (25_000, 64, 8, 0.5, 2.5e-3, 1.0, 20, None, 8),
    "paper512": (25_000, 64, 8, 1.0, 2.5e-3, 0.5, 20, None, 8),
    "paper1024": (25_000, 32, 4, 1.0, 2e-3, 2.0, 10, None, 8),
    "cifar": (100_000, 64, 32, 1.0, 2.5e-3, 0.01, 500, 0.05, 2),
    "wacv2024": (5_500, 64, 32, 1.0, 2.5e-3, 0.01, 500, 0.05, 2),
}
PATH_EVERY = 4


def preset(name: str, resolution: int | None = None, gpus: int = 1) -> dict:
    """The keys of a gan config; `auto` computes them from the resolution in pixels and the number of GPUs."""
    if name == "auto":
        if resolution is None:
            raise ValueError("preset=auto computes its keys from the images' side; add resolution=128, say")
        row = _auto(resolution, gpus)
    else:
        row = FIXED[name]
    kimg, batch, group, maps, lr, gamma, ema_kimg, ramp, map_layers = row
    small = name in ("cifar", "wacv2024")
    slow = PATH_EVERY / (PATH_EVERY + 1) if small else 1.0  # path lengths are off, yet the rate is corrected for them
    pipe = "bgcfnc" if name == "wacv2024" else "bgc"
    widths = {"channel_base": int(maps * 32768), "channel_max": 512, "clamp": 256.0}
    return {
        "total_images": kimg * 1000,
        "batch": batch,
        "generator": {"z_dim": 512, "w_dim": 512, "map_layers": map_layers, "map_lr": 0.01, **widths},
        "discriminator": {
            "map_layers": 8,
            "map_lr": 0.01,
            "mbstd_group": group,
            "architecture": "orig" if small else "residual",
            **widths,
        },
        "g_optim": {"lr": lr * slow, "beta1": 0.0, "beta2": 0.99**slow},
        "d_optim": {"lr": lr, "beta1": 0.0, "beta2": 0.99},
        "r1_gamma": gamma,
        "r1_every": 16,
        "path_length": {"weight": 0.0 if small else 2.0, "every": PATH_EVERY},
        "style_mixing": 0.0 if small else 0.9,
        "ema_half_life": int(ema_kimg * 1000),
        "ema_ramp": ramp,
        "augment": {"mode": "ada", "target": 0.6, "speed_kimg": 500.0, "pipe": pipe},
    }


def _auto(resolution: int, gpus: int) -> tuple:
    batch = max(min(gpus * min(4096 // resolution, 32), 64), gpus)
    return (
        25_000,
        batch,
        min(batch // gpus, 4),
        1.0 if resolution >= 512 else 0.5,
        2e-3 if resolution >= 1024 else 2.5e-3,
        0.0002 * resolution**2 / batch,
        batch * 10 / 32,
        0.05,
        2,
    )
