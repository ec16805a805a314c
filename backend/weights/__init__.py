"""The models' weights: where they lie (`places`), where they come from (`sources`), and how they get here."""

from backend.weights.places import CONFIG, NAMES, PULL, config, dtype, files, find, home, identity, place, size

__all__ = ["CONFIG", "NAMES", "PULL", "config", "dtype", "files", "find", "home", "identity", "place", "size"]
