"""Train a model with `fastguide.training`, then sample it in one pass a step.

    apt-get install dataset-fashion-mnist
    python examples/training.py /usr/share/datasets/fashion-mnist out/mine --steps 2000

DATA is a folder of IDX files, or one with a subfolder of images for each class. What is interrupted
goes on where it was, to the same numbers.
"""

import argparse
from pathlib import Path

import fastguide as fg
from fastguide.nets import DiT
from fastguide.training import Recipe, TrainConfig, load_images, train


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("data", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--steps", type=int, default=2000)
    options.add_argument("--width", type=int, default=96)
    options.add_argument("--depth", type=int, default=4)
    chosen = options.parse_args()

    images = load_images(chosen.data)
    classes = len(images.class_names)
    net = DiT(
        width=chosen.width,
        depth=chosen.depth,
        attention_heads=4,
        classes=classes,
        heads=2,
        negative=True,
        split=True,
    )
    # of each batch, a share learns the negative condition, and one no condition
    config = TrainConfig(steps=chosen.steps, recipe=Recipe(negative=0.15, dropout=0.1))
    train(net, images, fg.Flow(), fg.Prediction("flow"), config, chosen.out, report)

    model = fg.load(chosen.out)
    labels = [i % classes for i in range(4 * classes)]
    # one pass: the second head predicts without the condition
    samples = fg.sample(model, labels, fg.Superconditioning(3.0), seeds=range(len(labels)))
    fg.images.save_png(fg.images.grid(samples, columns=classes), chosen.out / "samples.png")
    print(f"samples: {chosen.out / 'samples.png'}")


def report(step: int, loss: float) -> None:
    """Called after each step."""
    if step % 100 == 0:
        print(f"step {step}: loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
