"""Animate3D, the Blender extension: the repository root is its source folder."""

from .animate3d_addon import register, unregister

__all__ = ["register", "unregister"]
