"""MV-VDM: the multi-view video diffusion model of Animate3D (paper section 3.1)."""
