"""What every room speaks of: records, specs, dtypes, the machine. Imports nothing but errors."""
