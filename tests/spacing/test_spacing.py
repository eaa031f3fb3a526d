"""The levels that each spacing visits, against the formulas and numbers that the field uses."""

import math
import sys
from itertools import pairwise

import numpy as np
import pytest

import fastguide as fg
from fastguide.common.options import by_name
from fastguide.spacing import SPACINGS, Levels, default_spacing, tables
from fastguide.spacing.gits_table import GITS

SD = fg.VP("scaled_linear", 0.00085, 0.012)
DDPM = fg.VP("linear")


def times(levels):
    return [level.t for level in levels.points]


def ratios(levels):
    return [level.ratio for level in levels.points]


def test_leading_and_trailing_and_linspace_timesteps():
    # the timesteps of Lin et al. 2023, table 2, for T = 1000, N = 10 (there from 1 to 1000)
    assert times(fg.leading.run(SD, 10))[:-1] == [900 - 100 * i for i in range(10)]
    assert times(fg.leading(offset=1).run(SD, 10))[0] == 901
    assert times(fg.trailing.run(SD, 10))[:-1] == [999 - 100 * i for i in range(10)]
    evenly = times(fg.linspace.run(SD, 10))[:-1]
    assert evenly == pytest.approx([999 - 111 * i for i in range(10)])


def test_karras_is_edms_formula():
    levels = fg.karras.run(fg.EDM(), 32)
    lo, hi = 0.002 ** (1 / 7), 80 ** (1 / 7)
    assert [p.sigma for p in levels.points] == pytest.approx(
        [(hi + i / 31 * (lo - hi)) ** 7 for i in range(32)] + [0.0]
    )
    assert levels.points[0].sigma == 80.0
    # sigma_17 and sigma_22 of the 32 steps bound the interval of Kynkaanniemi et al. 2024
    assert levels.points[17].sigma == pytest.approx(1.6086, abs=1e-4)
    assert levels.points[22].sigma == pytest.approx(0.2830, abs=1e-4)


def test_karras_on_vp_keeps_the_trained_range():
    levels = fg.karras.run(SD, 20)
    assert levels.points[0].ratio == pytest.approx(SD.level(999).ratio)
    assert levels.points[-2].ratio == pytest.approx(SD.level(0).ratio)


def test_flow_shift():
    plain, shifted = fg.linspace.run(fg.Flow(), 4), fg.shifted(shift=3.0).run(fg.Flow(), 4)
    assert times(plain) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert times(shifted) == pytest.approx([3 * t / (1 + 2 * t) for t in times(plain)])
    assert times(fg.shifted(shift=1.0).run(fg.Flow(), 4)) == times(plain)


@pytest.mark.parametrize("total", [100, 999, 1000, 4000])
@pytest.mark.parametrize("steps", [2, 3, 10, 25, 50, 100])
def test_quadratic_is_the_quad_sequence_of_ddim(total, steps):
    sequence = (np.linspace(0, np.sqrt(total * 0.8), steps) ** 2).astype(int).tolist()
    visited = times(fg.quadratic.run(fg.VP(timesteps=total), steps))[:-1]
    assert visited == sorted(set(sequence), reverse=True)


def test_quadratic_by_hand():
    # sqrt(800) i / 9, squared: 9.88 i^2
    assert times(fg.quadratic.run(DDPM, 10)) == [
        *[800, 632, 483, 355, 246, 158, 88, 39, 9, 0],
        0.0,
    ]
    assert times(fg.quadratic.run(DDPM, 1)) == [800, 0]


@pytest.mark.parametrize(
    ("total", "steps", "stride"),
    [
        (1000, 25, 40),
        (1000, 50, 20),
        (1000, 334, 3),
        (1000, 1000, 1),
        (1000, 27, 38),
        (4000, 7, 572),
    ],
)
def test_ddim_stride_is_the_smallest_that_gives_n(total, steps, stride):
    visited = times(fg.ddim_stride.run(fg.VP(timesteps=total), steps))[:-1]
    assert visited == [i * stride for i in reversed(range(steps))]
    assert (steps - 1) * stride < total <= steps * stride  # N fit, not N + 1 ...
    assert stride == 1 or (total - 1) // (stride - 1) + 1 > steps  # ... and one less gives more


@pytest.mark.parametrize(("steps", "nearest"), [(300, 334), (999, 1000), (1, 2)])
def test_ddim_stride_names_the_count_without_a_stride(steps, nearest):
    message = f"steps is {steps}, but no whole stride .* 1000 timesteps.* does is {nearest}$"
    with pytest.raises(ValueError, match=message):
        fg.ddim_stride.run(DDPM, steps)


def test_respaced_in_one_section_strides_by_fractions():
    # 999 / 249 = 4.012...: the timesteps of guided-diffusion's "250"
    visited = times(fg.respaced.run(DDPM, 250))[:-1]
    assert visited == pytest.approx([999 * i / 249 for i in reversed(range(250))], abs=0.5)
    assert (visited[0], visited[-1]) == (999, 0)
    # strides of 2.25, and halves round to even: 0, 2.25, 4.5, 6.75, 9
    assert times(fg.respaced.run(fg.VP(timesteps=10), 5))[:-1] == [9, 7, 4, 2, 0]
    assert times(fg.respaced.run(DDPM, 1)) == [0, 0]
    assert times(fg.respaced.run(DDPM, 1000))[:-1] == list(range(999, -1, -1))


def test_respaced_sections_rise_from_the_data():
    # 300 timesteps in three hundreds of 3, 5 and 2 steps
    levels = fg.respaced(sections=(3, 5, 2)).run(fg.VP(timesteps=300), 10)
    assert times(levels)[:-1] == [299, 200, 199, 174, 150, 125, 100, 99, 50, 0]
    # 11 = 4 + 4 + 3: the first sections take what is left over
    levels = fg.respaced(sections=(2, 1, 2)).run(fg.VP(timesteps=11), 5)
    assert times(levels)[:-1] == [10, 8, 4, 3, 0]


@pytest.mark.parametrize("sections", [(10, 10, 20), [10, 10, 20], "10+10+20"])
def test_sections_in_all_forms(sections):
    expected = fg.respaced(sections=(10, 10, 20)).run(DDPM, 40)
    assert fg.respaced(sections=sections).run(DDPM, 40) == expected
    assert by_name("spacing", "respaced:sections=10+10+20", SPACINGS).run(DDPM, 40) == expected
    assert by_name("spacing", "respaced:sections=40", SPACINGS).run(DDPM, 40) == (
        fg.respaced.run(DDPM, 40)
    )


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ((10, 10), r"sections is \(10, 10\), 20 steps, but steps is 40"),
        ((20, 20.5), r"sections is \(20, 20.5\), but it should be steps per section"),
        ((50, -10), r"sections is \(50, -10\), but"),
        ("10 and 30", "sections is '10 and 30', but"),
        ("", "sections is '', but"),
        ((), r"sections is \(\), but"),
        ([1] * 38 + [2, 0], "section 38 has 1 timesteps for 2"),
    ],
)
def test_wrong_sections_are_named(sections, message):
    with pytest.raises(ValueError, match=message):
        fg.respaced(sections=sections).run(fg.VP(timesteps=40), 40)


@pytest.mark.parametrize("spacing", [fg.respaced(sections=(4, 3)), fg.quadratic, fg.trailing])
def test_ddpm_uses_the_betas_of_the_shortened_process(spacing):
    abar, product = [], 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        abar.append(product)
    levels = spacing.run(DDPM, 7)
    visited = [int(t) for t in times(levels)[:-1]]
    small, large = (list(fg.ddpm(variance=v).run(levels)) for v in ("small", "large"))
    for i, t in enumerate(visited):
        before = abar[visited[i + 1]] if i + 1 < len(visited) else 1.0
        beta = 1 - abar[t] / before
        assert small[i].x["denoised"] == pytest.approx(
            math.sqrt(before) * beta / (1 - abar[t]), rel=1e-9
        )
        if before < 1.0:
            assert small[i].x["x"] == pytest.approx(
                math.sqrt(1 - beta) * (1 - before) / (1 - abar[t]), rel=1e-9
            )
            variance = beta * (1 - before) / (1 - abar[t])
            assert small[i].x["noise"] ** 2 == pytest.approx(variance, rel=1e-9)
            assert large[i].x["noise"] ** 2 == pytest.approx(beta, rel=1e-9)


def test_exponential_falls_by_one_factor_a_step(process):
    levels = ratios(fg.exponential(sigma_min=0.1, sigma_max=6.4).run(process, 7))
    assert levels == pytest.approx([6.4, 3.2, 1.6, 0.8, 0.4, 0.2, 0.1, 0.0], rel=1e-9)
    steep = fg.karras(rho=1e6, sigma_min=0.1, sigma_max=6.4).run(process, 7)
    assert ratios(steep) == pytest.approx(levels, rel=1e-4)


def test_polyexponential(process):
    lo, hi, rho = 0.1, 7.0, 1.7
    levels = fg.polyexponential(rho=rho, sigma_min=lo, sigma_max=hi).run(process, 9)
    expected = [hi ** ((1 - i / 8) ** rho) * lo ** (1 - (1 - i / 8) ** rho) for i in range(9)]
    assert ratios(levels) == pytest.approx([*expected, 0.0], rel=1e-9)
    assert ratios(fg.polyexponential.run(process, 9)) == ratios(fg.exponential.run(process, 9))


SIGMAS = [fg.karras, fg.exponential, fg.polyexponential, fg.beta(over="sigma")]


@pytest.mark.parametrize("spacing", SIGMAS, ids=repr)
def test_bounds_in_sigma_default_to_the_process(process, spacing):
    if spacing.name == "beta":
        pytest.importorskip("scipy")
    flow = isinstance(process, fg.Flow)
    low = 0.002 if flow else process.level(process.t_min).ratio
    high = 80.0 if flow else process.level(process.t_max).ratio
    visited = ratios(spacing.run(process, 6))
    assert (visited[0], visited[-2]) == pytest.approx((high, low), rel=1e-12)
    assert ratios(spacing.run(process, 1)) == pytest.approx([high, 0.0], rel=1e-12)
    visited = ratios(spacing(sigma_min=0.3, sigma_max=5.0).run(process, 6))
    assert (visited[0], visited[-2]) == pytest.approx((5.0, 0.3), rel=1e-12)
    for bounds in ({"sigma_min": 7.0, "sigma_max": 5.0}, {"sigma_min": 0.0}):
        with pytest.raises(ValueError, match=f"sigma_min, sigma_max are {bounds['sigma_min']}"):
            spacing(**bounds).run(process, 6)


def arcsine(process, steps, over="t"):
    """Beta(1/2, 1/2) is the arcsine distribution: its quantile at u is sin(pi u / 2)^2."""
    pytest.importorskip("scipy")
    return fg.beta(a=0.5, b=0.5, over=over).run(process, steps)


def test_beta_over_time_of_the_arcsine_distribution():
    quantiles = [math.sin(math.pi / 2 * (1 - i / 8)) ** 2 for i in range(8)]
    assert times(arcsine(SD, 8))[:-1] == [round(999 * q) for q in quantiles]
    assert times(arcsine(fg.Flow(), 8)) == pytest.approx([*quantiles, 0.0], abs=1e-10)
    edm = fg.EDM(0.01, 100.0)
    assert ratios(arcsine(edm, 8)) == pytest.approx(
        [*(0.01 * 1e4**q for q in quantiles), 0.0], rel=1e-9
    )


def test_beta_over_sigma_of_the_arcsine_distribution(process):
    quantiles = [math.sin(math.pi / 2 * (1 - i / 7)) ** 2 for i in range(8)]
    flow = isinstance(process, fg.Flow)
    low = 0.002 if flow else process.level(process.t_min).ratio
    high = 80.0 if flow else process.level(process.t_max).ratio
    assert ratios(arcsine(process, 8, "sigma")) == pytest.approx(
        [*(low + q * (high - low) for q in quantiles), 0.0], rel=1e-9, abs=1e-9
    )


def test_beta_of_a_uniform_distribution_is_even():
    pytest.importorskip("scipy")
    uniform = fg.beta(a=1.0, b=1.0)
    assert times(uniform.run(fg.Flow(), 10)) == pytest.approx(
        times(fg.linspace.run(fg.Flow(), 10)), abs=1e-12
    )
    assert times(uniform.run(SD, 10))[:-1] == [round(999 * (1 - i / 10)) for i in range(10)]
    # a = 2, b = 1 has the quantile sqrt(u)
    assert times(fg.beta(a=2.0, b=1.0).run(fg.Flow(), 4)) == pytest.approx(
        [math.sqrt(1 - i / 4) for i in range(4)] + [0.0], abs=1e-10
    )
    assert len(times(fg.beta.run(SD, 1000))) < 1000  # crowded ends meet, and are visited once


def test_beta_says_which_extra_has_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"fastguide\[scipy\]"):
        fg.beta.run(SD, 4)


def test_sgm_uniform_leaves_out_the_least_noise():
    assert times(fg.sgm_uniform.run(SD, 4)) == pytest.approx([999, 749.25, 499.5, 249.75, 0])
    assert times(fg.sgm_uniform(floor=True).run(SD, 4)) == [999, 749, 499, 249, 0]
    assert fg.sgm_uniform.run(fg.Flow(), 5) == fg.linspace.run(fg.Flow(), 5)
    assert ratios(fg.sgm_uniform.run(fg.EDM(0.01, 100.0), 4)) == pytest.approx(
        [100.0, 10.0, 1.0, 0.1, 0.0]
    )
    for process in (SD, fg.EDM(), fg.Flow()):
        assert times(fg.sgm_uniform.run(process, 1)) == [process.t_max, 0.0]


@pytest.mark.parametrize("steps", [3, 10, 27, 90, 333, 1000])
def test_sgm_uniform_floored_is_that_of_generative_models(steps):
    expected = np.linspace(999, 0, steps, endpoint=False).astype(int).tolist()
    assert times(fg.sgm_uniform(floor=True).run(SD, steps))[:-1] == expected


def test_shift_by_size_is_the_line_of_flux():
    def shift(tokens, **options):
        levels = fg.shifted_by_size(tokens=tokens, **options).run(fg.Flow(), 4)
        t = levels.points[2].t  # u = 1/2: t = s / (s + 1)
        return t / (1 - t)

    assert shift(256) == pytest.approx(math.exp(0.5))
    assert shift(4096) == pytest.approx(math.exp(1.15))
    assert shift(2176) == pytest.approx(math.exp((0.5 + 1.15) / 2))  # halfway
    assert shift(8192) > shift(4096)  # the line goes on
    assert shift(150, base_tokens=100, max_tokens=200, base_shift=1, max_shift=3) == (
        pytest.approx(math.exp(2))
    )
    tokens = 1024 * 1024 // 256  # Flux at 1024 x 1024 pixels
    levels = fg.shifted_by_size(tokens=tokens).run(fg.Flow(), 3)
    e = math.exp(1.15)
    assert times(levels) == pytest.approx([1.0, e / (e + 0.5), e / (e + 2.0), 0.0])
    assert by_name("spacing", "shifted_by_size:tokens=4096", SPACINGS).run(fg.Flow(), 3) == levels
    assert times(fg.shifted_by_size(tokens=256).run(fg.Flow(), 1)) == [1.0, 0.0]


# a list published for Stable Diffusion 1.5, both ends rounded out of the trained range
# (Sabour et al. 2024, "Align Your Steps")
PUBLISHED = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]


def test_given_sigmas():
    levels = Levels.from_sigmas(SD, PUBLISHED)
    assert ratios(levels) == pytest.approx([*PUBLISHED, 0.0], rel=6e-3)
    assert ratios(levels)[1:-2] == pytest.approx(PUBLISHED[1:-1], rel=1e-12)
    assert levels == Levels.from_sigmas(SD, [*PUBLISHED, 0.0])
    assert levels == Levels.from_sigmas(SD, np.array(PUBLISHED))
    assert (levels.points[0].t, levels.points[-2].t) == (999.0, 0.0)
    assert times(Levels.from_sigmas(fg.EDM(), [700, 3])) == [700.0, 3.0, 0.0]
    assert times(Levels.from_sigmas(fg.Flow(), [math.inf, 1])) == [1.0, 0.5, 0.0]
    assert times(Levels.from_sigmas(fg.Flow(), [1.0])) == [0.5, 0.0]


def test_given_times(process):
    given = [process.t_max, 0.4 * process.t_max, 0.1 * process.t_max]
    levels = Levels.from_times(process, given)
    assert levels.points[:-1] == tuple(map(process.level, given))
    assert (levels.points[-1].alpha, levels.points[-1].sigma) == (1.0, 0.0)
    assert len(Levels.from_times(process, given[:1]).points) == 2
    if not isinstance(process, fg.VP):  # its t = 0 still has noise
        assert Levels.from_times(process, [*given, 0]) == levels
    else:
        assert len(Levels.from_times(process, [*given, 0]).points) == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Levels.from_times(SD, [9, 9]), r"times\[1\] is 9.0, but it should be below 9.0"),
        (lambda: Levels.from_times(SD, [9, 10]), r"times\[1\] is 10.0, but it should be below"),
        (lambda: Levels.from_times(SD, [1000, 9]), r"times\[0\] is 1000.0: t .* \[0, 999\]"),
        (lambda: Levels.from_times(SD, [9, -1]), r"times\[1\] is -1.0: "),
        (lambda: Levels.from_times(SD, [math.nan]), r"times\[0\] is nan, but"),
        (lambda: Levels.from_times(fg.EDM(), [math.inf, 1]), r"times\[0\] is inf: "),
        (lambda: Levels.from_times(fg.Flow(), [0.0]), r"times is \(0.0,\), but a run needs"),
        (lambda: Levels.from_times(fg.Flow(), []), r"times is \(\), but a run needs"),
        (lambda: Levels.from_sigmas(SD, [3, 4]), r"sigmas\[1\] is 4.0, but it should be below"),
        (lambda: Levels.from_sigmas(SD, [15, 4]), r"sigmas\[0\] is 15.0: .* 14.6146\]"),
        (lambda: Levels.from_sigmas(SD, [4, 0.02]), r"sigmas\[1\] is 0.02: .* \[0.0291672"),
        (lambda: Levels.from_sigmas(SD, [math.inf, 4]), r"sigmas\[0\] is inf: "),
        (lambda: Levels.from_sigmas(SD, [4, math.nan]), r"sigmas\[1\] is nan, but"),
        (lambda: Levels.from_sigmas(fg.EDM(), [4, -1]), r"sigmas\[1\] is -1.0: "),
        (lambda: Levels.from_sigmas(fg.EDM(), [math.inf]), r"sigmas\[0\] is inf: "),
        (lambda: Levels.from_sigmas(fg.Flow(), [0, 0]), r"sigmas\[1\] is 0.0, but"),
        (lambda: Levels.from_sigmas(fg.Flow(), [0]), r"sigmas is \(0.0,\), but a run needs"),
    ],
)
def test_given_lists_name_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


WHOLE = [fg.leading, fg.trailing, fg.quadratic, fg.ddim_stride, fg.respaced]


@pytest.mark.parametrize("spacing", WHOLE, ids=repr)
def test_timesteps_are_whole_and_of_vp_only(spacing):
    assert all(t == int(t) for t in times(spacing.run(SD, 20)))
    for process in (fg.EDM(), fg.Flow()):
        with pytest.raises(ValueError, match=f"spacing is '{spacing.name}', which counts"):
            spacing.run(process, 20)
    with pytest.raises(ValueError, match="steps is 1001, but the process has 1000"):
        spacing.run(SD, 1001)


EVERYWHERE = [fg.linspace, fg.sgm_uniform, fg.exponential, fg.polyexponential(rho=2.0), fg.beta]


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_every_run_ends_exactly_at_the_data(process, steps):
    for spacing in (default_spacing(process), fg.karras, *EVERYWHERE):
        if spacing.name == "beta":
            pytest.importorskip("scipy")
        levels = fg.make_levels(process, steps, spacing)
        assert len(levels.points) == steps + 1
        assert (levels.points[-1].alpha, levels.points[-1].sigma) == (1.0, 0.0)
        assert ratios(levels) == sorted(ratios(levels), reverse=True)


def test_all_are_listed_under_their_names():
    for name, spacing in SPACINGS.items():
        assert spacing.name == name
        assert getattr(fg, name) is spacing


@pytest.mark.parametrize("steps", [0, -3, 2.0, "7", True])
def test_steps_must_be_a_positive_int(steps):
    with pytest.raises((ValueError, TypeError), match="steps is"):
        fg.make_levels(SD, steps)


def test_errors():
    with pytest.raises(ValueError, match="spacing is 'trailing'"):
        fg.trailing.run(fg.Flow(), 10)
    with pytest.raises(ValueError, match="steps is 2000"):
        fg.leading.run(SD, 2000)
    with pytest.raises(ValueError, match=r"'shifted'.*for Flow"):
        fg.shifted.run(SD, 10)
    with pytest.raises(ValueError, match="shift of shifted is nan"):
        fg.shifted(shift=math.nan).run(fg.Flow(), 10)
    with pytest.raises(ValueError, match="tokens is None, but spacing 'shifted_by_size' needs"):
        fg.shifted_by_size.run(fg.Flow(), 10)
    with pytest.raises(ValueError, match=r"'shifted_by_size'.*for Flow"):
        fg.shifted_by_size(tokens=256).run(SD, 10)
    with pytest.raises(ValueError, match="tokens is -3"):
        fg.shifted_by_size(tokens=-3).run(fg.Flow(), 10)
    with pytest.raises(ValueError, match="base_tokens, max_tokens are 256, 100"):
        fg.shifted_by_size(tokens=256, max_tokens=100).run(fg.Flow(), 10)
    with pytest.raises(ValueError, match="max_shift is inf"):
        fg.shifted_by_size(tokens=256, max_shift=math.inf).run(fg.Flow(), 10)
    for spacing in (fg.karras, fg.polyexponential):
        with pytest.raises(ValueError, match="rho is -1"):
            spacing(rho=-1.0).run(fg.EDM(), 10)
    with pytest.raises(ValueError, match=r"a is 0\.0"):
        fg.beta(a=0.0).run(SD, 10)
    with pytest.raises(ValueError, match="b of beta is nan"):
        fg.beta(b=math.nan).run(SD, 10)
    with pytest.raises(ValueError, match="over is 'noise'"):
        fg.beta(over="noise").run(SD, 10)
    with pytest.raises(ValueError, match=r"sigma_max is 3\.0, but it is read only where over"):
        fg.beta(sigma_max=3.0).run(SD, 10)
    with pytest.raises(ValueError, match=r"times\[0\] is 1400.0: t is 1400.0"):
        fg.leading(offset=500).run(SD, 10)
    with pytest.raises(ValueError, match=r"sigmas\[0\] is 80.0"):
        fg.karras(sigma_max=80.0).run(SD, 10)
    with pytest.raises(ValueError, match="levels should fall"):
        Levels(fg.Flow(), (fg.Level(0.5, 0.5, 0.5), fg.Level(0.5, 0.5, 0.5)))
    with pytest.raises(TypeError, match="karras has no option 'roh'; its options: rho"):
        fg.karras(roh=3)


def test_published_tables_are_as_printed_and_interpolated_in_their_logarithm():
    svd = fg.EDM(0.002, 700.0)
    for process, name, first in ((SD, "sd15", 14.615), (SD, "sdxl", 14.615), (svd, "svd", 700.0)):
        ten = fg.ays(table=name).run(process, 10)
        assert ratios(ten)[:2] == pytest.approx([first, tables.TABLES[name][1]], rel=1e-3)
        assert len(ten.points) == 11
        assert ten.points[-1].sigma == 0.0
        five, twenty = (fg.ays(table=name).run(process, n) for n in (5, 20))
        assert ratios(five)[:5] == pytest.approx(ratios(ten)[:10:2])
        assert ratios(twenty)[:20:2] == pytest.approx(ratios(ten)[:10])
        middle = math.sqrt(ratios(ten)[3] * ratios(ten)[4])
        assert ratios(twenty)[7] == pytest.approx(middle)
    diffusers = pytest.importorskip("diffusers.schedulers")
    for name, theirs in (("sd15", "StableDiffusion"), ("sdxl", "StableDiffusionXL")):
        want = diffusers.AysSchedules[f"{theirs}Sigmas"]
        assert tables.TABLES[name][:10] == tuple(want[:10])
    assert tables.TABLES["svd"][:10] == tuple(
        diffusers.AysSchedules["StableDiffusionVideoSigmas"][:10]
    )
    with pytest.raises(ValueError, match="table is 'sd3'"):
        fg.ays(table="sd3").run(SD, 10)
    with pytest.raises(ValueError, match=r"sigmas\[0\] is .*should be 0 or lie in"):
        fg.ays(table="svd").run(SD, 10)


def test_gits_is_as_published_for_2_to_20_steps():
    for steps in (2, 9, 20):
        found = ratios(fg.gits.run(SD, steps))
        assert len(found) == steps + 1
        want = [14.61464119, *GITS[steps - 2]]
        assert found[:-1] == pytest.approx(want, rel=1e-4)  # the process ends at 14.6146
    assert [len(row) for row in GITS] == list(range(1, 20))
    assert all(a > b for row in GITS for a, b in pairwise([14.7, *row, 0.0]))
    assert ratios(fg.gits.run(SD, 40))[:40:2] == pytest.approx(ratios(fg.gits.run(SD, 20))[:20])
    assert len(fg.gits.run(SD, 1).points) == 2


def test_kl_optimal_is_even_in_arctan_sigma():
    angles = [math.atan(r) for r in ratios(fg.kl_optimal.run(fg.EDM(0.01, 10.0), 7))[:-1]]
    gaps = [a - b for a, b in pairwise(angles)]
    assert gaps == pytest.approx([gaps[0]] * 6)
    assert angles[0] == pytest.approx(math.atan(10.0))
    assert angles[-1] == pytest.approx(math.atan(0.01))


def test_turbo_simple_and_flux():
    def times(spacing, process, steps):
        return [point.t for point in spacing.run(process, steps).points[:-1]]

    assert times(fg.turbo, SD, 4) == [999, 899, 799, 699]
    with pytest.raises(ValueError, match="'turbo' has 10 levels"):
        fg.turbo.run(SD, 11)
    assert times(fg.simple, SD, 3) == [999, 666, 333]
    assert times(fg.simple, SD, 7)[1] == 999 - 142
    assert fg.flux.run(fg.Flow(), 5) == fg.shifted_by_size(tokens=4096).run(fg.Flow(), 5)
    wide = fg.flux(width=1536, height=512).run(fg.Flow(), 5)
    assert wide == fg.shifted_by_size(tokens=3072).run(fg.Flow(), 5)
    with pytest.raises(ValueError, match="width is -1"):
        fg.flux(width=-1.0).run(fg.Flow(), 5)
