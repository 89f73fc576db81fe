"""Who runs, with which cache blocks, and the step that runs them."""
