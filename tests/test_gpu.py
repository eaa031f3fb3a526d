"""What only a GPU can show. Without one, all of it is skipped; bench/GPU.md says when it last
ran.
"""

import math
import threading
from contextlib import contextmanager

import exact
import pytest
import test_attention_colsum as colsum
import test_blur
import test_gram
import test_group_norm as norm
import test_identity_attention as identity
import torch
from loop import loop_of
from test_step import expected, extras_of, make

import fastguide as fg
from fastguide import ops, reference
from fastguide.nets import DiT
from fastguide.ops.table import Extra
from fastguide.sampling.inputs import make_inputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_gpu(case):
    """The case's tensors on the GPU, strides kept."""
    moved = {k: v.cuda() for k, v in case.items() if isinstance(v, torch.Tensor)}
    branches = []
    for branch in case["branches"]:
        there = torch.empty_strided(
            branch.shape, branch.stride(), dtype=branch.dtype, device="cuda"
        )
        branches.append(there.copy_(branch))
    return {**moved, "branches": branches}


def dit(depth=2):
    torch.manual_seed(0)
    net = DiT(2, 2, 64, depth, 4, classes=3, heads=2).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return net.requires_grad_(False)


def model_of(net):
    return fg.Model(net, fg.Flow(), fg.Prediction("flow"), (2, 8, 8), null=3, heads=2)


METHODS = {
    "pag": lambda device: fg.PAG(2.0),
    "seg": lambda device: fg.SEG(2.0),
    "seg, finite": lambda device: fg.SEG(2.0, sigma=1.0),
    "sag": lambda device: fg.SAG(0.5),
    "sag, random": lambda device: fg.SAG(0.5, mask="random"),
    "slg": lambda device: fg.SLG(1.0),
    "tpg": lambda device: fg.TPG(1.0),
    "nag": lambda device: fg.NAG(2.0),
    "icg": lambda device: fg.ICG(2.0),
    "tsg": lambda device: fg.TSG(2.0),
    "autoguidance": lambda device: fg.AutoGuidance(model_of(dit(1).to(device)), 2.0),
    "reg": lambda device: fg.REG(fg.CFG(2.0) + fg.PAG(1.0)),
    "reg, difference": lambda device: fg.REG(fg.CFG(2.0), "difference"),
    "reg, chain": lambda device: fg.REG(fg.CFG(2.0), "chain"),
    "apg": lambda device: fg.APG(fg.CFG(3.0), radius=2.0, momentum=-0.5),
    "rescale": lambda device: (fg.CFG(3.0) + fg.PAG(1.0)).rescale(0.7),
    "adaptive": lambda device: fg.Adaptive(fg.CFG(3.0), 0.5),
    "fdg": lambda device: fg.FDG(2.0, 4.0),
    "energy": lambda device: fg.EnergyGuidance(
        lambda x, t: x.square().sum((1, 2, 3)), 0.05, of="denoised"
    ),
    "held": lambda device: fg.CFG(2.0, every=2) + fg.PAG(1.0, every=3),
}


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 7), (4, 128, 128)])
def test_noise_equals_the_cpu(shape):
    seeds = [0, 1, 2**63 - 1]
    got = fg.noise(seeds, shape, evaluation=5, device="cuda").cpu()
    torch.testing.assert_close(got, fg.noise(seeds, shape, evaluation=5), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("kind", ["plain", "channels", "last", "cropped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("slots", "branches"), [(1, 0), (1, 2), (3, 3), (8, 4)])
def test_step_equals_the_reference(slots, branches, dtype, kind):
    case = make(slots, branches, (3, 4, 33, 65), dtype=dtype, kind=kind)
    seeds = torch.arange(3)
    noise = fg.noise(seeds, (4, 33, 65), evaluation=1).double()
    want, want_input = expected(case, noise)
    there = on_gpu(case)
    net_input = torch.empty(6, 4, 33, 65, dtype=dtype, device="cuda")
    ops.step(**there, seeds=seeds.cuda(), net_input=net_input)
    scale = slots * 4e-6
    torch.testing.assert_close(there["state"].cpu().double(), want, rtol=4e-6, atol=scale)
    rounding = {torch.float32: 4e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(
        net_input.cpu().double(), want_input.repeat(2, 1, 1, 1), rtol=rounding, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["plain", "channels", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_step_with_every_extra_equals_the_reference(dtype, kind):
    case = make(2, 2, (3, 4, 33, 65), dtype=dtype, kind=kind)
    extras = extras_of(case, kind)
    noise = torch.randn(3, 4, 33, 65)
    there = on_gpu({**case, "branches": [*case["branches"], extras["variance"]]})
    *there["branches"], variance = there["branches"]
    for extra in Extra:
        now = {**there, "state": there["state"].clone()}
        want, _ = expected(case, noise.double(), **{**extras, "extra": extra})
        bound = extras["bound"].cuda()
        ops.step(**now, noise=noise.cuda(), variance=variance, bound=bound, extra=extra)
        torch.testing.assert_close(now["state"].cpu().double(), want, rtol=4e-6, atol=2e-5)


def test_more_samples_than_a_grid_axis_holds():
    count = 70_000
    seeds = torch.arange(count)
    torch.testing.assert_close(
        fg.noise(seeds, (6,), device="cuda").cpu(), fg.noise(seeds, (6,)), rtol=2e-6, atol=2e-6
    )
    case = make(1, 2, (count, 6), broadcast=True)
    want, _ = expected(case)
    there = on_gpu(case)
    ops.step(**there)
    torch.testing.assert_close(there["state"].cpu().double(), want, rtol=4e-6, atol=2e-5)


@pytest.mark.parametrize("kind", test_blur.KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", [*test_blur.GRIDS, (64, 64), (31, 150)], ids=str)
def test_blur_equals_the_reference(grid, dtype, kind):
    x = test_blur.make(grid, 70, dtype, kind, rows=7)
    there = torch.empty_strided(x.shape, x.stride(), dtype=dtype, device="cuda").copy_(x)
    sigmas = torch.tensor([0.0, 0.1, 0.8, 3.0, 10.0, 1e30, math.inf])
    for sigma, sizes in ((0.0, (None,)), (2.5, (None, 1, 9, 31)), (sigmas, (None, 9))):
        there_too = sigma.cuda() if isinstance(sigma, torch.Tensor) else sigma
        for size in sizes:
            got = ops.blur(there, there_too, grid, size)
            want = reference.blur(x.double(), sigma, grid, size)
            assert got.stride() == ops.blur(x, sigma, grid, size).stride()
            # it rounds between the axes too
            test_blur.close(got.cpu(), want, dtype, 1 if dtype == torch.float32 else 2)
    assert torch.equal(ops.blur(there, sigmas.cuda(), grid)[:2].cpu(), x[:2])
    mean = ops.blur(there, math.inf, grid)
    want = x.double().mean(1, keepdim=True).expand_as(x)
    test_blur.close(mean.cpu(), want, dtype)
    assert torch.equal(mean, ops.blur(there, math.inf, grid))


def test_blur_does_not_wait_for_the_device():
    x, sigmas = torch.randn(3, 96, 40, device="cuda"), torch.tensor([0.0, 2.0, math.inf]).cuda()
    values = (1.0, math.inf, 0.0, sigmas)
    want = [ops.blur(x, sigma, (8, 12)) for sigma in values]  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = [ops.blur(x, sigma, (8, 12)) for sigma in values]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def gram_on_gpu(case):
    """The tensors of a case of `gram` on the GPU, strides kept."""
    return {**case, **on_gpu(case)}


@pytest.mark.parametrize("kind", ["plain", "channels", "rows", "last", "cropped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("branches", [1, 2, 3, 6, 8])
def test_gram_equals_the_reference(branches, dtype, kind):
    case = test_gram.make(branches, (3, 4, 33, 65), dtype, kind)
    there = gram_on_gpu(case)
    got = ops.gram(**there)
    test_gram.close(got.cpu(), test_gram.expected(case), 4 * 33 * 65)
    assert torch.equal(ops.gram(**there), got)


@pytest.mark.parametrize("shape", [*test_gram.SHAPES, (70_000, 6), (1, 16, 512, 513)], ids=str)
def test_gram_of_any_shape(shape):
    case = test_gram.make(2, shape)
    got = ops.gram(**gram_on_gpu(case)).cpu()
    test_gram.close(got, test_gram.expected(case), math.prod(shape[1:]))


@pytest.mark.parametrize("make_case", [test_gram.near, test_gram.cancelling, test_gram.mixed])
def test_gram_where_it_is_hard(make_case):
    case = make_case((5, 4, 63, 65))
    there = gram_on_gpu(case)
    got = ops.gram(**there)
    test_gram.close(got.cpu(), test_gram.expected(case), 4 * 63 * 65)
    one = {**there, "x": there["x"][3:4], "branches": [b[3:4] for b in there["branches"]]}
    if "factor" in there:
        one["factor"] = there["factor"][3:4]
    assert torch.equal(ops.gram(**one)[0], got[3])  # whatever the batch


def test_gram_does_not_wait_for_the_device_and_is_captured():
    there = gram_on_gpu(test_gram.mixed((3, 4, 64, 64)))
    want = ops.gram(**there)  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = ops.gram(**there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got, want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.gram(**there)
    graph.replay()
    assert torch.equal(captured, want)


def norm_on_gpu(case):
    """The case on the GPU, where a row that is expanded to all stays so."""
    moved = {n: v.cuda() for n, v in case.items() if isinstance(v, torch.Tensor)}
    return {**case, **moved, "beta": case["beta"][:1].cuda().expand(case["beta"].shape)}


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [*norm.SIZES[1:], (2, 4096, 320, 32), (1, 9, 2048, 1)], ids=str)
def test_group_norm_and_its_gradient_equal_the_reference(size, dtype, silu):
    case = norm.make(size, dtype, offset=3.0, silu=silu)
    outward, there = norm.outward_of(case), norm_on_gpu(case)
    given = [t.requires_grad_() for t in norm.inputs(there)]
    out, wide = ops.group_norm(**there), norm.exact(case)
    want = reference.group_norm(**wide)
    norm.close(out.cpu(), want, dtype, norm.slack(case))
    found = torch.autograd.grad(out, given, outward.cuda())
    expected = torch.autograd.grad(want, norm.inputs(wide), outward.double())
    for one, other, kind in zip(found, expected, (dtype, *2 * [torch.float32]), strict=True):
        norm.close(one.cpu(), other, kind, 3.0 * norm.slack(case))
    again = torch.autograd.grad(ops.group_norm(**there), given, outward.cuda())
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@pytest.mark.parametrize(("offset", "deviation"), [(100.0, 1.0), (-3e4, 5.0), (1.0, 1e-3)])
def test_group_norm_of_a_mean_far_above_the_deviation(offset, deviation):
    case = norm.make((2, 1000, 48, 4), offset=offset, deviation=deviation)
    case["eps"] = 1e-12
    want = reference.group_norm(**norm.exact(case))
    norm.close(ops.group_norm(**norm_on_gpu(case)).cpu(), want, torch.float32, norm.slack(case))


def heads_on_gpu(case):
    """The tensors on the GPU, strides kept."""
    moved = {}
    for name, tensor in case.items():
        there = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda"
        )
        moved[name] = there.copy_(tensor)
    return moved


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("kind", ["token", "head", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [*identity.SIZES, (2, 24, 4096, 512, 128)], ids=str)
def test_identity_attention_equals_the_reference(size, dtype, kind, masked):
    case = identity.make(size, dtype, kind, masked)
    if size[2] > 1000:  # the reference's matrix would take 3 GB
        wide = {k: x if x.dtype == torch.bool else x.float() for k, x in case.items()}
        want = ops.identity_attention(**wide).double()
    else:
        want = identity.expected(case)
    got = ops.identity_attention(**heads_on_gpu(case))
    assert got.transpose(1, 2).flatten(2).data_ptr() == got.data_ptr()
    identity.close(got.cpu(), want, dtype, identity.OF_WEIGHTS[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_identity_attention_limits(dtype):
    case = identity.make((2, 3, 100, 77, 64), dtype)
    mask = torch.zeros(2, 77, dtype=torch.bool)
    there = heads_on_gpu({**case, "context_mask": mask})
    assert torch.equal(ops.identity_attention(**there).cpu(), case["v"])
    own = {name: torch.full_like(case[name], 50.0) for name in "qk"}
    there = heads_on_gpu({**case, **own})
    assert torch.equal(ops.identity_attention(**there).cpu(), case["v"])


@pytest.mark.parametrize("kind", ["token", "head", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [*colsum.SIZES, (1, 4, 1024, 1024, 64)], ids=str)
def test_attention_colsum_equals_the_reference(size, dtype, kind):
    q, k = colsum.make(size, dtype, kind)
    there = heads_on_gpu({"q": q, "k": k})
    got = ops.attention_colsum(**there)
    colsum.close(got.cpu(), colsum.expected(q, k), size[2])
    assert torch.equal(ops.attention_colsum(**there), got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_captured_in_a_graph(dtype):
    case = heads_on_gpu(identity.make((2, 3, 100, 77, 64), dtype, masked=True))
    want = ops.identity_attention(**case), ops.attention_colsum(case["q"], case["k"])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = ops.identity_attention(**case), ops.attention_colsum(case["q"], case["k"])
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("solver", [fg.ddim, fg.ddpm, fg.heun(churn=10.0), fg.dpmpp_2m], ids=repr)
@pytest.mark.parametrize("guidance", [None, fg.CFG(2.0), fg.Superconditioning(2.0)])
def test_sample_equals_the_cpu(solver, guidance):
    labels = torch.arange(6) % 3
    net = dit()
    here = fg.sample(model_of(net), labels, guidance, solver, steps=6, seeds=range(6))
    there = fg.sample(model_of(net.cuda()), labels, guidance, solver, steps=6, seeds=range(6))
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["cfg", *METHODS])
def test_the_loop_does_not_wait_for_the_device(name):
    guidance = METHODS[name]("cuda") if name in METHODS else fg.CFG(2.0)
    sampler = fg.Sampler(model_of(dit().cuda()), guidance, fg.ddpm, steps=5)
    labels, seeds = (torch.arange(4) % 3).cuda(), torch.arange(4).cuda()
    loop = loop_of(sampler, labels, seeds, fg.noise(seeds, (2, 8, 8)))
    want = loop()  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = loop()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got, want)


@pytest.mark.parametrize("rows", ["batched", "sequential"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_equals_the_cpu(name, rows):
    labels = torch.arange(6) % 3
    results = []
    for device in ("cpu", "cuda"):
        model = model_of(dit().to(device))
        guidance = METHODS[name](device)
        sampler = fg.Sampler(model, guidance, steps=6, rows=rows)
        results.append(sampler(labels, range(6)).cpu())
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-3)


@contextmanager
def no_waiting():
    """Whatever waits for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graph", ["whole", "steps"])
@pytest.mark.parametrize("name", ["cfg", *METHODS])
def test_a_captured_run_equals_the_eager_one(name, graph):
    guidance = METHODS[name]("cuda") if name in METHODS else fg.CFG(2.0)
    model = model_of(dit().cuda())
    eager, captured = (fg.Sampler(model, guidance, steps=5, graph=g) for g in (False, graph))
    labels = [torch.tensor(one, device="cuda") for one in ([0, 1], [2, 2], [1, 0])]
    seeds = [torch.tensor(one, device="cuda") for one in ([3, 4], [7, 1], [5, 2**62])]
    wants = [eager(c, s) for c, s in zip(labels, seeds, strict=True)]
    captured(labels[0], seeds[0])
    captures = captured.stats().captures
    # adaptive guidance drops its rows an evaluation later, in another batch of rows
    same = torch.equal if name != "adaptive" else torch.testing.assert_close
    for cond, seed, want in zip(labels, seeds, wants, strict=True):
        assert same(captured(cond, seed), want) in (True, None)
    assert captured.stats().captures == captures
    assert captures == 1 if graph == "whole" else captures >= 2


@pytest.mark.parametrize("graph", ["whole", "steps"])
@pytest.mark.parametrize(
    "solver", [fg.heun(churn=10.0), fg.dpmpp_2m_sde, fg.euler_ancestral, fg.unipc], ids=repr
)
def test_captured_solvers(solver, graph):
    model = exact.two_classes(fg.EDM())
    model = fg.Model(model.net, model.process, model.prediction, model.shape, null=2)
    samplers = [
        fg.Sampler(model, fg.CFG(2.0), solver, 6, device="cuda", graph=g) for g in (False, graph)
    ]
    for seeds in ([1, 2], [3, 4]):
        eager, captured = (sampler([0, 1], seeds) for sampler in samplers)
        assert torch.equal(eager, captured)


@pytest.mark.parametrize("graph", ["whole", "steps"])
def test_a_replay_does_not_wait_for_the_device(graph):
    model = model_of(dit().cuda())
    guidance = fg.APG(fg.CFG(3.0), momentum=-0.5) + fg.ICG(2.0)
    sampler = fg.Sampler(model, guidance, fg.ddpm, steps=5, graph=graph)
    labels, seeds = (torch.arange(4) % 3).cuda(), torch.arange(4).cuda()
    want = sampler(labels, seeds)
    inputs = make_inputs(sampler._planned, labels, None, seeds)
    with no_waiting():
        got = sampler._runner.run(sampler._planned, inputs)[0]
    assert torch.equal(got, want)


@pytest.mark.parametrize("graph", ["whole", "steps"])
def test_numbers_change_without_a_capture(graph):
    model = model_of(dit().cuda())
    sampler = fg.Sampler(model, fg.CFG(3.0), fg.ddim(eta=0.3), steps=6, graph=graph)
    sampler([0, 1], [5, 6])
    captures = sampler.stats().captures
    for changes in ({"solver": fg.ddim(eta=0.8)}, {"guidance": fg.CFG(5.0)}, {"clamp": 1.0}):
        other = sampler.replaced(**changes)
        settings = {"guidance": fg.CFG(3.0), "solver": fg.ddim(eta=0.3), **changes}
        assert torch.equal(
            other([0, 1], [5, 6]), fg.Sampler(model, steps=6, **settings)([0, 1], [5, 6])
        )
    assert sampler.stats().captures == captures


@pytest.mark.parametrize("graph", ["whole", "steps"])
def test_a_compiled_network_is_captured(graph):
    net = dit().cuda()
    model = model_of(torch.compile(net))
    sampler = fg.Sampler(model, fg.CFG(2.0), steps=4, graph=graph)
    for batch in (2, 3, 5):
        labels = [i % 3 for i in range(batch)]
        eager = fg.Sampler(model, fg.CFG(2.0), steps=4)(labels, range(batch))
        assert torch.equal(sampler(labels, range(batch)), eager)
        assert torch.equal(sampler(labels, range(batch)), eager)


@pytest.mark.parametrize("graph", ["whole", "steps"])
def test_autocast_is_captured(graph):
    model = model_of(dit().cuda().requires_grad_(True))  # autocast keeps what it casts of these
    sampler, eager = (fg.Sampler(model, fg.CFG(2.0), steps=4, graph=g) for g in (graph, False))
    with torch.autocast("cuda", torch.bfloat16):
        want = eager([0, 1], [5, 6])
        first = sampler([0, 1], [5, 6])
    junk = [torch.full((1 << 20,), torch.nan, device="cuda") for _ in range(64)]
    with torch.autocast("cuda", torch.bfloat16):
        again = sampler([0, 1], [5, 6])
    assert torch.equal(first, want)
    assert torch.equal(again, want)
    assert len(junk) == 64


def test_two_captured_samplers_on_one_network_and_streams_of_their_own():
    model = model_of(dit().cuda())
    guidances = (fg.REG(fg.CFG(2.0), every=2), fg.APG(fg.CFG(3.0), momentum=-0.5))
    alone = [fg.Sampler(model, one, steps=5)([0, 1], [5, 6]) for one in guidances]
    for pair in (
        [fg.Sampler(model, one, steps=5, graph="steps") for one in guidances],
        [
            shared := fg.Sampler(model, guidances[0], steps=5, graph="whole"),
            shared.replaced(guidance=guidances[1]),
        ],
    ):
        results = [[], []]

        def calls(number, pair=pair, results=results):
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(20):
                    results[number].append(pair[number]([0, 1], [5, 6]))
                torch.cuda.current_stream().synchronize()

        threads = [threading.Thread(target=calls, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for found, want in zip(results, alone, strict=True):
            assert len(found) == 20
            assert all(torch.equal(one, want) for one in found)


@pytest.mark.parametrize("graph", [False, "whole", "steps"])
def test_memory_stays_flat_over_many_calls(graph):
    model = model_of(dit().cuda())
    sampler = fg.Sampler(model, fg.APG(fg.CFG(3.0), momentum=-0.5), steps=4, graph=graph)
    for seed in range(20):
        sampler([0, 1], [seed, 1])
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for seed in range(500):
        sampler([0, 1], [seed, 1])
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


@pytest.mark.parametrize("graph", ["whole", "steps"])
def test_memory_that_lacks_leaves_the_device_clean(graph):
    model = model_of(dit().cuda())
    sampler = fg.Sampler(model, fg.CFG(3.0), steps=3, graph=graph)
    sampler([0, 1, 2], [5, 6, 7])  # sets up what stays, such as the workspace of cuBLAS
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    room = 256 * 2**20
    torch.cuda.set_per_process_memory_fraction(
        (before + room) / torch.cuda.get_device_properties(0).total_memory
    )
    batch = 2 * room // (sampler.memory(2).run - sampler.memory(1).run)
    try:
        with pytest.raises(torch.OutOfMemoryError, match=f"run of {batch} samples does not fit"):
            sampler([0] * batch, range(batch))
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved() <= before + 4 * 2**20
        assert torch.isfinite(sampler([0, 1], [5, 6])).all()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_estimate_of_memory():
    for guidance in (fg.CFG(3.0), fg.REG(fg.CFG(3.0))):
        sampler = fg.Sampler(model_of(dit(8).cuda()), guidance, steps=3)
        cond, seeds = [i % 3 for i in range(512)], range(512)
        sampler(cond, seeds)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        sampler(cond, seeds)
        peak = torch.cuda.max_memory_allocated() - before
        assert 0.7 < sampler.memory(512).run / peak < 1.3


def test_noise_by_a_counter_on_the_device():
    seeds = torch.tensor([0, 5, 2**62], device="cuda")
    for e in (0, 3, 2**31 + 1):
        counter = torch.tensor([e], device="cuda")
        with no_waiting():
            got = fg.noise(seeds, (3, 7), counter)
        assert torch.equal(got, fg.noise(seeds, (3, 7), e))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_pool_of_two_gpus():
    samplers = [
        fg.Sampler(model_of(dit().to(device)), fg.CFG(2.0), steps=4, graph=True)
        for device in ("cuda:0", "cuda:1")
    ]
    pool = fg.Pool(samplers)
    futures = [pool.submit(i % 3, i) for i in range(40)]
    want = samplers[0]([i % 3 for i in range(40)], range(40)).cpu()
    for future, one in zip(futures, want, strict=True):
        torch.testing.assert_close(future.result(60).cpu(), one, rtol=1e-4, atol=1e-4)
    assert samplers[1].stats().samples > 1
    pool.close()


def test_non_finite_values_are_reported():
    model = exact.two_classes(fg.Flow())

    def broken(x, t, cond):
        return torch.full_like(x, torch.nan)

    spoiled = fg.Model(broken, model.process, model.prediction, model.shape)
    with pytest.raises(fg.NonFiniteError, match="from evaluation 1 of 3"):
        fg.sample(spoiled, steps=3, seeds=[5], device="cuda")
