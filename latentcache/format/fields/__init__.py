"""Fields of a cache: layers of further arrays over the same rows, each with its own folder."""
