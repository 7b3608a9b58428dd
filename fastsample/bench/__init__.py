"""Benchmarks of samplers on a pipeline: quality at equal cost, side by side with diffusers' own classes."""
