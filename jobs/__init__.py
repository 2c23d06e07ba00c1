"""The jobs: composition roots. They parse, call, and print what to do next.

From a checkout `python -m jobs.precompute`; once installed `latentcache precompute`.
"""

import os

# Before torch is loaded: OpenMP threads that spin while they wait take the CPU from the decoding
# processes; an encoder on a busy CPU was 10 to 50 times slower. Ray's workers inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
