"""`latentcache train-example`: a small diffusion transformer trained on a cache."""
