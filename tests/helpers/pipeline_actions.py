"""What people do to their pipelines: each action on a pipeline, and what a call then is given.

An action is `do(pipe, net) -> pipe, changes of the call`; `pipe` may be guided. Where diffusers
does not have it for a family it raises `Absent`.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import tempfile
from contextlib import nullcontext
from types import SimpleNamespace

import diffusers
import torch
from tiny_pipelines import PIPES, quiet, result

FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart")
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


class Absent(Exception):
    """Diffusers does not have this for this family."""


class Missing(Exception):
    """A package that is not installed."""


def name_of(pipe):
    return "unet" if "unet" in pipe.components else "transformer"


def blocks_of(net):
    """A block in the middle of the network, and a leaf of it."""
    if hasattr(net, "mid_block"):
        block = net.mid_block.attentions[0].transformer_blocks[0]
        return block, block.attn2.to_k
    return net.transformer_blocks[0], net.transformer_blocks[0].ff


def lora(net, name="a", seed=5):
    """An adapter of peft with random weights."""
    from peft import LoraConfig

    need(net, "add_adapter")(LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS), name)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in net.named_parameters():
        if f"lora_A.{name}" in key or f"lora_B.{name}" in key:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


def need(owner, method):
    if not hasattr(owner, method):
        raise Absent(method)
    return getattr(owner, method)


def on_adapter(method, *args, after=None, **options):
    """LoRA is there from the beginning; `method` of the pipeline manages it."""

    def do(pipe, net):
        need(pipe, method)(*args, **options)
        if after is not None:
            need(pipe, after)()
        return pipe, {}

    return do


def load_lora(pipe, net):
    from peft import get_peft_model_state_dict

    need(pipe, "load_lora_weights")
    other = copy.deepcopy(net)
    lora(other)
    found = get_peft_model_state_dict(other, adapter_name="a")
    prefix = name_of(pipe)
    weights = {f"{prefix}.{key}": value.contiguous() for key, value in found.items()}
    pipe.load_lora_weights(weights, adapter_name="a")
    return pipe, {}


class Silent(torch.nn.Module):
    """In the place of a text encoder, whose LoRA the call scales too."""

    dtype, device = torch.float32, torch.device("cpu")


def scale_in_the_call(pipe, net):
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if name in pipe.components:
            pipe.__dict__[name] = Silent()
    parameters = _parameters(pipe)
    for name in ("cross_attention_kwargs", "joint_attention_kwargs"):
        if name in parameters:
            return pipe, {name: {"scale": 0.5}}
    raise Absent("cross_attention_kwargs")


def _parameters(pipe):
    return inspect.signature(getattr(diffusers, type(pipe).__name__).__call__).parameters


def halved(module, args, output):
    if isinstance(output, tuple):
        return tuple(0.5 * one if isinstance(one, torch.Tensor) else one for one in output)
    return 0.5 * output


def hook_on_leaf(pipe, net):
    blocks_of(net)[1].register_forward_hook(halved)
    return pipe, {}


def hook_on_block(pipe, net):
    blocks_of(net)[0].register_forward_hook(halved)
    return pipe, {}


def hook_on_network(pipe, net):
    net.register_forward_hook(halved)
    return pipe, {}


def another_forward(pipe, net):
    block = blocks_of(net)[0]
    old = block.forward
    block.forward = lambda *args, **kwargs: halved(None, None, old(*args, **kwargs))
    return pipe, {}


def another_class(pipe, net):
    block = blocks_of(net)[0]
    base = type(block)

    def forward(self, *args, **kwargs):
        return halved(None, None, base.forward(self, *args, **kwargs))

    block.__class__ = type("Patched", (base,), {"forward": forward, "__module__": "other"})
    return pipe, {}


def another_processor(pipe, net):
    for module in net.modules():
        if hasattr(module, "processor") and hasattr(module, "set_processor"):
            base = type(module.processor)

            class Half(base):
                def __call__(self, *args, **kwargs):
                    return halved(None, None, super().__call__(*args, **kwargs))

            module.processor = Half()
    return pipe, {}


def free_u(pipe, net):
    need(pipe, "enable_freeu")(0.9, 0.2, 1.2, 1.4)
    return pipe, {}


def fused(pipe, net):
    need(net, "fuse_qkv_projections")()
    return pipe, {}


def backend(pipe, net):
    need(net, "set_attention_backend")("_native_math")
    return pipe, {}


def slicing(pipe, net):
    need(pipe, "enable_attention_slicing")(1)
    return pipe, {}


def first_block_cache(pipe, net):
    need(net, "enable_cache")(diffusers.FirstBlockCacheConfig(threshold=10.0))
    return pipe, {}


def compiled(pipe, net):
    need(net, "compile_repeated_blocks")(backend="eager")
    return pipe, {}


def layerwise(pipe, net):
    need(net, "enable_layerwise_casting")(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )
    return pipe, {}


def model_offload(pipe, net):
    pipe.enable_model_cpu_offload(device="cpu")
    return pipe, {}


def sequential_offload(pipe, net):
    """As accelerate's, which does not run where the weights are used on the CPU: each module's
    weights are there while it runs.
    """
    for module in net.modules():
        held = {name: one for name, one in module._parameters.items() if one is not None}
        if held:
            away = {n: torch.nn.Parameter(one.to("meta"), False) for n, one in held.items()}
            module._parameters.update(away)
            module.forward = _with(module, held, away, module.forward)
    for part in pipe.components.values():  # where pipelines look for the device
        if isinstance(part, torch.nn.Module):
            part._hf_hook = SimpleNamespace(execution_device=torch.device("cpu"))
    return pipe, {}


def _with(module, held, away, forward):
    def run(*args, **kwargs):
        module._parameters.update(held)
        try:
            return forward(*args, **kwargs)
        finally:
            module._parameters.update(away)

    return run


def group_offload(kind, **options):
    def do(pipe, net):
        cpu = torch.device("cpu")
        told = {"onload_device": cpu, "offload_device": cpu, "offload_type": kind, **options}
        need(net, "enable_group_offload")(**told)
        return pipe, {}

    return do


def quantized(how):
    """Layers of fewer bits, of a package that may be absent."""

    def do(pipe, net):
        how(net)
        return pipe, {}

    return do


def package(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Missing(name) from None


def torchao(net):
    found = package("torchao.quantization")
    found.quantize_(net, found.Int8WeightOnlyConfig())


def quanto(net):
    found = package("optimum.quanto")
    found.quantize(net, weights=found.qint8)
    found.freeze(net)


def _each_linear(net, make):
    """Another layer in the place of each linear one whose rows are whole blocks."""
    for module in list(net.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is torch.nn.Linear and layer.in_features % 32 == 0:
                setattr(module, name, make(layer))


def ggufs(net):
    quants, kind = package("gguf").quants, package("gguf").GGMLQuantizationType.Q8_0
    utils = package("diffusers.quantizers.gguf.utils")

    def make(layer):
        sizes = (layer.in_features, layer.out_features, layer.bias is not None)
        new = utils.GGUFLinear(*sizes, compute_dtype=torch.float32)
        weight = torch.from_numpy(quants.quantize(layer.weight.detach().numpy(), kind))
        new.weight, new.bias = utils.GGUFParameter(weight, quant_type=kind), layer.bias
        return new

    _each_linear(net, make)


def bits_8(net):
    layers = package("bitsandbytes").nn

    def make(layer):
        sizes = (layer.in_features, layer.out_features, layer.bias is not None)
        new = layers.Linear8bitLt(*sizes, has_fp16_weights=False)
        new.load_state_dict(layer.state_dict())
        return new.to("cpu")

    _each_linear(net, make)


def bits_4(net):
    layers = package("bitsandbytes").nn

    def make(layer):
        sizes = (layer.in_features, layer.out_features, layer.bias is not None)
        new = layers.Linear4bit(*sizes, compute_dtype=torch.float32, quant_type="nf4")
        weight = layer.weight.detach()
        new.weight = layers.Params4bit(weight, requires_grad=False, quant_type="nf4")
        new.bias = layer.bias
        return new.to("cpu")

    _each_linear(net, make)


def tiled(pipe, net):
    if net.config.in_channels != pipe.vae.config.latent_channels:
        raise Absent("the tiny network has no latents of the tiny VAE's")
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    return pipe, {"output_type": "pt"}


def no_steps_of_ours(pipe, net):
    """A scheduler that is not among those whose steps are ours."""
    if "FlowMatch" in type(pipe.scheduler).__name__:
        pipe.scheduler = diffusers.FlowMatchLCMScheduler(shift=5.0)
    else:
        pipe.scheduler = diffusers.KDPM2DiscreteScheduler.from_config(pipe.scheduler.config)
    return pipe, {}


def of_ones_own(pipe, net):
    """A scheduler of the user's own, which shrinks what its base returns."""
    base = type(pipe.scheduler)

    def step(self, model_output, timestep, sample, return_dict=True, **options):
        found = base.step(self, model_output, timestep, sample, return_dict=False, **options)[0]
        return (0.7 * found,)

    pipe.scheduler = type("Own", (base,), {"step": step}).from_config(pipe.scheduler.config)
    return pipe, {}


def patched_step(pipe, net):
    old = pipe.scheduler.step
    pipe.scheduler.step = lambda *args, **kwargs: (0.7 * old(*args, **kwargs)[0],)
    return pipe, {}


def another_scheduler(pipe, net):
    if "FlowMatch" in type(pipe.scheduler).__name__:
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    else:
        pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    return pipe, {}


def scheduler_config(pipe, net):
    if "FlowMatch" in type(pipe.scheduler).__name__:
        pipe.scheduler.set_shift(5.0)
    else:
        spacing = "leading" if pipe.scheduler.config.timestep_spacing == "trailing" else "trailing"
        pipe.scheduler.register_to_config(timestep_spacing=spacing)
    return pipe, {}


def from_pipe(pipe, net):
    return quiet(getattr(diffusers, type(pipe).__name__).from_pipe(pipe)), {}


def from_components(pipe, net):
    more = {"requires_safety_checker": False} if "safety_checker" in pipe.components else {}
    return quiet(type(pipe)(**pipe.components, **more)), {}


def saved(pipe, net):
    kind = getattr(diffusers, type(pipe).__name__)
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        more = {n: None for n, part in pipe.components.items() if part is None}
        return quiet(kind.from_pretrained(folder, **more)), {}


def pickled(pipe, net):
    return pickle.loads(pickle.dumps(pipe)), {}


def copied(pipe, net):
    return copy.deepcopy(pipe), {}


def shallow(pipe, net):
    return copy.copy(pipe), {}


def in_double(pipe, net):
    pipe.to(torch.float64)
    return pipe, {"convert": torch.float64}


def callback(change, *inputs):
    """Something done at the end of each step."""

    def do(pipe, net):
        if change is change_scale and "true_cfg_scale" in _parameters(pipe):
            raise Absent("its CFG scale is read once")
        if "callback_on_step_end" not in _parameters(pipe):
            raise Absent("callback_on_step_end")

        def each(pipe, step, timestep, given):
            change(pipe, step, given)
            return given

        more = {"callback_on_step_end": each}
        if inputs:
            if any(name not in pipe._callback_tensor_inputs for name in inputs):
                raise Absent(", ".join(inputs))
            more["callback_on_step_end_tensor_inputs"] = list(inputs)
        return pipe, more

    return do


def halve_latents(pipe, step, given):
    given["latents"].mul_(0.7)


def change_text(pipe, step, given):
    if step == 0:
        given["prompt_embeds"].mul_(-2.0)


def change_scale(pipe, step, given):
    pipe._guidance_scale = 8.0 + 3.0 * step


def interrupt(pipe, step, given):
    pipe._interrupt = step == 1


def change_adapter(pipe, step, given):
    getattr(pipe, name_of(pipe)).set_adapters(["a"], [0.6 - 0.2 * step])


def change_weights(pipe, step, given):
    leaf = blocks_of(getattr(pipe, name_of(pipe)))[1]
    with torch.no_grad():
        next(leaf.parameters()).mul_(0.5)


def change_processor(pipe, step, given):
    if step == 0:
        another_processor(pipe, getattr(pipe, name_of(pipe)))


def with_inference_mode(do):
    def inside(pipe, net):
        pipe, more = do(pipe, net)
        return pipe, {**more, "inside": torch.inference_mode}

    return inside


def in_call(**changes):
    def do(pipe, net):
        for name in changes:
            if name not in _parameters(pipe):
                raise Absent(name)
        return pipe, changes

    return do


def generators(pipe, net):
    return pipe, {"generators": True}


# action: what is there from the beginning, and what is done; whether the result changes by it
ACTIONS = {
    "`load_lora_weights`": (None, load_lora, True),
    "`set_adapters`": (lora, on_adapter("set_adapters", ["a"], [0.4]), True),
    "`disable_lora`": (lora, on_adapter("disable_lora"), True),
    "`fuse_lora`": (lora, on_adapter("fuse_lora", lora_scale=0.4), True),
    "`fuse_lora`, `unfuse_lora`": (lora, on_adapter("fuse_lora", after="unfuse_lora"), False),
    "`unload_lora_weights`": (lora, on_adapter("unload_lora_weights"), False),
    "`delete_adapters`": (lora, on_adapter("delete_adapters", "a"), False),
    "LoRA's `scale` in the call": (lora, scale_in_the_call, True),
    "a hook on a leaf": (None, hook_on_leaf, True),
    "a hook on a block": (None, hook_on_block, True),
    "a hook on the network": (None, hook_on_network, True),
    "another `forward` of a block": (None, another_forward, True),
    "another `__class__` of a block": (None, another_class, True),
    "another processor": (None, another_processor, True),
    "`enable_freeu`": (None, free_u, True),
    "`fuse_qkv_projections`": (None, fused, False),
    "`set_attention_backend`": (None, backend, False),
    "`enable_attention_slicing`": (None, slicing, False),
    "`enable_cache` (first block)": (None, first_block_cache, False),
    "`compile_repeated_blocks`": (None, compiled, False),
    "`enable_layerwise_casting` (fp8)": (None, layerwise, True),
    "`enable_model_cpu_offload`": (None, model_offload, False),
    "`enable_sequential_cpu_offload`": (None, sequential_offload, False),
    "`enable_group_offload` (leaves)": (None, group_offload("leaf_level"), False),
    "`enable_group_offload` (blocks)": (
        None,
        group_offload("block_level", num_blocks_per_group=1),
        False,
    ),
    "int8 weights of torchao": (None, quantized(torchao), True),
    "int8 weights of Quanto": (None, quantized(quanto), True),
    "Q8_0 weights of GGUF": (None, quantized(ggufs), True),
    "int8 weights of bitsandbytes": (None, quantized(bits_8), True),
    "nf4 weights of bitsandbytes": (None, quantized(bits_4), True),
    "VAE tiling and slicing": (None, tiled, True),
    "another scheduler": (None, another_scheduler, True),
    "a scheduler whose steps are not ours": (None, no_steps_of_ours, True),
    "a scheduler of one's own": (None, of_ones_own, True),
    "another `step` on the scheduler": (None, patched_step, True),
    "the scheduler's config": (None, scheduler_config, True),
    "`from_pipe`": (None, from_pipe, False),
    "`Pipeline(**components)`": (None, from_components, False),
    "`save_pretrained`": (None, saved, False),
    "`pickle`": (None, pickled, False),
    "`deepcopy`": (None, copied, False),
    "`copy`": (None, shallow, False),
    "`to(dtype)`": (None, in_double, False),
    "a callback writes latents": (None, callback(halve_latents, "latents"), True),
    "the same in inference mode": (
        None,
        with_inference_mode(callback(halve_latents, "latents")),
        True,
    ),
    "a callback writes the prompt": (None, callback(change_text, "prompt_embeds"), True),
    "the same in inference mode, too": (
        None,
        with_inference_mode(callback(change_text, "prompt_embeds")),
        True,
    ),
    "a callback sets the scale": (None, callback(change_scale), True),
    "a callback interrupts": (None, callback(interrupt), True),
    "a callback scales LoRA": (lora, callback(change_adapter), True),
    "a callback writes weights": (None, callback(change_weights), True),
    "a callback sets processors": (None, callback(change_processor), True),
    "`guidance_rescale`": (None, in_call(guidance_rescale=0.7), True),
    "`eta`": (None, in_call(eta=0.7), False),
    "`num_images_per_prompt`": (None, in_call(num_images_per_prompt=2), False),
    "a list of generators": (None, generators, False),
    "`denoising_end`": (None, in_call(denoising_end=0.5), True),
}


def run(family, pipe, changes):
    """The pipeline's result under its own guidance at scale 4."""
    changes = dict(changes)
    inside, convert = changes.pop("inside", nullcontext), changes.pop("convert", None)
    several = changes.pop("generators", False)
    _, call, knob = PIPES[family]
    given = call(**{knob: 4.0, "num_inference_steps": 3, **changes})
    if several:
        given["generator"] = [torch.Generator().manual_seed(seed) for seed in (11, 77)]
    if convert is not None:
        given = {
            n: v.to(convert) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
            for n, v in given.items()
        }
    with inside():
        found = result(pipe(**given))
    return found.clone().float()


def made(family, before):
    """A new pipeline, and what is on its network from the beginning."""
    torch.manual_seed(0)  # biases keep what they are made with
    pipe = PIPES[family][0]()
    if before is not None:
        before(getattr(pipe, name_of(pipe)))
    return pipe


def outcome(family, action):
    """Of one cell: "same", "absent", "fails" (in diffusers), or the error, before or after `guide`.

    Raises:
        AssertionError: a result that is another than the original's.
        Missing: a package is not installed.
    """
    import fastguide as fg

    before, do, changes_result = ACTIONS[action]
    try:
        pipe = made(family, before)
    except Absent:
        return "absent"
    plain = run(family, pipe, {}) if changes_result else None
    try:
        done, changes = do(pipe, getattr(pipe, name_of(pipe)))
        want = run(family, done, changes)
    except Absent:
        return "absent"
    except Missing:
        raise
    except Exception:  # whatever it is: the original has no result to compare with
        return "fails"
    scale, limit = want.abs().max(), 1e-4
    if changes_result:  # of which a quarter, at the most, may be missing
        far = (plain - want).abs().max() if plain.shape == want.shape else scale
        assert far > 2e-5 * scale, f"{action} does nothing to {family}"
        limit = min(limit, 0.25 * (far / scale).item())
    errors = []
    for when in ("before", "after"):
        pipe = made(family, before)
        guided = pipe if when == "before" else fg.guide(pipe)
        if when == "after":
            run(family, guided, {})  # what it has kept since is of no harm
        try:
            done, changes = do(guided, getattr(guided, name_of(guided)))
            done = fg.guide(done) if when == "before" else done
            got = run(family, done, changes)
        except ValueError as error:
            errors.append(str(error))
            continue
        assert got.shape == want.shape
        error = ((got - want).abs().max() / scale).item()
        assert error <= limit, f"{action} {when} guide on {family}: off by {error}"
    return errors[0] if errors else "same"
