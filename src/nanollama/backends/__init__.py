"""Where tensors are computed: implementations of the ops protocol."""
