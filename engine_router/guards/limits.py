"""The limits on whatever comes from clients, engines, child processes and files, each with its reason.

What somebody else sends or writes has a bound, and the bound is enforced before work is spent on it. The limits that
an operator may want to change are options (`max_body_mb`, `max_queue` ...). What a protocol says (the length of a
WebSocket's closing words, of a page of Anthropic's list) stands where that protocol is spoken.
"""

from __future__ import annotations

from typing import Final

# From clients

MODEL_NAME_CHARS: Final = 512
"""A model's name: paths of files are the longest real ones, and stay below it."""

REMEMBERED_CONVERSATIONS: Final = 4096
"""Conversations of which the place is remembered that has read them, where several have their model."""

MAX_TOKEN_BYTES: Final = 65536
"""The text of one member that is looked for in a large body: no name, and no flag, is longer even when escaped."""

MAX_FORM_PARTS: Final = 1000
"""Parts of a form: an upload of many images has dozens, and each part costs as much as a small request."""

LARGE_BYTES: Final = 2_097_152
"""Bodies up to here are read as a whole, which costs less and shows every fault before an engine is asked."""

MAX_UNPACK_RATIO: Final = 100
"""The factor by which a body may grow without its content encoding.

JSON of chats becomes three to ten times as large, and lists of like numbers thirty times; gzip can make 1,000 times as
much, and zstd 30,000 times.
"""

UNPACK_FREE_BYTES: Final = 16_777_216
"""So much may come of any body, however small: a long text of the same word is no attack."""

HELD_RETRY_S: Final = 5.0
"""When a client may ask again that was refused because all requests hold too much: about a swap of a small model."""

MAX_HEAD_BYTES: Final = 65536
"""A request's line and headers: browsers and servers of the web stay below 16 KiB."""

MAX_OVERHEAD_BYTES: Final = 65536
"""Bytes behind a chunked head that bring the body no further: chunks' extensions, trailers."""

MAX_AHEAD_BYTES: Final = 65536
"""Bytes of further requests that are read while one is served, before reading pauses."""

MAX_BACKLOG_BYTES: Final = 1_048_576
"""Bytes kept of a large body that its engine takes in more slowly than it comes; beyond them reading slows down."""

SLOWEST_BYTES_PER_S: Final = 100
"""The average rate of a client that owes bytes of a request: the slowest modems were faster.

Each byte buys a little time, up to what an idle connection is given, so that a pause is no fault, and one byte now
and then no progress.
"""

REMEMBERED_HOSTS: Final = 64
"""Different Host headers whose verdict is remembered: a router has a few names, a stranger any number."""

REMEMBERED_PEERS: Final = 1024
"""Different addresses of peers that are remembered as parsed."""

REMEMBERED_PATHS: Final = 64
"""Different paths of requests of which is remembered what they are: a router has a few, a stranger any number."""

REMEMBERED_PATTERNS: Final = 256
"""Lists of models, of keys that may use these alone, that are remembered as compiled: as many as a team has keys."""

KEY_RETRY_S: Final = 2.0
"""When a client may ask again whose key has as many requests in flight as it may: most answers take some seconds."""

KEY_GRACE_S: Final = 0.5
"""Seconds that such a request waits for another one to end, which its client may have read to its end already."""

MOST_SESSIONS: Final = 32
"""Pages that are logged in with one key at the same time; one more ends the oldest."""

MAX_LOGIN_BYTES: Final = 4096
"""The body with which a page logs in: keys have up to some hundred characters. Whoever sends it has shown none yet."""

MOST_WRONG_LOGINS: Final = 10
"""Wrong keys that one address may give the page within `LOGIN_WINDOW_S`: a person mistypes a few times."""

LOGIN_WINDOW_S: Final = 60.0
"""Seconds for which a wrong key counts against the address that it came from."""

MAX_READERS: Final = 128
"""Streams of events and logs that are open together.

Each one costs a connection, what the system holds of it, and up to a few hundred KB where it is read slowly.
"""

MAX_READERS_OF_ONE: Final = 32
"""The same for one client, by its address and key: a few open pages have a few each."""

MAX_MESSAGE_BYTES: Final = 16_777_216
"""The largest WebSocket message from an engine: as large as the server takes one from a client."""

MAX_QUEUED: Final = 16
"""WebSocket messages of an engine that wait until the client reads them; then the engine waits."""

MOST_RUNNING_JOBS: Final = 100
"""Jobs under way: a script that starts them in a loop must not fill the memory; a model needs one job."""

MOST_ENDED_JOBS: Final = 100
"""Ended jobs that are remembered for whoever asks how they ended."""

MAX_COUNTED_MODELS: Final = 1000
"""Models that counters and metrics keep apart; an engine may list any number, and a client ask for each of them."""

MAX_CANDIDATES: Final = 300
"""Known names that are compared with an unknown one for a suggestion: some milliseconds of work."""

MAX_SUGGESTED: Final = 10
"""Names that an error suggests: three that look alike, or all that differ in the case of letters only."""

# From engines

MAX_ENGINE_OVERHEAD_BYTES: Final = 262_144
"""Bytes that an engine may send before its body begins, or instead of its body's next bytes.

Headers without an end, interim answers without an end, and trailers without an end fill no memory and keep nobody
waiting.
"""

MAX_WHOLE_BYTES: Final = 134_217_728
"""A translated answer in one piece, which is held until it is understood.

The longest are embeddings: a batch of 2,048 texts with 4,096 numbers of a dozen digits each.
"""

MAX_FRAME_BYTES: Final = 262_144
"""A frame of a streamed answer that is longer is passed on before it is complete."""

MAX_HELD_FRAME_BYTES: Final = 16_777_216
"""A frame that is held until it is complete, to be changed or translated: those with a picture have up to 10 MB."""

MAX_BEGINNING_BYTES: Final = 1_048_576
"""The beginning of a response in events: without an event so far it is none of that endpoint's."""

ERROR_BODY_BYTES: Final = 65536
"""Bytes read of an engine's error answer, for its message."""

ERROR_BODY_S: Final = 10.0
"""Seconds that the message of such an answer may take to come, once its head has."""

ENDPOINT_ANSWER_BYTES: Final = 65536
"""Bytes read of an answer that only shows whether an engine has an endpoint."""

CONTROL_ANSWER_BYTES: Final = 8_388_608
"""Bytes read of an engine's answer to the router's own calls (lists, loads, probes), without its content encoding.

Lists of a thousand models have half a megabyte, and what Ollama shows of one model some hundred KB.
"""

CONTROL_ANSWER_PARTS: Final = 500_000
"""Members and items of such an answer. To parse so many takes a tenth of a second, in which nobody else is served."""

ENGINE_METRICS_BYTES: Final = 2_097_152
"""Bytes read of an engine's metrics for Prometheus: vLLM's have some 100 KB."""

ENGINE_METRICS_SERIES: Final = 10_000
"""Samples among them: vLLM's are some hundred for each model. To read so many takes a few dozen milliseconds."""

ALL_ENGINE_METRICS_SERIES: Final = 50_000
"""The samples of all engines together, in one answer of the router's."""

ENGINE_METRICS_S: Final = 2.0
"""Seconds in which an engine has to give its metrics. All are asked at the same time; Prometheus waits for 5 s or 10 s."""

ENGINE_METRICS_PAUSE_S: Final = 30.0
ENGINE_METRICS_LONGEST_PAUSE_S: Final = 480.0
"""Seconds for which an engine is not asked that did not answer in that time; doubled each time, up to the longest."""

LISTED_MODELS: Final = 2000
"""Models that one engine may list; every list and status that the router gives goes through all of them."""

SERVED_NAMES: Final = 64
"""Models that the words of one command may name: a server of many adapters has a few dozen."""

SHOWN_BYTES: Final = 33_554_432
"""Bytes kept of the models that one Ollama daemon shows: a thousand of them with 32 KB each."""

COMPLAINT_CHARS: Final = 300
"""Characters repeated of an engine's own words about a failed load or unload."""

LINES_PER_S: Final = 2000
"""Lines of an engine's output: no person reads so many, and an engine that writes more is in a loop."""

LONG_LINE_BYTES: Final = 4096
"""One line of such a flood; a longer one counts as several."""

RESIDENT_LOG_LINES: Final = 1000
"""Lines that are kept of one model of an engine that has a log for each; the engine's own log has all of them, too."""

RESIDENT_LOGS: Final = 32
"""Logs that are kept of models that an engine no longer runs: it may serve hundreds in turn."""

SHARED_MEMORY_FILES: Final = 10_000
"""Files in /dev/shm that are looked at: an engine makes a few, and everybody may write there."""

LOG_LINE_CHARS: Final = 400
"""Characters of each of an engine's last lines that an error repeats."""

# From other programs

MAX_OUTPUT_BYTES: Final = 2**20
"""Bytes read of a command's output: gauges print a line, systemctl some lines, journalctl fifteen."""

PRINTED_CHARS: Final = 200
"""Characters of a gauge command's output that a message repeats."""

MAX_AMOUNT_BYTES: Final = 2**63
"""An amount of memory: no machine has more, and 1e999999999 would be a number of a gigabyte."""

# From files

MAX_GGUF_KEYS: Final = 1 << 14
"""Keys of a GGUF header: models have about 60."""

MAX_GGUF_TENSORS: Final = 1 << 17
"""Tensors of a GGUF file: models have about 2,000."""

MAX_GGUF_WALKED: Final = 1 << 22
"""Strings and arrays that are stepped over: a tokenizer has up to 800,000."""

MAX_GGUF_KEY_BYTES: Final = (1 << 16) - 1
"""A key of a GGUF header: the format's own bound."""

MAX_GGUF_TEXT_BYTES: Final = 1 << 20
"""A text in a GGUF header: chat templates are the longest, with some 20 KB."""

MAX_GGUF_KEPT_BYTES: Final = 8 << 20
"""Bytes kept of one GGUF header in all."""

MAX_GGUF_KEPT_ITEMS: Final = 1 << 10
"""Items of an array that are kept: layers have a number each, vocabularies are counted only."""

MAX_CONFIG_BYTES: Final = 1 << 20
"""A model's config.json, or an index of its files: the longest have some 100 KB."""

MAX_NAME_CHARS: Final = 4096
"""A name in a configuration, or a key: as long as a path of a file may be. A model's has a limit of its own."""

MOST_FAULTS: Final = 100
"""Faults of one configuration that are told, and explained: a text may have as many as it has lines, and nobody reads more."""

MAX_CONFIG_TEXT_BYTES: Final = 1 << 20
"""An `engines.toml` that is shown and changed over HTTP: one for a thousand models has some 200 KB."""

MAX_SAFETENSORS_HEADER_BYTES: Final = 100_000_000
"""The header of a safetensors file: the format's own bound."""

MAX_SAFETENSORS_INDEX_BYTES: Final = 33_554_432
"""The index of a model's safetensors: those of mixtures with 100,000 tensors have 10 MB."""

MAX_PRESET_BYTES: Final = 1 << 20
"""An .ini file with a section for each model: a hundred models have some 50 KB."""

MAX_WEIGHT_FILES: Final = 10_000
"""Files of a folder that are looked at for weights."""

MAX_REMEMBERED_HEADERS: Final = 20_000
"""Headers of model files that are remembered; each takes about a kilobyte."""

MAX_KEPT_KEYS: Final = 256
"""Keys that are remembered of one header, besides the tokenizer: models have about 40."""

MAX_HEADER_MEMORY_BYTES: Final = 134_217_728
"""The file of remembered headers: 20,000 have 20 MB."""

MAX_SCAN_DEPTH: Final = 32
"""Folders within folders that a scan goes down into: a cache has 4 levels, a collection some more."""

MAX_SCAN_ENTRIES: Final = 500_000
"""Names in folders that the scan of one place looks at: a few seconds of work where the system knows them."""

MAX_FOUND_MODELS: Final = 20_000
"""Models that a scan may find: every list that the router gives goes through all of them."""

MAX_TOLD_SKIPPED: Final = 1000
"""Files passed over by a scan that are told with their reason, faults first."""

MAX_NAME_FILE_BYTES: Final = 4096
"""A file of the system that says what machine this is."""

MAX_ENGINE_FILE_BYTES: Final = 1 << 20
"""The configuration file of an engine, in which a model is named: some KB with all its comments."""

MAX_FOREIGN_FILE_BYTES: Final = 1 << 20
"""Another router's configuration: a hundred models with long commands have some 100 KB."""

# From the hub

HUB_ANSWER_BYTES: Final = 33_554_432
"""Bytes read of the hub's list of a repository's files: ten thousand files have 4 MB."""

HUB_ERROR_BYTES: Final = 4096
"""Bytes read of a refusal of the hub, for its message."""

MAX_REPO_FILES: Final = 20_000
"""Files of a repository: those of models have up to some hundred."""

MAX_PULLED_FILES: Final = 2000
"""Files of one download: the largest models have some hundred, and each of them is listed in its progress."""

MAX_URL_CHARS: Final = 4096
"""A URL of a file: signed ones have about a thousand."""

MAX_REDIRECTS: Final = 8
"""Redirects on the way to a file: the hub sends to a CDN, and from an old name of a repository to the new one."""

MAX_TOKEN_FILE_BYTES: Final = 65_536
"""The hub's token file: a token has some 40 characters."""

MAX_RETRY_AFTER_S: Final = 600.0
"""Seconds that a download waits when the hub says that it is too busy; beyond them it fails and says so."""

MOST_WAITING_DOWNLOADS: Final = 32
"""Downloads that wait for the one under way: more are a script in a loop."""

MOST_REMOVED_LISTED: Final = 200
"""Files that are named one by one when a model is removed."""

# Into the history

HISTORY_BACKLOG: Final = 20_000
"""Events that wait to be written: some seconds of the fastest routers, or hours of a full disk under ordinary use."""

HISTORY_TEXT_CHARS: Final = 512
"""Characters kept of a name or an error in the history: as long as a model's name may be."""

HISTORY_QUERY_S: Final = 5.0
"""Seconds that a question to the history may take: a month of a busy router takes one."""

MOST_LISTED_ACTIVITY: Final = 1000
"""Past requests in one answer: a page shows some dozen."""

FIGURE_POINTS: Final = 1000
"""Points of one figure: no screen shows more side by side."""

FIGURE_MODELS: Final = 20
"""Models that figures show one by one, those with the most requests; nobody tells more colours apart."""

MOST_CAPTURES: Final = 100
"""Requests that are kept whole."""

CAPTURE_BYTES: Final = 1_000_000
"""Bytes kept of one body: the longest chats, without their images."""

# Into traces

TRACE_BACKLOG: Final = 2048
"""Traces of requests and swaps that wait to be sent, some 2 KB each; the oldest are lost where a collector is away."""

TRACES_AT_ONCE: Final = 256
"""Traces in one post to a collector: some 100 KB, where collectors take a few MB."""

TRACE_POST_S: Final = 10.0
"""Seconds that a collector has for a post: what OpenTelemetry's own exporters give it."""

TRACE_ANSWER_BYTES: Final = 65_536
"""Bytes read of a collector's answer: it says nothing, or what was wrong."""

LINKED_SWAPS: Final = 256
"""Ended swaps that are remembered for the traces of the requests that waited for them."""

# Into messages and logs

ENTRY_CHARS: Final = 200
"""A name or a value that stands in a sentence: the rest tells nobody more."""

CLIENT_ERROR_CHARS: Final = 4000
"""The text of an error that is the client's own: what is long in it is what the client sent."""

MESSAGE_CHARS: Final = 16_000
"""The text of an error: that of an engine that failed repeats its last lines."""
