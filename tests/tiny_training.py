"""Trains the starter's recipe at the smallest size: `tiny_training.py RUN STEPS`, alone or through a launcher."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backend.training.samples import sampler_of
from backend.training.starter import StarterSettings, quick
from backend.training.video import train_video

if __name__ == "__main__":
    run, steps = Path(sys.argv[1]), int(sys.argv[2])
    settings = quick(StarterSettings())
    train_video(run, steps, settings, show=sampler_of(run, settings, shown=1))
