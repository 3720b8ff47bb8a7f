"""The commands of the command line: thin over the library's own functions."""
