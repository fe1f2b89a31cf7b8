"""Workloads of a Kubernetes cluster as engines: scaled to 1 when they are wanted, and to 0 when they have to go.

`access` finds the cluster and who the router is there, `api` makes the calls, `pods` watches what a workload runs,
`kubernetes_engine` takes it from its start to its end.
"""
