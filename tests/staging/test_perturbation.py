"""Guidance by perturbation against two full passes with textbook attention (plain.py)."""

import math
import zlib
from dataclasses import replace

import plain
import pytest
import torch
from loop import loop_of
from plain import Treat
from torch.nn import functional as F

import fastguide as fg
from fastguide import ops, reference
from fastguide.engine.program import make_program
from fastguide.guidance.base import Branch
from fastguide.nets import DiT, UNet
from fastguide.nets.attention import fold_identity
from fastguide.staging.contract import Routing, Segment, choose_layers
from fastguide.staging.perturbation import Identity

STEPS = 3
NAMES = tuple(f"blocks.{i}" for i in range(4))


def dit(**config):
    torch.manual_seed(4)
    settings = {"channels": 2, "width": 48, "depth": 4, "patch": 2, "attention_heads": 3}
    net = DiT(**{**settings, "classes": 5, "time_scale": 1000.0, **config}).eval()
    for name, p in net.named_parameters():
        torch.nn.init.normal_(p, std=0.3 if "qkv" in name else 0.12)
    return net.requires_grad_(False)


def unet(**config):
    torch.manual_seed(4)
    settings = {"width": 16, "multipliers": (1, 2), "res_blocks": 1, "attention": (2,)}
    settings |= {"channels": 2, "head_channels": 8, "groups": 4, "classes": 5}
    net = UNet(**{**settings, **config}).eval()
    for name, p in net.named_parameters():
        torch.nn.init.normal_(p, std=0.5 if "attention" in name else 0.12)
    return net.requires_grad_(False)


KINDS = {"dit": dit, "unet": unet}


def names_of(kind):
    """All layers, and the one in the middle."""
    names = choose_layers(("all",), KINDS[kind]())
    return names, choose_layers(("mid",), KINDS[kind]())


def model_of(net, shape=(2, 8, 8), process=None, prediction="flow"):
    return fg.Model(net, process or fg.Flow(), fg.Prediction(prediction), shape, null=5)


class Plain:
    """One guided prediction after the other, from full passes of the network in fp64."""

    def __init__(self, model, cond, seeds, guidance):
        self.model, self.cond, self.seeds, self.guidance = model, cond, seeds, guidance
        self.net = dit().double() if not isinstance(model, fg.Model) else model.net

    def run(self, seeds):
        levels = fg.make_levels(self.model.process, STEPS)
        noise = fg.noise(seeds, self.model.shape).double()
        return plain.ddim(self.model, levels, noise, self)

    def __call__(self, evaluation, x, t):
        return self.guidance(self, evaluation, x, t)

    def pred(self, x, t, cond=None, treat=plain.PLAIN, nag=plain.PLAIN):
        cond = self.cond if cond is None else cond
        forward = plain.unet if isinstance(self.net, UNet) else plain.dit
        return forward(self.net, x, t, cond, treat, nag)

    @property
    def null(self):
        return torch.full_like(self.cond, 5)

    def order(self, evaluation, layers, count):
        seeds = ops.derive_seeds(torch.tensor(list(self.seeds)), evaluation)
        return {
            name: fg.noise(seeds, (count,), zlib.crc32(name.encode())).argsort(1) for name in layers
        }


def away(treat, weight):
    """d + weight (d - d_treated)."""

    def guided(run, evaluation, x, t):
        base = run.pred(x, t)
        treated = treat
        if treat.how == "shuffle":
            count = x.shape[2] * x.shape[3] // 4
            treated = replace(treat, order=run.order(evaluation, treat.layers, count))
        return base + weight * (base - run.pred(x, t, treat=treated))

    return guided


def nag_of(run, x, t, layers, scale, **settings):
    record = {}
    run.pred(x, t, run.null, Treat(record=record))
    return Treat("nag", layers, negative=record, scale=scale, **settings)


def sag(weight, layer, threshold=1.0, sigma=1.0, kernel_size=9, clamp=None):
    """eps + weight (eps - eps_blurred), by way of eps."""

    def guided(run, evaluation, x, t):
        level = next(
            p
            for p in fg.make_levels(run.model.process, STEPS).points
            if run.model.prediction.net_time(p) == float(t[0])
        )
        a, b = run.model.prediction.denoised(level)
        record = {}
        base = run.pred(x, t, treat=Treat(record=record))
        if level.alpha == 0:  # pure noise holds nothing of the image
            return base
        clean = a * x + b * base
        eps = (x - level.alpha * clean) / level.sigma
        map_ = record[layer][1].mean(1).sum(1)
        height, width = x.shape[2] // 2, x.shape[3] // 2
        mask = (map_ > threshold).double().view(-1, 1, height, width)
        mask = mask.repeat_interleave(2, 2).repeat_interleave(2, 3)
        clamped = clean if clamp is None else clean.clamp(-clamp, clamp)
        blurred = mask * smooth(clamped, sigma, kernel_size) + (1 - mask) * clamped
        again = level.alpha * blurred + level.sigma * eps
        worse = run.pred(again, t)
        eps_worse = (again - level.alpha * (a * again + b * worse)) / level.sigma
        eps = eps_worse + (1 + weight) * (eps - eps_worse)
        return ((x - level.sigma * eps) / level.alpha - a * x) / b

    return guided


def smooth(image, sigma, kernel_size):
    """The Gaussian blur of an image, reflected at its edges, as one dense convolution."""
    at = torch.arange(kernel_size, dtype=image.dtype) - kernel_size // 2
    taps = (-at.square() / (2 * sigma**2)).exp()
    taps = taps / taps.sum()
    padded = F.pad(image, [kernel_size // 2] * 4, mode="reflect")
    kernel = (taps.view(-1, 1) * taps).expand(image.shape[1], 1, -1, -1)
    return F.conv2d(padded, kernel, groups=image.shape[1])


def combined(names):
    """CFG, PAG, SEG and layers skipped at once."""

    def guided(run, evaluation, x, t):
        base = run.pred(x, t)
        others = [
            (1.5, run.pred(x, t, run.null)),
            (1.0, run.pred(x, t, treat=Treat("pag", names[2:3]))),
            (0.5, run.pred(x, t, treat=Treat("seg", (names[1], names[3]), sigma=1.0))),
            (0.7, run.pred(x, t, treat=Treat("skip", names[1:2]))),
        ]
        return base + sum(weight * (base - other) for weight, other in others)

    return guided


def nag(names):
    return lambda run, evaluation, x, t: run.pred(x, t, nag=nag_of(run, x, t, names, 4.0))


def nag_and_pag(names):
    def guided(run, evaluation, x, t):
        settings = nag_of(run, x, t, names, 3.0, tau=1.5, alpha=0.5)
        base = run.pred(x, t, nag=settings)
        worse = run.pred(x, t, treat=Treat("pag", names[2:3]), nag=settings)
        return base + 2.0 * (base - worse) + 1.0 * (base - run.pred(x, t, run.null))

    return guided


def pag_of_the_negative(mid):
    def guided(run, evaluation, x, t):
        base, null = run.pred(x, t), run.pred(x, t, run.null)
        worse = run.pred(x, t, run.null, Treat("pag", mid))
        return base + 2.0 * (base - null) + 1.5 * (null - worse)

    return guided


MID = NAMES[2:3]
CASES = {
    "pag": lambda n, mid: (fg.PAG(2.0), away(Treat("pag", mid), 2.0)),
    "pag, first layers": lambda n, mid: (
        fg.PAG(2.0, layers=[0, 1]),
        away(Treat("pag", n[:2]), 2.0),
    ),
    "seg": lambda n, mid: (fg.SEG(3.0), away(Treat("seg", mid), 3.0)),
    "seg, all": lambda n, mid: (fg.SEG(1.0, layers="all"), away(Treat("seg", n), 1.0)),
    "seg, finite": lambda n, mid: (fg.SEG(3.0, sigma=1.5), away(Treat("seg", mid, sigma=1.5), 3.0)),
    "slg": lambda n, mid: (fg.SLG(1.5, layers=[n[1], 3]), away(Treat("skip", (n[1], n[3])), 1.5)),
    "stg": lambda n, mid: (fg.STG(1.5), away(Treat("skip", mid), 1.5)),
    "stg, attention": lambda n, mid: (fg.STG(1.5, mode="attention"), away(Treat("pag", mid), 1.5)),
    "tpg": lambda n, mid: (fg.TPG(2.0, layers=[1, 2]), away(Treat("shuffle", n[1:3]), 2.0)),
    "sag": lambda n, mid: (fg.SAG(0.7), sag(0.7, mid[0])),
    "sag, blur": lambda n, mid: (
        fg.SAG(0.7, sigma=2.0, kernel_size=5),
        sag(0.7, mid[0], 1.0, 2.0, 5),
    ),
    "nag": lambda n, mid: (fg.NAG(4.0, layers=[1, 2]), nag(n[1:3])),
    "nag, pag, cfg": lambda n, mid: (
        fg.CFG(2.0) + fg.NAG(3.0, tau=1.5, alpha=0.5) + fg.PAG(2.0, layers=2),
        nag_and_pag(n),
    ),
    "of the negative": lambda n, mid: (
        fg.CFG(3.0) + fg.PAG(1.5, of="negative"),
        pag_of_the_negative(mid),
    ),
    "combined": lambda n, mid: (
        fg.CFG(2.5)
        + fg.PAG(1.0, layers=2)
        + fg.SEG(0.5, layers=[1, 3], sigma=1.0)
        + fg.SLG(0.7, layers=n[1]),
        combined(n),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", ["batched", "sequential"])
@pytest.mark.parametrize(("batch", "size"), [(1, (8, 8)), (7, (8, 12))])
@pytest.mark.parametrize("name", CASES)
def test_it_equals_full_passes_with_textbook_attention(name, batch, size, rows, kind):
    guidance, guided = CASES[name](*names_of(kind))
    make = KINDS[kind]
    model = model_of(make(), (2, *size))
    cond, seeds = torch.arange(batch) % 5, range(10, 10 + batch)
    exact = model_of(make().double(), (2, *size))
    want = Plain(exact, cond, seeds, guided).run(seeds)
    got = fg.Sampler(model, guidance, steps=STEPS, rows=rows)(cond, seeds)
    scale = want.abs().max()
    assert (got - want).abs().max() < 2e-5 * scale
    unguided = fg.sample(model, cond, steps=STEPS, seeds=seeds)
    assert (got - unguided).abs().max() > 1e-4 * scale  # on changes the output beyond rounding


OFF = {
    "pag": fg.PAG(0.0),
    "seg": fg.SEG(0.0),
    "slg": fg.SLG(0.0),
    "stg": fg.STG(0.0),
    "tpg": fg.TPG(0.0),
    "sag": fg.SAG(0.0),
    "nag": fg.NAG(1.0),
    "negative": fg.PAG(0.0, of="negative"),
    "interval": fg.PAG(2.0, schedule=fg.interval(1e5, 1e6)),
}


@pytest.mark.parametrize("name", OFF)
def test_off_costs_nothing_to_the_bit(name):
    model, cond = model_of(dit()), torch.arange(3)
    for base in (None, fg.CFG(2.0)):
        without = fg.Sampler(model, base, steps=STEPS)
        off = fg.Sampler(model, OFF[name] if base is None else base + OFF[name], steps=STEPS)
        assert off.plan.net_rows == without.plan.net_rows
        assert torch.equal(off(cond, range(3)), without(cond, range(3)))


def test_an_interval_takes_the_perturbed_rows_out():
    interval = fg.interval(0.5, 2.0)
    sampler = fg.Sampler(model_of(dit()), fg.PAG(2.0, schedule=interval), steps=12)
    # closed, also where a level lies an ulp beside its end
    inside = sum(0.499999 <= row.at.ratio <= 2.000001 for row in sampler.plan.rows[1:])
    assert 0 < inside < 12
    assert sampler.plan.net_rows == 12 + inside


@pytest.mark.parametrize("name", ["pag", "tpg", "sag", "nag"])
def test_the_loop_alone_is_the_sample(name):
    guidance, _ = CASES[name](*names_of("dit"))
    sampler = fg.Sampler(model_of(dit()), guidance, steps=STEPS)
    cond, seeds = torch.arange(3), torch.arange(3)
    noise = fg.noise(seeds, (2, 8, 8))
    assert torch.equal(loop_of(sampler, cond, seeds, noise)(), sampler(cond, seeds))


def test_heuns_second_evaluation_is_guided_too():
    net = dit()
    model = model_of(net)
    cond, seeds = torch.arange(3), range(3)
    run = Plain(model_of(dit().double()), cond, seeds, away(Treat("pag", MID), 2.0))
    guided = fg.Model(
        lambda x, t, c: run(0, x.double(), t.double()).float(),
        model.process,
        model.prediction,
        model.shape,
        null=5,
    )
    want = fg.sample(guided, cond, solver=fg.heun, steps=STEPS, seeds=seeds)
    got = fg.sample(model, cond, fg.PAG(2.0), fg.heun, STEPS, seeds)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_clean_rows_do_not_see_their_neighbours():
    net = dit()
    x, t, cond = torch.randn(6, 2, 8, 8), torch.full((6,), 0.4), torch.arange(6) % 5
    clean, before = net(x, t, cond), x.clone()
    rows = [Branch(), Branch(how=Identity(), layers=("blocks.1",))]
    program = make_program(rows, net)
    from fastguide.engine.rows import Context, bind, run_program

    out = run_program(
        program, x, torch.tensor([0.4]), bind(program, {"cond": cond}), 6, (2, 8, 8), Context()
    )
    torch.testing.assert_close(out[rows[0]], clean, rtol=1e-5, atol=1e-5)
    assert (out[rows[1]] - clean).abs().max() > 1e-3
    assert torch.equal(x, before)  # nothing was written to the input


def test_the_shared_prefix_is_computed_once():
    net = dit()
    source, mid = Branch(), Branch(how=Identity(), layers=("blocks.2",))
    early = Branch(how=Identity(), layers=("blocks.0", "blocks.3"))
    negative = Branch("negative")
    program = make_program([source, negative, mid, early], net)
    counts = [step.blocks for step in program.batches[0].steps]
    #       patches, condition, blocks.0 ... 3, head
    assert counts == [1, 2, 3, 3, 4, 4, 4]
    assert program.inputs == 1
    sequential = make_program([source, negative, mid, early], net, mode="sequential")
    assert sequential.stage_rows == program.stage_rows == sum(counts)


def test_a_perturbed_sample_depends_on_its_own_seed_alone():
    model, cond = model_of(dit()), torch.arange(4)
    for guidance in (fg.TPG(2.0), fg.SAG(2.0, mask="random")):
        batch = fg.sample(model, cond, guidance, steps=STEPS, seeds=[3, 1, 4, 5])
        alone = fg.sample(model, cond[2:3], guidance, steps=STEPS, seeds=[4])
        torch.testing.assert_close(batch[2:3], alone, rtol=1e-4, atol=1e-4)
        other = fg.sample(model, cond[2:3], guidance, steps=STEPS, seeds=[4], shape=(2, 8, 8))
        assert torch.equal(alone, other)


@pytest.mark.parametrize("mask", ["global", "high_frequency", "random", "square"])
def test_sags_other_masks_need_no_stages(mask):
    net = dit()
    model = model_of(lambda x, t, c: net(x, t, c))
    cond = torch.arange(3)
    plain_ = fg.sample(model, cond, steps=STEPS, seeds=range(3))
    guided = fg.sample(model, cond, fg.SAG(1.0, mask=mask), steps=STEPS, seeds=range(3))
    assert (guided - plain_).abs().max() > 1e-3


def test_sags_masks_are_what_they_are_called():
    from fastguide.engine.degrade import high_pass, mask_of

    image = torch.randn(4, 3, 32, 48)
    seeds = torch.arange(4)
    settings = fg.SAG(1.0, mask="square", share=0.25).terms()[0].branch.degraded
    square = mask_of(settings, image, None, None)
    assert square[0, 0].sum() == 16 * 24
    assert square[0, 0, 8:24, 12:36].all()
    random = mask_of(replace(settings, mask="random", share=0.3), image, None, seeds)
    assert abs(float(random.mean()) - 0.3) < 0.02
    for share in (0.0, 1.0):
        edge = mask_of(replace(settings, mask="random", share=share), image, None, seeds)
        assert edge.mean() == share
    wave = torch.cos(torch.arange(32) * 2 * math.pi / 32 * 3).view(1, 1, 32, 1).expand(1, 1, 32, 32)
    assert high_pass(wave).abs().max() < 1e-5
    fine = torch.cos(torch.arange(32) * 2 * math.pi / 32 * 12).view(1, 1, 32, 1)
    fine = fine.expand(1, 1, 32, 32)
    torch.testing.assert_close(high_pass(fine), fine, atol=1e-5, rtol=0)
    assert mask_of(replace(settings, mask="global"), image, None, None) is None


def test_sags_blur_grows_with_the_image():
    from fastguide.engine.degrade import blur_settings

    default = fg.SAG(1.0).terms()[0].branch.degraded
    assert blur_settings(default, 256, 256) == (9.0, 31)
    assert blur_settings(default, 128, 96) == (3.0, 31)
    assert blur_settings(default, 64, 64) == (1.0, 9)
    given = fg.SAG(1.0, sigma=2.0, kernel_size=7).terms()[0].branch.degraded
    assert blur_settings(given, 256, 256) == (2.0, 7)


@pytest.mark.parametrize(
    ("process", "prediction"),
    [(fg.VP("cosine"), "eps"), (fg.VP("linear"), "v"), (fg.EDM(), "edm"), (fg.VP("cosine"), "x0")],
)
def test_sag_in_every_prediction(process, prediction):
    """The delta is one of eps, also where the network predicts something else of another x."""
    scale = {"edm": 250.0}.get(prediction, 1.0)
    net, exact = dit(time_scale=scale), dit(time_scale=scale).double()
    cond, seeds = torch.arange(2), range(2)
    model = model_of(net, process=process, prediction=prediction)
    run = Plain(model_of(exact, process=process, prediction=prediction), cond, seeds, None)

    def pred(x, t, cond_=None, treat=plain.PLAIN, nag=plain.PLAIN):
        level = run.level
        return plain.dit(exact, x * model.prediction.input_scale(level), t, cond, treat, nag)

    def guided(number, x, t):
        run.level = fg.make_levels(process, STEPS).points[number - 1]
        return sag(0.7, NAMES[2])(run, number, x, t)

    run.pred = pred
    levels = fg.make_levels(process, STEPS)
    want = plain.ddim(run.model, levels, fg.noise(seeds, model.shape).double(), guided)
    got = fg.sample(model, cond, fg.SAG(0.7), steps=STEPS, seeds=seeds)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


def test_seg_without_blur_is_no_guidance():
    model, cond = model_of(dit()), torch.arange(3)
    base = fg.sample(model, cond, steps=STEPS, seeds=range(3))
    still = fg.sample(model, cond, fg.SEG(3.0, sigma=0.0), steps=STEPS, seeds=range(3))
    torch.testing.assert_close(still, base, rtol=1e-4, atol=1e-4)


def test_blurring_queries_is_blurring_scores():
    q, k = torch.randn(2, 24, 8).double(), torch.randn(2, 24, 8).double()
    scores = q @ k.transpose(1, 2)
    blurred = reference.blur(scores, 1.3, (4, 6))  # along the queries, for each key
    direct = reference.blur(q, 1.3, (4, 6)) @ k.transpose(1, 2)
    torch.testing.assert_close(blurred, direct)


@pytest.mark.parametrize("split", [False, True])
def test_one_query_is_the_mean_query(split):
    config = {"heads": 2, "split": True, "attention_heads": 2} if split else {}
    net = dit(**config)
    attention = net.blocks[1].attention
    tokens = torch.randn(5, 24, 48)
    want = plain.attention(attention.double(), tokens.double(), (4, 6), Treat("seg", NAMES))
    attention.float()
    got = attention.proj(attention._one_query(tokens)).expand(-1, 24, -1)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("split", [False, True])
def test_folded_values_are_the_same_in_one_product(split):
    config = {"heads": 2, "split": True, "attention_heads": 2} if split else {}
    net = dit(**config)
    attention = net.blocks[1].attention
    routing = Routing({attention.name: (Segment(0, 1), Segment(1, 2, Identity()))})
    tokens = torch.randn(4, 24, 48)
    want = attention(tokens, (4, 6), routing)
    fold_identity(net)
    assert attention.folded_weight is not None
    got = attention(tokens, (4, 6), routing)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    attention.folded_bias += 1.0  # it is in use, in the perturbed rows alone
    moved = attention(tokens, (4, 6), routing) - got
    assert torch.equal(moved[:2], torch.zeros_like(moved[:2]))
    assert moved[2:].min() > 0.5
    attention.unfold()
    assert torch.equal(attention(tokens, (4, 6), routing), want)
    assert not any("folded" in name for name in net.state_dict())


def test_warmup_measures_the_rows():
    model, cond = model_of(dit()), torch.arange(4)
    sampler = fg.Sampler(model, fg.CFG(2.0) + fg.PAG(1.0), steps=STEPS)
    before = sampler(cond, range(4))
    chosen = sampler.warmup([1, 4])
    assert set(chosen) == {1, 4}
    assert set(chosen.values()) <= {"batched", "sequential"}
    torch.testing.assert_close(sampler(cond, range(4)), before, rtol=1e-5, atol=1e-5)
    fixed = fg.Sampler(model, fg.PAG(1.0), steps=STEPS, rows="sequential")
    assert fixed.warmup(3) == {3: "sequential"}
    with pytest.raises(ValueError, match="batches is 0"):
        sampler.warmup(0)
    with pytest.raises(ValueError, match="rows is 'both'"):
        fg.Sampler(model, fg.PAG(1.0), rows="both")


def test_an_unconditional_network_is_guided_too():
    net = DiT(channels=1, width=48, depth=3, patch=2, classes=0).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.15)
    model = fg.Model(net, fg.Flow(), fg.Prediction("flow"), (1, 8, 8))
    base = fg.sample(model, steps=STEPS, seeds=range(3))
    for guidance in (fg.PAG(2.0), fg.SEG(2.0), fg.SAG(1.0), fg.STG(1.0), fg.TPG(1.0)):
        assert (
            fg.sample(model, None, guidance, steps=STEPS, seeds=range(3)) - base
        ).abs().max() > 0


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (lambda: fg.PAG(1.0, layers="blocks.9"), "layers has 'blocks.9', but there is none"),
        (lambda: fg.PAG(1.0, layers="blocks"), "layers has 'blocks', but 4 layers start with that"),
        (lambda: fg.PAG(1.0, layers=4), "layers has 4, but the network has 4 layers: blocks.0"),
        (lambda: fg.PAG(1.0, layers=-1), "layers has -1"),
        (lambda: fg.PAG(1.0, layers=[]), "layers is empty"),
        (lambda: fg.SEG(1.0, sigma=-1.0), "sigma is -1.0"),
        (lambda: fg.SEG(math.nan), "weight is nan"),
        (lambda: fg.STG(1.0, mode="x"), "mode is 'x'"),
        (lambda: fg.SAG(1.0, mask="dino"), "mask is 'dino'"),
        (lambda: fg.SAG(1.0, kernel_size=4), "kernel_size is 4"),
        (lambda: fg.SAG(1.0, share=2.0), "share is 2.0"),
        (lambda: fg.SAG(1.0, layers=[0, 1]), "layers selects blocks.0, blocks.1"),
        (lambda: fg.NAG(tau=0.5), "tau is 0.5"),
        (lambda: fg.NAG(alpha=0.0), "alpha is 0.0"),
        (lambda: fg.NAG(2.0) + fg.NAG(3.0), "guidance holds 2 NAGs"),
        (lambda: fg.PAG(1.0, of="null"), "of is 'null'"),
    ],
)
def test_errors_name_the_argument(guidance, message):
    model = model_of(dit())
    with pytest.raises(ValueError, match=message):
        fg.Sampler(model, guidance(), steps=STEPS)


def test_a_network_without_stages_cannot_be_perturbed():
    net = dit()
    model = model_of(lambda x, t, c: net(x, t, c))
    for guidance in (fg.PAG(1.0), fg.SAG(1.0), fg.NAG(2.0)):
        with pytest.raises(ValueError, match="the network has no stages"):
            fg.Sampler(model, guidance, steps=STEPS)


def test_a_compiled_network_runs_as_one_piece():
    net, calls = dit(), []

    def backend(graph, inputs):
        calls.append(len(inputs))
        return graph.forward

    compiled = model_of(torch.compile(net, backend=backend))
    cond = torch.arange(3)
    got = fg.sample(compiled, cond, fg.CFG(2.0), steps=STEPS, seeds=range(3))
    assert calls  # what was compiled is what ran
    want = fg.sample(model_of(net), cond, fg.CFG(2.0), steps=STEPS, seeds=range(3))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="compiled as one piece"):
        fg.Sampler(compiled, fg.PAG(1.0), steps=STEPS)


def test_layers_by_a_wrong_type():
    with pytest.raises(TypeError, match=r"layers has 1\.5"):
        fg.PAG(1.0, layers=1.5)
