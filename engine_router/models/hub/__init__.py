"""Downloads: names on the hub, the choice of files, ranged downloads that go on where they broke off, the hub's cache.

The cache has the layout of the hub's own library, so that every program finds what was fetched. The library itself
is not needed: its newer releases begin a broken download from zero, and write to files that they remove.
"""
