"""From a generated multi-view video to vertex offsets: matte, motion fields, losses and the fit."""
