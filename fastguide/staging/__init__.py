"""How guidance reaches into a network: the contract of stages, and what may be done to a layer."""
