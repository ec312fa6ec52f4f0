"""The stages of the product, one file each; they own files and the command line."""

import os

import predictor as predictor  # first of all imports: it tells libraries not to report home

# Threads that spin at every barrier make a forward pass many times slower where another process has the core; read when
# torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
