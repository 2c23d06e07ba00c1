"""From sources and a configuration to a planned cache."""
