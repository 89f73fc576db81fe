"""Block quantization: the table of formats, decoding and encoding."""
