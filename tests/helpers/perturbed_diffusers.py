"""Perturbed attention by its published formula, with full matrices, as processors of diffusers."""

from __future__ import annotations

import copy
import math

import torch
from torch.nn import functional as F

from fastguide import reference


def heads(attn, x):
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def norm(module, x):
    return x if module is None else module(x)


class ByHand:
    """One attention of any kind: `how` is "identity" or a sigma in tokens, of the image's tokens;
    `grid` is how they lie.
    """

    def __init__(self, how, grid, kind):
        self.how, self.grid, self.kind = how, grid, kind

    def blur(self, q):
        if math.isinf(self.how):
            return q.mean(2, keepdim=True).expand_as(q)
        tokens = q.transpose(1, 2).flatten(2)
        out = reference.blur(tokens, self.how, self.grid)
        return out.unflatten(-1, (q.shape[1], -1)).transpose(1, 2)

    def softmax(self, q, k, v, images):
        """`images` is which tokens are the image's."""
        if self.how != "identity":
            q = q.clone()
            q[:, :, images] = self.blur(q[:, :, images])
        scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        if self.how == "identity":
            others = ~torch.eye(q.shape[2], dtype=torch.bool)
            others &= images[:, None] & images[None, :]
            scores = scores.masked_fill(others, -math.inf)
        return scores.softmax(-1) @ v

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        x, context = hidden_states, encoder_hidden_states
        residual = x
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        if self.kind == "linear":
            return self.linear(attn, x)
        q, k, v = (heads(attn, f(x)) for f in (attn.to_q, attn.to_k, attn.to_v))
        q, k = norm(getattr(attn, "norm_q", None), q), norm(getattr(attn, "norm_k", None), k)
        texts = self.grid[0] * self.grid[1] != x.shape[1]
        before = x.shape[1] - self.grid[0] * self.grid[1] if texts else 0
        if context is not None:
            parts = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            qt, kt, vt = (heads(attn, f(context)) for f in parts)
            qt, kt = norm(attn.norm_added_q, qt), norm(attn.norm_added_k, kt)
            q, k, v = (torch.cat(pair, 2) for pair in ((qt, q), (kt, k), (vt, v)))
            before = context.shape[1]
        rope = kwargs.get("image_rotary_emb", args[1] if len(args) > 1 else None)
        if rope is not None:
            from diffusers.models.embeddings import apply_rotary_emb

            q, k = apply_rotary_emb(q, rope), apply_rotary_emb(k, rope)
        images = torch.arange(q.shape[2]) >= before
        z = self.softmax(q, k, v, images).transpose(1, 2).flatten(2)
        if context is not None:
            text, z = z[:, :before], z[:, before:]
            if getattr(attn, "to_add_out", None) is not None:
                text = attn.to_add_out(text)
        if getattr(attn, "to_out", None) is not None:
            z = attn.to_out[0](z)
        if residual.ndim == 4:
            z = z.transpose(1, 2).reshape(residual.shape)
            z = (z + residual) / attn.rescale_output_factor
        return z if context is None else (z, text)

    def linear(self, attn, x):
        if self.how == "identity":
            return attn.to_out[0](attn.to_v(x))
        q, k = norm(attn.norm_q, attn.to_q(x)), norm(attn.norm_k, attn.to_k(x))
        q, k, v = (heads(attn, y) for y in (F.relu(q), F.relu(k), attn.to_v(x)))
        scores = self.blur(q) @ k.transpose(2, 3)
        z = scores / (scores.sum(-1, keepdim=True) + 1e-15) @ v
        return attn.to_out[0](z.transpose(1, 2).flatten(2))


def perturbed(net, layers, how, grid):
    """A copy of `net` with its attention in `layers` done by hand; a layer is the name of an
    attention, or of a block whose self-attentions are meant.
    """
    made = copy.deepcopy(net)
    found = 0
    for name, module in made.named_modules():
        if not hasattr(module, "to_q") or getattr(module, "is_cross_attention", False):
            continue
        if name in layers or name.rpartition(".")[0] in layers:
            kind = "linear" if "Linear" in type(module.processor).__name__ else "softmax"
            module.set_processor(ByHand(how, grid, kind))
            found += 1
    assert found
    return made


class Guided(torch.nn.Module):
    """In a pipeline's place of the network: returns what makes its own CFG of scale `scale` add
    `weight (positive - perturbed)`; without CFG `scale` is None.
    """

    def __init__(self, net, other, weight, scale=None, null_first=True):
        super().__init__()
        self.net, self.other = net, other
        self.weight, self.scale, self.null_first = weight, scale, null_first

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)

    def forward(self, *args, **kwargs):
        kwargs["return_dict"] = False
        clean = self.net(*args, **kwargs)[0]
        delta = self.weight * (clean - self.other(*args, **kwargs)[0])
        if self.scale is None:
            return (clean + delta,)
        half = torch.zeros_like(delta)
        part = slice(len(half) // 2, None) if self.null_first else slice(len(half) // 2)
        half[part] = delta[part] / self.scale
        return (clean + half,)
