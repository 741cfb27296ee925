"""What the pages are drawn with: frames, rows, intervals, tables, lines, and the page itself."""
