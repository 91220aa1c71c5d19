"""The stress layer of occamdb; see ARCHITECTURE.md."""
