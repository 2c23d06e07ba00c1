"""Encoders that store ids of a codebook."""
