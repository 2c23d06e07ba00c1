"""The order of batches: a pure function of seed and epoch. Arrays in, arrays out."""
