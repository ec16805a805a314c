"""MVVDMUNet: the denoising network of MV-VDM (paper section 3.1), assembled from diffusers' motion blocks.

The blocks hold the weights under the released names; this module runs them, because diffusers' own forward passes
neither the number of views nor the image size to the motion modules and regroups the tokens at every layer.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection, TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_motion_model import (
    AnimateDiffTransformer3D,
    CrossAttnDownBlockMotion,
    CrossAttnUpBlockMotion,
    DownBlockMotion,
    UNetMidBlockCrossAttnMotion,
    UpBlockMotion,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from .attention import Layout, MultiViewI2VProcessor, SpatioTemporalProcessor, TextAndImageProcessor
from .layers import LayerFunctions, repeat_rows, upsample


class MVVDMUNet(ModelMixin, ConfigMixin):
    """Predicts the noise (or v, or the clean latents) of all views and frames of a clip at once.

    The defaults are the released model: 1614 keys, 1.53 billion elements.

    Args:
        down_block_types, up_block_types: "CrossAttn" with, "Down" / "Up" without text attention; one per level.
        num_attention_heads: heads of the image layers; motion_num_attention_heads: of the motion modules.
        motion_max_seq_length: most frames that the time table holds.
        camera_embedding_dim: length of a camera vector; image_embed_dim: of a CLIP image embedding.
        first_frame_concat: give every frame the clean frame 0 as extra input channels (not in the released model).
        i2v_cond_time_zero: tell the network that frame 0 is at timestep 0 (off in the released model).
        pooled_text: add an embedding of the pooled text to the time embedding (not in the released model).
        pooled_text_dim: length of the pooled text vector.
        pooled_text_with_frame: that embedding also sees which frame it is for, so that what is said can mean something
            else at each moment already in the first layer (not in the released model).
        pooled_text_with_camera: it also sees the camera, so that a step to the left can mean left in one view and right
            in another (not in the released model).
        i2v_near_identity_init: the MV2V layers carry cell codes and start by looking at their own cell of frame 0.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = ("CrossAttn", "CrossAttn", "CrossAttn", "Down"),
        up_block_types: tuple[str, ...] = ("Up", "CrossAttn", "CrossAttn", "CrossAttn"),
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 768,
        num_attention_heads: int = 8,
        motion_num_attention_heads: int = 8,
        motion_max_seq_length: int = 32,
        camera_embedding_dim: int = 16,
        image_embed_dim: int = 1024,
        num_image_tokens: int = 4,
        first_frame_concat: bool = False,
        i2v_cond_time_zero: bool = False,
        pooled_text: bool = False,
        pooled_text_dim: int | None = None,
        pooled_text_with_frame: bool = False,
        pooled_text_with_camera: bool = False,
        i2v_near_identity_init: bool = False,
    ):
        super().__init__()
        self.gradient_checkpointing = False  # set by `enable_gradient_checkpointing`
        first, time_dim = block_out_channels[0], block_out_channels[0] * 4
        self.conv_in = nn.Conv2d(in_channels * (2 if first_frame_concat else 1), first, 3, padding=1)
        self.time_proj = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(first, time_dim)
        self.camera_embedding = TimestepEmbedding(camera_embedding_dim, time_dim)
        if pooled_text:
            text_dim = (pooled_text_dim or cross_attention_dim) + (first if pooled_text_with_frame else 0)
            text_dim += camera_embedding_dim if pooled_text_with_camera else 0
            self.pooled_text_embedding = TimestepEmbedding(text_dim, time_dim)
        self.encoder_hid_proj = MultiIPAdapterImageProjection(
            [ImageProjection(image_embed_dim, cross_attention_dim, num_image_tokens)]
        )
        self.down_blocks = self._make_down_blocks()
        self.mid_block = UNetMidBlockCrossAttnMotion(
            in_channels=block_out_channels[-1],
            num_attention_heads=num_attention_heads,
            cross_attention_dim=cross_attention_dim,
            **self._common_block_arguments(),
        )
        self.up_blocks = self._make_up_blocks()
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, first, eps=norm_eps)
        self.conv_out = nn.Conv2d(first, out_channels, 3, padding=1)
        self._install_attention()
        self.functions = LayerFunctions()

    def compile_layers(self, **options: object) -> None:
        """Lets torch compile the layers at their first call: minutes, but less time for each step from then on."""
        self.functions = self.functions.compiled(**options)

    def _common_block_arguments(self) -> dict:
        config = self.config
        return {
            "temb_channels": config.block_out_channels[0] * 4,
            "resnet_eps": config.norm_eps,
            "resnet_act_fn": "silu",
            "resnet_groups": config.norm_num_groups,
            "temporal_num_attention_heads": config.motion_num_attention_heads,
            "temporal_max_seq_length": config.motion_max_seq_length,
        }

    def _make_block(self, kind: str, with_text: type, without_text: type, **arguments) -> nn.Module:
        """One level's block; ``kind`` is "CrossAttn" or the short name of the block without text."""
        arguments |= self._common_block_arguments()
        if kind != "CrossAttn":
            return without_text(**arguments)
        return with_text(
            num_attention_heads=self.config.num_attention_heads,
            cross_attention_dim=self.config.cross_attention_dim,
            **arguments,
        )

    def _make_down_blocks(self) -> nn.ModuleList:
        widths, blocks = self.config.block_out_channels, []
        for level, kind in enumerate(self.config.down_block_types):
            block = self._make_block(
                kind,
                CrossAttnDownBlockMotion,
                DownBlockMotion,
                in_channels=widths[max(level - 1, 0)],
                out_channels=widths[level],
                num_layers=self.config.layers_per_block,
                add_downsample=level < len(widths) - 1,
            )
            blocks.append(block)
        return nn.ModuleList(blocks)

    def _make_up_blocks(self) -> nn.ModuleList:
        widths, blocks = self.config.block_out_channels[::-1], []
        for level, kind in enumerate(self.config.up_block_types):
            block = self._make_block(
                kind,
                CrossAttnUpBlockMotion,
                UpBlockMotion,
                in_channels=widths[min(level + 1, len(widths) - 1)],
                prev_output_channel=widths[max(level - 1, 0)],
                out_channels=widths[level],
                num_layers=self.config.layers_per_block + 1,
                add_upsample=level < len(widths) - 1,
            )
            blocks.append(block)
        return nn.ModuleList(blocks)

    def _install_attention(self) -> None:
        """Replaces diffusers' attention processors with MV-VDM's and takes the blocks' own time tables out."""
        config = self.config
        for module in self.modules():
            if isinstance(module, Transformer2DModel):
                for block in module.transformer_blocks:
                    width, heads = block.attn1.inner_dim, block.attn1.heads
                    block.attn1.set_processor(MultiViewI2VProcessor(width, heads, config.i2v_near_identity_init))
                    block.attn2.set_processor(TextAndImageProcessor(width, config.cross_attention_dim))
            elif isinstance(module, AnimateDiffTransformer3D):
                for block in module.transformer_blocks:
                    block.pos_embed = None  # the spatial branch must not see the time; the processors add it
                    for attn in (block.attn1, block.attn2):
                        attn.set_processor(SpatioTemporalProcessor(attn.inner_dim, config.motion_max_seq_length))

    def _embed_conditions(
        self,
        timestep: torch.Tensor,
        camera: torch.Tensor,
        pooled_text: torch.Tensor | None,
        frame_numbers: torch.Tensor,
    ) -> torch.Tensor:
        """Time + camera (+ pooled text) embedding; only frames that differ get one each.

        Args:
            timestep: scalar or [(b n)]; camera: [(b n), 16]; pooled_text: [(b n), d]; frame_numbers: [f].

        Returns:
            Tensor [(b n), f, 4 * c0], or [(b n), 1, 4 * c0] where all frames have the same.
        """
        timestep = torch.as_tensor(timestep, device=camera.device).expand(camera.shape[0])

        def at(moment: torch.Tensor) -> torch.Tensor:
            return self.time_embedding(self.time_proj(moment).to(camera.dtype))[:, None]

        embedding = at(timestep)
        if self.config.i2v_cond_time_zero:
            later = embedding.expand(-1, len(frame_numbers) - 1, -1)
            embedding = torch.cat([at(torch.zeros_like(timestep)), later], dim=1)
        embedding = embedding + self.camera_embedding(camera)[:, None]
        if not self.config.pooled_text:
            return embedding
        return embedding + self._embed_text(pooled_text, frame_numbers, camera)

    def _embed_text(self, pooled_text: torch.Tensor, frame_numbers: torch.Tensor, camera: torch.Tensor) -> torch.Tensor:
        """Pooled text [(b n), d] -> [(b n), 1, 4 * c0], or [(b n), f, 4 * c0] where the frame takes part."""
        said = pooled_text[:, None]
        if self.config.pooled_text_with_frame:
            frames = self.time_proj(frame_numbers).to(said.dtype)  # [f, c0]
            said = torch.cat([said.expand(-1, len(frames), -1), frames.expand(len(said), -1, -1)], dim=-1)
        if self.config.pooled_text_with_camera:
            said = torch.cat([said, camera[:, None].expand(-1, said.shape[1], -1)], dim=-1)
        return self.pooled_text_embedding(said)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | int,
        encoder_hidden_states: torch.Tensor,
        camera: torch.Tensor,
        image_embeds: torch.Tensor,
        num_views: int = 4,
        pooled_text: torch.Tensor | None = None,
        frame_numbers: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One network evaluation; sample index = b * num_views + view.

        Each sample may be denoised under k texts at once, as guidance does with 2: what happens before the first text
        attention is then done once for all of them.

        Args:
            sample: latents [(b n), c_in, f, h, w], frame 0 clean; h and w divide by 2 ** (levels - 1).
            timestep: scalar or [(b n)].
            encoder_hidden_states: text tokens [(k b n), tokens, d].
            camera: conditioning vectors [(b n), 16] (see ``cameras``).
            image_embeds: CLIP image embeddings [(k b n), D]; zeros where unconditional.
            pooled_text: [(k b n), d], only with the config field of that name.
            frame_numbers: [f], where training shows only some frames of a clip; 0 comes first.

        Returns:
            Tensor [(k b n), c_out, f, h, w].
        """
        if self.config.pooled_text:  # the texts differ from the first layer on
            sample, camera = (repeat_rows(tensor, len(pooled_text)) for tensor in (sample, camera))
        if self.config.first_frame_concat:
            sample = torch.cat([sample, sample[:, :, :1].expand_as(sample)], dim=1)
        frames, (height, width) = sample.shape[2], sample.shape[3:]
        layout = Layout(
            batch=sample.shape[0] // num_views,
            num_frames=frames,
            num_views=num_views,
            height=height,
            width=width,
            image_tokens=self.encoder_hid_proj([image_embeds[:, None]])[0].flatten(1, 2),
            frame_numbers=frame_numbers,
        )
        if frame_numbers is None:
            frame_numbers = torch.arange(frames, device=sample.device)
        embedding = self._embed_conditions(timestep, camera, pooled_text, frame_numbers)
        # Resnet layers add the same projection of SiLU(embedding) everywhere, so apply SiLU once.
        embedding = F.silu(embedding).unflatten(0, (-1, num_views)).transpose(1, 2)  # [b, f or 1, n, e]

        # [(b n), c, f, h, w] -> [(b f n), c, h, w]
        images = sample.unflatten(0, (-1, num_views)).permute(0, 3, 1, 2, 4, 5).flatten(0, 2)
        images = self._run_levels(images, embedding, encoder_hidden_states, layout)
        out = images.unflatten(0, (-1, frames, num_views))
        return out.permute(0, 2, 3, 1, 4, 5).flatten(0, 1).contiguous()

    def _run_levels(
        self, images: torch.Tensor, embedding: torch.Tensor, text: torch.Tensor, layout: Layout
    ) -> torch.Tensor:
        """The U: images [(b f n), c_in, h, w] -> [(b f n), c_out, h, w]; skips are taken after the motion modules."""
        images = self.conv_in(images.contiguous(memory_format=torch.channels_last))
        skips = [images]
        for block in self.down_blocks:
            for layer in layers_of(block):
                images = self._run_layer(*layer, images, embedding, text, layout)
                skips.append(images)
            if block.downsamplers is not None:
                images = block.downsamplers[0](images)
                skips.append(images)

        mid = self.mid_block
        first_layer = (mid.resnets[0], mid.attentions[0], mid.motion_modules[0])
        images = self._run_layer(*first_layer, images, embedding, text, layout)
        images = self.functions.resnet(mid.resnets[1], images, embedding, layout)

        for block in self.up_blocks:
            for layer in layers_of(block):
                images = torch.cat([images, repeat_rows(skips.pop(), len(images))], dim=1)
                images = self._run_layer(*layer, images, embedding, text, layout)
            if block.upsamplers is not None:
                images = upsample(block.upsamplers[0].conv, images)
        return self.conv_out(F.silu(self.conv_norm_out(images)))

    def _run_layer(self, *arguments) -> torch.Tensor:
        """`run_layer`; with gradient checkpointing its activations are computed again on the way back."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(run_layer, self.functions, *arguments, use_reentrant=False)
        return run_layer(self.functions, *arguments)


def layers_of(
    block: nn.Module,
) -> Iterator[tuple[ResnetBlock2D, Transformer2DModel | None, AnimateDiffTransformer3D]]:
    """The layers of a down or up block; those of blocks without text have no transformer."""
    attentions = getattr(block, "attentions", [None] * len(block.resnets))
    return zip(block.resnets, attentions, block.motion_modules, strict=True)


def run_layer(
    functions: LayerFunctions,
    resnet: ResnetBlock2D,
    attention: Transformer2DModel | None,
    motion: AnimateDiffTransformer3D,
    images: torch.Tensor,
    embedding: torch.Tensor,
    text: torch.Tensor,
    layout: Layout,
) -> torch.Tensor:
    """resnet -> (multi-view and text attention) -> motion module. images: [(b f n), c, h, w]."""
    images = functions.resnet(resnet, images, embedding, layout)
    if attention is not None:
        images = functions.spatial_transformer(attention, images, text, layout)
    return functions.motion_module(motion, images, layout)
