"""Doors to other people's sampling programs: k-diffusion's functions, ComfyUI's nodes."""
