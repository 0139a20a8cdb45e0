"""The commands of `selfnpo-image`, one a file: options in, a call, and what is printed."""
