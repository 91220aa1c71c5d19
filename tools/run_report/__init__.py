"""Everything about one run as one HTML file, to read without the database and to send to somebody.

1. `content` reads it, all of one version of the database, and never more than its limits.
2. `page` writes it. Text of the database gets into it through `elements` and `pictures` alone, which escape it.
3. The file has no script and loads nothing: its content security policy forbids both.
"""
