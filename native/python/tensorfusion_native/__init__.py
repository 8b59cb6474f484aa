"""Python side of the native part: the files of a worker, and where the libraries are."""
