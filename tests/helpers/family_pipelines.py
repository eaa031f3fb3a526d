"""Tiny pipelines of the families that have no hand-written stages, with random weights and
embeddings: `PIPELINES[name]()` is `(pipe, call)`.
"""

from __future__ import annotations

import diffusers
import torch
from tiny_diffusers import B, filled, flux, rand, sdxl
from tiny_families import FAMILIES
from tiny_pipelines import flow_scheduler, made, run_of, sdxl_call

TEXT = 5  # tokens of the prompt; of the negative one fewer where a pipeline allows that


def net_of(family, **changes):
    told = FAMILIES[family]
    return filled(getattr(diffusers, told.cls)(**{**told.config, **changes}))


def texts(width, negative=TEXT, mask=None, pooled=None, dtype=torch.bool):
    """Embeddings, their masks named `mask.format(name)`, and what is pooled of them."""
    found = {}
    for name, tokens, seed in (("prompt", TEXT, 1), ("negative_prompt", negative, 2)):
        found[f"{name}_embeds"] = rand(B, tokens, width, seed=seed)
        if mask is not None:
            found[mask.format(name)] = torch.ones(B, tokens, dtype=dtype)
        if pooled is not None:
            key = "pooled_prompt_embeds" if name == "prompt" else "negative_pooled_prompt_embeds"
            found[key] = rand(B, pooled, seed=seed + 4)
    return found


def pipe_of(kind, net, scheduler=None, **parts):
    return made(kind, transformer=net, scheduler=scheduler or flow_scheduler(), **parts)


def call_of(texts, size=(64, 96), **changes):
    return {**texts, "height": size[0], "width": size[1], **run_of(**changes)}


VIDEO = {"size": (32, 64), "num_frames": 9}


def qwen():
    return pipe_of("QwenImagePipeline", net_of("qwen-image")), call_of(
        texts(12, 3, "{}_embeds_mask"), true_cfg_scale=4.0
    )


def z_image():
    both = {name: list(values.unbind()) for name, values in texts(12, 3).items()}  # of any lengths
    return pipe_of("ZImagePipeline", net_of("z-image")), call_of(both, guidance_scale=3.0)


def lumina2():
    found = texts(12, TEXT)
    found["prompt_attention_mask"] = found["negative_prompt_attention_mask"] = torch.ones(
        B, TEXT, dtype=torch.bool
    )
    return pipe_of("Lumina2Pipeline", net_of("lumina2")), call_of(found, guidance_scale=4.0)


def chroma():
    return pipe_of("ChromaPipeline", net_of("chroma")), call_of(
        {
            **texts(12),
            "prompt_attention_mask": torch.ones(B, TEXT),
            "negative_prompt_attention_mask": torch.ones(B, TEXT),
        },
        guidance_scale=5.0,
    )


def klein():
    net = net_of("flux.2", guidance_embeds=False)
    return pipe_of("Flux2KleinPipeline", net, vae=flux2_vae()), call_of(
        texts(12, 3), guidance_scale=4.0
    )


def flux2_vae():
    known = {"block_out_channels": (4,) * 4, "norm_num_groups": 2, "latent_channels": 4}
    return filled(diffusers.AutoencoderKLFlux2(layers_per_block=1, **known))


def kontext():
    net = flux(in_channels=64)
    call = call_of(texts(32, pooled=32), size=(32, 64), true_cfg_scale=3.0)
    pipe = pipe_of("FluxKontextPipeline", net)
    return pipe, {
        **call,
        "image": rand(B, 16, 4, 12, seed=8),
        "_auto_resize": False,
        "max_area": 2048,
    }


def krea2():
    net = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    found = {}
    for name, seed in (("prompt", 1), ("negative_prompt", 2)):
        found[f"{name}_embeds"] = rand(B, TEXT, 2, 16, seed=seed)
        found[f"{name}_embeds_mask"] = torch.ones(B, TEXT, dtype=torch.bool)
    return pipe_of("Krea2Pipeline", filled(net)), call_of(found, guidance_scale=3.0)


def hidream():
    net = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[12, 12],
        text_emb_dim=12,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 6, 6),
        max_resolution=(16, 16),
        llama_layers=[0, 1, 1, 0],
        force_inference_output=True,
    )
    found = {}
    for name, seed in (("", 1), ("negative_", 2)):
        found[f"{name}prompt_embeds_t5"] = rand(B, TEXT, 12, seed=seed)
        found[f"{name}prompt_embeds_llama3"] = rand(2, B, TEXT, 12, seed=seed + 2)
        found[f"{name}pooled_prompt_embeds"] = rand(B, 12, seed=seed + 4)
    pipe = pipe_of("HiDreamImagePipeline", filled(net))
    pipe.default_sample_size = 8  # which the sizes of a call are brought to
    return pipe, call_of(found, size=(64, 64), guidance_scale=5.0)


def allegro():
    net = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=48,
        sample_height=8,
        sample_width=8,
        sample_frames=8,
        caption_channels=12,
    )
    found = texts(12)
    found["prompt_attention_mask"] = found["negative_prompt_attention_mask"] = torch.ones(B, TEXT)
    scheduler = diffusers.EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    pipe = pipe_of("AllegroPipeline", filled(net), scheduler)
    return pipe, call_of(
        found, size=(64, 64), num_frames=8, guidance_scale=7.5, negative_prompt=None
    )


def sana_video():
    net = diffusers.SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=12,
        sample_size=8,
        rope_max_seq_len=32,
    )
    found = texts(12)
    found["prompt_attention_mask"] = found["negative_prompt_attention_mask"] = torch.ones(B, TEXT)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    pipe = pipe_of("SanaVideoPipeline", filled(net), scheduler)
    call = call_of(found, size=(32, 64), frames=9, guidance_scale=4.0)
    return pipe, {**call, "use_resolution_binning": False, "negative_prompt": None}


def stable_audio():
    net = diffusers.StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        cross_attention_dim=16,
        time_proj_dim=16,
        global_states_input_dim=32,
        cross_attention_input_dim=16,
    )
    vae = diffusers.AutoencoderOobleck(4, [2, 2], [1, 1], 4, 4, 2, 8)
    projection = filled(diffusers.StableAudioProjectionModel(16, 16, 0, 32))
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(sigma_min=0.3, sigma_max=20.0)
    pipe = pipe_of(
        "StableAudioPipeline", filled(net), scheduler, vae=vae, projection_model=projection
    )
    return pipe, {**texts(16), "audio_end_in_s": 6.0, **run_of(), "guidance_scale": 5.0}


def cogvideox():
    scheduler = diffusers.DDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
    )
    pipe = pipe_of("CogVideoXPipeline", net_of("cogvideox"), scheduler)
    return pipe, call_of(texts(12), **VIDEO, guidance_scale=6.0)


def mochi():
    found = texts(16)
    found["prompt_attention_mask"] = torch.ones(B, TEXT, dtype=torch.bool)
    found["negative_prompt_attention_mask"] = torch.ones(B, TEXT, dtype=torch.bool)
    pipe = pipe_of("MochiPipeline", net_of("mochi"))
    return pipe, call_of(found, size=(32, 64), num_frames=13, guidance_scale=4.5)


def kolors():
    unet = sdxl()
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.014, beta_schedule="scaled_linear"
    )
    call = sdxl_call(guidance_scale=5.0)
    return made("KolorsPipeline", unet=unet, scheduler=scheduler), {
        **call,
        "height": 128,
        "width": 128,
    }


def cogview4():
    return pipe_of("CogView4Pipeline", net_of("cogview4")), call_of(texts(12), guidance_scale=5.0)


def auraflow():
    found = texts(12)
    found["prompt_attention_mask"] = found["negative_prompt_attention_mask"] = torch.ones(B, TEXT)
    return pipe_of("AuraFlowPipeline", net_of("auraflow")), call_of(found, guidance_scale=3.5)


def wan():
    return pipe_of("WanPipeline", net_of("wan")), call_of(texts(12), **VIDEO, guidance_scale=5.0)


def wan_two():
    second = net_of("wan")
    for parameter in second.parameters():
        parameter.data *= 0.8
    pipe = pipe_of("WanPipeline", net_of("wan"), transformer_2=second, boundary_ratio=0.8)
    return pipe, call_of(texts(12), **VIDEO, guidance_scale=5.0, guidance_scale_2=3.0)


def ltx():
    found = texts(12)
    found["prompt_attention_mask"] = found["negative_prompt_attention_mask"] = torch.ones(B, TEXT)
    size = {"size": (64, 128), "num_frames": 17}
    return pipe_of("LTXPipeline", net_of("ltx")), call_of(found, **size, guidance_scale=3.0)


def hunyuan():
    found = texts(12, pooled=12)
    found["prompt_attention_mask"] = found["negative_prompt_attention_mask"] = torch.ones(B, TEXT)
    return pipe_of("HunyuanVideoPipeline", net_of("hunyuan video")), call_of(
        found, **VIDEO, true_cfg_scale=3.0
    )


PIPELINES = {
    "qwen-image": qwen,
    "z-image": z_image,
    "lumina2": lumina2,
    "chroma": chroma,
    "flux.2 klein": klein,
    "cogview4": cogview4,
    "auraflow": auraflow,
    "wan": wan,
    "wan 2.2": wan_two,
    "ltx": ltx,
    "hunyuan video": hunyuan,
    "flux kontext": kontext,
    "krea2": krea2,
    "hidream": hidream,
    "allegro": allegro,
    "sana video": sana_video,
    "stable audio": stable_audio,
    "cogvideox": cogvideox,
    "mochi": mochi,
    "kolors": kolors,
}


def result(pipe, call):
    """The latents of a call; whose generator begins anew."""
    call = {**call, "generator": torch.Generator().manual_seed(0)}
    with torch.no_grad():
        found = pipe(**call, return_dict=False)[0]
    return torch.stack(list(found)) if isinstance(found, list) else found
