"""Networks that judge noisy images: what they learn, resumption, files, the command line."""

import json
import math

import pytest
import torch
from command import fastguide
from test_checkpoint import edit
from test_encoder import HALF, TEXT
from test_training import write_idx

import fastguide as fg
from fastguide.checkpoint import judges
from fastguide.nets import DiT, Encoder, GaussianMixture, TextImageNet
from fastguide.nets.diffuse import alpha_sigma
from fastguide.training import Images, LoopConfig, train_classifier, train_text_image
from fastguide.training.judges import contrastive
from fastguide.training.objective import noised_alike

NAMES = ("dark", "light", "left")
FLOW = (fg.Flow(), fg.Prediction("flow"))


def three_kinds(count=96):
    """Dark, light, and light only on the left."""
    pixels = torch.full((count, 1, 4, 4), 40, dtype=torch.uint8)
    labels = torch.arange(count) % 3
    pixels[labels == 1] = 215
    pixels[labels == 2, :, :, :2] = 215
    return Images(pixels, labels, NAMES)


def run(kind, out, process=FLOW, stop=None, images=None, report=None, **settings):
    images = three_kinds() if images is None else images
    usual = {"steps": 12, "batch": 32, "warmup": 3, "save_every": 5, "autocast": False}
    config = LoopConfig(**{**usual, **settings})

    def reported(step, loss):
        if report is not None:
            report.append(loss)
        if step == stop:
            raise KeyboardInterrupt

    if kind == "classifier":
        net, teach = Encoder(3, **HALF), train_classifier
    else:
        net, teach = TextImageNet(8, **HALF, **TEXT), train_text_image
    return teach(net, images, *process, config, out, reported)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both kinds: the folders, and the losses of the steps."""
    found = {}
    for kind in ("classifier", "clip"):
        torch.manual_seed(0)
        folder, losses = tmp_path_factory.mktemp(kind), []
        run(kind, folder, report=losses, steps=150, rate=3e-3, ema=0.9, save_every=150)
        found[kind] = folder, losses
    return found


def images_at(t, count=96):
    """What a network is given at time `t` of the flow, and the labels."""
    images = three_kinds(count)
    clean = images.pixels.float() / 127.5 - 1
    return (1 - t) * clean + t * torch.randn(clean.shape), torch.full((count,), t), images.labels


@pytest.mark.parametrize(
    "process",
    [FLOW, (fg.VP("cosine"), fg.Prediction("v")), (fg.EDM(0.02, 20.0), fg.Prediction("edm"))],
    ids=["flow", "vp", "edm"],
)
def test_a_classifier_learns_from_noise(tmp_path, process):
    losses = []
    settings = {"steps": 80, "rate": 3e-3, "warmup": 10, "save_every": 80}
    run("classifier", tmp_path, process, report=losses, **settings)
    assert sum(losses[-15:]) < 0.7 * sum(losses[:15])


def test_a_classifier_tells_classes_apart_and_its_gradient_leads_to_them(trained):
    classifier = fg.load_classifier(trained["classifier"][0])
    assert classifier.class_names == NAMES
    for t, least in ((0.1, 0.95), (0.5, 0.9)):
        x, times, labels = images_at(t)
        assert (classifier(x, times).argmax(1) == labels).float().mean() > least
    x, times, _ = images_at(0.6)
    x.requires_grad_(True)
    chosen = classifier(x, times).log_softmax(1)[:, 1]
    (gradient,) = torch.autograd.grad(chosen.sum(), x)
    assert gradient.flatten(1).abs().amax(1).min() > 0
    moved = classifier(x + 0.02 * gradient.sign(), times).log_softmax(1)[:, 1]
    assert (moved > chosen).float().mean() > 0.95
    assert gradient.mean() > 0  # towards light


def test_a_pair_learns_to_match_images_and_texts(trained):
    folder, losses = trained["clip"]
    assert sum(losses[-15:]) < 0.6 * sum(losses[:15])
    pair = fg.load_text_image(folder)
    x, times, labels = images_at(0.2)
    logits = pair.logit_scale * pair.image(x, times) @ pair.text(["Dark", "light", "LEFT"]).T
    assert (logits.argmax(1) == labels).float().mean() > 0.95
    x.requires_grad_(True)
    towards = (pair.image(x, times) @ pair.text(["light"]).T).sum()
    (gradient,) = torch.autograd.grad(towards, x)
    assert gradient[labels != 1].flatten(1).abs().amax(1).min() > 0


@pytest.mark.parametrize("kind", ["classifier", "clip"])
def test_guidance_by_them_finds_the_class(trained, kind):
    """An unconditional network of the three images, and what leads it to one of them."""
    images = three_kinds(3)
    means = images.pixels.double() / 127.5 - 1
    net = GaussianMixture(means, [0.2] * 3, [1 / 3] * 3, *FLOW)
    model = fg.Model(net, *FLOW, (1, 4, 4))
    if kind == "classifier":
        classifier = fg.load_classifier(trained[kind][0])
        guidance = fg.ClassifierGuidance(classifier, 3.0, labels=torch.arange(30) % 3)
    else:
        pair = fg.load_text_image(trained[kind][0])
        texts = pair.text([NAMES[i % 3] for i in range(30)])
        guidance = fg.CLIPGuidance(pair.image, texts, 3.0, logit_scale=pair.logit_scale)
        names = pair.text(NAMES)
        by_label = fg.CLIPGuidance(pair.image, names.__getitem__, 3.0, pair.logit_scale)
        run = {"steps": 3, "seeds": range(30)}
        told = fg.sample(model, torch.arange(30) % 3, by_label, **run)
        torch.testing.assert_close(told, fg.sample(model, None, guidance, **run))
        for named in (None, NAMES[1]):  # texts by label, or one for all
            labels = torch.arange(30) % 3 if named is None else torch.ones(30, dtype=torch.int64)
            plain = fg.sample(model, labels, by_label, **run)
            # one text and three are embedded in batches of their own
            by_name = fg.sample(model, labels, fg.CLIPGuidance(pair, named, 3.0), **run)
            torch.testing.assert_close(by_name, plain)
    shares = []
    for how in (None, guidance):
        x = fg.sample(model, guidance=how, steps=20, seeds=range(30)).double()
        found = (x.unsqueeze(1) - means).flatten(2).square().sum(2).argmin(1)
        shares.append((found == torch.arange(30) % 3).double().mean().item())
    assert shares[0] < 0.6  # a third by chance
    assert shares[1] > 0.9


def test_pairs_of_one_text_are_no_negatives_of_each_other():
    """The loss, entry by entry; with distinct texts it is CLIP's."""
    generator = torch.Generator().manual_seed(0)
    of_image, of_text = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    scale = torch.tensor(1.5, dtype=torch.float64)
    for texts in ([0, 1, 2, 3, 4], [0, 1, 0, 0, 1]):
        e = torch.exp(scale * of_image @ of_text.T)
        total = 0.0
        for i in range(5):
            others = [j for j in range(5) if texts[j] != texts[i]]
            of_row = e[i, i] / (e[i, i] + sum(e[i, j] for j in others))
            of_column = e[i, i] / (e[i, i] + sum(e[j, i] for j in others))
            total -= (math.log(of_row) + math.log(of_column)) / 10
        found = contrastive(of_image, of_text, scale, torch.tensor(texts))
        assert found.item() == pytest.approx(total, rel=1e-12)


def test_a_batch_of_one_class_has_nothing_to_learn():
    same = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    assert contrastive(same, same.flip(0), torch.tensor(20.0), torch.zeros(6)).item() == 0


@pytest.mark.parametrize("kind", ["classifier", "clip"])
def test_an_interrupted_run_continues_to_the_same_numbers(tmp_path, kind):
    whole = run(kind, tmp_path / "a").net.state_dict()
    with pytest.raises(KeyboardInterrupt):
        run(kind, tmp_path / "b", stop=8)
    assert not (tmp_path / "b" / "model.safetensors").exists()
    continued = run(kind, tmp_path / "b").net.state_dict()
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
    with pytest.raises(ValueError, match="state of a run with other settings"):
        run(kind, tmp_path / "b", steps=13)
    with pytest.raises(ValueError, match="state of a run with other settings"):
        run(kind, tmp_path / "b", (fg.VP("linear"), fg.Prediction("eps")))


def test_other_texts_are_another_run(tmp_path):
    run("clip", tmp_path)
    images = three_kinds()
    renamed = Images(images.pixels, images.labels, ("a", "b", "c"))
    with pytest.raises(ValueError, match="state of a run with other settings"):
        run("clip", tmp_path, images=renamed)


def test_snapshots_and_records(tmp_path):
    run("classifier", tmp_path, snapshots=(4,))
    early, late = fg.load_classifier(tmp_path / "snapshot-4"), fg.load_classifier(tmp_path)
    assert not torch.equal(early.net.out.weight, late.net.out.weight)
    record = json.loads((tmp_path / "model.json").read_text())["training"]
    assert record["steps"] == 12
    assert "recipe" not in record


def test_noise_of_all_levels_alike(process):
    """Times are spread as they should be, and the network's input is the noised image."""
    prediction = fg.Prediction("edm")
    generator = torch.Generator().manual_seed(0)
    clean = torch.ones(4000, 1, 2, 2)
    x, t = noised_alike(clean, process, prediction, generator)
    ratio = (4 * t.double()).exp()
    if isinstance(process, fg.EDM):
        place = (ratio / process.sigma_min).log() / math.log(process.sigma_max / process.sigma_min)
    elif isinstance(process, fg.Flow):
        place = ratio / (1 + ratio)
    else:
        steps = torch.arange(process.timesteps)
        alpha, sigma = alpha_sigma(process, steps)
        place = torch.searchsorted(sigma / alpha, ratio).double() / process.timesteps
    quantiles = torch.quantile(place, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    assert quantiles.tolist() == pytest.approx([0.1, 0.5, 0.9], abs=0.03)
    scaled = (ratio.square() + 0.25).rsqrt()
    mean = x.double().mean((1, 2, 3)) / scaled - 1
    error = (mean / (ratio / 2)).square().mean()  # the noise's share, of four pixels' mean
    assert error.item() == pytest.approx(1.0, abs=0.1)


def test_round_trip(tmp_path):
    net = Encoder(3, **HALF)
    one = fg.Classifier(net, fg.VP("linear"), fg.Prediction("eps"), (1, 4, 4), NAMES)
    judges.save(tmp_path / "c", one)
    loaded = fg.load_classifier(tmp_path / "c", dtype=torch.bfloat16)
    assert (loaded.process, loaded.prediction) == (one.process, one.prediction)
    assert (loaded.shape, loaded.class_names) == (one.shape, NAMES)
    assert {p.dtype for p in loaded.net.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in loaded.net.parameters())
    assert not loaded.net.training
    pair = fg.TextImage(TextImageNet(6, **HALF, **TEXT), *FLOW, (1, 4, 4), NAMES)
    judges.save(tmp_path / "p", pair)
    again = fg.load_text_image(tmp_path / "p")
    torch.testing.assert_close(again.text(NAMES), pair.text(NAMES))
    assert again.net.config == pair.net.config


def test_the_wrong_kind_is_named(tmp_path):
    judges.save(tmp_path / "c", fg.Classifier(Encoder(3, **HALF), *FLOW, (1, 4, 4), NAMES))
    pair = fg.TextImage(TextImageNet(6, **HALF, **TEXT), *FLOW, (1, 4, 4), NAMES)
    judges.save(tmp_path / "p", pair)
    net = DiT(width=24, depth=1, attention_heads=2, classes=3)
    fg.save(tmp_path / "m", fg.Model(net, *FLOW, (1, 4, 4), 3, class_names=NAMES))
    for reader, folder, message in (
        (fg.load, "c", "net is 'Encoder', not one of .*; fastguide.load_classifier reads it"),
        (fg.load, "p", "fastguide.load_text_image reads it"),
        (fg.load_classifier, "m", r"net is 'DiT', not one of \['Encoder'\]; fastguide.load reads"),
        (fg.load_classifier, "p", "fastguide.load_text_image reads it"),
        (fg.load_text_image, "c", "fastguide.load_classifier reads it"),
        (fg.load_classifier, "none", "is not a folder"),
    ):
        with pytest.raises(fg.CheckpointError, match=message):
            reader(tmp_path / folder)
    edit(tmp_path / "c", lambda d: d["net"].update(outputs=4))
    with pytest.raises(fg.CheckpointError, match="weights do not fit the network"):
        fg.load_classifier(tmp_path / "c")
    with pytest.raises(TypeError, match="texts is 'bag', but it should be a list"):
        pair.text("bag")


def test_mismatches_are_found_before_the_first_step(tmp_path):
    images, config = three_kinds(), LoopConfig(steps=1, batch=16)
    with pytest.raises(ValueError, match="net has 5 outputs, but the data has 3 classes"):
        train_classifier(Encoder(5, **HALF), images, *FLOW, config, tmp_path)
    twice = Images(images.pixels, images.labels, ("bag", "coat", "Bag"))
    with pytest.raises(ValueError, match="two of them are the same text"):
        train_text_image(TextImageNet(4, **HALF, **TEXT), twice, *FLOW, config, tmp_path)
    net = Encoder(3, **{**HALF, "multipliers": (1, 1, 1, 1)})
    with pytest.raises(ValueError, match="multiples of 8, for 4 levels"):
        train_classifier(net, images, *FLOW, config, tmp_path)
    with pytest.raises(ValueError, match="batch is 97, but there are 96 images"):
        train_classifier(Encoder(3, **HALF), images, *FLOW, LoopConfig(1, batch=97), tmp_path)
    assert not list(tmp_path.iterdir())


SMALL = ["--steps", 2, "--batch", 16, "--width", 16, "--multipliers", "1,2", "--attention", "2"]
SMALL += ["--head-channels", 8, "--groups", 4]


def test_both_commands(tmp_path):
    write_idx(tmp_path, count=40)
    options = [*SMALL, "--names", "a,b,c", "--prediction", "eps", "--betas", "linear"]
    done = fastguide("classifier", tmp_path, tmp_path / "c", *options)
    assert done.returncode == 0, done.stderr
    classifier = fg.load_classifier(tmp_path / "c")
    assert classifier.process == fg.VP("linear")
    assert (classifier.prediction.name, classifier.net.time_scale) == ("eps", 1.0)
    assert classifier.class_names == ("a", "b", "c")
    options = [*SMALL, "--names", "a,b,c", "--prediction", "edm", "--text-width", 16]
    done = fastguide("clip", tmp_path, tmp_path / "p", *options, "--dimensions", 8)
    assert done.returncode == 0, done.stderr
    pair = fg.load_text_image(tmp_path / "p")
    assert pair.text(["a", "b"]).shape == (2, 8)
    assert (pair.prediction.name, pair.net.config["time_scale"]) == ("edm", 250.0)


def test_the_noise_of_a_model(tmp_path):
    write_idx(tmp_path, count=40)
    net = DiT(width=24, depth=1, attention_heads=2, classes=3, patch=2)
    model = fg.Model(net, fg.VP("cosine"), fg.Prediction("v"), (1, 4, 6), 3, class_names=NAMES)
    fg.save(tmp_path / "m", model)
    done = fastguide("classifier", tmp_path, tmp_path / "c", *SMALL, "--like", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    classifier = fg.load_classifier(tmp_path / "c")
    assert (classifier.process, classifier.prediction) == (model.process, model.prediction)
    assert classifier.class_names == NAMES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--like", "fashion"],
            "data has images of shape (1, 4, 6), but 'fashion' has (1, 28, 28)",
        ),
        (["--like", "fashion", "--betas", "linear"], "betas is given beside like, 'fashion'"),
        (["--like", "fashoin"], "neither a folder nor a bundled model"),
        (["--prediction", "noise"], "prediction is 'noise'"),
        (["--multipliers", "1,x"], "multipliers is '1,x'"),
        (["--dtype", "bf16"], "dtype is 'bf16'"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, options, message):
    write_idx(tmp_path, count=40)
    done = fastguide("classifier", tmp_path, tmp_path / "out", *SMALL, *options)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
