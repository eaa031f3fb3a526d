"""The error of everything that can be wrong with a checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, of another version, or of a kind that is not read."""
