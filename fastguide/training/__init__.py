"""Training of the networks in `fastguide.nets`."""

from fastguide.training.data import Images, load_images
from fastguide.training.judges import JudgeConfig, train_classifier, train_text_image
from fastguide.training.loop import LoopConfig
from fastguide.training.recipe import Recipe
from fastguide.training.train import TrainConfig, train

__all__ = [
    "Images",
    "JudgeConfig",
    "LoopConfig",
    "Recipe",
    "TrainConfig",
    "load_images",
    "train",
    "train_classifier",
    "train_text_image",
]
