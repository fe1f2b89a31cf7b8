"""llama-swap's configuration, key by key: what each becomes, and what is said of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from textwrap import dedent, indent

import pytest
from support.engines import build_engines
from support.migration import Imported, imported

from engine_router.config import ContainerConfig, PeerConfig, RemoteConfig
from engine_router.guards.documents import Unreadable
from engine_router.models.registry import ModelRegistry
from engine_router.setup.migrate.render import rendered
from engine_router.setup.migrate.secrets import without_secrets
from engine_router.upstream.control_client import ControlClient

CARRIED, APPROXIMATED, LOST = "carried over", "approximated", "lost"


def swap(model: str = "", top: str = "", cmd: str = "llama-server --port ${PORT} -m /m.gguf") -> Imported:
    """Import one model `m` with keys of its own, and keys of the whole file."""
    models = f"models:\n  m:\n    cmd: {cmd}\n{indent(dedent(model).strip(), '    ')}\n"
    return imported(f"{dedent(top).strip()}\n{models}", kind="llama-swap")


def test_the_smallest_file() -> None:
    found = swap()
    engine = found.process("m")
    assert engine.argv == ("llama-server", "--port", "{port}", "-m", "/m.gguf")
    assert (engine.models, engine.base_url, engine.discover) == (("m",), None, False)
    assert found.config.models == {}
    assert found.outcome("models.m.cmd") == CARRIED
    assert found.line("models.m.cmd") == 4


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("ttl: 60", {"idle_timeout_s": 60}),
        ("ttl: 0", {"idle_timeout_s": 0}),
        ("ttl: -1", {"idle_timeout_s": None}),
        ("checkEndpoint: /ready", {"ready_path": "/ready"}),
        ("checkEndpoint: ready", {"ready_path": "/ready"}),
        ("checkEndpoint: none", {"ready_check": "port"}),
        ("unloadTimeout: 60", {"grace_s": 60, "stop_timeout_s": 81}),
        ("unloadTimeout: 10", {"grace_s": 10, "stop_timeout_s": 30}),
        ("timeouts: {connect: 7}", {"connect_timeout_s": 7}),
        ("env: [A=1, B=c=d]", {"env": {"A": "1", "B": "c=d"}}),
        ("cmdStop: kill ${PID}", {"stop_command": ("kill", "{pid}")}),
        ("proxy: http://localhost:${PORT}", {"base_url": None}),
        ("proxy: http://127.0.0.1:${PORT}/", {"base_url": None}),
    ],
)
def test_a_key_of_a_model_that_is_carried_over(key: str, expected: dict[str, object]) -> None:
    found = swap(key)
    engine = found.process("m")
    assert {name: getattr(engine, name) for name in expected} == expected
    name = key.partition(":")[0]
    place = f"models.m.{name}.connect" if name == "timeouts" else f"models.m.{name}"
    assert found.outcome(place) == CARRIED


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("useModelName: big/one", {"upstream": "big/one"}),
        ("aliases: [a, b, a]", {"aliases": ("a", "b")}),
        ("aliases: a", {"aliases": ("a",)}),
        ("unlisted: true", {"unlisted": True}),
        ("filters: {stripParams: 'top_p, temperature,model'}", {"strip": ("temperature", "top_p")}),
        ("filters: {strip_params: top_k}", {"strip": ("top_k",)}),
        ("filters: {setParams: {temperature: 0.5, model: x, stop: null}}", {"set": {"temperature": 0.5}}),
        (
            "capabilities: {context: 32000, tools: true}",
            {"context_length": 32000, "capabilities": ("tools",)},
        ),
    ],
)
def test_a_key_of_a_model_that_needs_a_table(key: str, expected: dict[str, object]) -> None:
    found = swap(key)
    model = found.config.models["m"]
    assert {name: getattr(model, name) for name in expected} == expected
    assert LOST not in [note.outcome for note in found.draft.notes]


def test_peers_become_remotes_and_peers_in_the_own_network() -> None:
    found = swap(
        top="""
        peers:
          cloud:
            proxy: https://cloud.example/api/
            apiKey: ${env.CLOUD_KEY}
            models: [vendor/large, vendor/small, m]
            filters: {stripParams: "top_k, seed", setParams: {temperature: 0.5}}
            timeouts: {connect: 7}
          m: {proxy: "http://attic.lan:8080", models: [other]}
        selectors:
          best: {strategy: pin, targets: [vendor/small]}
        """
    )
    engines = found.config.engines
    cloud, attic = engines["cloud"], engines["m-peer"]
    assert isinstance(cloud, RemoteConfig)
    assert isinstance(attic, PeerConfig)
    assert list(found.config.peers) == ["m-peer"]
    assert (cloud.base_url, attic.base_url) == ("https://cloud.example/api/v1", "http://attic.lan:8080/v1")
    assert (cloud.models, attic.models) == (("vendor/large", "vendor/small"), ("other",))
    assert (cloud.connect_timeout_s, cloud.discover) == (7, False)
    assert 'api_key = "${env:CLOUD_KEY}"' in found.text
    small = found.config.models["vendor/small"]
    assert (small.engine, small.strip, small.set) == ("cloud", ("seed", "top_k"), {"temperature": 0.5})
    assert found.config.aliases == {"best": "vendor/small"}
    assert found.outcome("peers.cloud.apiKey") == APPROXIMATED


def test_the_key_of_a_peer_is_not_printed() -> None:
    found = swap(top="peers: {p: {proxy: 'http://h', apiKey: sk-a-secret-key, models: [x]}}")
    shown, secrets = without_secrets(found.draft)
    assert "sk-a-secret-key" not in rendered(shown)
    assert list(secrets.values()) == ["sk-a-secret-key"]


def test_a_model_without_a_command_is_a_remote() -> None:
    text = "models: {m: {proxy: 'http://box:8000', concurrencyLimit: 3, useModelName: big, ttl: 5}}"
    found = imported(text, kind="llama-swap")
    engine = found.config.engines["m"]
    assert isinstance(engine, RemoteConfig)
    assert (engine.base_url, engine.max_in_flight) == ("http://box:8000/v1", 3)
    assert found.config.models["m"].upstream == "big"
    assert found.outcome("models.m.ttl") == LOST


@pytest.mark.parametrize(
    ("key", "place", "outcome"),
    [
        ("name: The big one", "name", APPROXIMATED),
        ("description: It thinks", "description", APPROXIMATED),
        ("proxy: http://127.0.0.1:${PORT}/v1", "proxy", APPROXIMATED),
        ("proxy: http://127.0.0.1:9000", "proxy", APPROXIMATED),
        ("capabilities: {in: [text, image], out: [text]}", "capabilities.in", APPROXIMATED),
        ("capabilities: {reranker: true}", "capabilities.reranker", LOST),
        ("metadata: {a: 1}", "metadata", LOST),
        ("concurrencyLimit: 4", "concurrencyLimit", LOST),
        ("concurrencyLimit: 0", "concurrencyLimit", CARRIED),
        ("sendLoadingState: false", "sendLoadingState", LOST),
        ("compat: {ignoreWebsockets: true}", "compat", LOST),
        ("timeouts: {responseHeader: 60}", "timeouts.responseHeader", LOST),
        ("ttl: soon", "ttl", LOST),
        ("env: [nothing]", "env", LOST),
        ("whatever: 1", "whatever", LOST),
        ("cmdStop: 'docker \"stop'", "cmdStop", LOST),
    ],
)
def test_a_key_of_a_model_that_cannot_be(key: str, place: str, outcome: str) -> None:
    found = swap(key)
    assert found.outcome(f"models.m.{place}") == outcome
    assert found.line(f"models.m.{place}") == 5


@pytest.mark.parametrize(
    ("key", "table", "expected"),
    [
        ("apiKeys: [sk-1, sk-1, sk-2]", "server", {"api_keys": ("sk-1", "sk-2")}),
        ("sendLoadingState: true", "server", {"show_progress": True}),
        ("logLevel: warn", "log", {"level": "warning"}),
        ("globalTTL: 90", "scheduling", {"idle_timeout_s": 90}),
        ("hooks: {on_startup: {preload: [m]}}", "scheduling", {"preload": ("m",)}),
        ("startPort: 9000", "server", {"port": 8077}),
        ("includeAliasesInList: true", "server", {}),
    ],
)
def test_a_key_of_the_file_that_is_carried_over(key: str, table: str, expected: dict[str, object]) -> None:
    found = swap(top=key)
    settings = getattr(found.config, table)
    assert {name: getattr(settings, name) for name in expected} == expected
    assert CARRIED in [
        note.outcome for note in found.draft.notes if note.place.startswith(key.partition(":")[0])
    ]


@pytest.mark.parametrize(
    ("key", "place", "outcome"),
    [
        ("logLevel: loud", "logLevel", LOST),
        ("logTimeFormat: rfc3339", "logTimeFormat", LOST),
        ("logToStdout: both", "logToStdout", LOST),
        ("logRequests: true", "logRequests", LOST),
        ("metricsMaxInMemory: 10", "metricsMaxInMemory", LOST),
        ("captureBuffer: 15", "captureBuffer", LOST),
        ("store: {path: /x.sqlite}", "store", LOST),
        ("ui: {activity: {session_id: [X]}}", "ui", LOST),
        ("performance: {every: 15s}", "performance", LOST),
        ("upstream: {ignorePaths: ['x']}", "upstream", LOST),
        ("includeAliasesInList: false", "includeAliasesInList", APPROXIMATED),
        ("profiles: {code: {pins: {a: m}}}", "profiles.code", LOST),
        ("profiles: {code: [m]}", "profiles.code", APPROXIMATED),
        ("peers: {p: {proxy: 'http://h', apiKey: sk-secret, models: [x]}}", "peers.p.proxy", CARRIED),
        ("peers: {p: {proxy: 'http://h', models: [x, m]}}", "peers.p.models", APPROXIMATED),
        ("peers: {p: {models: [x]}}", "peers.p", LOST),
        (
            "peers: {p: {proxy: 'http://h', filters: {setParamsByID: {x: {a: 1}}}}}",
            "peers.p.filters.setParamsByID",
            LOST,
        ),
        ("hooks: {on_startup: {preload: [m, who]}}", "hooks.on_startup.preload", APPROXIMATED),
        ("routing: {scheduler: {use: fifo}}", "routing.scheduler.use", CARRIED),
        ("routing: {scheduler: {settings: {fifo: {priority: {m: 1}}}}}", "routing.scheduler.settings", LOST),
        ("selectors: {s: {strategy: pin, targets: [m]}}", "selectors.s.strategy", CARRIED),
        ("selectors: {s: {strategy: warm, targets: [x, m]}}", "selectors.s.strategy", CARRIED),
        ("selectors: {s: {strategy: warm, targets: [x, m]}}", "selectors.s.targets", APPROXIMATED),
        ("selectors: {s: {strategy: warm, targets: [m], name: S}}", "selectors.s.name", LOST),
        (
            "selectors: {s: {strategy: spillover, targets: [m], settings: {spillover: 4}}}",
            "selectors.s.settings.spillover",
            CARRIED,
        ),
        ("selectors: {s: {strategy: pin, targets: [x]}}", "selectors.s", LOST),
        ("nonsense: 1", "nonsense", LOST),
    ],
)
def test_a_key_of_the_file_that_cannot_be(key: str, place: str, outcome: str) -> None:
    found = swap(top=key)
    assert found.outcome(place) == outcome
    assert found.line(place) == 1
    assert "sk-secret" not in repr(found.draft.notes)


def test_a_health_check_timeout_is_the_starts_of_all_and_fifteen_at_least() -> None:
    assert swap(top="healthCheckTimeout: 500").process("m").start_timeout_s == 500
    assert swap(top="healthCheckTimeout: 3").process("m").start_timeout_s == 15
    assert swap(top="unloadTimeout: 45").process("m").grace_s == 45


def test_macros_stand_in_each_other_in_numbers_and_in_keys() -> None:
    found = imported(
        """
        macros:
          server: >
            /bin/llama-server --port ${PORT}
          ctx: 4096
          args: "--ctx-size ${ctx} --alias ${MODEL_ID}"
          idle: 60
        models:
          a:
            cmd: |
              # ${nobody} is a comment
              ${server} \\
              ${args}   # so is this
            ttl: ${idle}
            filters:
              setParamsByID:
                "${MODEL_ID}": {temperature: 0.1}
                "${MODEL_ID}:hot": {temperature: 0.9, n: "${ctx}"}
          b:
            macros: {ctx: 8192}
            cmd: ${server} ${args}
        """
    )
    assert found.process("a").argv[3:] == ("--ctx-size", "4096", "--alias", "a")
    assert found.process("a").argv[:3] == ("/bin/llama-server", "--port", "{port}")
    assert found.process("b").argv[3:] == ("--ctx-size", "8192", "--alias", "b")
    assert found.outcome("models.a.cmd") == CARRIED  # a macro in a comment is none
    assert found.process("a").idle_timeout_s == 60
    assert found.config.models["a"].set == {"temperature": 0.1}
    hot = found.config.variants["a:hot"]
    assert (hot.of, hot.config.set) == ("a", {"temperature": 0.9, "n": 4096})


def test_an_unknown_macro_stays_and_is_told() -> None:
    found = swap(cmd="llama-server --port ${PORT} -m ${where}")
    assert found.process("m").argv[-1] == "${where}"
    assert found.outcome("models.m.cmd") == APPROXIMATED


def test_braces_that_this_router_fills_in_are_told() -> None:
    found = swap(cmd="server --port ${PORT} --prefix x-{model}")
    assert found.outcome("models.m.cmd") == APPROXIMATED


def test_macros_that_make_more_and_more_text_are_refused() -> None:
    lines = ["macros:", "  m0: xxxxxxxxxxxxxxxx"]
    lines += [f"  m{n}: ${{m{n - 1}}}${{m{n - 1}}}" for n in range(1, 40)]
    with pytest.raises(Unreadable, match="more text"):
        imported("\n".join([*lines, "models:", "  a: {cmd: '${m39}'}"]))


def test_variables_of_the_environment_stay_references() -> None:
    found = imported(
        """
        macros: {dir: "${env.MODELS}/gguf"}
        apiKeys: [${env.KEY_1}]
        models:
          a:
            cmd: llama-server --port ${PORT} -m ${dir}/a.gguf
            env: ["HF_TOKEN=${env.HF_TOKEN}"]
            ttl: ${env.NOT_SET_ANYWHERE}
        """
    )
    assert '"${env:MODELS}/gguf/a.gguf"' in found.text
    assert 'api_keys = ["${env:KEY_1}"]' in found.text
    assert '"${env:HF_TOKEN}"' in found.text
    assert found.outcome("models.a.ttl") == LOST


def test_a_number_from_the_environment_is_written_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDLE", "77")
    found = swap("ttl: ${env.IDLE}")
    assert found.process("m").idle_timeout_s == 77
    assert found.outcome("models.m.ttl") == APPROXIMATED


@pytest.mark.parametrize(
    ("cmd", "model", "url", "outcome"),
    [
        ("server --port ${PORT}", "proxy: http://127.0.0.1:8999", "http://127.0.0.1:8999", APPROXIMATED),
        ("server --port 9001", "proxy: http://127.0.0.1:9001", "http://127.0.0.1:9001", CARRIED),
        ("server --listen-port 9002", "", "http://127.0.0.1:9002", APPROXIMATED),
        ("docker run --rm -w /x -p 9003:8080 --name x i", "", "http://127.0.0.1:9003", APPROXIMATED),
        ("some-server", "", "http://127.0.0.1:5800", APPROXIMATED),
        ("server --port ${PORT}", "env: ['P=${PORT}']", "http://127.0.0.1:5800", APPROXIMATED),
        ("server ${PORT}", "proxy: http://elsewhere:${PORT}", "http://elsewhere:5800", CARRIED),
    ],
)
def test_where_it_listens(cmd: str, model: str, url: str, outcome: str) -> None:
    found = swap(model, cmd=cmd)
    assert found.process("m").base_url == url
    place = "proxy" if "proxy" in model else "cmd"
    assert found.outcome(f"models.m.{place}") == outcome
    if "P=" in model:
        assert found.process("m").env == {"P": "5800"}
        assert found.process("m").argv == ("server", "--port", "5800")


def test_a_container_is_stopped_by_its_name_and_stays_in_the_foreground() -> None:
    found = imported(
        """
        models:
          "Q3-CODER":
            cmdStop: docker stop vllm-coder
            cmd: |
              docker run -d --init --rm --name vllm-coder -w /
                --runtime=nvidia --gpus '"device=2,3"'
                -v /mnt/models:/models -p ${PORT}:8000
                vllm/vllm-openai:v0.10.0
                --model "/models/q" -d
          nameless:
            cmd: podman run --rm -w / -p ${PORT}:8080 image
        """
    )
    engine = found.process("Q3-CODER")
    assert engine.argv[:6] == ("docker", "run", "--init", "--rm", "--name", "vllm-coder")
    assert '"device=2,3"' in engine.argv
    assert engine.argv[-1] == "-d"  # of the program inside
    assert engine.stop_command == ("docker", "stop", "vllm-coder")
    assert engine.kill_command == ("docker", "rm", "-f", "vllm-coder")
    assert found.outcome("models.Q3-CODER.cmd") == APPROXIMATED
    assert found.outcome("models.nameless.cmd") == APPROXIMATED


def test_a_container_whose_options_are_understood_becomes_a_container_engine() -> None:
    found = imported(
        """
        models:
          coder:
            cmdStop: docker stop vllm-coder
            cmd: |
              docker run -d --init --rm --name vllm-coder
                --runtime=nvidia --gpus '"device=2,3"' --ipc=host --shm-size 16g --ulimit memlock=-1
                -v /mnt/models:/models --mount type=bind,src=/data,dst=/data,readonly -e HF_HUB_OFFLINE=1 -p ${PORT}:8000
                vllm/vllm-openai:v0.10.0
                --model "/models/q" -d
          fixed:
            cmd: podman run --rm --network host -e TOKEN image serve --port 9009
        """
    )
    engine = found.config.engines["coder"]
    assert isinstance(engine, ContainerConfig)
    assert engine.image == "vllm/vllm-openai:v0.10.0"
    assert engine.command == ("--model", "/models/q", "-d")
    assert engine.volumes == ("/mnt/models:/models", "/data:/data:ro")
    assert (engine.ports, engine.base_url) == (("{port}:8000",), None)
    assert (engine.gpus, engine.ipc, engine.shm_size) == (("2", "3"), "host", 16 << 30)
    assert engine.env == {"HF_HUB_OFFLINE": "1"}
    assert engine.host_config == {
        "Init": True,
        "Runtime": "nvidia",
        "Ulimits": [{"Name": "memlock", "Soft": -1, "Hard": -1}],
    }
    assert engine.socket == "/var/run/docker.sock"
    assert found.outcome("models.coder.cmd") == found.outcome("models.coder.cmdStop") == CARRIED
    fixed = found.config.engines["fixed"]
    assert isinstance(fixed, ContainerConfig)
    assert (fixed.network, fixed.base_url, fixed.socket) == ("host", "http://127.0.0.1:9009", None)
    assert found.outcome("models.fixed.cmd") == APPROXIMATED


@pytest.mark.parametrize(
    "cmd",
    [
        "docker run -p 1:2 --env-file x i",
        "docker run -p 1:2 -v ./models:/m i",
        "docker run -p 2 i",
        "docker run i",
        "docker run -p 1:2 --gpus none i",
        "sudo docker run -p 1:2 i",
        "docker run -p 1:2",
    ],
)
def test_a_container_with_more_to_it_stays_a_process(cmd: str) -> None:
    assert swap("", cmd=cmd).process("m").argv[-1] == cmd.rsplit(maxsplit=1)[-1]


@pytest.mark.parametrize("more", ["cmdStop: ./stop.sh", "cmdStop: docker stop other", "env: [A=1]"])
def test_a_container_with_commands_of_its_own_stays_a_process(more: str) -> None:
    assert swap(more, cmd="docker run --name x -p 1:2 i").process("m").argv[0] == "docker"


MODELS = "models:\n" + "".join(f"  {name}: {{cmd: 's --port ${{PORT}}'}}\n" for name in "abcd")


def grouped(group: str) -> Imported:
    return imported(f"{MODELS}groups:\n  g: {{{group}, members: [a, b]}}\n")


def test_groups_that_are_carried_over() -> None:
    alone = grouped("swap: true, exclusive: true")
    assert [engine.group for engine in alone.config.engines.values()] == [None] * 4
    together = grouped("swap: false")
    assert [engine.group for engine in together.config.engines.values()] == [("g",), ("g",), None, None]
    assert together.outcome("groups.g.swap") == CARRIED
    forever = grouped("swap: false, exclusive: false, persistent: true")
    assert [(e.pool, e.group) for e in forever.config.engines.values()][1:3] == [
        ("g", ("g",)),
        ("default", None),
    ]
    assert {forever.outcome(f"groups.g.{key}") for key in ("swap", "exclusive", "persistent")} == {CARRIED}


@pytest.mark.parametrize("group", ["exclusive: false", "persistent: true", "swap: false, exclusive: false"])
def test_groups_that_are_approximated(group: str) -> None:
    found = grouped(group)
    assert [engine.pool for engine in found.config.engines.values()] == ["g", "g", "default", "default"]
    assert APPROXIMATED in [note.outcome for note in found.draft.notes if note.place.startswith("groups.g.")]


def test_members_that_are_no_models_are_told() -> None:
    found = imported(f"{MODELS}groups: {{g: {{swap: false, members: [a, x]}}}}")
    assert found.outcome("groups.g.members") == APPROXIMATED


def test_what_is_not_in_use_is_told() -> None:
    settings = "{groups: {g: {swap: false, members: [a, b]}}, matrix: {sets: {s: 'a & b'}}}"
    found = imported(f"{MODELS}routing: {{router: {{settings: {settings}}}}}")
    assert found.outcome("routing.router.settings.matrix") == LOST
    assert found.process("a").group == ("g",)


def test_models_of_old_profiles_run_together_under_their_names() -> None:
    found = imported(f"{MODELS}profiles:\n  pair:\n    - a\n    - b\n")
    assert found.process("a").group == found.process("b").group == ("pair",)
    assert found.config.models["a"].aliases == ("pair:a",)


def test_selectors_are_aliases() -> None:
    found = swap(
        top="selectors: {best: {strategy: pin, targets: [m]}}\nhooks: {on_startup: {preload: [best]}}"
    )
    assert found.config.aliases == {"best": "m"}
    assert found.config.scheduling.preload == ("best",)


def test_selectors_that_choose_are_routes() -> None:
    found = imported(
        """
        models:
          a: {cmd: "s --port ${PORT} a", filters: {setParamsByID: {"a:hot": {temperature: 2}, other: {temperature: 1}}}}
          b: {cmd: "s --port ${PORT} b", aliases: [bee]}
        selectors:
          best: {strategy: warm, targets: [a, bee, gone], unlisted: true}
          many: {strategy: spillover, targets: [b, "a:hot"], settings: {spillover: 4}}
          only: {strategy: pin, targets: [a, b]}
          a: {strategy: warm, targets: [b]}
        """
    )
    best, many = found.config.routes["best"], found.config.routes["many"]
    assert (best.prefer, best.strategy, best.unlisted) == (("a", "b"), "resident", True)
    assert (many.prefer, many.strategy, many.spillover) == (("b", "a:hot"), "spillover", 4)
    assert found.config.aliases == {"only": "a"}
    assert found.config.routes.keys() == {"best", "many"}
    other = found.config.models["other"]
    assert (other.engine, other.upstream, other.set) == ("a", "a", {"temperature": 1})


async def test_names_of_set_params_by_id_share_the_resident_of_their_model() -> None:
    by_id = "{a: {seed: 1}, 'a:hot': {temperature: 2}, creative: {temperature: 1}, 'b:x': {top_k: 1}}"
    found = imported(
        f"""
        models:
          a:
            cmd: "s --port ${{PORT}}"
            useModelName: real
            filters: {{stripParams: top_p, setParams: {{n: 1}}, setParamsByID: {by_id}}}
          b: {{cmd: "s --port ${{PORT}}"}}
        """
    )
    registry = ModelRegistry(found.config, build_engines(found.config, ControlClient()))
    targets = {name: registry.resolve(name) for name in ("a", "a:hot", "creative", "b:x")}
    assert {(str(target.resident), target.upstream) for target in targets.values()} == {("a", "real")}
    assert str(registry.resolve("b").resident) == "b"
    assert found.config.models["creative"].set == {"n": 1, "temperature": 1}
    assert found.config.models["b:x"].strip == ("top_p",)
    assert (
        found.outcome("models.a.filters.setParamsByID") == APPROXIMATED
    )  # a's seed goes into those of a:hot, too


def test_anchors_and_merges_of_yaml() -> None:
    found = imported(
        """
        models:
          a: &base
            cmd: s --port ${PORT} ${MODEL_ID}
            ttl: 5
          b:
            <<: *base
            ttl: 6
          c: *base
        """
    )
    assert [engine.idle_timeout_s for engine in found.config.engines.values()] == [5, 6, 5]
    assert [found.process(name).argv[-1] for name in "abc"] == ["a", "b", "c"]


def published() -> list[str]:
    """Return the example configurations that llama-swap publishes, where its repository is at hand."""
    repository = os.environ.get("LLAMA_SWAP_REPOSITORY")
    if repository is None:
        return []
    git = ["git", "-C", repository]
    names = subprocess.run(
        [*git, "ls-tree", "-r", "--name-only", "HEAD"], check=True, capture_output=True, text=True
    )
    texts: list[str] = []
    for name in names.stdout.splitlines():
        if not name.endswith((".yaml", ".yml", ".md")):
            continue
        text = subprocess.run(
            [*git, "show", f"HEAD:{name}"], check=True, capture_output=True, text=True
        ).stdout
        blocks = (
            [text]
            if not name.endswith(".md")
            else [b.partition("```")[0] for b in text.split("```yaml\n")[1:]]
        )
        texts += [block for block in blocks if "\nmodels:" in f"\n{block}" and " cmd:" in block]
    return texts


@pytest.mark.skipif(
    "LLAMA_SWAP_REPOSITORY" not in os.environ, reason="llama-swap's repository is not at hand"
)
def test_every_published_example_imports() -> None:
    texts = published()
    assert len(texts) >= 4
    for text in texts:
        assert imported(text).draft.source == "llama-swap"
    assert Path(os.environ["LLAMA_SWAP_REPOSITORY"]).exists()
