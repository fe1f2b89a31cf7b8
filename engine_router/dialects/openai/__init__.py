"""OpenAI's dialect, and its chat completions as every translation needs them.

`dialect` is loaded with the package. A translation imports from here what a request consists of (`request`, `members`)
and its engine's answer (`answers`, in pieces of `blocks`); this folder imports no other dialect's.
"""
