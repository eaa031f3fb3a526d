"""Guidance as the papers write it, with nothing shared and nothing fused: one full pass a branch,
the attention map spelled out, one DDIM step after the other. In the precision of its inputs.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from fastguide import reference
from fastguide.nets.dit import position_embedding, time_embedding


@dataclass
class Treat:
    """What one pass does in `layers`: `how` is pag, seg, skip, shuffle or nag."""

    how: str = "none"
    layers: tuple = ()
    sigma: float = math.inf
    order: dict | None = None  # layer -> [B, N]
    negative: dict | None = None  # layer -> z_-
    scale: float = 1.0
    tau: float = 2.5
    alpha: float = 0.25
    noise: torch.Tensor | None = None  # on the time embedding, [B, width]
    record: dict | None = None  # layer -> (z, map), written

    def at(self, layer):
        return self.how if layer in self.layers else "none"


PLAIN = Treat()


def attention(module, x, grid, treat, nag=PLAIN):
    """Textbook self-attention: softmax(q k^T / sqrt d) v, as a matrix."""
    name, heads = module.name, module.heads
    q, k, v = (
        F.linear(x, *module.qkv.matrix(i)).unflatten(-1, (heads, -1)).transpose(1, 2)
        for i in range(3)
    )
    if treat.at(name) == "seg":
        rows, _, count, size = q.shape
        flat = q.transpose(1, 2).flatten(2)
        mean = flat.mean(1, keepdim=True).expand_as(flat)
        blurred = mean if math.isinf(treat.sigma) else reference.blur(flat, treat.sigma, grid)
        q = blurred.view(rows, count, heads, size).transpose(1, 2)
    weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
    if treat.at(name) == "pag":
        weights = torch.eye(x.shape[1], dtype=x.dtype).expand_as(weights)
    z = (weights @ v).transpose(1, 2).flatten(2)
    if treat.record is not None:
        treat.record[name] = (z, weights)
    if nag.at(name) == "nag":
        led = nag.scale * z - (nag.scale - 1) * nag.negative[name][0]
        ratio = led.abs().sum(-1, keepdim=True) / z.abs().sum(-1, keepdim=True)
        led = torch.where(ratio > nag.tau, led * nag.tau / ratio, led)
        z = nag.alpha * led + (1 - nag.alpha) * z
    return F.linear(z, *module.proj.matrix(0))


def dit(net, x, t, cond, treat=PLAIN, nag=PLAIN):
    """A DiT without `split`, from its weights."""
    grid = (x.shape[2] // net.patch, x.shape[3] // net.patch)
    h = F.pixel_unshuffle(x, net.patch).flatten(2).transpose(1, 2)
    h = F.linear(h, net.patches.weight, net.patches.bias)
    h = h + position_embedding(grid, net.width, x.device).to(x.dtype)
    e = net.time(time_embedding(t * net.time_scale).to(x.dtype))
    raw = e + net.labels(cond)
    e = F.silu(raw)

    def modulate(y, shift, scale):
        return F.layer_norm(y, y.shape[-1:], eps=1e-6) * (1 + scale) + shift

    for block in net.blocks:
        if treat.at(block.name) == "skip":
            continue
        if treat.at(block.name) == "shuffle":
            h = h[torch.arange(len(h)).unsqueeze(1), treat.order[block.name]]
        now = e
        if treat.at(block.name) == "time" or "time" in treat.layers:
            now = F.silu(raw + treat.noise)
        a, b, c, d, f, g = block.modulation.parts[0](now).unsqueeze(1).chunk(6, -1)
        h = h + c * attention(block.attention, modulate(h, a, b), grid, treat, nag)
        up = F.gelu(F.linear(modulate(h, d, f), *block.up.matrix(0)), approximate="tanh")
        h = h + g * F.linear(up, *block.down.matrix(0))
    last = F.silu(raw + treat.noise) if "time" in treat.layers else e
    shift, scale = net.modulation.parts[0](last).unsqueeze(1).chunk(2, -1)
    out = F.linear(modulate(h, shift, scale), net.out.weight, net.out.bias)
    return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, grid), net.patch)


def unet(net, x, t, cond, treat=PLAIN, nag=PLAIN, groups=4):
    """The U-Net of two levels and one block a level, attention in the lower one, from its weights,
    in plain memory.
    """
    w = net.state_dict()

    def linear(name, z):
        return z @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def conv(name, z):
        padding = w[f"{name}.weight"].shape[-1] // 2
        return F.conv2d(z, w[f"{name}.weight"], w[f"{name}.bias"], padding=padding)

    def norm(name, z):
        weight, bias = name if isinstance(name, tuple) else (w[f"{name}.weight"], w[f"{name}.bias"])
        grouped = z.reshape(len(z), groups, -1)
        mean = grouped.mean(2, keepdim=True)
        variance = ((grouped - mean) ** 2).mean(2, keepdim=True)
        normal = ((grouped - mean) / (variance + 1e-5).sqrt()).reshape(z.shape)
        return normal * weight[:, None, None] + bias[:, None, None]

    def silu(z):
        return z / (1 + (-z).exp())

    def residual(name, z, resample=lambda z: z):
        h = conv(f"{name}.conv_in", resample(silu(norm(f"{name}.norm_in", z))))
        layer = name.replace("bottom", "middle")
        noisy = treat.at(layer) == "time" or "time" in treat.layers
        now = silu(raw + treat.noise if noisy else raw)
        scale, shift = linear(f"{name}.modulation", now)[:, :, None, None].chunk(2, 1)
        h = silu(norm(f"{name}.norm_out", h) * (1 + scale) + shift)
        z = resample(z)
        z = conv(f"{name}.match", z) if f"{name}.match.weight" in w else z
        return z + conv(f"{name}.conv_out", h)

    def attend(module, z):
        if treat.at(module.name) == "skip":
            return z
        b, c, height, width = z.shape
        if treat.at(module.name) == "shuffle":
            order = treat.order[module.name].unsqueeze(1).expand(b, c, -1)
            z = z.flatten(2).gather(2, order).view(z.shape)
        weight = module.norm.weight, module.norm.bias
        tokens = norm(weight, z).reshape(b, c, -1).transpose(1, 2)
        out = attention(module.attention, tokens, (height, width), treat, nag)
        return z + out.transpose(1, 2).reshape(b, c, height, width)

    def down(z):
        return (z[..., ::2, ::2] + z[..., 1::2, ::2] + z[..., ::2, 1::2] + z[..., 1::2, 1::2]) / 4

    def up(z):
        return z.repeat_interleave(2, 2).repeat_interleave(2, 3)

    half = w["time.0.weight"].shape[1] // 2
    rates = 10000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    angles = t[:, None] * net.time_scale * rates
    embedding = linear("time.0", torch.cat([angles.cos(), angles.sin()], 1))
    raw = linear("time.2", silu(embedding)) + w["labels.weight"][cond]

    h0 = conv("input.0", x)
    h1 = residual("input.1.residual", h0)
    h2 = residual("input.2.down", h1, down)
    h3 = attend(net.input[3]["attention"], residual("input.3.residual", h2))
    h = residual("bottom.first", h3)
    h = residual("bottom.last", attend(net.bottom["attention"], h))
    h = residual("output.0.residual", torch.cat([h, h3], 1))
    h = attend(net.output[0]["attention"], h)
    h = residual("output.1.residual", torch.cat([h, h2], 1))
    h = residual("output.1.up", attend(net.output[1]["attention"], h), up)
    h = residual("output.2.residual", torch.cat([h, h1], 1))
    h = residual("output.3.residual", torch.cat([h, h0], 1))
    return conv("out", silu(norm("norm", h)))


def ddim(model, levels, noise, guided):
    """DDIM from `noise`: `guided(evaluation, x, t)` is the guided prediction."""
    start = levels.points[0]
    x = noise if start.alpha < 1 else noise * start.sigma
    for number, (now, to) in enumerate(levels.steps(), 1):
        a, b = model.prediction.denoised(now)
        t = torch.full((len(x),), model.prediction.net_time(now), dtype=x.dtype)
        denoised = a * x + b * guided(number, x, t)
        keep = to.sigma / now.sigma
        x = keep * x + (to.alpha - now.alpha * keep) * denoised
    return x
