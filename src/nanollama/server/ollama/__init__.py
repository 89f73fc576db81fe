"""Ollama's API on the same port as OpenAI's: its requests in, its lines and errors out."""
