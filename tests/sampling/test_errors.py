"""Errors of the public face: TypeError for a wrong kind, ValueError for a wrong value, and each
names the argument and its value.
"""

import math

import exact
import pytest
import torch
from test_perturbation import dit, model_of

import fastguide as fg

MODEL = exact.two_classes(exact.PROCESSES["edm"])
FLAT = fg.Model(lambda x, t, c: -x, fg.Flow(), fg.Prediction("flow"), (8,), null=3)
STAGED = model_of(dit())
NAMED = fg.Model(
    lambda x, t, c: -x, fg.Flow(), "flow", (1, 4, 4), null=3, class_names=("Red", "Green", "Blue")
)
HUGE = 10**400
LEVEL = fg.Flow().level(0.5)


def sampler(guidance=None, model=MODEL, **options):
    return fg.Sampler(model, guidance, **{"steps": 2, **options})


def call(**arguments):
    return fg.sample(MODEL, **{"cond": 0, "steps": 1, **arguments})


def model_with(**other):
    given = {"net": MODEL.net, "process": MODEL.process, "prediction": MODEL.prediction}
    return fg.Model(**{**given, "shape": MODEL.shape, **other})


def tree(cond, null=None):
    """A network whose condition is a dict of one tensor."""
    null = torch.zeros(3) if null is None else null
    net = fg.Model(lambda x, t, c: -x, fg.Flow(), "flow", (1, 4, 4), null={"a": null})
    return fg.sample(net, cond, steps=1)


CASES = [
    # guidance
    (lambda: fg.CFG(HUGE), ValueError, "scale is 1000"),
    (lambda: fg.CFG(10**5000), ValueError, "scale is a int"),
    (lambda: fg.CFG(True), TypeError, "scale is True"),
    (lambda: fg.CFG("3"), TypeError, "scale is '3'"),
    (lambda: fg.CFG(None), TypeError, "scale is None"),
    (lambda: fg.CFG(3 + 0j), TypeError, "scale is "),
    (lambda: fg.CFG({"a": 1}), TypeError, "scale is {'a': 1}"),
    (lambda: fg.CFG(torch.zeros(0)), ValueError, "scale is empty"),
    (lambda: fg.CFG(2.0, 0.5), TypeError, r"schedule is 0\.5"),
    (lambda: fg.CFG(2.0, "cosine"), TypeError, "schedule is 'cosine'"),
    (lambda: fg.CFG(2.0, fg.interval), TypeError, "schedule is <class"),
    (lambda: fg.CFG(2.0, every=2.0), TypeError, r"every is 2\.0"),
    (lambda: fg.CFG(2.0, every=0), ValueError, "every is 0"),
    (lambda: fg.REG(fg.CFG(2.0), within=3), TypeError, "within is 3"),
    (lambda: fg.REG(fg.CFG(2.0), mode=3), TypeError, "mode is 3"),
    (lambda: fg.CFG(2.0).rescale("a"), TypeError, "share is 'a'"),
    (lambda: fg.CFG(2.0).rescale(1.5), ValueError, r"share is 1\.5"),
    (lambda: fg.APG(fg.CFG(2.0), radius=0), ValueError, "radius is 0"),
    (lambda: fg.APG(fg.CFG(2.0), momentum="x"), TypeError, "momentum is 'x'"),
    (lambda: fg.APG(fg.CFG(2.0), eta=HUGE), ValueError, "eta is 1000"),
    (lambda: fg.CFGZeroStar(fg.CFG(2.0), 1.0), TypeError, r"zero_steps is 1\.0"),
    (lambda: fg.MAMBO(fg.CFG(2.0), math.nan), ValueError, "alpha is nan"),
    (lambda: fg.NAG(2.0, tau="1"), TypeError, "tau is '1'"),
    (lambda: fg.SEG(2.0, sigma="big"), TypeError, "sigma is 'big'"),
    (lambda: fg.SAG(0.5, kernel_size=3.0), TypeError, r"kernel_size is 3\.0"),
    (lambda: fg.SAG(0.5, kernel_size=4), ValueError, "kernel_size is 4"),
    (lambda: fg.SAG(0.5, sigma=math.inf), ValueError, "sigma is inf"),
    (lambda: fg.TSG(2.0, strength=None), TypeError, "strength is None"),
    (lambda: fg.STG(2.0, mode="none"), ValueError, "mode is 'none'"),
    (lambda: fg.PAG(2.0, of=3), TypeError, "of is 3"),
    (lambda: fg.linear("a", 1.0), TypeError, "start is 'a'"),
    (lambda: fg.interval(math.nan, 1.0), ValueError, "low is nan"),
    (lambda: fg.interval(0.0, 1.0, over="x"), ValueError, "over is 'x'"),
    (lambda: fg.cosine(0.0), ValueError, "power is 0"),
    (lambda: sampler(fg.CFG(lambda level: "x")), TypeError, "schedule gives 'x' at Level"),
    (lambda: sampler(fg.CFG(lambda level: HUGE)), ValueError, "schedule gives 1000.*not finite"),
    (lambda: sampler(fg.CFG(2.0, lambda level: None)), TypeError, "schedule gives None"),
    (lambda: fg.CFG([]), ValueError, "scale is empty"),
    (lambda: fg.CFG(2.0, channels=99), TypeError, "channels is 99"),
    (lambda: fg.REG(fg.CFG(2.0), checkpoint="yes"), TypeError, "checkpoint is 'yes'"),
    (lambda: fg.APG(fg.CFG(2.0), radius=torch.ones(2, 2)), TypeError, "radius is tensor"),
    (lambda: fg.SEG(2.0, sigma=torch.ones(2, 2)), TypeError, "sigma is tensor"),
    (lambda: fg.linear(0.0, 1.0, span=3), TypeError, "span is 3"),
    (lambda: fg.cosine(span=("a", 1)), TypeError, r"span\[0\] is 'a'"),
    # processes, levels, solvers and spacings
    (lambda: fg.VP(timesteps="x"), TypeError, "timesteps is 'x'"),
    (lambda: fg.VP(timesteps=10**9), ValueError, "timesteps is 1000000000"),
    (lambda: fg.VP(beta_end=None), TypeError, "beta_end is None"),
    (lambda: fg.VP(zero_terminal_snr="yes"), TypeError, "zero_terminal_snr is 'yes'"),
    (lambda: fg.EDM(sigma_max=HUGE), ValueError, "sigma_max is 1000"),
    (lambda: fg.EDM(sigma_min=True), TypeError, "sigma_min is True"),
    (lambda: fg.Prediction(3), TypeError, "prediction is 3"),
    (lambda: fg.Prediction("edm", "x"), TypeError, "sigma_data is 'x'"),
    (lambda: fg.Flow().level("x"), TypeError, "t is 'x'"),
    (lambda: fg.Levels.from_times(fg.Flow(), 3), TypeError, "times is 3"),
    (lambda: fg.Levels.from_times(fg.Flow(), ["a"]), TypeError, r"times\[0\] is 'a'"),
    (lambda: fg.ddim(eta="x"), TypeError, "eta of ddim is 'x'"),
    (lambda: fg.ddim(eta=HUGE), ValueError, "eta of ddim is 1000"),
    (lambda: fg.karras(rho=math.nan), ValueError, "rho of karras is nan"),
    (lambda: fg.lms(order=2.5), ValueError, r"order of lms is 2\.5"),
    (lambda: fg.unipc(variant=3), TypeError, "variant of unipc is 3"),
    (lambda: fg.deis(lower_order_final="yes"), TypeError, "lower_order_final of deis is 'yes'"),
    (lambda: sampler(solver=fg.restart(solver=3)), TypeError, "solver is 3"),
    (
        lambda: sampler(solver=fg.predictor_corrector(predictor="x")),
        ValueError,
        "predictor is 'x'",
    ),
    # models and samplers
    (lambda: sampler(fg.SAG(0.5, mask="global"), FLAT), ValueError, r"guidance holds SAG.*\(8,\)"),
    (lambda: sampler(fg.FDG(2.0, 3.0), FLAT), ValueError, r"guidance holds FDG.*\(8,\)"),
    (lambda: sampler(3.0), TypeError, r"guidance is 3\.0"),
    (lambda: sampler(levels=[1.0, 0.5]), TypeError, r"levels is \[1\.0, 0\.5\]"),
    (lambda: sampler(spacing=3), TypeError, "spacing is 3"),
    (lambda: sampler(spacing="even"), ValueError, "spacing is 'even'"),
    (lambda: sampler(solver=3), TypeError, "solver is 3"),
    (lambda: sampler(solver="ode"), ValueError, "solver is 'ode'"),
    (lambda: sampler(steps=2.0), TypeError, r"steps is 2\.0"),
    (lambda: sampler(steps=0), ValueError, "steps is 0"),
    (lambda: sampler(steps=HUGE), ValueError, "steps is 1000"),
    (lambda: sampler(strength="x"), TypeError, "strength is 'x'"),
    (lambda: sampler(max_captures=0), ValueError, "max_captures is 0"),
    (lambda: sampler(fallback="yes"), TypeError, "fallback is 'yes'"),
    (lambda: sampler(clamp="1"), TypeError, "clamp is '1'"),
    (lambda: sampler(clamp=(1, "a")), TypeError, r"clamp is \(1, 'a'\)"),
    (lambda: sampler(clamp=0.0), ValueError, r"clamp is 0\.0"),
    (lambda: sampler(clamp=(1, 2, 3)), TypeError, r"clamp is \(1, 2, 3\)"),
    (lambda: sampler(dtype="fp61"), ValueError, r"dtype is 'fp61'.*did you mean 'fp16'\?"),
    (lambda: sampler(dtype=torch.int8), ValueError, "dtype is torch.int8"),
    (lambda: sampler(device="gpu"), ValueError, "device is 'gpu'"),
    (lambda: sampler(device=0), TypeError, "device is 0"),
    (lambda: sampler(device="cuda:99"), ValueError, "device is 'cuda:99'"),
    (lambda: sampler(device="meta"), ValueError, "device is 'meta'"),
    (lambda: sampler(device="mps"), ValueError, "device is 'mps'"),
    (lambda: sampler(shape=8), TypeError, "shape is 8"),
    (lambda: sampler(shape=(2, 4.0, 4)), TypeError, r"shape\[1\] is 4\.0"),
    (lambda: sampler(rows="all"), ValueError, "rows is 'all'"),
    (lambda: sampler(rows=3), TypeError, "rows is 3"),
    (lambda: sampler(graph=3), TypeError, "graph is 3"),
    (lambda: sampler().warmup(0), ValueError, "batches is 0"),
    (lambda: sampler().warmup([2.0]), TypeError, r"batches is 2\.0"),
    (lambda: sampler().memory(2.0), TypeError, r"batch is 2\.0"),
    (lambda: fg.Model(MODEL.net, "vp", MODEL.prediction, (1,)), TypeError, "process is 'vp'"),
    (lambda: fg.Model(MODEL.net, MODEL.process, 3, (1,)), TypeError, "prediction is 3"),
    (lambda: fg.Model(MODEL.net, MODEL.process, MODEL.prediction, 8), TypeError, "shape is 8"),
    (lambda: fg.load(3), TypeError, "name is 3"),
    (lambda: model_with(class_names=3), TypeError, "class_names is 3"),
    (lambda: model_with(variance="yes"), TypeError, "variance is 'yes'"),
    (lambda: model_with(usual=3), TypeError, "usual is 3"),
    (lambda: model_with(shape=(True,)), TypeError, r"shape\[0\] is True"),
    # calls
    (lambda: call(callback=3), TypeError, "callback is 3"),
    (lambda: call(check="yes"), TypeError, "check is 'yes'"),
    (lambda: call(step_noise=3.0), TypeError, r"step_noise is 3\.0"),
    (lambda: fg.noise([1], 8.5), TypeError, r"shape is 8\.5"),
    (lambda: call(seeds=torch.tensor([3, -1])), ValueError, "seeds has -1"),
    (lambda: call(seeds=[]), ValueError, "seeds is empty"),
    (lambda: call(seeds=torch.tensor([], dtype=torch.int64)), ValueError, "seeds is empty"),
    (lambda: call(seeds=1.5), TypeError, r"seeds is 1\.5"),
    (lambda: call(seeds=[None]), TypeError, "seeds has None"),
    (lambda: call(cond="red"), ValueError, "cond has 'red', but the classes are a, b"),
    (lambda: call(cond=[None, 1.5]), ValueError, "cond is torch.float"),
    (lambda: call(cond=1.0), ValueError, "cond is torch.float"),
    (lambda: call(cond=2**70), TypeError, "cond is 1180591620717411303424"),
    (lambda: call(noise=3.0), TypeError, r"noise is 3\.0"),
    (lambda: call(noise=torch.zeros(1, 2, 4, 5)), ValueError, "noise is torch.float32"),
    # what others call it
    (lambda: call(generator=3), TypeError, "no argument 'generator'.*here that is seeds, one int"),
    (lambda: call(num_inference_steps=3), TypeError, "here that is steps, as in steps=25"),
    (
        lambda: call(guidance_scale=3),
        TypeError,
        "here that is guidance, as in guidance=fastguide.CFG",
    ),
    (lambda: call(scheduler=3), TypeError, "here that is solver, as in solver=fastguide.ddim"),
    (lambda: call(negative_prompt=3), TypeError, "here that is negative, in the form of cond"),
    (lambda: call(latents=3), TypeError, "here that is noise"),
    (lambda: call(batch_size=3), TypeError, "here that is seeds"),
    (
        lambda: call(step=3),
        TypeError,
        r"sample has no argument 'step', only.*did you mean 'steps'\?",
    ),
    (lambda: sampler(num_steps=3), TypeError, "Sampler has no argument 'num_steps'"),
    (lambda: sampler()(seed=3), TypeError, "Sampler has no argument 'seed'.*here that is seeds"),
    (lambda: fg.sample(), TypeError, r"model is missing; call it as sample\(model, ...\)"),
    (lambda: fg.Sampler(), TypeError, r"model is missing; call it as Sampler\(model, ...\)"),
    (lambda: sampler()(*range(20)), TypeError, "Sampler has too many arguments without a name"),
    (lambda: fg.sample(MODEL, model=MODEL), TypeError, "model is twice"),
    (lambda: fg.CFG(guidance_scale=3), TypeError, "CFG has no argument 'guidance_scale'.*scale"),
    (lambda: fg.CFG(), TypeError, r"scale is missing; call it as CFG\(scale, ...\)"),
    (
        lambda: fg.PAG(2, layer="mid"),
        TypeError,
        r"PAG has no argument 'layer'.*did you mean 'layers'",
    ),
    (lambda: fg.SEG(2, sigmas=1), TypeError, r"did you mean 'sigma'\?"),
    (lambda: fg.APG(), TypeError, r"guidance is missing; call it as APG\(guidance, ...\)"),
    (lambda: fg.interval(1), TypeError, "high is missing; call it as interval"),
    (lambda: fg.load(), TypeError, "name is missing"),
    (lambda: fg.load("fashion", torch_dtype="bf16"), TypeError, "here that is dtype"),
    (lambda: fg.Model(MODEL.net), TypeError, "process is missing"),
    (lambda: fg.Model(unet=MODEL.net), TypeError, "Model has no argument 'unet'"),
    # numbers, schedules and options of a wrong kind
    (lambda: fg.CFG(2.0, 0.5), TypeError, r"constant\(0\.5\) is the same factor everywhere"),
    (lambda: fg.CFG(2.0, "cosine"), TypeError, r"fastguide\.parse\('cfg:3,schedule=cosine'\)"),
    (lambda: fg.CFG(2.0, fg.interval), TypeError, r"give it its numbers, as in interval\(...\)"),
    (lambda: fg.CFG(2.0, schedule=True), TypeError, "schedule is True"),
    (lambda: 2 * fg.CFG("a"), TypeError, "scale is 'a'"),
    (lambda: "a" * fg.CFG(2.0), TypeError, "times is 'a'"),
    (lambda: math.nan * fg.CFG(2.0), ValueError, "times is nan"),
    (lambda: sampler(sum([])), TypeError, "guidance is 0"),
    (lambda: sampler("cfg:3"), TypeError, r"guidance is 'cfg:3'.*fastguide.parse\('cfg:3'\)"),
    (lambda: sampler(fg.CFG), TypeError, r"guidance is .*; give it its amount: CFG\(3.0\)"),
    (lambda: fg.ddim(eta="a"), TypeError, "eta of ddim is 'a', but it should be a number"),
    (lambda: fg.ddim(eta=True), TypeError, "eta of ddim is True"),
    (lambda: fg.ddim(etta=1), TypeError, r"ddim has no option 'etta'.*did you mean 'eta'\?"),
    (lambda: fg.karras(rho="x"), TypeError, "rho of karras is 'x'"),
    (lambda: sampler(solver="ddimm"), ValueError, r"did you mean 'ddim'\?"),
    (lambda: sampler(spacing="karas"), ValueError, r"did you mean 'karras'\?"),
    (
        lambda: sampler(fg.PAG(1.0, "blocks.9"), STAGED),
        ValueError,
        r"layers has 'blocks.9'.*did you",
    ),
    (lambda: fg.PAG(1.0, [None]), TypeError, "layers has None"),
    (lambda: fg.parse("cgf:3"), ValueError, r"did you mean 'cfg'\?"),
    # models and files
    (lambda: fg.load("fashon"), fg.CheckpointError, r"model is 'fashon'.*did you mean 'fashion'\?"),
    (lambda: fg.load(3), TypeError, "name is 3"),
    (lambda: fg.load("fashion", "gpu"), ValueError, "device is 'gpu'.*an NVIDIA GPU is 'cuda'"),
    (lambda: fg.load("fashion", "cuda:99"), ValueError, "device is 'cuda:99'"),
    (lambda: fg.load("fashion", dtype="int8"), ValueError, "dtype is 'int8'"),
    (lambda: fg.load("fashion", dtype=3), TypeError, "dtype is 3"),
    (lambda: fg.save(STAGED, "folder"), TypeError, r"call save\(folder, model\)"),
    (lambda: fg.save("folder", 3), TypeError, "model is 3"),
    (lambda: fg.Model(MODEL.net, fg.Flow(), "flw", (1,)), ValueError, "flw"),
    (lambda: FLAT.to("cpu"), TypeError, "net is .*only a torch.nn.Module can be moved"),
    (lambda: STAGED.to("gpu"), ValueError, "device is 'gpu'"),
    (lambda: STAGED.to(dtype="x"), ValueError, "dtype is 'x'"),
    # conditions, seeds and images
    (
        lambda: call(cond=2),
        ValueError,
        r"cond has 2, but a class should lie in \[0, 1\].*the null class is None",
    ),
    (lambda: call(cond=torch.tensor([2])), ValueError, "cond has 2.*the null class is None"),
    (lambda: call(cond=[0, 2]), ValueError, "cond has 2.*the null class is None"),
    (lambda: call(cond=-1), ValueError, "cond has -1"),
    (
        lambda: fg.sample(NAMED, "gren"),
        ValueError,
        r"cond has 'gren', but the classes are Red, Gr.*'Green'",
    ),
    (lambda: fg.sample(NAMED, ["red", "x"]), ValueError, "cond has 'x', but the classes are"),
    (
        lambda: fg.sample(NAMED, [0], fg.CFG(2.0), negative="bleu"),
        ValueError,
        "negative has 'bleu'.*'Blue'",
    ),
    (lambda: call(cond=[]), ValueError, "cond is empty"),
    (
        lambda: call(cond=[0, 1], seeds=[1, 2, 3]),
        ValueError,
        r"cond.shape is \(2,\), but there are 3",
    ),
    (lambda: call(seeds=-1), ValueError, "seeds has -1"),
    (lambda: call(seeds=2**63 - 1, cond=[0, 1]), ValueError, "seeds has 9223372036854775808"),
    (lambda: call(seeds=True), TypeError, "seeds has True"),
    (lambda: call(seeds="7"), TypeError, "seeds is '7'"),
    (lambda: call(seeds=torch.rand(2)), ValueError, "seeds is torch.float32"),
    (
        lambda: call(noise={"a": 1}),
        TypeError,
        "noise is {.*}, but it should be a tensor or an array",
    ),
    (lambda: call(noise=torch.zeros(1, 2, 4, 4).long()), ValueError, "noise is torch.int64"),
    (lambda: call(init=3, strength=1.0), TypeError, "init is 3"),
    (lambda: call(known=3, mask=torch.ones(1)), TypeError, "known is 3"),
    (lambda: call(callback=3), TypeError, "callback is 3, but it is called with one argument"),
    (
        lambda: call(callback=lambda: 0),
        TypeError,
        r"callback is .* with \(\), but it is called with one",
    ),
    (lambda: call(callback=lambda a, b: 0), TypeError, r"with \(a, b\), but it is called with one"),
    (
        lambda: tree({"b": torch.ones(1, 3)}),
        ValueError,
        r"cond is \{'b': a tensor \(1, 3\)\}, but.*'a'",
    ),
    (lambda: tree(torch.ones(1, 3)), ValueError, r"cond is a tensor \(1, 3\), but it should have"),
    (lambda: tree({"a": torch.ones(1, 4)}), ValueError, r"cond\[0\].shape is \(1, 4\)"),
    (
        lambda: tree({"a": torch.ones(1, 3)}, torch.zeros(1, 3)),
        ValueError,
        "model.null.*without the batch",
    ),
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_error_names_the_argument_and_its_value(number):
    make, kind, message = CASES[number]
    with pytest.raises(kind, match=message) as caught:
        make()
    assert caught.type is kind
    assert len(str(caught.value)) < 900  # all solvers by name


def test_there_are_enough_of_them():
    assert len(CASES) >= 150
