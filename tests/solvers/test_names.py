"""All names of a solver lead to it, with the spacing that they ask for."""

import inspect

import k_diffusion_sampling
import pytest
import torch
from exact import two_classes

import fastguide as fg
from fastguide.solvers import SOLVERS
from fastguide.solvers.names import SAMPLER_NAMES, SCHEDULERS, aliases, plain
from fastguide.spacing.names import SPACING_NAMES, spacing_by_name


@pytest.mark.parametrize(
    ("name", "solver", "spacing"),
    [
        ("dpmpp_2m_karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M SDE Heun Exponential", "dpmpp_2m_sde(solver_type='heun')", "exponential"),
        ("DPM++ 2S a Karras", "dpmpp_2s_ancestral", "karras"),
        ("DPM++ 3M SDE", "dpmpp_3m_sde(published=True)", None),
        ("dpmpp_3m_sde", "dpmpp_3m_sde", None),
        ("sample_dpmpp_2m", "dpmpp_2m", None),
        ("k_euler_ancestral", "euler_ancestral", None),
        ("Euler a", "euler_ancestral", None),
        ("euler_sgm_uniform", "euler", "sgm_uniform"),
        ("Heun", "heun(over='ratio')", None),
        ("heun", "heun", None),
        ("DPMSolverMultistepScheduler", "dpmpp_2m", "sgm_uniform"),
        ("PNDMScheduler", "pndm", "leading"),
        ("LMS Karras", "lms", "karras"),
        ("dpmpp_2m_align_your_steps", "dpmpp_2m", "ays"),
        ("Euler ays_sdxl", "euler", "ays(table='sdxl')"),
        ("ddim:eta=0.5", "ddim(eta=0.5)", None),
        ("DPM++ 2M SDE Karras:eta=0.5", "dpmpp_2m_sde(eta=0.5)", "karras"),
    ],
)
def test_names(name, solver, spacing):
    found = fg.solver(name)
    assert repr(found.solver) == solver
    assert repr(found.spacing) == str(spacing)


def test_every_name_of_the_table_leads_to_a_solver_that_there_is():
    for other in (*SOLVERS, *SAMPLER_NAMES, *SCHEDULERS):
        fg.solver(other)
    for other in SPACING_NAMES:
        spacing_by_name(other)
    assert all(plain(name) == name for name in SAMPLER_NAMES)
    assert sum(map(len, aliases().values())) == len(SAMPLER_NAMES) + len(SCHEDULERS)


def test_all_of_k_diffusion_and_diffusers_are_known():
    theirs = k_diffusion_sampling.load()
    for name, function in inspect.getmembers(theirs, inspect.isfunction):
        if name.startswith("sample_") and name != "sample_dpm_adaptive":
            assert function.__module__ == theirs.__name__
            fg.solver(name)
    with pytest.raises(ValueError, match="chooses its own steps"):
        fg.solver("sample_dpm_adaptive")
    diffusers = pytest.importorskip("diffusers")
    for name in SCHEDULERS:
        assert inspect.isclass(getattr(diffusers, name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpmp_2m", "did you mean 'dpmpp_2m'"),
        ("DPMSolverMultistepSchedular", "did you mean 'DPMSolverMultistepScheduler'"),
        ("eular", "did you mean 'euler'"),
        ("", "solver is '', but"),
    ],
)
def test_an_unknown_name_says_what_is_near(name, message):
    with pytest.raises(ValueError, match=message):
        fg.solver(name)


def test_a_name_says_solver_and_spacing_of_a_run():
    model = two_classes(fg.EDM())
    run = {"steps": 4, "seeds": [1], "cond": [0]}
    want = fg.sample(model, solver=fg.dpmpp_2m, spacing=fg.exponential, **run)
    for solver in ("DPM++ 2M Exponential", fg.solver("dpmpp_2m_exponential")):
        assert torch.equal(fg.sample(model, solver=solver, **run), want)
    # a spacing that is named beside it comes first
    other = fg.sample(model, solver="DPM++ 2M Exponential", spacing="karras", **run)
    assert torch.equal(other, fg.sample(model, solver="dpmpp_2m", spacing="karras", **run))
    assert not torch.equal(other, want)
    with pytest.raises(ValueError, match="did you mean 'karras'"):
        fg.sample(model, spacing="karas", **run)
