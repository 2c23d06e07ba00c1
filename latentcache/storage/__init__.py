"""Bytes in and out: a cache's folder on any file system, retries, URLs, source files."""
