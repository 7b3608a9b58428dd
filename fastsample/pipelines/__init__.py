"""All that knows other people's pipelines: their denoisers, schedulers and sampling loops."""
