"""Show: figures for print and for the page, and tables."""
