"""What a LatentLoader is made of: which batches come, how they are read ahead, where they go."""
