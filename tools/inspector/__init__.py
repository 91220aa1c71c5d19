"""`occamdb inspect`: a local web page that shows what is in a database, and what happens in it, as it happens.

    serve      sockets, the server process, the browser
    app        addresses, and what becomes of an error
    security   who may ask, and what a page may do
    source     the database that is looked at, with a coordinator or without
    feed       what all browsers are told, made once
    reading/   what the pages show, read from one snapshot each
    pages      templates; `shown` makes text of what is stored
    static/    the style sheet and the scripts

1. No request writes. A request holds at most one snapshot, and gives it back before its answer is sent.
2. What is stored is untrusted text. It reaches a page only through a template that escapes it.
3. A page works without its scripts. They keep it up to date, and make it pleasant to use.
"""
