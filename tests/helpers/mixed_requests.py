"""Requests of many kinds, for a server: settings drawn from a source, as `submit` takes them."""

import fastguide as fg

GUIDANCES = {
    "none": lambda s: None,
    "cfg": lambda s: fg.CFG(s),
    "cfg and pag": lambda s: fg.CFG(s) + fg.PAG(0.3 * s),
    "interval": lambda s: fg.CFG(s, fg.interval(0.2, 5.0)),
    "held": lambda s: fg.CFG(s, every=2),
    "icg": lambda s: fg.ICG(s),
    "nag": lambda s: fg.NAG(s),
    "reg": lambda s: fg.REG(fg.CFG(s)),
    "difference": lambda s: fg.REG(fg.CFG(s), mode="difference"),
    "rescale": lambda s: fg.CFG(s).rescale(0.7),
    "apg": lambda s: fg.APG(fg.CFG(s), radius=2.0, momentum=-0.5),
    "tsg": lambda s: fg.TSG(s),
    "adaptive": lambda s: fg.Adaptive(fg.CFG(s), similarity=0.9),
    "tpg": lambda s: fg.TPG(0.5 * s),
}
SOLVERS = {
    "ddim": fg.ddim,
    "ancestral": fg.ddim(eta=1.0),
    "dpmpp_2m": fg.dpmpp_2m,
    "heun": fg.heun,
    "dpmpp_3m_sde": fg.dpmpp_3m_sde,
    "lms": fg.lms,
}


def drawn(source, steps=(2, 6), guidances=GUIDANCES, solvers=SOLVERS):
    """The settings of one request."""
    return {
        "guidance": guidances[source.choice(list(guidances))](source.choice([1.5, 3.0, 5.0])),
        "solver": solvers[source.choice(list(solvers))],
        "steps": source.randint(*steps),
    }
