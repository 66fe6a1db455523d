"""One file per student family; each has Options and build."""
