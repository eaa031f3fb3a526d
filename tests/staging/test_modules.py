"""Networks that the project has never heard of, guided in their layers by their modules."""

from __future__ import annotations

import copy
import math
import threading
import zlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastguide as fg
from fastguide import ops, reference
from fastguide.staging.twin import replaced

SHAPE, LABELS, CFG, WEIGHT = (3, 4, 6), torch.tensor([3, 5]), 3.0, 2.0


class Block(nn.Module):
    """Self-attention and a feed-forward part; `form` is how attention is written."""

    def __init__(self, width, form):
        super().__init__()
        self.form, self.how = form, None
        self.norm, self.shift = nn.LayerNorm(width), nn.Linear(width, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mixed = nn.MultiheadAttention(width, 2, batch_first=True)
        self.ff = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, tokens, emb):
        h = self.norm(tokens) + self.shift(emb)[:, None]
        return (tokens := tokens + self.attend(h)) + self.ff(tokens)

    def attend(self, h):
        if self.form == "module":
            return self.mixed(h, h, h, need_weights=False)[0]
        q, k, v = self.qkv(h).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        if self.form == "function":
            z = F.scaled_dot_product_attention(q, k, v)
        elif self.form == "product":
            z = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v
        else:
            scores = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
            z = torch.einsum("bhij,bhjd->bhid", torch.softmax(scores, dim=-1), v)
        return self.out(z.transpose(1, 2).flatten(2))


class Net(nn.Module):
    def __init__(self, width=16, form="function"):
        super().__init__()
        self.enter, self.time = nn.Linear(3, width), nn.Linear(1, width)
        self.label = nn.Embedding(11, width)
        self.blocks = nn.ModuleList(Block(width, form) for _ in range(4))
        self.leave = nn.Linear(width, 3)

    def forward(self, x, t, cond):
        tokens = self.enter(x.flatten(2).transpose(1, 2))
        emb = self.time(t[:, None]) + self.label(cond)
        for block in self.blocks:
            tokens = block(tokens, emb)
        return self.leave(tokens).transpose(1, 2).reshape(x.shape)


def made(form="function"):
    torch.manual_seed(0)
    return Net(form=form).eval()


def model(net, layers="blocks"):
    return fg.Model(net, fg.Flow(), fg.Prediction("flow"), SHAPE, null=10, layers=layers)


def by_hand(net, how, layers):
    """A copy whose attention in `layers` is done by the published formula, with full matrices."""
    other = copy.deepcopy(net)
    for i in layers:
        block = other.blocks[i]
        if how == "skip":
            block.forward = lambda tokens, emb: tokens
            continue

        def attend(h, block=block):
            if block.form == "module":
                weight, bias = block.mixed.in_proj_weight, block.mixed.in_proj_bias
                qkv, out = F.linear(h, weight, bias), block.mixed.out_proj
            else:
                qkv, out = block.qkv(h), block.out
            q, k, v = qkv.unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
            if how != "identity":
                tokens = q.transpose(1, 2).flatten(2)
                blurred = reference.blur(tokens, how, SHAPE[1:])
                q = blurred.unflatten(-1, (2, -1)).transpose(1, 2)
                v = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1) @ v
            return out(v.transpose(1, 2).flatten(2))

        block.attend = attend
    return other


class Led(nn.Module):
    """What makes CFG of it add `WEIGHT (positive - other)`."""

    def __init__(self, net, other):
        super().__init__()
        self.net, self.other = net, other

    def forward(self, x, t, cond):
        clean = self.net(x, t, cond)
        delta = WEIGHT / CFG * (clean - self.other(x, t, cond))
        return clean + delta * (cond != 10).view(-1, 1, 1, 1)


def sampled(net, guidance, layers="blocks", rows=None, cond=LABELS):
    sampler = fg.Sampler(model(net, layers), guidance, steps=3, rows=rows)
    return sampler(cond, [1, 2])


def check(net, guidance, want, rows=None):
    got, off = sampled(net, guidance, rows=rows), sampled(net, fg.CFG(CFG))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert (off - want).abs().max() > 1e-3


METHODS = {
    "pag": (fg.PAG, {}, "identity"),
    "seg": (fg.SEG, {}, math.inf),
    "seg of 1": (fg.SEG, {"sigma": 1.0}, 1.0),
    "slg": (fg.SLG, {}, "skip"),
    "stg": (fg.STG, {"mode": "attention"}, "identity"),
}


@pytest.mark.parametrize("rows", ["batched", "sequential"])
@pytest.mark.parametrize("form", ["function", "product", "einsum", "module"])
@pytest.mark.parametrize("method", METHODS)
def test_published_formulas(method, form, rows):
    make, options, how = METHODS[method]
    net = made(form)
    guidance = fg.CFG(CFG) + make(WEIGHT, layers=["blocks.1", "blocks.2"], **options)
    want = sampled(Led(net, by_hand(net, how, (1, 2))), fg.CFG(CFG), None)
    check(net, guidance, want, rows)


def test_permuted_tokens():
    """The tokens that a layer is given, permuted by the sample's seed and the layer's name."""
    net, layer = made(), "blocks.2"
    sampler = fg.Sampler(model(net), fg.TPG(WEIGHT, layers=layer), steps=1)
    first = next(e for e, row in enumerate(sampler.plan.rows) if row.pattern is not None)
    seeds = ops.derive_seeds(torch.tensor([1, 2]), sampler.plan.at(first).number)
    order = ops.noise(seeds, (24,), zlib.crc32(layer.encode())).argsort(1)
    other = copy.deepcopy(net)
    plain = other.blocks[2].forward
    other.blocks[2].forward = lambda tokens, emb: plain(
        tokens.gather(1, order[:, :, None].expand_as(tokens)), emb
    )
    x, t = torch.randn(2, *SHAPE), torch.ones(2)
    p, q = net(x, t, LABELS), other(x, t, LABELS)
    want = x - (p + WEIGHT * (p - q))  # one step of a flow, from time 1 to 0
    torch.testing.assert_close(sampler(LABELS, [1, 2], noise=x), want, rtol=1e-5, atol=1e-5)
    assert (p - q).abs().max() > 1e-3


def test_several_cuts():
    net = made()
    guidance = fg.CFG(CFG) + fg.PAG(2.0, layers="blocks.3") + fg.SLG(1.0, layers="blocks.1")

    class Both(Led):
        def forward(self, x, t, cond):
            clean = self.net(x, t, cond)
            delta = 2.0 * (clean - self.other[0](x, t, cond))
            delta = delta + (clean - self.other[1](x, t, cond))
            return clean + delta / CFG * (cond != 10).view(-1, 1, 1, 1)

    others = nn.ModuleList([by_hand(net, "identity", [3]), by_hand(net, "skip", [1])])
    want = sampled(Both(net, others), fg.CFG(CFG), None)
    for rows in ("batched", "sequential"):
        check(net, guidance, want, rows)


class Counted(Block):
    def forward(self, tokens, emb):
        COUNTS.append(tokens.shape[0])
        return super().forward(tokens, emb)


COUNTS: list[int] = []


def test_nothing_runs_twice():
    """Four blocks for two clean rows, and the perturbed row from its layer on."""
    net = made()
    for block in net.blocks:
        block.__class__ = Counted
    sampler = fg.Sampler(model(net), fg.CFG(CFG) + fg.PAG(2.0, layers="blocks.3"), steps=1)
    sampler(LABELS, [1, 2])
    COUNTS.clear()
    sampler(LABELS, [1, 2])
    assert COUNTS == [4, 4, 4, 4, 2]
    assert sampler.stats().stage_rows_shared == 2 * 2 * 3


def test_off_is_the_network():
    net = made()
    plain = fg.Sampler(model(net, None), fg.CFG(CFG), steps=3)(LABELS, [1, 2])
    for guidance in (fg.CFG(CFG), fg.CFG(CFG) + fg.PAG(0.0, layers="blocks.1")):
        assert torch.equal(sampled(net, guidance), plain)


def test_clean_rows_do_not_change():
    net = made()
    plain = sampled(net, fg.CFG(CFG))
    for one in (fg.PAG, fg.SEG, fg.SLG, fg.TPG):
        got = sampled(net, fg.CFG(CFG) + one(1e-30, layers="mid"))
        torch.testing.assert_close(got, plain, rtol=1e-6, atol=1e-6)


def test_hooks_and_adapters():
    """A forward hook, a pre-hook, a replaced forward and a LoRA act as on the plain network."""
    peft = pytest.importorskip("peft")
    guidance = fg.CFG(CFG) + fg.PAG(WEIGHT, layers=["blocks.1", "blocks.2"])

    def changed(kind):
        net = made()
        if kind == "hook":
            net.blocks[2].register_forward_hook(lambda m, a, out: out * 1.1)
        elif kind == "inner hook":
            net.blocks[1].ff.register_forward_pre_hook(lambda m, a: (a[0] * 0.5,))
        elif kind == "forward":
            before = net.forward
            net.forward = lambda x, t, cond: before(x, t, cond) * 0.9
        elif kind == "lora":
            torch.manual_seed(1)
            config = peft.LoraConfig(target_modules=["qkv", "out"], init_lora_weights=False)
            net = peft.inject_adapter_in_model(config, net).eval()
        return net

    before = sampled(made(), guidance)
    for kind in ("hook", "inner hook", "forward", "lora"):
        net = changed(kind)
        other = by_hand(net, "identity", (1, 2))
        want = sampled(Led(net, other), fg.CFG(CFG), None)
        if kind == "forward":  # a deep copy's forward is the original's
            other = by_hand(made(), "identity", (1, 2))
            led = Led(made(), other)
            want = sampled(Scaled(led), fg.CFG(CFG), None)
        got = sampled(net, guidance)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        assert (got - before).abs().max() > 1e-3, kind


class Scaled(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t, cond):
        return 0.9 * self.net(x, t, cond)


def test_offloaded_parts():
    """Modules whose weights are only there while they run, by accelerate's hooks."""
    accelerate = pytest.importorskip("accelerate")
    want = sampled(made(), fg.CFG(CFG) + fg.PAG(WEIGHT, layers="blocks.2"))
    net = accelerate.cpu_offload(made(), execution_device=torch.device("cpu"))
    assert net.blocks[2].qkv.weight.device.type == "meta"
    guidance = fg.CFG(CFG) + fg.PAG(WEIGHT, layers="net.blocks.2")
    got = sampled(OnCpu(net), guidance, "net.blocks")
    torch.testing.assert_close(got, want)


class OnCpu(nn.Module):
    """Has a parameter that tells the device."""

    def __init__(self, net):
        super().__init__()
        self.here = nn.Parameter(torch.zeros(1))
        self.net = net

    def forward(self, x, t, cond):
        return self.net(x, t, cond)


def test_nothing_stays_installed():
    net = made()
    before = {name: dict(m.__dict__) for name, m in net.named_modules()}
    sampled(net, fg.CFG(CFG) + fg.PAG(2.0, layers="mid") + fg.SAG(1.0))
    for name, m in net.named_modules():
        assert m.__dict__.keys() == before[name].keys()
        assert all(m.__dict__[key] is before[name][key] for key in before[name]), name


def test_threads():
    """Two threads guide one network differently while a third runs it plainly."""
    net = made()
    guidances = [fg.CFG(CFG) + fg.PAG(2.0, layers="blocks.1"), fg.SLG(1.0, layers="blocks.2"), None]
    samplers = [fg.Sampler(model(net), one, steps=20) for one in guidances]
    wants = [one(LABELS, [1, 2]) for one in samplers]
    results: list[list[torch.Tensor]] = [[] for _ in samplers]

    def work(i):
        results[i].extend(samplers[i](LABELS, [1, 2]) for _ in range(5))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for want, found in zip(wants, results, strict=True):
        assert len(found) == 5
        assert all(torch.equal(want, one) for one in found)


def test_sag_and_nag_are_those_of_a_textbook():
    net = made()
    guidance = fg.CFG(CFG) + fg.SAG(1.0, layers="blocks.1")
    by_function = sampled(net, guidance)
    twin = copy.deepcopy(net)
    for block in twin.blocks:
        block.form = "product"
    torch.testing.assert_close(sampled(twin, guidance), by_function, rtol=1e-4, atol=1e-4)
    assert (by_function - sampled(net, fg.CFG(CFG))).abs().max() > 1e-4
    led = sampled(net, fg.CFG(CFG) + fg.NAG(3.0))
    assert (led - sampled(net, fg.CFG(CFG))).abs().max() > 1e-3
    with pytest.raises(ValueError, match="NAG does not reach"):
        sampled(twin, fg.NAG(3.0))


def test_rectified():
    """Gradients go through the positive rows, and perturbed ones go on from them."""
    net = made()
    guidance = fg.REG(fg.CFG(2.0)) + fg.PAG(1.0, layers="blocks.2")
    got = sampled(net, guidance)
    plain = sampled(net, fg.REG(fg.CFG(2.0)))
    assert bool(torch.isfinite(got).all())
    assert (got - plain).abs().max() > 1e-3


def test_memory_is_told():
    net = made()
    one = fg.Sampler(model(net), fg.CFG(CFG), steps=2).memory(4)
    more = fg.Sampler(model(net), fg.CFG(CFG) + fg.PAG(2.0, layers="blocks.3"), steps=2).memory(4)
    kept = 4 * 24 * 16 * 4
    assert more.activations - one.activations >= kept


def test_errors():
    net = made()
    with pytest.raises(ValueError, match="no such submodule; its lists of blocks are blocks"):
        model(net, "layers")
    with pytest.raises(ValueError, match="but there is none; the names are"):
        fg.Sampler(model(net), fg.PAG(1.0, layers="blocks.7"))
    with pytest.raises(TypeError, match="only the layers of"):
        model(lambda x, t, cond: x)
    with pytest.raises(ValueError, match="no list of blocks"):
        model(nn.Linear(2, 2), "auto")
    with pytest.raises(ValueError, match="no self-attention was met"):
        fg.Sampler(model(net, ["blocks.0", "leave"]), fg.PAG(1.0, layers="leave"))(LABELS, [1, 2])
    with pytest.raises(ValueError, match="cannot leave out"):
        fg.Sampler(model(net, ["blocks.0", "leave"]), fg.SLG(1.0, layers="leave"))(LABELS, [1, 2])


def test_a_block_that_is_passed_by():
    class Around(Net):
        def forward(self, x, t, cond):
            tokens = self.enter(x.flatten(2).transpose(1, 2))
            emb = self.time(t[:, None]) + self.label(cond)
            for block in HELD:
                tokens = block(tokens, emb)
            return self.leave(tokens).transpose(1, 2).reshape(x.shape)

    net = Around().eval()
    HELD[:] = net.blocks
    with pytest.raises(ValueError, match="did not run"):
        sampled(net, fg.PAG(1.0, layers="blocks.1"))


HELD: list[nn.Module] = []


def test_twins_share_everything():
    net = made()
    twin = replaced(net, {"blocks.1": lambda block: block})
    assert twin is not net
    assert twin.blocks is not net.blocks
    assert all(a is b for a, b in zip(twin.parameters(), net.parameters(), strict=True))
