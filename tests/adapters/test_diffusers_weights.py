"""Networks whose linear layers are others': LoRA of peft, int8 of torch and of torchao."""

from __future__ import annotations

import math

import pytest
import torch

import fastguide as fg

diffusers = pytest.importorskip("diffusers")

from perturbed_diffusers import Guided, perturbed  # noqa: E402
from tiny_pipelines import PIPES, result  # noqa: E402

LIMIT = 1e-4
MID = "mid_block.attentions.0.transformer_blocks.0.attn1"
# family: network, the layer of "mid" and the grid of its tokens
FAMILIES = {
    "sd": ("unet", MID, (8, 8)),
    "pixart": ("transformer", "transformer_blocks.1", (4, 4)),
    "sd3": ("transformer", "transformer_blocks.1", (4, 4)),
}
HOWS = {"pag": ("identity", fg.PAG(2.0)), "seg": (math.inf, fg.SEG(2.0))}


def check(got, want, limit=LIMIT):
    error = ((got - want).abs().max() / want.abs().max()).item()
    assert error <= limit, error


def check_perturbed(pipe, family):
    """PAG and SEG against the formula with the same projections."""
    call, (name, layer, grid) = PIPES[family][1], FAMILIES[family]
    net = getattr(pipe, name)
    for how, guidance in HOWS.values():
        pipe.__dict__[name] = Guided(net, perturbed(net, [layer], how, grid), 2.0, 4.0)
        want = result(pipe(**call(guidance_scale=4.0)))
        pipe.__dict__[name] = net
        check(result(fg.accelerate(pipe, fg.CFG(4.0) + guidance)(**call())), want)


def cfg_of(pipe, family):
    """The pipeline's own CFG, and ours."""
    call = PIPES[family][1]
    own = result(pipe(**call(guidance_scale=4.0)))
    return own, result(fg.accelerate(pipe, fg.CFG(4.0))(**call()))


def with_lora(net):
    peft = pytest.importorskip("peft")
    names = ["to_q", "to_k", "to_v", "to_out.0", "linear_1", "linear_2", "add_q_proj", "add_k_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=names)
    if hasattr(net, "add_adapter"):
        net.add_adapter(config)
    else:
        peft.inject_adapter_in_model(config, net)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return net.eval()


def layers_of(net):
    """The layers that peft made."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in net.modules() if isinstance(module, BaseTunerLayer)]


def halve(net):
    if hasattr(net, "set_adapters"):
        net.set_adapters("default", 0.5)
    for layer in layers_of(net) if not hasattr(net, "set_adapters") else ():
        layer.set_scale("default", 0.5)


def fuse(net):
    if hasattr(net, "fuse_lora"):
        net.fuse_lora()
    for layer in layers_of(net) if not hasattr(net, "fuse_lora") else ():
        layer.merge()


@pytest.mark.parametrize("family", FAMILIES)
def test_low_rank_updates_of_peft(family):
    pipe = PIPES[family][0]()
    net = getattr(pipe, FAMILIES[family][0])
    without = cfg_of(pipe, family)[0]
    with_lora(net)
    full, got = cfg_of(pipe, family)
    check(got, full)
    assert (full - without).abs().max() > 0.01 * full.abs().max()
    check_perturbed(pipe, family)
    guided = fg.accelerate(pipe, fg.CFG(4.0))
    halve(net)  # an accelerated pipeline sees what is done to the weights
    half = result(pipe(**PIPES[family][1](guidance_scale=4.0)))
    check(result(guided(**PIPES[family][1]())), half)
    assert (full - half).abs().max() > 0.01 * full.abs().max()
    fuse(net)
    fused, got = cfg_of(pipe, family)
    check(got, fused)
    check(fused, half, 1e-3)
    check_perturbed(pipe, family)


class Linears(list):
    """The kinds of the linear layers of a network, to see that they were replaced."""

    def __init__(self, net):
        super().__init__(type(m) for m in net.modules() if "Linear" in type(m).__name__)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_dynamic_int8(family):
    """Activations are quantised by the largest of a batch: equal where the rows are the pipeline's,
    which with a perturbed one they are not.
    """
    from torch.ao.quantization import quantize_dynamic

    pipe = PIPES[family][0]()
    name = FAMILIES[family][0]
    without = cfg_of(pipe, family)[0]
    net = quantize_dynamic(getattr(pipe, name), {torch.nn.Linear})
    assert torch.nn.Linear not in Linears(net)
    pipe.__dict__[name] = net
    own, got = cfg_of(pipe, family)
    assert (own - without).abs().max() > 10 * LIMIT * own.abs().max()
    assert (got - own).norm() <= 0.1 * (own - without).norm()  # latents' last bits flip some values
    one = PIPES[family][1](num_inference_steps=1)
    first = result(pipe(**one, guidance_scale=4.0))
    one = PIPES[family][1](num_inference_steps=1)
    check(result(fg.accelerate(pipe, fg.CFG(4.0))(**one)), first)
    for guidance in (fg.PAG(1.0), fg.SEG(1.0), fg.TPG(1.0)):
        other = result(fg.accelerate(pipe, fg.CFG(4.0) + guidance)(**PIPES[family][1]()))
        assert bool(torch.isfinite(other).all())
        assert (other - own).abs().max() > 10 * LIMIT * own.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_of_torchao(family):
    quantization = pytest.importorskip("torchao.quantization")
    pipe = PIPES[family][0]()
    without = cfg_of(pipe, family)[0]
    net = getattr(pipe, FAMILIES[family][0])
    quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
    own, got = cfg_of(pipe, family)
    check(got, own)
    assert (own - without).abs().max() > 10 * LIMIT * own.abs().max()
    check_perturbed(pipe, family)
