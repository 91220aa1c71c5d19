"""The primitives layer of occamdb; see ARCHITECTURE.md."""
