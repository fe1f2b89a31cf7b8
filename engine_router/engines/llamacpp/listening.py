"""The options of the llama.cpp server that say where it listens, to whom, and what it answers."""

import argparse

from engine_router.engines.llamacpp import values


def add_listening(group: argparse._ArgumentGroup) -> None:
    """Add the options of the address, the keys and the connections."""
    add = group.add_argument
    add(
        "--host",
        dest="hostnames",
        type=values.parts,
        default=["127.0.0.1"],
        metavar="ADDRESS[,ADDRESS]",
        help="addresses to listen on; 0.0.0.0 opens the server to the network (default: 127.0.0.1)",
    )
    add(
        "--port",
        type=values.port,
        default=8080,
        metavar="N",
        help="TCP port; 0 picks a free one (default: 8080)",
    )
    add(
        "--api-key",
        dest="api_keys",
        action="extend",
        type=values.parts,
        metavar="KEY[,KEY]",
        help="keys, one of which each request must carry as a bearer token",
    )
    add(
        "--api-key-file",
        dest="api_keys",
        action="extend",
        type=values.lines_of,
        metavar="FILE",
        help="a file with one such key per line",
    )
    add("--api-prefix", metavar="PREFIX", help="path that comes before every endpoint's path")
    add("--ssl-key-file", dest="ssl_file_key", metavar="FILE", help="the private key for HTTPS, PEM")
    add("--ssl-cert-file", dest="ssl_file_cert", metavar="FILE", help="the certificate for HTTPS, PEM")
    add(
        "-to",
        "--timeout",
        type=values.natural,
        metavar="SECONDS",
        help="limit of one read or write (default: 3600)",
    )
    add(
        "--threads-http",
        dest="n_threads_http",
        type=values.whole,
        metavar="N",
        help="threads that handle requests",
    )


def add_endpoints(group: argparse._ArgumentGroup) -> None:
    """Add the options that switch endpoints on and off."""
    add = group.add_argument
    add("--embedding", "--embeddings", dest="embedding", action="store_true", help="serve embeddings")
    add(
        "--pooling",
        dest="pooling_type",
        choices=("none", "mean", "cls", "last", "rank"),
        help="how the vectors of a text's tokens become one (default: what the model says)",
    )
    add(
        "--rerank",
        "--reranking",
        dest="rerank",
        action="store_true",
        help="serve reranking; implies --embedding and --pooling rank",
    )
    add("--metrics", dest="endpoint_metrics", action="store_true", help="serve GET /metrics for Prometheus")
    add("--props", dest="endpoint_props", action="store_true", help="allow POST /props")
    add("--slots", dest="endpoint_slots", action="store_true", help="serve GET /slots (default)")
    add("--no-slots", dest="endpoint_slots", action="store_false", help="do not serve GET /slots")
    add(
        "--slot-save-path",
        type=values.folder,
        metavar="FOLDER",
        help="where slots are saved to and restored from",
    )
    add("--no-ui", "--no-webui", dest="ui", action="store_false", help="do not serve the web page")
