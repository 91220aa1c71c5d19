"""The shared store: memory, indexes, versions, their collection, and readers without locks."""
