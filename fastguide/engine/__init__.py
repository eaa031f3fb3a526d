"""From a guidance and a solver to samples: plans on the host, then runs, eagerly or captured.

Planned once, on the host (who calls whom, from the top):

    plan        a course multiplied out: one row of numbers for each evaluation
      pattern     which branches are active at each evaluation, and with which weights
        order       the order of its branches: the negative first where a solver reads it
        age         when a held delta is computed anew
      path        the noise of rows that draw the increments of one Brownian path
      threshold   a bound of the denoised image per sample
    passes      which rows of a pattern run through which network, under which conditions
      program     which rows run through which stages together, so that no work is done twice

Run, `run` calling those below it for each evaluation:

    run         the loop: an evaluation, then one `ops.step`; `Inputs`
      watch       what looks at a run between evaluations: callbacks, `Progress`, `STOP`
        known       what is known of the images, put back after every update
      evaluate    the deltas of a pattern and their weights: what `ops.step` combines
        predict     the passes: the network's times and conditions, other networks, degraded inputs
          compiled    or as one graph of `torch.compile`
          rows        a program's stages on batches of rows: forks, joins, routing
          degrade     SAG's second input
        gradient    REG's chain rule, and gradients of potentials (classifier, CLIP, energies)
        norm        a guided prediction that is held to the positive one's norm (CFG-Norm)
        project     weights from inner products: APG, CFG-Zero*, TCFG, MAMBO, rescales
        filters     FDG's fine part of a delta
        latch       that adaptive guidance is over, learned without waiting for the device
    denoise     one evaluation by itself, as an image that can be differentiated

Captured, beside it:

    captured    a run from graphs: the whole of `run`, or the parts of `steps`
      steps       a run in parts, each an evaluation and its update
      structure   what tells one capture from another: all of a plan but its numbers
      static      the inputs of a capture as one tree, filled up to a batch's size
      graph       captures by key, replayed on copies of the inputs
        recorder    what the device does: warm up, capture, replay

Of many runs at once, beside it:

    stacked     rows of many plans in one layout, and what they must have in common
    tick        one evaluation of a batch of runs, each at a row of its own

Looked at before a run: `measure` (how rows are fastest, how many kernels a run launches), `memory`
(what it takes), and after it: `stats`.
"""
