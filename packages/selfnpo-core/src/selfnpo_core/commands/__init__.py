"""Everything that knows click: options, the commands' bodies, and what a family tells them."""
