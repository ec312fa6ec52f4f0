"""The stages of the product, one file each; they own files and the command line."""

import predictor as predictor  # first of all imports: it tells libraries not to report home
