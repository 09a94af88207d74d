"""One module a command that no room below owns."""
