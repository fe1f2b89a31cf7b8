"""Residency: the residents in memory, the requests that wait for them, and what has to happen next.

The room knows engines through `engines.base` only. Others import `supervisor`, to ask for residents; `lease`, what a
request holds; `read_model`, all that is shown; `messages.Ticket`, `Phase`, `rules` and `settings`.

- `supervisor`: the one task that decides, on a memory channel. `domain`: the memories that are planned together, and the
  way to the supervisor; `pool`: one of them.
- `ledger`: the pure decisions of one domain, by six rules: `admission`, `prechecks`, `queue`, `scheduling`, `eviction`,
  `planning`, with `memory_budget`, `failures`, `idle_gaps` and each `resident_state`. `messages` go in and come out.
- `resident_runner`: a task for each resident (`resident_task`); with `start_memory`, `health`, `sleepers`, `adoption`,
  `files`.
- `reclaim`: who is given up for memory that a start lacks, asleep or idle, by `sleep_choice` (pure) and what caches have saved
  (`cache_savings`).
- `other_programs`: whoever else holds a pool's memory; `tenants` are asked for theirs (`tenant_calls`), and `pressure_watch`
  has idle residents go for them, as `pressure` judges.
- `pool_memory`: the gauge, and what starts and stops do to it (`memory_attribution`).
- `decisions`: what was decided, in words. `swap_status`, `memory_status`: parts of the read model.
- `swap_tracker`: the events of swaps. `measurements` and `speeds`: what is remembered between runs. `page_cache`: files of models.
"""
