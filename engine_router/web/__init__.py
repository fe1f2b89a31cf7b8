"""The Quart-Trio app, one file for each surface: `app.create_app` makes it.

`monitoring`, `status`, the lists and what they show need no Quart: the fast tier answers by them before the app is loaded.
"""
