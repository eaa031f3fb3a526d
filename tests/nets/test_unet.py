"""The U-Net: against plain formulas, its stages and names, conditions, sizes, memory."""

import plain
import pytest
import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map_only

import fastguide as fg
from fastguide.nets import UNet
from fastguide.nets.norm import GroupNorm, to_pixels, to_tokens
from fastguide.nets.unet_blocks import PixelAttention, UNetState
from fastguide.staging.contract import PLAIN, Routing, Segment, choose_layers, layers_of
from fastguide.staging.perturbation import Identity, Shuffled, TimedLayers

TINY = {"width": 16, "multipliers": (1, 2), "res_blocks": 1, "attention": (2,), "head_channels": 8}


def make(**config):
    return UNet(**{**TINY, "groups": 4, "classes": 4, **config})


def randomised(**config):
    torch.manual_seed(3)
    net = make(**config).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net.requires_grad_(False)


def inputs(rows=3, size=(8, 12), channels=1):
    x = torch.randn(rows, channels, *size)
    return x, torch.linspace(0.1, 0.9, rows), torch.arange(rows) % 4


@pytest.mark.parametrize("variance", [False, True])
def test_it_is_what_the_formulas_say(variance):
    net = randomised(channels=2, variance=variance).double()
    x, t, cond = inputs(channels=2)
    # 0.25 has no rounding left when it is multiplied by 1000 in fp32
    t = torch.tensor([0.0, 0.25, 1.0])
    expected = plain.unet(net, x.double(), t.double(), cond)
    assert expected.shape == (3, 4 if variance else 2, 8, 12)
    torch.testing.assert_close(net(x, t, cond), expected, rtol=1e-5, atol=1e-5)


def test_it_starts_as_zero_and_its_blocks_as_the_identity():
    net = make()
    x, t, cond = inputs()
    assert net(x, t, cond).abs().max() == 0
    state = net.condition(net.embed((x, t)), cond)
    assert torch.equal(net.input[1]["residual"](state).h, state.h)
    state = net.input[2]["down"](state)
    state = net.input[3]["residual"](state)
    assert torch.equal(net.input[3]["attention"](state).h, state.h)


def test_stages_compose_to_the_network_and_never_write_to_their_input():
    net = randomised()
    x, t, cond = inputs()
    state = (x, t)
    for stage in net.stages:
        tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
        before = [tensor.clone() for tensor in tensors]
        state = stage.run(state, cond, PLAIN)
        assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    assert torch.equal(state, net(x, t, cond))
    assert [stage.name for stage in net.stages] == [
        "input.0",
        "condition",
        "input.1.residual",
        "input.2.down",
        "input.3.residual",
        "input.3.attention",
        "middle.first",
        "middle.attention",
        "middle.last",
        "output.0.residual",
        "output.0.attention",
        "output.1.residual",
        "output.1.attention",
        "output.1.up",
        "output.2.residual",
        "output.3.residual",
        "head",
    ]
    assert layers_of(net) == ("input.3", "middle", "output.0", "output.1")
    timed = [layer for stage in net.stages if stage.timed for layer in stage.layers]
    kinds = ("residual", "down", "up", "first", "last")
    assert timed == ["time", *(s.name for s in net.stages if s.name.endswith(kinds))]
    assert layers_of(net, timed=True) == tuple(timed[1:])
    assert [stage.name for stage in net.stages if stage.cond] == ["condition"]


def test_attention_stages_can_be_left_out_and_no_others():
    net = randomised()
    x, t, cond = inputs()
    assert [s.skippable for s in net.stages] == ["attention" in s.name for s in net.stages]
    for skipped in (stage for stage in net.stages if stage.skippable):
        state = (x, t)
        for stage in net.stages:
            state = state if stage.name == skipped.name else stage.run(state, cond, PLAIN)
        assert state.shape == x.shape
        assert (state - net(x, t, cond)).abs().max() > 1e-4


def test_rows_of_every_tensor_in_a_state_can_be_gathered():
    """What the engine does where a branch leaves the others."""
    net = randomised()
    x, t, cond = inputs()
    rows = torch.tensor([2, 0])
    for fork in range(1, len(net.stages) - 1):
        state = (x, t)
        for index, stage in enumerate(net.stages):
            if index == fork:
                state = tree_map_only(torch.Tensor, lambda tensor: tensor[rows], state)
            state = stage.run(state, cond[rows] if index >= fork else cond, PLAIN)
        expected = net(x, t, cond)[rows]
        torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)


def test_the_layers_of_adm_256_have_their_published_names():
    with torch.device("meta"):
        net = UNet(3, 256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), 64, 1000, variance=True)
    names = list(choose_layers(("all",), net))
    first = [f"input.{index}" for index in (10, 11, 13, 14, 16, 17)]
    assert names == [*first, "middle", *(f"output.{index}" for index in range(9))]
    assert choose_layers(("mid",), net) == ("middle",)
    assert choose_layers(("mid", "input.14", "input.16"), net) == ("input.14", "input.16", "middle")
    with pytest.raises(ValueError, match=r"layers has 'input.1', but 6 layers start with that"):
        choose_layers(("input.1",), net)
    assert len(net.output) == 18
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == 554  # the paper's table 4
    heads = {m.attention.heads for m in net.modules() if isinstance(m, PixelAttention)}
    assert heads == {512 // 64, 1024 // 64}
    timed = choose_layers(TimedLayers(("all",)), net)
    assert len(timed) == 12 + 5 + 2 + 18 + 5
    assert choose_layers(TimedLayers(("mid", "time", 0)), net) == (
        "time",
        "input.1.residual",
        "middle.first",
        "middle.last",
    )
    with pytest.raises(ValueError, match=r"'input.14', but 1 layers start with that; .* 'time', "):
        choose_layers(TimedLayers(("input.14",)), net)
    with pytest.raises(ValueError, match=r"'input.14.residual', but there is none"):
        choose_layers(("input.14.residual",), net)


def test_output_depends_on_each_input():
    net = randomised()
    x, t, cond = inputs()
    base = net(x, t, cond)
    for other in (net(x + 0.1, t, cond), net(x, t + 0.1, cond), net(x, t, cond + 1)):
        assert (other - base).abs().amax((1, 2, 3)).min() > 1e-4


def test_no_condition_is_the_null_class_and_an_unconditional_network_has_none():
    net = randomised()
    x, t, cond = inputs()
    assert torch.equal(net(x, t), net(x, t, torch.full_like(cond, 4)))
    assert (net(x, t) - net(x, t, cond)).abs().amax((1, 2, 3)).min() > 1e-4
    net = randomised(classes=0)
    assert net.labels is None
    assert torch.equal(net(x, t), net(x, t, cond))


def test_rows_do_not_see_each_other():
    net = randomised()
    x, t, cond = inputs(4)
    whole = net(x, t, cond)
    torch.testing.assert_close(whole[2:3], net(x[2:3], t[2:3], cond[2:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(2, 2), (28, 28), (6, 10), (2, 16)])
def test_any_size(size):
    net = randomised()
    x, t, cond = inputs(2, size)
    assert net(x, t, cond).shape == (2, 1, *size)
    net.check_shape((1, *size))


def test_perturbed_rows_leave_the_others_as_they_are():
    net = randomised()
    x, t, cond = inputs(2)
    state, seeds = (torch.cat([x, x]), torch.cat([t, t])), torch.tensor([5, 6])
    for how in (Identity(), Shuffled()):
        routing = Routing({"middle": (Segment(0, 1), Segment(1, 2, how))}, seeds)
        out = state
        for stage in net.stages:
            out = stage.run(out, torch.cat([cond, cond]), routing)
        torch.testing.assert_close(out[:2], net(x, t, cond), rtol=1e-4, atol=1e-5)
        assert (out[2:] - out[:2]).abs().amax((1, 2, 3)).min() > 1e-4


def test_shuffled_tokens_are_the_layers_input_residual_included():
    net = randomised()
    layer = net.bottom["attention"]
    h = torch.randn(2, 32, 4, 6).contiguous(memory_format=torch.channels_last)
    routing = Routing({"middle": (Segment(0, 1, Shuffled()),)}, torch.tensor([5, 6]))
    out = layer(UNetState(h, torch.empty(2, 64), ()), None, routing).h
    plain = layer(UNetState(h, torch.empty(2, 64), ())).h
    # attention commutes with a permutation: the same pixels, elsewhere
    assert not torch.allclose(out, plain, atol=1e-3)
    for row in range(2):
        distance = torch.cdist(to_tokens(out)[row], to_tokens(plain)[row])
        assert distance.min(1).values.max() < 1e-3
        assert sorted(distance.argmin(1).tolist()) == list(range(24))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_and_tokens_are_views_of_channels_last_memory(channels):
    net = randomised(channels=channels)
    x, t, cond = inputs(channels=channels)
    state = net.condition(net.embed((x, t)), cond)
    for stage in net.stages[2:-1]:
        state = stage.run(state, cond, PLAIN)
        for tensor in (state.h, *state.skips):
            assert tensor.is_contiguous(memory_format=torch.channels_last), stage.name
        tokens = to_tokens(state.h)
        assert tokens.is_contiguous()
        assert tokens.data_ptr() == state.h.data_ptr()
        again = to_pixels(tokens, state.h.shape[2:])
        assert (again.data_ptr(), again.stride()) == (state.h.data_ptr(), state.h.stride())
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert net.head(state).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_norm_is_rounded_once(dtype, mean):
    """Against fp64 on the same input, also where the mean is far above the deviation."""
    norm = GroupNorm(24, 4)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    norm.to(dtype).requires_grad_(False)
    h = (mean + torch.randn(3, 24, 5, 7)).to(dtype)
    scale, shift = torch.randn(2, 3, 24).to(dtype)
    out = norm(h.contiguous(memory_format=torch.channels_last), scale, shift)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    exact = F.group_norm(h.double(), 4, norm.weight.double(), norm.bias.double())
    exact = exact * (1 + scale.double()[:, :, None, None]) + shift.double()[:, :, None, None]
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(
        out.double(), F.silu(exact), rtol=rounding, atol=1e-5 if mean == 0.0 else 2e-4
    )


def test_bf16_weights():
    net = randomised()
    for p in net.parameters():
        p.mul_(0.25)
    x, t, cond = inputs()
    exact = net(x, t, cond)
    half = net.to(torch.bfloat16)
    out = half(x, t, cond)
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().max() < 0.02 * exact.abs().max()


def test_it_compiles_as_one_graph():
    net = randomised()
    x, t, cond = inputs()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, t, cond), net(x, t, cond), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_keeps_all_of_it(tmp_path):
    net = randomised(channels=2, variance=True)
    model = fg.Model(
        net, fg.VP(), fg.Prediction("eps"), (2, 8, 8), 4, class_names=tuple("abcd"), variance=True
    )
    fg.save(tmp_path, model)
    loaded = fg.load(tmp_path)
    assert isinstance(loaded.net, UNet)
    assert loaded.net.config == net.config
    assert (loaded.variance, loaded.heads, loaded.null) == (True, 1, 4)
    x, t, cond = inputs(channels=2)
    assert torch.equal(loaded.net(x, t, cond), net(x, t, cond))
    weight = loaded.net.bottom["first"].conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_guided_samples_depend_on_the_class():
    model = fg.Model(randomised(), fg.VP(), fg.Prediction("eps"), (1, 8, 8), 4)
    options = {"steps": 3, "seeds": [1, 2], "clamp": 1.0}
    a = fg.sample(model, [0, 0], fg.CFG(2.0), **options)
    b = fg.sample(model, [1, 1], fg.CFG(2.0), **options)
    assert (a - b).abs().amax((1, 2, 3)).min() > 1e-4


def test_initialise_draws_every_weight_anew():
    net = make()
    torch.manual_seed(0)
    net.initialise()
    first = {name: value.clone() for name, value in net.state_dict().items()}
    for p in net.parameters():
        torch.nn.init.normal_(p)
    torch.manual_seed(0)
    net.initialise()
    assert all(torch.equal(first[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": 18}, r"width is 18, .* multiple of groups \(4\)"),
        ({"width": 9, "groups": 1}, "width is 9, but it should be even"),
        ({"res_blocks": 0}, "res_blocks is 0"),
        ({"groups": 0}, "groups is 0"),
        ({"channels": 0}, "channels is 0"),
        ({"multipliers": ()}, r"multipliers is \(\)"),
        ({"multipliers": (1, 0)}, r"multipliers is \(1, 0\)"),
        ({"multipliers": (1, 1.5)}, r"multipliers is \(1, 1.5\)"),
        ({"attention": (4,)}, r"attention has 4, but it should be among \[1, 2\]"),
        ({"attention": (3,)}, "attention has 3"),
        ({"head_channels": 24}, "head_channels is 24, but it should divide the 32 channels"),
        ({"attention": (1,), "head_channels": 32}, "should divide the 16 channels"),
        ({"classes": -1}, "classes is -1"),
    ],
)
def test_errors(config, message):
    with pytest.raises(ValueError, match=message):
        make(**config)


def test_shapes_that_do_not_fit_are_named():
    net = make()
    with pytest.raises(ValueError, match=r"shape is \(3, 8, 8\), but it should be \(1, H, W\)"):
        net.check_shape((3, 8, 8))
    with pytest.raises(ValueError, match="should be multiples of 2, for 2 levels"):
        net.check_shape((1, 8, 9))


@pytest.mark.parametrize("silu", [True, False])
def test_the_gradient_of_the_norm_in_closed_form(silu):
    norm = GroupNorm(24, 6, silu)
    torch.nn.init.normal_(norm.weight, 1.0, 0.3)
    torch.nn.init.normal_(norm.bias)
    h = torch.randn(3, 24, 5, 7).mul(2).add(1).to(memory_format=torch.channels_last)
    inputs = [h, torch.randn(3, 24), torch.randn(3, 24)]
    given = [x.clone().requires_grad_() for x in inputs] + [norm.weight, norm.bias]
    exact = [x.detach().double().requires_grad_() for x in given]
    outward = torch.randn(3, 24, 5, 7)
    x, scale, shift, weight, bias = exact
    want = torch.nn.functional.group_norm(x, 6, weight, bias, 1e-5)
    want = want * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    want = torch.nn.functional.silu(want) if silu else want
    got = norm(*given[:3])
    found = torch.autograd.grad((got * outward).sum(), given)
    expected = torch.autograd.grad((want * outward).sum(), exact)
    for one, other in zip((got, *found), (want, *expected), strict=True):
        torch.testing.assert_close(
            one.double(), other, rtol=1e-4, atol=1e-5 * float(other.abs().max())
        )
    with torch.no_grad():
        assert torch.equal(norm(*inputs), got)
