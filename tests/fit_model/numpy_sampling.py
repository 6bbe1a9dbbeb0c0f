"""Official sampling in NumPy, from the formulas of the fact sheet and of the papers it names."""

import numpy as np

from tests.fit_model import numpy_fit


def gamma_of(name, t):
    """Share of signal at time t."""
    kind, _, numbers = name.partition("@")
    if kind == "cosine" and not numbers:
        return np.cos((t + 2e-4) / (1 + 2.5e-4) * np.pi / 2) ** 2
    if kind == "simple_linear":
        return np.clip(1 - t, 1e-9, 1)
    s, e, tau = (float(number) for number in numbers.split(","))
    if kind == "cosine":
        first, last, here = (np.cos(u * np.pi / 2) ** (2 * tau) for u in (s, e, t * (e - s) + s))
    else:
        first, last, here = (1 / (1 + np.exp(-u / tau)) for u in (s, e, t * (e - s) + s))
    return np.clip((here - last) / (first - last), 1e-9, 1)


def estimates(config, x, out, g):
    """Picture and noise; the picture is clipped and the noise is what remains."""
    limit = config.get("b_scale", 1.0)
    clean = {
        "eps": lambda: (x - np.sqrt(1 - g) * out) / np.sqrt(g),
        "x": lambda: out,
        "v": lambda: np.sqrt(g) * x - np.sqrt(1 - g) * out,
    }[config.get("pred_type", "eps")]()
    clean = np.clip(clean, -limit, limit)
    return clean, (x - np.sqrt(g) * clean) / np.sqrt(1 - g)


def draw_samples(config, weights, noises, labels=None):
    """The last data prediction of the whole loop, before the division by b_scale."""
    steps, w = config["iterations"], config.get("guidance", 0.0)
    x, before, clean = noises[0].astype(np.float64), None, None
    for k in range(steps):
        shift = config.get("td", 0.0)
        now = gamma_of(config["schedule"], 1 - k / steps)
        then = gamma_of(config["schedule"], max(1 - (k + 1 + shift) / steps, 0))
        shown = x
        if config.get("normalize_noisy_input", False):
            shown = x / x.std(axis=(1, 2, 3), keepdims=True)
        gammas = [now] * len(x)
        found = numpy_fit.denoise(config, weights, shown, gammas, labels, before)
        out = found["x"]
        if w:
            without = numpy_fit.denoise(config, weights, shown, gammas, 0 * labels, before)
            out = (1 + w) * out - w * without["x"]
        before = found["latents"]
        clean, noise = estimates(config, x, out, now)
        if config.get("sampler", "ddim") == "ddim":
            x = np.sqrt(then) * clean + np.sqrt(1 - then) * noise
        elif k + 1 < steps:
            alpha = now / then
            variance = 1 - alpha
            if config["sampler"] == "ddpm@small":
                variance *= (1 - then) / (1 - now)
            mean = (x - (1 - alpha) / np.sqrt(1 - now) * noise) / np.sqrt(alpha)
            x = mean + np.sqrt(variance) * noises[k + 1]
    return {"samples": clean}
