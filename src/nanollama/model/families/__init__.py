"""One small file a family: file metadata in, ModelSpec out."""
