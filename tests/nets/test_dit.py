"""The DiT: stages, conditions, heads, sizes."""

import pytest
import torch

from fastguide.nets import DiT
from fastguide.nets.dit import position_embedding
from fastguide.staging.contract import PLAIN


def randomised(**config):
    torch.manual_seed(3)
    net = DiT(**{"width": 48, "depth": 2, "patch": 2, "classes": 4, **config}).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net.requires_grad_(False)


def inputs(rows=3, size=(8, 12)):
    return torch.randn(rows, 1, *size), torch.linspace(0.1, 0.9, rows), torch.arange(rows) % 4


def test_it_starts_as_zero_and_its_blocks_as_the_identity():
    net = DiT(width=48, depth=2)
    x, t, cond = torch.randn(2, 1, 28, 28), torch.rand(2), torch.tensor([1, 2])
    assert net(x, t, cond).abs().max() == 0
    state = net.condition(net.embed((x, t)), cond)
    assert torch.equal(net.blocks[0](state).tokens, state.tokens)


def test_stages_compose_to_the_network():
    net = randomised(heads=2)
    x, t, cond = inputs()
    state = (x, t)
    for stage in net.stages:
        state = stage.run(state, cond, PLAIN)
    assert torch.equal(state, net(x, t, cond))
    assert [stage.name for stage in net.stages] == [
        "patches",
        "condition",
        "blocks.0",
        "blocks.1",
        "head",
    ]
    assert net.middle == ("blocks.1",)


def test_output_depends_on_each_input():
    net = randomised(heads=2, negative=True)
    x, t, cond = inputs()
    base = net(x, t, (cond, cond))
    for other in (
        net(x + 0.1, t, (cond, cond)),
        net(x, t + 0.1, (cond, cond)),
        net(x, t, (cond + 1, cond)),
        net(x, t, (cond, cond + 1)),
    ):
        assert (other - base).abs().amax((1, 2, 3)).min() > 1e-4


def test_a_split_network_keeps_the_second_head_from_the_condition():
    net = randomised(heads=2, negative=True, split=True, attention_heads=4)
    x, t, cond = inputs()
    base = net(x, t, (cond, cond))
    other, negative = net(x, t, (cond + 1, cond)), net(x, t, (cond, cond + 1))
    assert torch.equal(base[:, 1], other[:, 1])
    assert (base[:, 0] - other[:, 0]).abs().amax((1, 2)).min() > 1e-4
    assert (base - negative).abs().amax((2, 3)).min() > 1e-4  # the negative reaches both heads
    plain = randomised(heads=2, negative=True)
    difference = plain(x, t, (cond, cond)) - plain(x, t, (cond + 1, cond))
    assert difference[:, 1].abs().max() > 1e-4


def test_a_split_network_in_stages_starts_as_zero_and_takes_any_size():
    net = DiT(width=48, depth=2, attention_heads=2, patch=2, heads=2, split=True)
    x, t, cond = inputs(2, (6, 10))
    assert net(x, t, cond).abs().max() == 0
    state = net.condition(net.embed((x, t)), cond)
    assert torch.equal(net.blocks[0](state).tokens, state.tokens)
    assert net(x, t, cond).shape == (2, 2, 6, 10)


def test_no_condition_is_the_null_class():
    net = randomised(heads=2, negative=True)
    x, t, cond = inputs()
    null = torch.full_like(cond, 4)
    assert torch.equal(net(x, t), net(x, t, (null, null)))
    assert torch.equal(net(x, t, (cond, None)), net(x, t, (cond, null)))


def test_heads_are_channel_slices():
    two = randomised(heads=2, channels=3)
    x, t, cond = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 1])
    one = randomised(heads=1, channels=3)
    state = two.state_dict()
    state["out.weight"], state["out.bias"] = state["out.weight"][12:], state["out.bias"][12:]
    one.load_state_dict(state)
    torch.testing.assert_close(two(x, t, cond)[:, 3:], one(x, t, cond), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(2, 2), (28, 28), (6, 10)])
def test_any_size(size):
    net = randomised()
    x, t, cond = inputs(2, size)
    assert net(x, t, cond).shape == (2, 1, *size)
    assert len(position_embedding((size[0] // 2, size[1] // 2), 48, x.device).unique(dim=0)) == (
        size[0] * size[1] // 4
    )


def test_rows_do_not_see_each_other():
    net = randomised()
    x, t, cond = inputs(4)
    whole = net(x, t, cond)
    torch.testing.assert_close(whole[2:3], net(x[2:3], t[2:3], cond[2:3]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": 50}, "width is 50"),
        ({"depth": 0}, "depth is 0"),
        ({"heads": 0}, "heads is 0"),
        ({"classes": -1}, "classes is -1"),
        ({"negative": True}, "negative is True with heads 1"),
        ({"split": True}, "split is True with heads 1"),
        ({"split": True, "heads": 2, "attention_heads": 3}, "attention_heads 3"),
        ({"split": True, "heads": 2, "width": 36}, "width is 36, .* multiple of 8"),
    ],
)
def test_errors(config, message):
    with pytest.raises(ValueError, match=message):
        DiT(**{"width": 48, "depth": 2, **config})
    with pytest.raises(ValueError, match="multiples of the patch size 4"):
        DiT(width=48, depth=1).check_shape((1, 30, 28))
