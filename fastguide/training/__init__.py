"""Training of the networks in `fastguide.nets`."""

from fastguide.training.data import Images, load_images
from fastguide.training.recipe import Recipe
from fastguide.training.train import TrainConfig, train

__all__ = ["Images", "Recipe", "TrainConfig", "load_images", "train"]
