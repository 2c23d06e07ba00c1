"""Tests of `latentcache/copying`."""
