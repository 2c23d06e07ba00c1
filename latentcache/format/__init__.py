"""The whole contract on storage: every object of a cache, how it is written, and how it is checked."""
