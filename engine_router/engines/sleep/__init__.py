"""Sleep instead of stop: engines that give most of their memory back and keep what made their start slow.

A wake takes seconds where a start takes minutes, because the process, its compiled kernels and its captured graphs
stay. `calls` has the HTTP calls, `resident_sleep` how a resident falls asleep and is woken, `registry` what sleeps.
"""
