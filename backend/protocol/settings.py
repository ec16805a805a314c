"""What the user asked for: a job's settings, and the limits of each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import UserError
from .storage import read_json, write_json

PROTOCOL_VERSION = 1  # both sides must have the same; there is no negotiation
PRESETS = ("draft", "standard", "paper")
DEVICES = ("auto", "cpu", "cuda", "mps")
SOLVERS = ("ddim", "dpm", "unipc")
MAX_STEPS, MAX_PASSES, MAX_GUIDANCE = 1000, 20, 100
MEMORY_MODES = ("auto", "fast", "balanced", "low")
MAX_PROMPT = 500  # characters; the models read about 77 tokens
MIN_FRAMES, MAX_FRAMES = 2, 32  # the models' time tables end at 32
MAX_SEED = 2**63 - 1


def clean_prompt(prompt: str) -> str:
    """The prompt on one line without control characters; raises `UserError` where it is empty or too long."""
    words = "".join(c if c.isprintable() else " " for c in prompt).split()
    if not words:
        raise UserError("The prompt is empty.", 'Say what shall move and how, for example "a cactus is swaying".')
    text = " ".join(words)
    if len(text) > MAX_PROMPT:
        raise UserError(
            f"The prompt is {len(text)} characters long, but {MAX_PROMPT} is the limit.", "Say it in one sentence."
        )
    return text


@dataclass(frozen=True)
class JobSettings:
    """What the user asked for; `job.json`. Raises `UserError` where a value makes no sense."""

    prompt: str
    preset: str = "draft"  # draft | standard | paper
    seed: int = 0
    frames: int = 16
    device: str = "auto"  # auto | cpu | cuda | mps
    weights: str = "starter"  # starter | animate3d | a folder
    memory: str = "auto"  # auto | fast | balanced | low: what the video model may use
    compile: bool = False  # let torch compile the video model
    steps: int | None = None  # of the sampler, per pass; None here and below: as preset and model have it
    passes: int | None = None  # of FreeInit; 1: none
    solver: str | None = None  # ddim | dpm | unipc
    guidance: float | None = None  # scale; 1 and below: none
    coarse_to_fine: bool | None = None  # earlier FreeInit passes take fewer steps
    negative_prompt: str = ""  # what the video should not be
    rig: bool = False  # also write the motion as bones, `rig.npz`
    protocol: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        kinds = {"prompt": str, "seed": int, "frames": int, "weights": str, "compile": bool, "rig": bool}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise UserError(f"The setting {name} is not a value of the right kind.", "Start the job again.")
        for name, choices in (("preset", PRESETS), ("device", DEVICES), ("memory", MEMORY_MODES)):
            if getattr(self, name) not in choices:
                raise UserError(f"The {name} is none of {', '.join(choices)}.", f"Choose another {name}.")
        if not MIN_FRAMES <= self.frames <= MAX_FRAMES:
            raise UserError(f"{self.frames} frames can't be made.", f"Ask for {MIN_FRAMES} to {MAX_FRAMES} frames.")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError("The seed is out of range.", "Choose a seed between 0 and 2^63 - 1.")
        object.__setattr__(self, "prompt", clean_prompt(self.prompt))
        self._check_sampler()

    def _check_sampler(self) -> None:
        for name, most in (("steps", MAX_STEPS), ("passes", MAX_PASSES)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value <= most):
                raise UserError(f"The number of {name} makes no sense.", f"Choose 1 to {most}.")
        if self.solver is not None and self.solver not in SOLVERS:
            raise UserError(f"The solver is none of {', '.join(SOLVERS)}.", "Choose another solver.")
        scale = self.guidance
        if scale is not None and (type(scale) not in (int, float) or not 0 <= scale <= MAX_GUIDANCE):
            raise UserError("The guidance scale makes no sense.", f"Choose 0 to {MAX_GUIDANCE}; 1 means none.")
        if self.coarse_to_fine not in (None, False, True) or not isinstance(self.negative_prompt, str):
            raise UserError("The settings of this job can't be read.", "Start the job again.")
        object.__setattr__(self, "negative_prompt", " ".join(self.negative_prompt.split())[:MAX_PROMPT])

    def save(self, job: Path) -> None:
        write_json(Path(job) / "job.json", asdict(self))

    @classmethod
    def load(cls, job: Path) -> JobSettings:
        data = read_json(Path(job) / "job.json")
        if data.get("protocol") != PROTOCOL_VERSION:
            raise UserError(
                f"This job folder was written by another version (protocol {data.get('protocol')}, "
                f"this one is {PROTOCOL_VERSION}).",
                "Start the job again.",
            )
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: dict) -> JobSettings:
        """Raises `UserError` where the keys or values are not those of settings."""
        try:
            return cls(**data)
        except TypeError:
            raise UserError("The settings of this job can't be read.", "Start the job again.") from None
