"""Text on both sides of the model: templates, tokens, and text again. No torch, no numpy."""
