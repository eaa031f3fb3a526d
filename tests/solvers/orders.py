"""The order of each deterministic solver in a whole run, start-up included: what the tests measure
and docs/solvers.md says.
"""

import fastguide as fg

# on a Gaussian, levels of rho 3, and on a mixture in the plane, even levels
EVERYWHERE = [
    (fg.ddim, 1),
    (fg.euler, 1),
    (fg.heun, 2),
    (fg.heun(over="ratio"), 2),
    (fg.dpm_2, 2),
    (fg.dpm_2m, 2),
    (fg.dpm_3m, 2),
    (fg.dpm_single, 3),
    (fg.dpmpp_2m, 2),
    (fg.dpmpp_3m, 2),
    (fg.dpmpp_single, 2),
    (fg.er_sde(noise_scaler="ode"), 2),
    (fg.lms(order=2), 2),
    (fg.lms, 2),
    (fg.deis, 2),
    (fg.plms, 2),
    (fg.pndm, 2),
    (fg.res_multistep, 2),
    (fg.rho_rk, 2),
    (fg.rho_rk(method="rk4"), 4),
    (fg.s_pndm, 2),
    (fg.unipc(order=1, corrector=False), 1),
    (fg.unipc(order=1), 2),
    (fg.unipc, 3),
    (fg.unipc(variant="bh1"), 3),
]

# on the mixture: their errors on a Gaussian cancel, or fall late
ON_THE_MIXTURE = [
    (fg.heun(alpha=0.5), 2),
    (fg.heun(alpha=0.75, over="ratio"), 2),
    (fg.dpm_2_ancestral(eta=0.0), 2),
    (fg.dpmpp_2s_ancestral(eta=0.0), 2),
    (fg.dpmpp_sde(eta=0.0), 2),
    (fg.dpmpp_sde(eta=0.0, r=0.3), 2),
    (fg.dpm_single(order=2, solver_type="heun"), 2),
    (fg.dpm_single(solver_type="heun"), 3),
    (fg.dpm_single(inner="levels"), 3),
    (fg.dpm_fast, 2),
    (fg.dpmpp_single(order=3), 3),
    (fg.dpmpp_single(order=3, solver_type="heun", inner="levels"), 3),
    (fg.dpmpp_single(inner="levels"), 2),
    (fg.rho_rk(method="midpoint"), 2),
    (fg.rho_rk(method="kutta3"), 3),
    (fg.ipndm, 2),
    (fg.ipndm_v, 2),
    (fg.ddim_cfgpp, 1),
    (fg.euler_ancestral(eta=0.0), 1),
    (fg.euler_ancestral_cfgpp(eta=0.0), 1),
    (fg.dpmpp_2m_sde(eta=0.0), 2),
    (fg.dpmpp_3m_sde(eta=0.0), 2),
    (fg.dpmpp_2m_cfgpp, 2),
    (fg.dpmpp_2s_ancestral_cfgpp(eta=0.0), 2),
    (fg.res_multistep_cfgpp, 2),
    (fg.gradient_estimation_cfgpp, 1),
    (fg.restart(times=0), 2),
    (fg.deis(over="t"), 2),
    (fg.deis(over="rho"), 2),
    (fg.sa_solver(tau=0.0, corrector_order=0), 2),
    (fg.er_sde(noise_scaler="ode", order=1), 1),
    (fg.gradient_estimation, 1),
    (fg.unipc(over="noise"), 3),
    (fg.unipc(variant="vary"), 3),
]

# on the mixture with many steps: the errors of predictor and corrector cancel at first
LATE = [(fg.sa_solver(tau=0.0), 2)]
