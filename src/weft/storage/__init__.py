"""What lies on disk: files that survive a kill, what clients remember, and the advice where a file can't be trusted."""
