"""Gaussians on a mesh and the rasterizers that draw them."""

from .appearance import AppearanceSettings, refine_shape, solve_colors
from .gaussians import Gaussians, from_mesh
from .ply import read_ply, write_ply
from .rasterize import rasterize

__all__ = [
    "AppearanceSettings",
    "Gaussians",
    "from_mesh",
    "rasterize",
    "read_ply",
    "refine_shape",
    "solve_colors",
    "write_ply",
]
