"""The commit core: validate, apply, log, publish and answer the requests of all workers."""
