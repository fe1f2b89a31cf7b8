"""What all engines share whose server the router starts and stops itself, be it a process or a container.

`started_engine` is the way of such a server from its start to its end, `running` what a runner (`process/`,
`container/`) has to do for it, `output` what becomes of what the server writes.
"""
