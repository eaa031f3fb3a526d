"""Many callers: requests that share batches, whole or in part, and pools of devices.

server      requests of any kind in continuous batches: planned, queued, resolved
  loop        its thread: who enters, what runs, who is told
    choice      which requests run together next
    batches     one evaluation of them: state gathered, ticked, put back
    live        a request on its way, and the places where state lies
submit      whole runs of a sampler in batches
  packer      the thread that packs them
  requests    a request, and its weights in the sampler's plan
deadlines   requests whose time is up, of both
pool        calls and requests spread over samplers of several devices
"""
