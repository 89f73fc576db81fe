"""Model files: GGUF, tensor names, and loading."""
