"""The parts that the door, `fastguide.sample`, composes: a run prepared, given its inputs, run.

Once for a sampler, then once for each course:

    setup         the network in a dtype, the shape of a sample, the device
    checks        the options of a sampler, and other networks beside its own
    course        guidance, solver, levels, clamp: all that a plan is made from
    planning      a course made ready for a network: its plan, its passes
    warmup        measures how rows are fastest, and captures before runs are needed

At each call:

    inputs        conditions and noise, checked and bound
      conditions    what a caller gives as conditions, as networks take them
    known         images that a run starts from or that are partly known, checked
      measurements  projections of images: grey, pooled
    running       eagerly or captured, counted and logged
      rollout       a run as reinforcement learning sees it: trajectory and log-probabilities
      inversion     the same upwards, from images to their noise
    finite        samples that are not finite are an error

Without a plan of levels:

    field         the guided denoised image at any level
    adaptive      runs that choose their steps
      integrate     differential equations to a tolerance: RK45
      dpm_adaptive  DPM-Solver with a controller
    likelihood    bits per dimension along the flow
"""
