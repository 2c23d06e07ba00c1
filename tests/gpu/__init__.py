"""What only a GPU shows. Without one, all of it is skipped."""
