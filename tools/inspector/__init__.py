"""`occamdb inspect`: a local web page that shows what is in a database, and what happens in it, as it happens.

    serve       sockets, the server process, the browser
    app         addresses, and what becomes of an error; `database_pages` and `run_pages` have the endpoints
    security    who may ask, and what a page may do
    opening     the database that is looked at: `directory_source`, with a coordinator or without; `server_source`
    feed        what all browsers are told, made once: commits (`following`), `figures`, `conflicts`
    reading/    what the pages show, read from one snapshot each
    pages       templates; `shown` makes text of what is stored
    static/     the style sheet and the scripts

1. No request writes. A request holds its snapshots for as long as it reads, and gives them back before its answer is
   sent.
2. What is stored is untrusted text. It reaches a page only through a template that escapes it.
3. A page works without its scripts. They keep it up to date, and make it pleasant to use.
"""
