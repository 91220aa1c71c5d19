"""Every system call on files: files and folders, checksums, the database directory, failpoints."""
