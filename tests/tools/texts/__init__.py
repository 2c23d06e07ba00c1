"""Tiny text encoders of the real classes, their tokenizers, and what diffusers makes of captions."""
