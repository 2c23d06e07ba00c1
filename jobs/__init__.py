"""The jobs: composition roots. They parse, call, and print what to do next.

From a checkout `python -m jobs.precompute`; once installed `latentcache precompute`.
"""
