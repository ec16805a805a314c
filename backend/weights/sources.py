"""Where the released model's parts come from: repositories, pinned revisions, files and licences.

The names are those of the official configuration (`configs/inference/inference.yaml` of the Animate3D repository).
Three revisions are commits, read from the hub's public pages. The commit of `yanqinJiang/animate3d` could not be read
there, so it is asked for as `main`. `--revision` overrides any of them, and the commit that a download really got is
written into the manifest. Sizes are what those pages say; the motion modules' follows from their 644 M float32 values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Licence:
    """What a source's authors allow, in one line; the link leads to their own words."""

    name: str
    link: str
    summary: str


@dataclass(frozen=True)
class Part:
    """One file of a source. `paths` are the names it may have, the preferred one first; `size` in bytes, documented."""

    name: str
    paths: tuple[str, ...]
    size: int = 0


@dataclass(frozen=True)
class Source:
    """One repository of the hub and the files wanted from it."""

    name: str
    repository: str
    revision: str
    licence: Licence
    parts: tuple[Part, ...]
    needed: str = "always"

    @property
    def size(self) -> int:
        """Bytes to download, as documented."""
        return sum(part.size for part in self.parts)


APACHE = "Apache-2.0"

MVDREAM = Source(
    name="mvdream",
    repository="yanqinJiang/mvdream-sd1.5-diffusers",
    revision="bab9f9904d8fdc563f08120ae8c242e4b46b5590",
    licence=Licence(
        APACHE,
        "https://huggingface.co/yanqinJiang/mvdream-sd1.5-diffusers",
        "Free for any use with attribution, says its card; it grew out of Stable Diffusion 1.5, whose CreativeML "
        "OpenRAIL-M licence restricts uses that harm.",
    ),
    parts=(
        Part("unet config", ("unet/config.json",)),
        Part("unet", ("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin"), 3_450_000_000),
        Part("vae config", ("vae/config.json",)),
        Part("vae", ("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin"), 335_000_000),
        Part("text config", ("text_encoder/config.json",)),
        Part("text", ("text_encoder/model.safetensors", "text_encoder/pytorch_model.bin"), 492_000_000),
        Part("tokenizer vocabulary", ("tokenizer/vocab.json",), 1_060_000),
        Part("tokenizer merges", ("tokenizer/merges.txt",), 525_000),
        Part("tokenizer config", ("tokenizer/tokenizer_config.json",)),
        Part("tokenizer specials", ("tokenizer/special_tokens_map.json",)),
    ),
)

IP_ADAPTER = Source(
    name="ip-adapter",
    repository="h94/IP-Adapter",
    revision="018e402774aeeddd60609b4ecdb7e298259dc729",
    licence=Licence(APACHE, "https://huggingface.co/h94/IP-Adapter", "Free for any use with attribution."),
    parts=(
        Part("ip-adapter", ("models/ip-adapter_sd15.safetensors", "models/ip-adapter_sd15.bin"), 44_642_825),
        Part("image config", ("models/image_encoder/config.json",)),
        Part(
            "image",
            ("models/image_encoder/model.safetensors", "models/image_encoder/pytorch_model.bin"),
            2_528_373_448,
        ),
    ),
)

MOTION = Source(
    name="motion",
    repository="yanqinJiang/animate3d",
    revision="main",
    licence=Licence(
        APACHE, "https://huggingface.co/yanqinJiang/animate3d", "Free for any use with attribution, says its card."
    ),
    parts=(Part("motion", ("animate3d_motion_modules.ckpt",), 2_575_631_528),),
)

MOTION_ADAPTER = Source(
    name="motion-adapter",
    repository="guoyww/animatediff-motion-adapter-v1-5-2",
    revision="6167b88ffe39b4441fdf2113e77b99a6f56b7906",
    licence=Licence(
        APACHE,
        "https://huggingface.co/guoyww/animatediff",
        "Free for any use with attribution, says AnimateDiff's own card; this copy's card names no licence.",
    ),
    parts=(
        Part("motion-adapter", ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"), 1_820_000_000),
    ),
    needed="only where the motion modules are not whole",
)

REQUIRED = (MVDREAM, IP_ADAPTER, MOTION)
SOURCES = (*REQUIRED, MOTION_ADAPTER)


def at_revisions(revisions: dict[str, str]) -> tuple[Source, ...]:
    """All sources, some at another revision than the pinned one; `revisions` maps a source's name to it."""
    return tuple(replace(source, revision=revisions.get(source.name, source.revision)) for source in SOURCES)
