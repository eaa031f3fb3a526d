"""NAG as published: queries of the positive image for both conditions, by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastguide as fg

diffusers = pytest.importorskip("diffusers")

from test_families import Staged, model  # noqa: E402
from tiny_families import Called, condition  # noqa: E402

SCALE, TAU, ALPHA, TOKENS = 6.0, 1.5, 0.5, {"wan": 24, "ltx": 96, "qwen-image": 24, "sd3": 24}
LAST = {"qwen-image"}  # whose image lies behind the text


def led(positive, negative):
    """Of `[rows, heads, N, d]`, with L1 norms of whole tokens."""
    away = SCALE * positive - (SCALE - 1) * negative
    size, most = (one.abs().sum((1, 3), keepdim=True) for one in (away, positive))
    away = away * torch.minimum(torch.ones_like(size), TAU * most / size)
    return ALPHA * away + (1 - ALPHA) * positive


class Published(nn.Module):
    """The network, positive rows led at each attention that the text has a part in: the negative
    condition's text runs beside, with the positive rows' image.
    """

    def __init__(self, called):
        super().__init__()
        self.called, self.blocks = copy.deepcopy(called), 0
        self.plain = called
        for name, block in self.called.net.named_modules():
            if name.count(".") == 1 and name.split(".")[0] in ("blocks", "transformer_blocks"):
                self._lead(block)

    def _lead(self, block):
        forward, family = block.forward, self.called.family

        def run(*args, **kwargs):
            attention = F.scaled_dot_product_attention

            def attend(query, key, value, attn_mask=None, *rest, **options):
                q, k, v = query, key, value
                z = attention(q, k, v, attn_mask, *rest, **options)
                n, m, image = q.shape[2], k.shape[2], TOKENS[family]
                joint = n == m and n > image
                if n == m and not joint:
                    return z
                (qp, _), (kp, kn), (vp, vn) = (one.chunk(2) for one in (q, k, v))
                zp, zn = z.chunk(2)
                if not joint:
                    masks = None if attn_mask is None else attn_mask.chunk(2)[1]
                    return torch.cat([led(zp, attention(qp, kn, vn, masks, *rest, **options)), zn])
                start = n - image if family in LAST else 0
                mine = slice(start, start + image)
                one = [x.clone() for x in (q.chunk(2)[1], kn, vn)]
                for x, y in zip(one, (qp, kp, vp), strict=True):
                    x[:, :, mine] = y[:, :, mine]
                mask = None if attn_mask is None else attn_mask.chunk(2)[1]
                zn = attention(*one, mask, *rest, **options)
                zp = zp.clone()
                zp[:, :, mine] = led(zp[:, :, mine], zn[:, :, mine])
                return torch.cat([zp, zn])

            torch.nn.functional.scaled_dot_product_attention = attend
            try:
                return forward(*args, **kwargs)
            finally:
                torch.nn.functional.scaled_dot_product_attention = attention

        block.forward = run

    def forward(self, x, t, cond):
        negative = condition(self.called.family, 2)
        both = {name: torch.cat([cond[name], negative[name]]) for name in cond}
        return self.called(torch.cat([x, x]), torch.cat([t, t]), both)[: len(x)]


def sampled(net, family, guidance, negative):
    sampler = fg.Sampler(model(net, family), guidance, steps=2)
    return sampler(condition(family, 1), [1, 2], negative)


@pytest.mark.parametrize("family", TOKENS)
def test_shared_queries(family):
    called = Called(family)
    negative = condition(family, 2)
    nag = fg.NAG(SCALE, TAU, ALPHA, queries="shared")
    got = sampled(Staged(called), family, nag, negative)
    want = sampled(Published(called), family, None, None)
    size = want.abs().max()
    assert (got - want).abs().max() <= 1e-5 * size
    for other in (None, fg.NAG(SCALE, TAU, ALPHA)):
        assert (sampled(Staged(called), family, other, other and negative) - want).abs().max() > (
            1e-3 * size
        )


def test_beside_cfg():
    """The negative rows stay what they are in attention to a text; a joint one has no place."""
    nag, cfg = fg.NAG(SCALE, TAU, ALPHA, queries="shared"), fg.CFG(3.0)
    called, other = Called("wan"), condition("wan", 2)
    published, plain = Published(called), called

    class Both(nn.Module):
        def forward(self, x, t, cond):
            c, u = published(x, t, cond), plain(x, t, {"text": other["text"]})
            return u + 3.0 * (c - u)

    want = sampled(Both(), "wan", None, None)
    got = sampled(Staged(called), "wan", cfg + nag, other)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    with pytest.raises(ValueError, match="neither CFG nor perturbed copies"):
        sampled(Staged(Called("sd3")), "sd3", cfg + nag, condition("sd3", 2))


def test_an_image_without_a_text():
    block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0)

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([block.eval()])

        def forward(self, x, t, cond):
            return self.blocks[0](x.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(x)

    alone = fg.Model(
        Alone(), fg.Flow(), fg.Prediction("flow"), (16, 4, 4), torch.zeros(1), layers="blocks"
    )
    with pytest.raises(ValueError, match="attends to no text"):
        fg.sample(alone, torch.ones(1, 1), fg.NAG(3.0, queries="shared"), steps=2, seeds=[1])


def test_stages_by_hand_say_so():
    from test_perturbation import dit, model_of

    with pytest.raises(ValueError, match="hand-written stages"):
        fg.sample(model_of(dit()), [0, 1], fg.NAG(3.0, queries="shared"), steps=2, seeds=[1, 2])
