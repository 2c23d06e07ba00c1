"""The read half: a cache as a trainer sees it. Needs no encoder, decoder or Ray."""
