"""The box beside the cameras: it looks, encodes, and sends latents; pictures never leave it."""
