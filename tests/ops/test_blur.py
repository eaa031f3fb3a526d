"""blur on the CPU against the fp64 reference and torch's own convolution; the same cases run in
tests/ops/interpreted_blur.py.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from fastguide import ops, reference
from fastguide.reference.blur import taps

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
GRIDS = [(1, 1), (1, 9), (2, 1), (2, 2), (5, 7), (16, 33), (40, 8)]
SIGMAS = [0.0, 1e-30, 0.1, 0.5, 1.0, 2.7, 10.0, 1e4, 1e30, math.inf]
KINDS = ["channels", "pixels", "qkv", "cropped", "padded pixels"]


def make(grid, channels, dtype=FP32, kind="channels", rows=2):
    """x [rows, N, channels] in a memory layout."""
    x = torch.randn(rows, grid[0] * grid[1], channels).to(dtype)
    if kind == "pixels":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if kind == "qkv":  # the middle third of a fused projection
        return torch.cat([torch.full_like(x, torch.nan)] * 2 + [x], 2).roll(channels, 2)[
            :, :, :channels
        ]
    if kind == "cropped":  # neither tokens nor channels lie together
        return torch.stack([x, torch.full_like(x, torch.nan)], 3)[..., 0]
    if kind == "padded pixels":  # some channels of a larger image
        more = torch.full((rows, channels + 2, x.shape[1]), torch.nan, dtype=dtype)
        more[:, 1:-1] = x.transpose(1, 2)
        return more[:, 1:-1].transpose(1, 2)
    return x


def close(got, want, dtype=FP32, scale=1):
    """Half a unit in the last place of `dtype`, `scale` times, of numbers of the order of 4."""
    unit = {FP32: 2e-6, BF16: 2**-8, FP16: 2**-11}[dtype] * scale
    torch.testing.assert_close(
        got.double(), want, rtol=unit, atol=2e-6 + (unit if scale > 1 else 0)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("channels", [1, 3, 37, 64])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_the_reference(grid, channels, dtype, kind):
    x = make(grid, channels, dtype, kind)
    for sigma in (0.8, 3.0):
        got = ops.blur(x, sigma, grid)
        assert got.dtype == dtype
        close(got, reference.blur(x.double(), sigma, grid), dtype)


@pytest.mark.parametrize("kind", ["channels", "pixels"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_any_sigma(sigma, kind):
    x = make((9, 50), 35, kind=kind)
    close(ops.blur(x, sigma, (9, 50)), reference.blur(x.double(), sigma, (9, 50)))


@pytest.mark.parametrize("kind", ["channels", "pixels"])
@pytest.mark.parametrize("kernel_size", [1, 3, 9, 31])
def test_fixed_kernel(kernel_size, kind):
    x = make((24, 7), 3, kind=kind)
    for sigma in (0.0, 1e-20, 1.0, 9.0):
        want = reference.blur(x.double(), sigma, (24, 7), kernel_size)
        close(ops.blur(x, sigma, (24, 7), kernel_size), want)


@pytest.mark.parametrize("kernel_size", [None, 9, 31])
@pytest.mark.parametrize(("grid", "sigma"), [((16, 16), 2.0), ((12, 31), 9.0), ((33, 8), 1.0)])
def test_equals_a_dense_convolution(grid, sigma, kernel_size):
    """The 2-D kernel at once, by torch."""
    image = torch.randn(2, 3, *grid, dtype=torch.float64)
    down, across = (taps(sigma, n, kernel_size) for n in grid)
    high, wide = down.numel() // 2, across.numel() // 2
    padded = F.pad(image, (wide, wide, high, high), mode="reflect")
    weight = torch.outer(down, across).expand(3, 1, -1, -1)
    want = F.conv2d(padded, weight, groups=3).flatten(2).transpose(1, 2)
    x = image.flatten(2).transpose(1, 2)
    torch.testing.assert_close(reference.blur(x, sigma, grid, kernel_size), want)
    close(ops.blur(x.float(), sigma, grid, kernel_size), want)


@pytest.mark.parametrize(
    ("sigma", "length", "size"),
    [(10.0, 64, 61), (10.0, 32, 33), (10.0, 33, 33), (1.0, 64, 7), (0.5, 64, 3), (0.1, 64, 1)],
)
def test_the_published_number_of_taps(sigma, length, size):
    """ceil(6 sigma), made odd, at most n or n + 1: read off the response to one bright pixel."""
    assert taps(sigma, length).numel() == size
    x = torch.zeros(1, length, 1)
    x[0, length // 2] = 1.0
    reached = ops.blur(x, sigma, (length, 1))[0, :, 0].nonzero().flatten()
    assert reached.tolist() == [i for i in range(length) if abs(i - length // 2) <= size // 2]


@pytest.mark.parametrize("kind", ["channels", "pixels", "qkv"])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
def test_rows_have_their_own_sigma(dtype, kind):
    x = make((16, 18), 40, dtype, kind, rows=6)
    sigmas = torch.tensor([0.0, 1.5, math.inf, 0.1, 1e30, 4.0])
    got = ops.blur(x, sigmas, (16, 18))
    close(got, reference.blur(x.double(), sigmas, (16, 18)), dtype)
    assert torch.equal(got[[0, 3]], x[[0, 3]])
    for i, sigma in enumerate(sigmas.tolist()):
        assert torch.equal(got[i : i + 1], ops.blur(x[i : i + 1], sigma, (16, 18)))


def test_a_sigma_that_is_none_is_nan():
    x = make((16, 18), 5, rows=3)
    got = ops.blur(x, torch.tensor([1.0, -1.0, math.nan]), (16, 18))
    assert got[0].isfinite().all()
    assert got[1:].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
def test_sigma_zero_is_x_and_infinity_the_mean(dtype, kind):
    x = make((6, 11), 37, dtype, kind)
    for sigma in (0.0, 1e-30, 0.16):
        assert torch.equal(ops.blur(x, sigma, (6, 11)), x)
    assert ops.blur(x, 0.0, (6, 11)).data_ptr() != x.data_ptr()
    mean = ops.blur(x, math.inf, (6, 11))
    close(mean, x.double().mean(1, keepdim=True).expand_as(x), dtype)
    assert torch.equal(mean, mean[:, :1].expand_as(x))


@pytest.mark.parametrize("sigma", [0.7, 3.0, 100.0])
def test_constants_stay(sigma):
    """The kernel sums to 1, at the borders too."""
    x = torch.tensor([3.0, -7.0]).expand(1, 17 * 24, 2).contiguous()
    torch.testing.assert_close(ops.blur(x, sigma, (17, 24)), x, rtol=1e-6, atol=0)


def test_a_huge_sigma_is_a_flat_kernel():
    """Of n + 1 taps for even n: close to the mean, and not the mean."""
    x = torch.randn(1, 8, 1)
    padded = F.pad(x.transpose(1, 2), (4, 4), mode="reflect")
    want = F.avg_pool1d(padded, 9, 1).transpose(1, 2)
    for sigma in (1e5, 1e30):
        torch.testing.assert_close(ops.blur(x, sigma, (8, 1)), want)
    assert (want - x.mean()).abs().max() > 1e-2


def test_axes_are_not_confused():
    """A bright column stays a column: constant down, blurred across."""
    x = torch.zeros(1, 6, 20, 1)
    x[:, :, 9] = 1.0
    got = ops.blur(x.flatten(1, 2), 2.0, (6, 20)).view(6, 20)
    torch.testing.assert_close(got, got[:1].expand(6, 20))
    assert got[0, 9] > got[0, 8] > got[0, 4] > got[0, 0] == 0


AXES = [
    ((5, 6, 7), (1.3, 0.7, 2.0)),
    ((5, 6, 7), (math.inf, 0.0, 1.0)),
    ((3, 8, 9), (0.0, math.inf, 0.6)),
    ((4, 3, 5), (2.0, 0.0, 0.0)),
    ((4, 3, 5), 1.0),
    ((4, 3, 5), math.inf),
    ((6, 7), (math.inf, 1.0)),
    ((6, 7), (0.0, 3.0)),
    ((37,), 2.0),
    ((37,), (math.inf,)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("grid", "sigma"), AXES, ids=str)
def test_a_sigma_for_each_axis(grid, sigma, kind):
    """Of images, videos and audio."""
    x = make((math.prod(grid), 1), 5, kind=kind, rows=3)
    got = ops.blur(x, sigma, grid)
    close(got, reference.blur(x.double(), sigma, grid))
    assert got.stride() == ops.blur(x, 1.0, (x.shape[1], 1)).stride()
    assert got.data_ptr() != x.data_ptr()


def test_a_video_is_a_dense_convolution():
    """The 3-D kernel at once, by torch."""
    video, sigmas = torch.randn(2, 3, 6, 7, 8, dtype=torch.float64), (0.6, 1.0, 1.5)
    frames, down, across = (taps(s, n) for s, n in zip(sigmas, video.shape[2:], strict=True))
    halves = [one.numel() // 2 for one in (across, down, frames) for _ in (0, 1)]
    padded = F.pad(video, halves, mode="reflect")
    weight = torch.einsum("i,j,k->ijk", frames, down, across).expand(3, 1, -1, -1, -1)
    want = F.conv3d(padded, weight, groups=3).flatten(2).transpose(1, 2)
    x = video.float().flatten(2).transpose(1, 2)
    close(ops.blur(x, sigmas, (6, 7, 8)), want)


@pytest.mark.parametrize("kind", KINDS)
def test_layout_of_the_output(kind):
    x = make((6, 8), 5, kind=kind)
    for sigma in (0.0, 1.0, math.inf):
        got = ops.blur(x, sigma, (6, 8))
        assert got.stride() == ((240, 1, 48) if "pixels" in kind else (240, 5, 1))


def test_no_rows():
    assert ops.blur(torch.zeros(0, 6, 2), 1.0, (2, 3)).shape == (0, 6, 2)


BAD = [
    ({"x": torch.zeros(2, 6)}, "x is torch.float32 of shape"),
    ({"x": torch.zeros(2, 6, 4, dtype=torch.float64)}, "x is torch.float64 of shape"),
    ({"grid": (2, 4)}, r"grid is \(2, 4\), but it should be \(height, width\) of the 6 tokens"),
    ({"grid": (-2, -3)}, "grid is"),
    ({"grid": (5,)}, "grid is"),
    ({"grid": (1, 1, 2, 3)}, "grid is"),
    ({"grid": (1, 2, 3), "sigma": torch.ones(2)}, "for 3 axes"),
    ({"sigma": (1.0, 2.0, 3.0)}, "each of the 2 axes"),
    ({"sigma": (1.0, -2.0)}, "each of the 2 axes"),
    ({"sigma": -1.0}, "sigma is -1.0, but"),
    ({"sigma": math.nan}, "sigma is nan, but"),
    ({"sigma": torch.ones(3)}, r"sigma is torch.float32 of shape \(3,\)"),
    ({"sigma": torch.ones(2, dtype=torch.float64)}, "sigma is torch.float64 of shape"),
    ({"sigma": torch.ones(4)[::2]}, r"strides \(2,\)"),
    ({"sigma": torch.ones(2, device="meta")}, "on meta"),
    ({"kernel_size": 4}, "kernel_size is 4, but it should be odd"),
    ({"kernel_size": 0}, "kernel_size is 0"),
    ({"kernel_size": -3}, "kernel_size is -3"),
]


@pytest.mark.parametrize(("spoilt", "message"), BAD)
def test_errors_name_the_argument(spoilt, message):
    with pytest.raises(ValueError, match=message):
        ops.blur(**{"x": torch.zeros(2, 6, 4), "sigma": 1.0, "grid": (2, 3), **spoilt})


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind):
    x = make((6, 8), 5, kind=kind)
    op = torch.ops.fastguide.blur.default
    torch.library.opcheck(op, (x, None, 1.5, 0.5, 6, 8, 0))
    torch.library.opcheck(op, (x, torch.tensor([1.5, math.inf]), 0.0, 0.0, 6, 8, 9))


@pytest.mark.parametrize("kind", ["channels", "pixels", "qkv"])
def test_compiles_without_a_graph_break(kind):
    x, sigmas = make((6, 8), 5, kind=kind), torch.tensor([1.5, 0.0])

    def f(x, sigmas):
        return ops.blur(x * 2, 1.5, (6, 8)) + ops.blur(x, sigmas, (6, 8))

    torch.testing.assert_close(torch.compile(f, fullgraph=True)(x, sigmas), f(x, sigmas))
