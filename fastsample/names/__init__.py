"""What people type: samplers, options, decoding rules and diffusers' schedulers by name."""
