"""llama-swap's groups, matrix, selectors and profiles: which models run together, and more names for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from engine_router.setup.migrate.draft import Draft, Entry
from engine_router.setup.migrate.matrix import Matrix, faults_of, read_matrix
from engine_router.setup.migrate.sections import Section

_DEFAULT_POOL: Final = "default"


def add_routing(root: Section, draft: Draft) -> None:
    """Add what may run together, whether it stands at the top of the file or under `routing`."""
    _add_groups(root, draft)
    matrix = root.section("matrix")
    if matrix is not None:
        _add_matrix(matrix, draft)
    routing = root.section("routing")
    if routing is None:
        return
    router = routing.section("router")
    if router is not None:
        _add_router(router, draft)
    scheduler = routing.section("scheduler")
    if scheduler is not None:
        scheduler.carried("use", "requests are served in turn")
        scheduler.lost(
            "settings",
            words="models have no priority",
            remedy="server.key_priorities ranks clients by their key, X-Request-Priority a single request",
        )
        scheduler.finish()
    routing.finish()


def _add_router(router: Section, draft: Draft) -> None:
    use = router.text("use") or "group"
    settings = router.section("settings")
    if settings is not None:
        matrix = settings.section("matrix")
        if use == "matrix":
            settings.lost("groups", words="they are not in use: routing.router.use is matrix")
            if matrix is not None:
                _add_matrix(matrix, draft)
        else:
            settings.lost("matrix", words="it is not in use: routing.router.use is group")
            _add_groups(settings, draft)
        settings.finish()
    router.carried("use", "what it names is in use")
    router.finish()


def _add_groups(section: Section, draft: Draft) -> None:
    for name, group in section.sections("groups"):
        members = [member for member in group.texts("members") if member in draft.engines]
        unknown = len(group.texts("members")) - len(members)
        if unknown:
            group.approximated("members", f"{unknown} of them are no models of this file, and are left out")
        else:
            group.carried("members", "pool or group of each engine")
        _add_group(group, name, members, draft)
        group.finish()


def _add_group(group: Section, name: str, members: Sequence[str], draft: Draft) -> None:
    swap = group.flag("swap") is not False
    exclusive = group.flag("exclusive") is not False
    persistent = group.flag("persistent") is True
    together: dict[str, Any] = {} if swap else {"group": name}
    if exclusive and not persistent:
        _change(draft, members, together)
        words = (
            "one engine at a time, as everywhere in a pool"
            if swap
            else "group: its members may stay together"
        )
        for key in ("swap", "exclusive", "persistent"):
            group.carried(key, words)
        return
    if not members:
        return
    pool = f"{name} models" if name == _DEFAULT_POOL else name
    draft.pool(
        pool
    ).comment = f"Its models are not stopped for those of other pools: group {name} of llama-swap."
    _change(draft, members, {**together, "pool": pool})
    group.carried(
        "swap", "group: its members may stay together" if not swap else "one engine of the pool at a time"
    )
    if persistent and exclusive:
        words = "a pool of its own: its members no longer stop those of other groups"
        for key in ("exclusive", "persistent"):
            group.approximated(key, words, "see that all pools fit into the memory together")
    elif persistent:
        for key in ("exclusive", "persistent"):
            group.carried(key, "a pool of its own")
    else:
        words = "a pool of its own: models of other groups no longer stop its members"
        group.approximated("exclusive", words, "see that all pools fit into the memory together")


def _change(draft: Draft, members: Sequence[str], values: dict[str, Any]) -> None:
    for member in members:
        draft.engines[member].values.update(values)


def _add_matrix(matrix: Section, draft: Draft) -> None:
    names = {name: name for name in draft.engines}
    matrix.carried("vars", "the models that they mean")
    variables = matrix.mapping("vars")
    for key, value in variables.items():
        if isinstance(value, str) and value in draft.engines:
            names[key] = value
        else:
            matrix.inner("vars", variables).lost(key, words="no model of this file")
    sets = matrix.section("sets")
    _add_costs(matrix, names, draft)
    if sets is not None:
        expressions = {key: text for key in sets.data if (text := sets.text(key)) is not None}
        faults = faults_of(expressions, names)
        for key, words in faults.items():
            sets.lost(key, words=words)
        kept = {key: text for key, text in expressions.items() if key not in faults}
        _add_sets(matrix, read_matrix(kept, names), draft)
    matrix.finish()


def _add_costs(matrix: Section, names: Mapping[str, str], draft: Draft) -> None:
    costs = matrix.section("evict_costs")
    if costs is None:
        return
    matrix.approximated("evict_costs", "evict_cost, by which the time of a start is multiplied")
    for name, cost in costs.data.items():
        if name not in names:
            costs.lost(name, words="no model of this file")
        elif isinstance(cost, int) and not isinstance(cost, bool) and cost > 0:
            draft.engines[names[name]].values["evict_cost"] = cost
        else:
            costs.lost(name, words="no whole number above 0")


def _add_sets(matrix: Section, found: Matrix, draft: Draft) -> None:
    """Give each set of models that may run together a group; where they are too many, memory decides."""
    if found.sets is not None:
        groups: dict[str, list[str]] = {}
        for name, members in found.sets.items():
            for member in members if len(members) > 1 else ():
                groups.setdefault(member, []).append(name)
        for member, names in groups.items():
            draft.engines[member].values["group"] = names[0] if len(names) == 1 else names
        matrix.carried("sets", "a group for each set: models that have one in common may stay together")
        return
    for index, members in enumerate(found.neighbourhoods(), start=1):
        _change(draft, sorted(members), {"group": f"matrix-{index}"})
    pool = draft.pool(_DEFAULT_POOL)
    pool.values["mode"] = "budget"
    pool.comment = (
        "Models of one group stay together while they fit. For a graphics card: gauge, and budget_gb."
    )
    # In a pool with a budget, only a group keeps others away.
    for name, engine in draft.engines.items():
        if engine.values.get("pool", _DEFAULT_POOL) == _DEFAULT_POOL:
            engine.values.setdefault("group", f"alone: {name}")
    matrix.approximated(
        "sets",
        "too many to be written out: groups of models that some set has together, in a pool with a budget; within a "
        "group memory decides, not the sets",
        "set budget_gb of pools.default, and memory_gb of engines that are not measured yet",
    )


def add_selectors(root: Section, draft: Draft) -> None:
    """Add the names that stand for one of several models: an alias of the only one, else a route."""
    for name, selector in root.sections("selectors"):
        strategy = selector.text("strategy") or ""
        wanted = selector.texts("targets")
        found = [_model(one, draft) for one in wanted]
        known = list(dict.fromkeys(model for model in found if model is not None))
        if not known:
            selector.lost("", words="none of its targets is a model of this file")
            continue
        if name in draft.names() or name in draft.routes:
            selector.lost("", words="a model has this name already")
            continue
        selector.lost(
            "name", "description", "metadata", words="a route, or an alias, has no texts of its own"
        )
        if strategy == "pin":
            _add_pin(selector, name, known[0], draft, is_first=found[0] is not None)
        else:
            _add_route(selector, name, known, draft, is_whole=None not in found)
        selector.finish()


def _add_pin(selector: Section, name: str, model: str, draft: Draft, *, is_first: bool) -> None:
    draft.aliases.values[name] = model
    if is_first:
        selector.carried("targets", "an alias of the first")
    else:
        selector.approximated("targets", "an alias of the first that is a model of this file")
    selector.carried("strategy", "an alias")
    selector.lost("unlisted", words="aliases are always listed")
    selector.lost("settings", words="an alias leads to one model")


def _add_route(selector: Section, name: str, models: Sequence[str], draft: Draft, *, is_whole: bool) -> None:
    strategy = selector.text("strategy")
    route = draft.routes.setdefault(name, Entry()).values
    route["prefer"] = [*models]
    if is_whole:
        selector.carried("targets", "prefer, of a route")
    else:
        selector.approximated("targets", "prefer, of a route, without those that are no models of this file")
    if strategy == "spillover":
        route["strategy"] = "spillover"
        selector.carried("strategy", "strategy, of a route: spillover")
        settings = selector.section("settings")
        if settings is not None:
            if (most := settings.whole("spillover")) is not None:
                route["spillover"] = most
            settings.carried("spillover", "spillover")
            settings.finish()
    else:
        selector.carried(
            "strategy", "strategy, of a route: resident, the first that is loaded, or is loading"
        )
        selector.lost("settings", words="this strategy has none")
    if selector.flag("unlisted"):
        route["unlisted"] = True
    selector.carried("unlisted", "unlisted")


def _model(name: str, draft: Draft) -> str | None:
    """Return the model that a name leads to."""
    if name in draft.models or any(
        name in entry.values.get("models", ()) for entry in draft.engines.values()
    ):
        return name
    of, _, variant = name.rpartition(":")
    if of in draft.models and variant in draft.models[of].values.get("variants", ()):
        return name
    return next((m for m, e in draft.models.items() if name in e.values.get("aliases", ())), None)


def add_profiles(root: Section, draft: Draft) -> None:
    """Add the profiles of older versions, lists of models that run together; those of newer ones are lost."""
    for name, value in root.mapping("profiles").items():
        profile = root.inner("profiles", root.mapping("profiles"))
        if not isinstance(value, list):
            words = "models are not exchanged for others at runtime"
            profile.lost(name, words=words, remedy="[aliases], and engine-router reload, do it by hand")
            continue
        members = [member for member in value if isinstance(member, str) and member in draft.engines]
        _change(draft, members, {"group": name})
        for member in members:
            entry = draft.model(member, member)
            entry.values["aliases"] = [*entry.values.get("aliases", ()), f"{name}:{member}"]
        profile.approximated(
            name, "a group: its members may stay together, under their names and PROFILE:NAME"
        )
