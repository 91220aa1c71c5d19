"""occamdb: Optimistic Concurrency Control for Agent Memory."""
