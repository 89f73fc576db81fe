"""What a model is: its spec, its families, and the one recipe that runs them all."""
