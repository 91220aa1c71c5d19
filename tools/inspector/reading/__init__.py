"""What the pages show: each function reads one snapshot and gives plain values for a template.

1. Lists are read page by page from an index. A cursor is the end of an index key, so pages neither overlap nor leave
   gaps, whatever is written meanwhile.
2. A record that cannot be read is shown as that. It hides none of the others.
3. Nothing is read without a bound.
"""
