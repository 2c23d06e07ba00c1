"""The configuration: its sections, the files that it is read from, and YAML text."""
