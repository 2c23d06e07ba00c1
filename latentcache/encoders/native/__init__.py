"""Autoencoders that no package has, built from their authors' checkpoints."""
