"""One file per data set; each has Options and build(options) -> Manifest."""
