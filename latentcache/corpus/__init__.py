"""From a folder, glob or table to a table of sources, and what probing says of each."""
