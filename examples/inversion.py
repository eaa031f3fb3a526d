"""Edit by inversion: from an image back to its noise, then forward under another condition.

    python examples/inversion.py --out inversion.png

The bundled model draws T-shirts; each is inverted and comes back as a dress. `--share` says how far
back towards noise: 1 is all the way, less keeps more of the image.
"""

import argparse
from pathlib import Path

import torch

import fastguide as fg


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("inversion.png"))
    options.add_argument("--images", type=int, default=8)
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--share", type=float, default=0.8)
    chosen = options.parse_args()

    model = fg.load("fashion")
    shirt, dress = model.class_names.index("T-shirt/top"), model.class_names.index("Dress")
    count = chosen.images
    images = fg.sample(model, [shirt] * count, fg.CFG(3.0), steps=25, seeds=range(count))

    # without guidance the run is one that can be followed upwards to the solver's order
    sampler = fg.Sampler(model, solver=fg.heun, steps=chosen.steps, strength=chosen.share)
    noise = sampler.invert(images, [shirt] * count)
    again = sampler([shirt] * count, range(count), init=images, noise=noise)
    edited = sampler.replaced(guidance=fg.CFG(3.0))(
        [dress] * count, range(count), init=images, noise=noise
    )
    print(f"there and back: off by {(again - images).abs().mean():.4f} of a range of 2, on average")

    rows = torch.cat([images, again, edited])
    fg.images.save_png(fg.images.grid(rows, columns=count, zoom=3), chosen.out)
    print(f"drawn, there and back, edited: {chosen.out}")


if __name__ == "__main__":
    main()
