"""The ipc layer of occamdb; see ARCHITECTURE.md."""
