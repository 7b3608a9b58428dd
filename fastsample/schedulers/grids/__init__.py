"""Grid nodes of each family of models, from a scheduler's config and the arguments of `set_timesteps`."""
