"""Terminal input and output: lines, tables, colours, progress bars. Nothing here sends a request."""
