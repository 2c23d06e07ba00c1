"""The autoencoders of the diffusers package."""
