"""The command line: each command turns flags into one call and prints what comes back."""
