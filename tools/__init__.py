"""The tools layer of occamdb; see ARCHITECTURE.md."""
