"""What every room uses: records, specs, dtypes, the machine. Imports nothing but errors."""
