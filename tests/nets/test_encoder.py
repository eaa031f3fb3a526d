"""The networks that judge noisy images: against plain formulas, sizes, gradients, texts."""

import math

import pytest
import torch
from torch.nn import functional as F

from fastguide.nets import Encoder, TextImageNet, UNet
from fastguide.nets.embedding import position_embedding
from fastguide.nets.encoder import AttentionPool
from fastguide.nets.text_image import PAD, text_tokens
from fastguide.staging.contract import PLAIN

HALF = {
    "width": 16,
    "multipliers": (1, 2),
    "res_blocks": 1,
    "attention": (2,),
    "head_channels": 8,
    "groups": 4,
}
TEXT = {"text_width": 16, "text_depth": 2, "text_heads": 2, "text_length": 12}


def randomised(net):
    torch.manual_seed(3)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net.eval()


def inputs(rows=3, size=(8, 12), channels=1):
    return torch.randn(rows, channels, *size), torch.linspace(0.1, 0.9, rows)


def test_it_is_the_first_half_of_the_unet_and_a_pool():
    encoder = randomised(Encoder(5, channels=2, **HALF))
    unet = UNet(channels=2, classes=0, **HALF)
    own = ("norm.", "pool.", "out.")
    shared = {k: v for k, v in encoder.state_dict().items() if not k.startswith(own)}
    assert not unet.load_state_dict(shared, strict=False).unexpected_keys
    x, t = inputs(channels=2)
    state = (x, t)
    for stage in unet.stages:
        if stage.name.startswith("output"):
            break
        state = stage.run(state, None, PLAIN)
    expected = encoder.out(encoder.pool(encoder.norm(state.h)))
    torch.testing.assert_close(encoder(x, t), expected)
    assert encoder(x, t).shape == (3, 5)


def test_the_pool_is_the_mean_pixels_attention_as_a_matrix():
    pool = randomised(AttentionPool(8, 2)).double()
    h = torch.randn(3, 8, 2, 5, dtype=torch.float64)
    pixels = h.flatten(2).transpose(1, 2)
    mean = pixels.mean(1, keepdim=True)
    position = position_embedding((2, 5), 8, h.device).double()
    tokens = torch.cat([mean, pixels + position], 1)
    q = pool.query(tokens).unflatten(-1, (2, 4)).transpose(1, 2)
    k, v = (
        F.linear(tokens, *pool.key_value.matrix(i)).unflatten(-1, (2, 4)).transpose(1, 2)
        for i in range(2)
    )
    weights = (q @ k.transpose(2, 3) / math.sqrt(4)).softmax(-1)
    expected = (weights @ v).transpose(1, 2).flatten(2)[:, 0]
    torch.testing.assert_close(pool(h), expected)


def test_it_has_gradients_everywhere_and_heeds_the_time():
    encoder = randomised(Encoder(5, **HALF))
    x, t = inputs()
    x.requires_grad_(True)
    F.cross_entropy(encoder(x, t), torch.arange(3)).backward()
    assert (x.grad.abs() > 0).all()
    for name, p in encoder.named_parameters():
        constant = name == "pool.key_value.bias"  # keys' bias: the same for all keys
        gradient = p.grad[p.shape[0] // 2 :] if constant else p.grad
        assert gradient.abs().max() > 0, name
    with torch.no_grad():
        assert (encoder(x, t) - encoder(x, t + 0.1)).abs().max() > 1e-3
        alone = torch.cat([encoder(x[i : i + 1], t[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(alone, encoder(x, t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(2, 2), (6, 10), (28, 28)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_and_dtypes(size, dtype):
    encoder = randomised(Encoder(4, **HALF)).to(dtype)
    encoder.check_shape((1, *size))
    x, t = inputs(2, size)
    out = encoder(x, t, cond=torch.zeros(2))
    assert out.shape == (2, 4)
    assert out.dtype == dtype
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": 0}, "outputs is 0"),
        ({"attention": (4,)}, "attention has 4"),
        ({"groups": 5}, r"width is 16, but it should be even and a multiple of groups \(5\)"),
        ({"width": 6, "groups": 2, "head_channels": 1, "multipliers": (1,), "attention": ()},
         "a multiple of 4 channels"),
    ],
)  # fmt: skip
def test_wrong_settings(change, message):
    with pytest.raises(ValueError, match=message):
        Encoder(**{"outputs": 3, **HALF, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_heads": 3}, "text_heads is 3, but it should divide text_width, which is 16"),
        ({"text_length": 0}, "text_length is 0"),
        ({"outputs": 0}, "outputs is 0"),
    ],
)
def test_wrong_settings_of_the_pair(change, message):
    with pytest.raises(ValueError, match=message):
        TextImageNet(**{"outputs": 3, **HALF, **TEXT, **change})


def test_texts_are_bytes():
    tokens = text_tokens(["Ab", " é "], 5)
    assert tokens.tolist() == [[97, 98], [0xC3, 0xA9]]
    assert text_tokens(["a", "bcd"], 5).tolist() == [[97, PAD, PAD], [98, 99, 100]]
    assert text_tokens(["a"], 3, fill=True).tolist() == [[97, PAD, PAD]]
    with pytest.raises(ValueError, match=r"texts\[1\] is 'éé', of 4 bytes, but it should have 1"):
        text_tokens(["a", "éé"], 3)
    with pytest.raises(ValueError, match=r"texts\[0\] is ' ', of 0 bytes"):
        text_tokens([" "], 3)
    with pytest.raises(ValueError, match="texts is empty"):
        text_tokens([], 3)
    with pytest.raises(TypeError, match=r"texts\[0\] is 3"):
        text_tokens([3], 3)


def test_a_text_is_the_same_alone_and_beside_longer_ones():
    net = randomised(TextImageNet(6, **HALF, **TEXT))
    alone = net.text(text_tokens(["bag"], 12))
    padded = net.text(text_tokens(["bag", "ankle boot"], 12))
    filled = net.text(text_tokens(["bag"], 12, fill=True))
    torch.testing.assert_close(padded[:1], alone)
    torch.testing.assert_close(filled, alone)
    assert (padded[0] - padded[1]).abs().max() > 1e-2
    swapped = net.text(text_tokens(["gab"], 12))
    assert (alone - swapped).abs().max() > 1e-3  # positions


def test_embeddings_are_of_unit_length_and_the_scale_is_bounded():
    net = randomised(TextImageNet(6, **HALF, **TEXT))
    of_image, of_text = net(*inputs(2), text_tokens(["a", "b"], 12))
    for one in (of_image, of_text):
        assert one.shape == (2, 6)
        torch.testing.assert_close(one.norm(dim=1), torch.ones(2))
    net.initialise()
    assert net.scale.item() == pytest.approx(1 / 0.07)
    torch.nn.init.constant_(net.log_scale, 9.0)
    assert net.scale.item() == pytest.approx(100.0)
