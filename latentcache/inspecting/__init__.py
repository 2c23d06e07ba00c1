"""Looking at a cache: verify, status, preview, report, and which files can be removed."""
