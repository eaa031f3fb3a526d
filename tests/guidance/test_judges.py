"""Judges of clean images made of modules, and of what OpenCLIP's models offer."""

import exact
import pytest
import torch
from torch import nn

import fastguide as fg


class Visual(nn.Module):
    image_size, image_mean, image_std = (8, 8), (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


class Clip(nn.Module):
    """The interface of open_clip.CLIP, drawn at random."""

    def __init__(self) -> None:
        super().__init__()
        self.visual, self.logit_scale = Visual(), nn.Parameter(torch.tensor(4.0))
        self.project, self.words = nn.Linear(3 * 64, 5), nn.Embedding(9, 5)

    def encode_image(self, image):
        assert image.shape[1:] == (3, 8, 8)
        return self.project(image.flatten(1))

    def encode_text(self, tokens):
        return self.words(tokens).sum(1)


def tokens(texts):
    return torch.tensor([[len(text) % 9, 1] for text in texts])


def test_images_are_prepared_as_the_module_wants_them():
    judge = fg.CleanJudge(lambda images: images, 4, (0.5, 0.25, 0.0), (0.5, 1.0, 2.0))
    x = torch.rand(2, 1, 4, 6) * 2 - 1
    pixels = (x[:, :, :, 1:5] + 1) / 2
    want = torch.cat([(pixels - 0.5) / 0.5, pixels - 0.25, pixels / 2.0], 1)
    torch.testing.assert_close(judge(x, torch.zeros(2)), want)
    small = judge(torch.full((1, 3, 16, 12), 0.5), torch.zeros(1))
    assert small.shape == (1, 3, 4, 4)
    torch.testing.assert_close(small[0, :, 0, 0], torch.tensor([0.5, 0.5, 0.375]))
    with pytest.raises(ValueError, match=r"x is \(1, 2, 4, 4\), but the judge takes images"):
        judge(torch.zeros(1, 2, 4, 4), torch.zeros(1))


def test_an_openclip_model_leads_to_its_text():
    torch.manual_seed(0)
    model = exact.two_classes(exact.PROCESSES["edm"], shape=(3, 8, 8))
    pair = fg.OpenCLIP(Clip(), tokens)
    text = pair.text(["a dog", "a cat"])[1]
    assert pair.logit_scale == pytest.approx(54.598, abs=1e-3)
    guidance = fg.CLIPGuidance(pair.image, text, 0.5, pair.logit_scale, of="denoised")

    def similarity(images):
        return torch.cosine_similarity(pair.image(images, None), text[None])

    with torch.no_grad():
        led, plain = (
            similarity(fg.sample(model, [0, 1], one, steps=8, seeds=[1, 2]))
            for one in (guidance, None)
        )
    assert (led > plain + 0.05).all()


def test_any_module_can_classify():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    judge = fg.CleanJudge(net, None)
    model = exact.two_classes(exact.PROCESSES["edm"], shape=(3, 8, 8))
    labels = torch.tensor([0, 1])
    guidance = fg.ClassifierGuidance(judge, 5.0)
    with torch.no_grad():
        led, plain = (
            judge(fg.sample(model, labels, one, steps=8, seeds=[1, 2]), None)
            .log_softmax(1)
            .gather(1, labels[:, None])
            for one in (guidance, None)
        )
    assert (led > plain).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fg.CleanJudge(3), TypeError, "module is 3"),
        (lambda: fg.CleanJudge(len, 0), ValueError, "size is 0"),
        (lambda: fg.CleanJudge(len, 8, (0.5,), (0.0,)), ValueError, "mean, std are"),
        (lambda: fg.OpenCLIP(nn.Linear(1, 1), tokens), TypeError, "Linear without encode_image"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()
