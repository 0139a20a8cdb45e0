"""Tiny stock diffusers pipelines with random weights, made here without any file. `PIPELINES[family]()` builds one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

diffusers.logging.set_verbosity_error()
transformers.logging.set_verbosity_error()

SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
WIDTH = 32  # of every text embedding


def sd15() -> diffusers.StableDiffusionPipeline:
    torch.manual_seed(0)
    return diffusers.StableDiffusionPipeline(
        unet=_unet(attention_head_dim=4),
        vae=_vae(),
        text_encoder=_clip(),
        tokenizer=_clip_tokenizer(),
        scheduler=diffusers.DDIMScheduler(**SCALED_LINEAR, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> diffusers.StableDiffusionXLPipeline:
    torch.manual_seed(0)
    unet = _unet(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
        cross_attention_dim=2 * WIDTH,
    )
    return diffusers.StableDiffusionXLPipeline(
        unet=unet,
        vae=_vae(),
        text_encoder=_clip(),
        text_encoder_2=_clip(projection=True),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        scheduler=diffusers.EulerDiscreteScheduler(**SCALED_LINEAR, timestep_spacing="leading"),
        add_watermarker=False,
    )


def sd3() -> diffusers.StableDiffusion3Pipeline:
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        vae=_vae(shift_factor=0.06),
        text_encoder=_clip(projection=True),
        text_encoder_2=_clip(projection=True),
        text_encoder_3=_t5(2 * WIDTH),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        tokenizer_3=_t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def flux() -> diffusers.FluxPipeline:
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.FluxPipeline(
        transformer=transformer.eval(),
        vae=_vae(shift_factor=0.06),
        text_encoder=_clip(),
        text_encoder_2=_t5(),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


WAN_KINDS = ("2.1", "5b")


def wan(kind: str = "2.1", unipc: bool = False) -> diffusers.WanPipeline:
    """With what tells Wan 2.1 and Wan 2.2 TI2V-5B apart."""
    torch.manual_seed(0)
    large = kind == "5b"
    channels = 6 if large else 16
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=channels,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    own: dict[str, Any] = {"base_dim": 3, "z_dim": 16}
    if large:
        own = {"base_dim": 4, "decoder_base_dim": 6, "z_dim": 6, "in_channels": 12, "out_channels": 12, "patch_size": 2}
        own |= {"scale_factor_spatial": 16, "is_residual": True}
        own |= {"latents_mean": [0.1 * k for k in range(6)], "latents_std": [0.5 + 0.1 * k for k in range(6)]}
    vae = diffusers.AutoencoderKLWan(dim_mult=[1, 1, 1, 1], num_res_blocks=1, **own)
    config = transformers.UMT5Config(vocab_size=256, d_model=WIDTH, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return diffusers.WanPipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=transformers.UMT5EncoderModel(config).eval(),
        tokenizer=_t5_tokenizer(),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
        if unipc
        else diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        expand_timesteps=large,
    )


def qwen_image() -> diffusers.QwenImagePipeline:
    torch.manual_seed(0)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.1] * 4,
        latents_std=[1.5] * 4,
    )
    text = {**_qwen_text(3), "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": WIDTH}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, vocab_size=text["vocab_size"])
    shift = {"base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}
    return diffusers.QwenImagePipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=_qwen_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **shift),
    )


def z_image() -> diffusers.ZImagePipeline:
    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[1536, 32, 32],
    )
    for name, parameter in transformer.named_parameters():
        if name.endswith("pad_token"):
            torch.nn.init.normal_(parameter)
    return diffusers.ZImagePipeline(
        transformer=transformer.eval(),
        vae=_vae(shift_factor=0.12),
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**_qwen_text(3), head_dim=8)).eval(),
        tokenizer=_qwen_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
    )


def flux2_klein(is_distilled: bool = False) -> diffusers.Flux2KleinPipeline:
    torch.manual_seed(0)
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    for name, parameter in transformer.named_parameters():
        if "modulation" in name:  # else blocks hardly count
            torch.nn.init.normal_(parameter, std=0.3)
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        norm_num_groups=8,
        latent_channels=4,
        layers_per_block=1,
        sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    torch.nn.init.normal_(vae.bn.running_mean)
    vae.bn.running_var.uniform_(0.5, 2)
    config = transformers.Qwen3Config(**_qwen_text(28), head_dim=8)  # three of its inner layers are read
    return diffusers.Flux2KleinPipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=transformers.Qwen3ForCausalLM(config).eval(),
        tokenizer=_qwen_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        is_distilled=is_distilled,
    )


COGVIDEOX_KINDS: dict[str, dict[str, Any]] = {
    "2b": {},
    "5b": {"use_rotary_positional_embeddings": True},
    "1.5": {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False},
}


FROM_IMAGE_KINDS: dict[str, dict[str, Any]] = {
    "5b-i2v": {**COGVIDEOX_KINDS["5b"], "in_channels": 8, "use_learned_positional_embeddings": True},
    "1.5-i2v": {**COGVIDEOX_KINDS["1.5"], "in_channels": 8, "ofs_embed_dim": 8},
}


def cogvideox(kind: str = "2b") -> Any:
    """With what tells CogVideoX-2b, -5b and -1.5 apart, and their image-to-video forms."""
    torch.manual_seed(0)
    own = {**COGVIDEOX_KINDS, **FROM_IMAGE_KINDS}[kind]
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=16,  # rotary positions want a multiple of 16
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=16,
        **{"in_channels": 4, **own},
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    made = diffusers.CogVideoXImageToVideoPipeline if kind in FROM_IMAGE_KINDS else diffusers.CogVideoXPipeline
    return made(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(),
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=3.0 if kind == "2b" else 1.0,
            timestep_spacing="trailing",
        ),
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd15": sd15,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "wan": wan,
    "cogvideox": cogvideox,
    "qwen-image": qwen_image,
    "z-image": z_image,
    "flux2-klein": flux2_klein,
}

_CALLS: dict[str, dict[str, Any]] = {
    "sd15": {"height": 16, "width": 16},
    "sdxl": {"height": 16, "width": 16},
    "sd3": {"height": 32, "width": 32, "max_sequence_length": 16},
    "flux": {"height": 32, "width": 32, "max_sequence_length": 16},
    "wan": {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 16},
    "cogvideox": {"height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 16},
    "qwen-image": {"height": 32, "width": 32},
    "z-image": {"height": 32, "width": 32},
    "flux2-klein": {"height": 32, "width": 32, "max_sequence_length": 16},
}
SCALES = {"flux": "true_cfg_scale", "qwen-image": "true_cfg_scale"}
"""The argument that is the guidance scale, where it has another name."""


def sample(family: str, pipe: Any, prompt: str | list[str] = "a red fox", scale: float = 5.0, **call: Any) -> Any:
    """Latents after three steps from a fixed seed."""
    pipe.set_progress_bar_config(disable=True)
    call = {**_CALLS[family], SCALES.get(family, "guidance_scale"): scale, **call}
    call = {"num_inference_steps": 3, "output_type": "latent", "return_dict": False, **call}
    return pipe(prompt=prompt, generator=torch.Generator().manual_seed(1), **call)[0]


def _unet(**config: Any) -> diffusers.UNet2DConditionModel:
    defaults = {
        "sample_size": 16,
        "layers_per_block": 1,
        "block_out_channels": (32, 64),
        "norm_num_groups": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
    }
    return diffusers.UNet2DConditionModel(**{**defaults, **config}).eval()


def _vae(**config: Any) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=8,
        sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **config,
    ).eval()


def _clip(projection: bool = False) -> transformers.PreTrainedModel:
    config = transformers.CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=WIDTH,
        vocab_size=514,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config).eval()


def _clip_tokenizer() -> transformers.CLIPTokenizer:
    """One token a byte."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=77
    )


def _t5(width: int = WIDTH) -> transformers.T5EncoderModel:
    config = transformers.T5Config(vocab_size=256, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return transformers.T5EncoderModel(config).eval()


def _t5_tokenizer() -> transformers.T5Tokenizer:
    """One token a letter."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    vocab += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,"]
    return transformers.T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=64)


def _qwen_text(layers: int) -> dict[str, Any]:
    """Of a text encoder of Qwen's."""
    return {
        "vocab_size": 300,
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }


def _qwen_tokenizer() -> transformers.Qwen2Tokenizer:
    """One token a byte, with the turns of a chat."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = [*sorted(ByteLevel.alphabet()), *special]
    made = transformers.Qwen2Tokenizer(
        vocab={word: index for index, word in enumerate(words)},
        merges=[],
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=special[1:],
    )
    made.chat_template = (
        "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n{% if not enable_thinking %}<think>{% endif %}"
    )
    return made


def clip_model(folder: Path, *, seed: int = 0, pictures: int = 32) -> transformers.CLIPModel:
    """A tiny CLIP for judging, with its processor, in a folder as the hub has them."""
    torch.manual_seed(seed)
    tokenizer = _clip_tokenizer()
    shared: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(
        text_config={**shared, **ends, "num_attention_heads": 2, "vocab_size": len(tokenizer)},
        vision_config={**shared, "num_attention_heads": 2, "image_size": pictures, "patch_size": 8},
        projection_dim=24,
    )
    model = transformers.CLIPModel(config).eval()
    size = {"shortest_edge": pictures}
    prepare = transformers.CLIPImageProcessorPil(size=size, crop_size={"height": pictures, "width": pictures})
    model.save_pretrained(folder)
    prepare.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
