"""Looking at a cache: verify, status, preview, report, and what can be removed."""
