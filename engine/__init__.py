"""The engine layer of occamdb; see ARCHITECTURE.md."""
