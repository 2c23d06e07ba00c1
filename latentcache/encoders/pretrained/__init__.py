"""Models of transformers: found in a folder, hashed, loaded and checked. Text and image encoders use it."""
