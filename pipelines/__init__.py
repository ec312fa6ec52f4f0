"""The stages of the product, one file each; they own files and the command line."""
