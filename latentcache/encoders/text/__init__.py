"""Text encoders: what a trainer's text condition is, computed as its reference computes it."""
