"""The same engine on a server: snapshots and commits over a `Backend`, one sub-package a kind of server."""
