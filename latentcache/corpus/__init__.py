"""From a folder, glob or table to a table of sources, with the facts that probing finds."""
