"""The parts of a LatentLoader: which batches come, how they are read ahead, where they go."""
