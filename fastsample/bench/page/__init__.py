"""A benchmark as one HTML file that needs nothing else: words, a table, plots, pictures."""
