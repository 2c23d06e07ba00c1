"""Views: which part of a clip a batch has, and as which tensors. Pure; one module per view."""
