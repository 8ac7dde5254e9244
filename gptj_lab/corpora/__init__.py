"""From files, rows and data sets to the passages of documents."""
