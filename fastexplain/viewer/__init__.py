"""The neuron viewer: a web application over one run, on this machine alone.

`application.py` puts together what is served, `guard.py` decides who may ask, `serving.py` listens.
`static/` is what the browser gets: HTML, CSS and JavaScript modules, written by hand. The room
needs the extra `viewer`.
"""
