"""How a worker reaches its engine: a coordinator process, or a commit core of its own in memory."""
