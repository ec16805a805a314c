"""MVVDM: the networks of one model folder and the road from a prompt and four pictures to four videos."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from .cameras import camera_vectors
from .checkpoints import (
    WeightsError,
    check_tensors,
    read_json_file,
    read_tensors,
    verify_manifest,
    write_manifest,
    write_tensors,
)
from .execution import FAST, Execution, MemoryMode
from .images import clip_pixels, composite_on_grey, over_grey, read_rgba, vae_pixels, write_pictures
from .resume import StepLog
from .sampling import Conditions, Denoiser, SamplerSettings, StepCallback, sample_latents
from .unet import MVVDMUNet

NETWORKS = ("unet", "vae", "text_encoder", "image_encoder")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ModelInfo:
    """``model.json``: what a model animates and how it wants to be used. The defaults are the released model's."""

    name: str = "animate3d"
    licence: str = ""
    appearance: str = "color"  # "color", or "position": every surface point in the colour of its rest position
    image_channels: int = 3  # of the VAE: 3 on grey, 4 with alpha
    resolution: int = 256
    num_views: int = 4
    num_frames: int = 16
    residual_to_first_frame: bool = False
    posterior_sample: bool = True  # frame 0 is a sample of the VAE's posterior (released), else its mode
    image_mean: tuple[float, ...] = CLIP_MEAN  # what the image encoder's pictures are normalised with
    image_std: tuple[float, ...] = CLIP_STD
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    motions: dict[str, list[str]] = field(default_factory=dict)  # the words for each motion it knows; empty: any prompt
    prompt_hints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.appearance not in ("color", "position") or self.image_channels not in (3, 4):
            raise ValueError("A model animates colours or positions, in pictures with 3 or 4 channels.")
        if not isinstance(self.motions, dict):
            raise ValueError("The motions that a model knows are a table of words.")

    @classmethod
    def from_json(cls, content: dict) -> "ModelInfo":
        """Raises TypeError or ValueError where the content does not fit."""
        content = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
        return cls(**content | {"sampler": SamplerSettings(**content.get("sampler", {}))})


@dataclass(eq=False)
class MVVDM:
    """The multi-view video diffusion model with everything around its UNet."""

    unet: MVVDMUNet
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase
    image_encoder: CLIPVisionModelWithProjection
    scheduler: DDIMScheduler
    info: ModelInfo
    mode: MemoryMode = FAST

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def denoiser(self) -> Denoiser:
        return Denoiser(self.unet, self.scheduler, self.info.residual_to_first_frame, self.mode.split_guidance)

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, device: torch.device | str = "cpu", execution: Execution | None = None
    ) -> "MVVDM":
        """Loads a model folder after checking it against its manifest; raises ``WeightsError``."""
        execution = execution or Execution()
        folder = Path(folder)
        verify_manifest(folder)
        try:
            info = ModelInfo.from_json(read_json_file(folder / "model.json"))
            networks = {name: _read_network(name, folder / name) for name in NETWORKS}
            scheduler = DDIMScheduler.from_config(read_json_file(folder / "scheduler" / "scheduler_config.json"))
            tokenizer = _read_tokenizer(folder / "tokenizer")
        except (TypeError, ValueError, KeyError, AttributeError, OSError) as error:
            raise WeightsError(f"The settings in the model folder {folder} make no sense.") from error
        for name, network in networks.items():
            parked = name != "unet" and execution.mode.park_unused
            execution.place(network.eval().requires_grad_(False), "cpu" if parked else device, is_vae=name == "vae")
        if execution.compile:
            networks["unet"].compile_layers()
        return cls(**networks, tokenizer=tokenizer, scheduler=scheduler, info=info, mode=execution.mode)

    def _fetch(self, name: str) -> nn.Module:
        """An encoder or the VAE, on the device."""
        return getattr(self, name).to(self.device)

    def _park(self) -> None:
        """Lets everything but the UNet wait in the machine's memory, in the modes that save it."""
        if self.mode.park_unused:
            for name in NETWORKS[1:]:
                getattr(self, name).to("cpu")

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes a folder that ``from_pretrained`` reads."""
        folder = Path(folder)
        for name in NETWORKS:
            network = getattr(self, name)
            write_tensors(folder / name, network.state_dict())
            if isinstance(network, MVVDMUNet | AutoencoderKL):
                config = json.loads(network.to_json_string())
                config.pop("_name_or_path", None)  # the folder that it was once read from
                _write_json(folder / name / "config.json", config)
            else:
                network.config.to_json_file(folder / name / "config.json")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.scheduler.save_config(folder / "scheduler")
        _write_json(folder / "model.json", asdict(self.info))
        write_manifest(folder)

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts -> (tokens [k, length, d], pooled [k, d])."""
        ids = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.text_encoder.config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        encoded = self._fetch("text_encoder")(input_ids=ids.to(self.device))
        return encoded.last_hidden_state, encoded.pooler_output

    @torch.no_grad()
    def encode_images(self, pictures: np.ndarray) -> torch.Tensor:
        """uint8 [n, H, W, 4] -> image embeddings [n, D]; the unconditional ones are zeros, projected all the same."""
        size, mean, std = self.image_encoder.config.image_size, self.info.image_mean, self.info.image_std
        if self.info.appearance == "color":
            pixels = clip_pixels(composite_on_grey(pictures), size, mean, std)
        else:
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
            pixels = (over_grey(read_rgba(pictures, size)) - mean) / std
        pixels = pixels.to(self.device, self.dtype)
        return self._fetch("image_encoder")(pixel_values=pixels).image_embeds

    def encode_pixels(self, pixels: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Pixels [k, C, H, W] in -1..1 -> scaled latents [k, c, h, w], float32, with gradients.

        ``noise`` [k, c, h, w] makes it a sample of the VAE's posterior, None its mode.
        """
        vae = self._fetch("vae")
        posterior = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
        latents = posterior.mean.float()
        if noise is not None:
            latents = latents + posterior.std.float() * noise.to(latents)
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_first_frames(self, pictures: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        """uint8 [n, H, W, 4] -> the clean latents of frame 0, [n, c, h, w]."""
        if self.info.appearance == "color" and self.info.image_channels == 3:
            pixels = vae_pixels(composite_on_grey(pictures), self.info.resolution)
        else:
            pixels = read_rgba(pictures, self.info.resolution)
            pixels = 2 * (over_grey(pixels) if self.info.image_channels == 3 else pixels) - 1
        noise = None
        if self.info.posterior_sample:
            noise = torch.randn(self.latent_shape(len(pictures)), generator=generator)
        return self.encode_pixels(pixels, noise)

    def latent_shape(self, *leading: int) -> tuple[int, ...]:
        """[*leading, c, h, w]."""
        side = self.info.resolution // 2 ** (len(self.vae.config.block_out_channels) - 1)
        return (*leading, self.vae.config.latent_channels, side, side)

    def encode_conditions(
        self, prompt: str, condition_images: np.ndarray, cameras: np.ndarray, negative_prompt: str = ""
    ) -> tuple[Conditions, Conditions]:
        """(conditional, unconditional), with the prompt repeated for the views.

        Args:
            condition_images: uint8 [n, H, W, 4], frame 0 of every view.
            cameras: camera-to-world [n, 4, 4].
        """
        text = self.encode_prompt([prompt, negative_prompt])
        return self.combine_conditions(text, self.encode_images(condition_images), cameras)

    def combine_conditions(
        self, text: tuple[torch.Tensor, torch.Tensor], image: torch.Tensor, cameras: np.ndarray | torch.Tensor
    ) -> tuple[Conditions, Conditions]:
        """(conditional, unconditional) from ``encode_prompt`` of [prompt, negative] and ``encode_images`` [n, D]."""
        (tokens, pooled), views = text, len(image)
        camera = camera_vectors(cameras).to(self.device, self.dtype)
        conditional, unconditional = (
            Conditions(
                text=tokens[index].expand(views, -1, -1),
                image=embeds,
                camera=camera,
                pooled_text=pooled[index].expand(views, -1) if self.unet.config.pooled_text else None,
            )
            for index, embeds in enumerate((image, torch.zeros_like(image)))
        )
        return conditional, unconditional

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Latents [n, c, f, h, w] -> uint8 [n, f, H, W, C]; with alpha (C = 4) it is straight alpha."""
        vae, frames = self._fetch("vae"), latents.transpose(1, 2)  # [n, f, c, h, w]
        flat = (frames.flatten(0, 1) / vae.config.scaling_factor).to(self.device, vae.dtype)
        pixels = [vae.decode(part).sample.float().cpu() for part in flat.split(self.mode.decode_batch)]
        self._park()
        return write_pictures(torch.cat(pixels).unflatten(0, frames.shape[:2]))

    @torch.no_grad()
    def generate(
        self,
        prompt: str,
        condition_images: np.ndarray,
        cameras: np.ndarray,
        settings: SamplerSettings | None = None,
        seed: int = 0,
        callback: StepCallback | None = None,
        num_frames: int | None = None,
        log: StepLog | None = None,
    ) -> np.ndarray:
        """Animates: frame 0 is what the condition images show.

        Args:
            condition_images: uint8 [n, H, W, 4], straight alpha, in the appearance that the model animates.
            cameras: camera-to-world [n, 4, 4].
            settings: the model's own where None; num_frames likewise.
            callback: called after every step, may raise to cancel; ``decode`` turns its latents into a preview.
            log: keeps slow steps, and gives back those of a run that was broken off.

        Returns:
            uint8 [n, f, H, W, C]: C = 3 on grey, C = 4 with straight alpha.
        """
        # Drawn on the CPU, so that a seed means the same on every device; the order is the released pipeline's:
        # posterior noise, initial noise, then one draw per further FreeInit pass.
        generator = torch.Generator().manual_seed(seed)
        settings = settings or self.info.sampler
        conditions = self.encode_conditions(prompt, condition_images, cameras, settings.negative_prompt)
        self._park()
        first = self.encode_first_frames(condition_images, generator)
        self._park()
        latents = sample_latents(
            self.denoiser,
            first,
            self._noise_source(first.shape, (num_frames or self.info.num_frames) - 1, generator),
            *conditions,
            settings,
            callback,
            log,
        )
        return self.decode(latents)

    def _noise_source(
        self, frame_shape: torch.Size, frames: int, generator: torch.Generator
    ) -> Callable[[], torch.Tensor]:
        """Draws noise [n, c, frames, h, w]; frame_shape is [n, c, h, w]."""
        views, channels, height, width = frame_shape
        shape = (views, channels, frames, height, width)
        return lambda: torch.randn(shape, generator=generator).to(self.device)


def _read_network(name: str, folder: Path) -> nn.Module:
    """One network; built without memory first, so that nothing is allocated before the weights fit the config."""
    content, tensors = read_json_file(folder / "config.json"), read_tensors(folder)
    if name in ("unet", "vae"):
        network_class = MVVDMUNet if name == "unet" else AutoencoderKL
        network = _build_empty(lambda: network_class.from_config(content), folder)
        check_tensors(network, tensors, folder)
        network.load_state_dict(tensors, assign=True)
        return network
    network_class, config_class = {
        "text_encoder": (CLIPTextModel, CLIPTextConfig),
        "image_encoder": (CLIPVisionModelWithProjection, CLIPVisionConfig),
    }[name]
    config = config_class.from_dict(content)
    check_tensors(_build_empty(lambda: network_class(config), folder), tensors, folder)
    # transformers keeps some buffers out of the state dict and only its own loader fills them.
    return network_class.from_pretrained(None, config=config, state_dict=tensors)


def _build_empty(build: Callable[[], nn.Module], folder: Path) -> nn.Module:
    """The network on the meta device: shapes without memory."""
    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, ArithmeticError, LookupError, AssertionError) as error:
        raise WeightsError(f"No network can be built from the config in {folder}.") from error


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A tokenizer.json, or CLIP's vocabulary and merges."""
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
