"""The coordinator process: its control plane, its files, its life from start to stop."""
