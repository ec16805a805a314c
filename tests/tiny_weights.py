"""A model folder of the real classes at the smallest size, with random weights: it knows nothing, but it runs.

python tests/tiny_weights.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build(folder: Path) -> None:
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    from backend.mv_vdm.pipeline import MVVDM, ModelInfo
    from backend.mv_vdm.sampling import SamplerSettings
    from backend.mv_vdm.unet import MVVDMUNet
    from backend.training.captions import MAX_TOKENS, build_tokenizer, motion_words
    from backend.training.starter import build_scheduler

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    width, size = 16, 32
    vae = AutoencoderKL(
        in_channels=4,
        out_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
    )
    unet = MVVDMUNet(
        block_out_channels=(8, 8),
        down_block_types=("CrossAttn",) * 2,
        up_block_types=("CrossAttn",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=width,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        image_embed_dim=width,
        first_frame_concat=True,
        pooled_text=True,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer.get_vocab()),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
    )
    vision = CLIPVisionConfig(
        image_size=size,
        patch_size=8,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=width,
    )
    info = ModelInfo(
        name="tiny",
        appearance="position",
        image_channels=4,
        resolution=size,
        residual_to_first_frame=True,
        posterior_sample=False,
        sampler=SamplerSettings(steps=3, guidance_scale=1.0, freeinit_iterations=1, clean_clamp=3.0),
        motions=motion_words(),
    )
    MVVDM(
        unet, vae, CLIPTextModel(text), tokenizer, CLIPVisionModelWithProjection(vision), build_scheduler(), info
    ).save_pretrained(folder)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    build(Path(sys.argv[1]))
