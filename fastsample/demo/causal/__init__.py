"""Two bundled causal language models: one that adds five numbers in writing, and its consistency model."""
