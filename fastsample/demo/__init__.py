"""What ships for demonstration: an analytic mixture, a small text-to-image model, and its metrics."""
