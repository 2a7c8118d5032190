"""What a page shows: the view in its address, the runs, their cached tables, an edited plan."""
