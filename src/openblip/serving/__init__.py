"""The service: models and an image index over HTTP, with a page; needs the extra "serving".

`engine` says what is asked of whoever computes, `local` is the one of one process; `app` holds the endpoints, over
`schemas` (requests and answers), `body` (reading them) and `guard` (keys, origins, counts); `process` runs it all.
"""
