/* An engine that costs next to nothing, for measuring what a proxy in front of it costs.
 *
 *     upstream PORT       on 127.0.0.1; ends with the thread that started it
 *
 * What a POST gets is said in its header `x-bench`:
 *     json                            a small JSON answer with the hash of the request's body
 *     sse n=N size=BYTES rate=R       N events, each an HTTP chunk of its own; R a second, or 0: as fast as the socket takes them
 *     ndjson n=N size=BYTES rate=R    the same as Ollama's lines
 *     bytes n=N                       N bytes of noise
 *     hang id=I                       nothing; GET /bench/hang?id=I says when it came and when its connection was closed
 *
 * One thread, one epoll. Beside that it says what engines of type `http` and `ollama` are asked for.
 */
#include "common.h"

#include <sys/prctl.h>

#define MOST_CONNECTIONS 8192
#define OUT_BYTES (65536 + LARGEST_CHUNK + 1024)
#define MOST_HANGS 1024
#define MOST_FLAGS 64

enum state { HEAD, BODY, SENDING, HANGING };

struct connection {
    int fd;
    enum state state;
    bool waits_writable, closes;
    char head[HEAD_BYTES + 1];
    size_t head_size;
    uint64_t body_left;
    struct hash body;
    /* what is being sent: bytes in `out`, then `big`, then more chunks */
    char *out;
    size_t out_from, out_to;
    const char *big;
    size_t big_left;
    bool streams;
    enum dialect dialect;
    struct template *template;
    uint32_t chunk, chunks;
    double rate;
    uint64_t began, due;
    int heap_at; /* -1: not waiting for its time */
    int hang;
    bool unloads; /* the request's body says so */
};

static int poller, timer;
static struct connection *connections[MOST_CONNECTIONS];
static struct connection *heap[MOST_CONNECTIONS];
static int heap_size;
static uint64_t armed;
static struct { uint64_t arrived, closed; } hangs[MOST_HANGS];
static bool loaded[MOST_FLAGS];
static char *noise_bytes;
static size_t noise_size;
static struct template *templates[2][LARGEST_CHUNK + 1];

/* ---- who is due next: a binary heap ---- */

static void heap_put(int at, struct connection *c) {
    heap[at] = c;
    c->heap_at = at;
}

static void heap_up(int at) {
    struct connection *c = heap[at];
    for (; at && heap[(at - 1) / 2]->due > c->due; at = (at - 1) / 2) heap_put(at, heap[(at - 1) / 2]);
    heap_put(at, c);
}

static void heap_down(int at) {
    struct connection *c = heap[at];
    for (;;) {
        int child = 2 * at + 1;
        if (child >= heap_size) break;
        if (child + 1 < heap_size && heap[child + 1]->due < heap[child]->due) child++;
        if (heap[child]->due >= c->due) break;
        heap_put(at, heap[child]);
        at = child;
    }
    heap_put(at, c);
}

static void heap_add(struct connection *c) {
    heap_put(heap_size++, c);
    heap_up(c->heap_at);
}

static void heap_remove(struct connection *c) {
    if (c->heap_at < 0) return;
    int at = c->heap_at;
    struct connection *last = heap[--heap_size];
    c->heap_at = -1;
    if (last == c) return;
    heap_put(at, last);
    heap_up(at);
    heap_down(last->heap_at);
}

static void arm(void) {
    uint64_t due = heap_size ? heap[0]->due : 0;
    if (due == armed) return;
    armed = due;
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(due / NS), .tv_nsec = (long)(due % NS)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

/* ---- connections ---- */

static void drop(struct connection *c) {
    heap_remove(c);
    if (c->state == HANGING && !hangs[c->hang].closed) hangs[c->hang].closed = now_ns();
    close(c->fd);
    connections[c->fd] = NULL;
    free(c->out);
    free(c);
}

static void watch(struct connection *c, bool writable) {
    if (c->waits_writable == writable) return;
    c->waits_writable = writable;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (writable ? EPOLLOUT : 0u), .data.fd = c->fd};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
}

static void put(struct connection *c, const char *data, size_t size) {
    memcpy(c->out + c->out_to, data, size);
    c->out_to += size;
}

static void put_chunk_head(struct connection *c, size_t size) {
    c->out_to += (size_t)sprintf(c->out + c->out_to, "%zx\r\n", size);
}

/* Add the next chunk of a stream, or its end. */
static void put_next(struct connection *c) {
    const struct template *t = c->template;
    if (c->chunk < c->chunks) {
        put_chunk_head(c, t->size);
        char *chunk = c->out + c->out_to;
        put(c, t->text, t->size);
        template_fill(chunk, t, c->chunk++, now_ns());
        put(c, "\r\n", 2);
        return;
    }
    size_t first = t->tail_size - t->last_size;
    if (first) {
        put_chunk_head(c, first);
        put(c, t->tail, first);
        put(c, "\r\n", 2);
    }
    put_chunk_head(c, t->last_size);
    put(c, t->tail + first, t->last_size);
    put(c, "\r\n0\r\n\r\n", 7);
    c->streams = false;
}

/* Make what is due; false when nothing is. */
static bool refill(struct connection *c) {
    if (!c->streams) return false;
    if (c->rate > 0) {
        uint64_t now = now_ns();
        if (c->due > now) {
            if (c->heap_at < 0) heap_add(c);
            return false;
        }
        while (c->streams && c->due <= now && c->out_to < 65536) {
            put_next(c);
            c->due = c->began + (uint64_t)((double)c->chunk * (double)NS / c->rate);
        }
        return true;
    }
    put_next(c); /* one write for each chunk, as engines do it */
    return true;
}

/* Send what there is. False: the connection is gone. */
static bool push(struct connection *c) {
    for (;;) {
        while (c->out_from < c->out_to || c->big_left) {
            bool small = c->out_from < c->out_to;
            const char *from = small ? c->out + c->out_from : c->big;
            size_t size = small ? c->out_to - c->out_from : c->big_left;
            ssize_t sent = send(c->fd, from, size, MSG_NOSIGNAL | (small && c->big_left ? MSG_MORE : 0));
            if (sent < 0) {
                if (errno == EINTR) continue;
                if (errno == EAGAIN) {
                    watch(c, true);
                    return true;
                }
                drop(c);
                return false;
            }
            if (small) c->out_from += (size_t)sent;
            else c->big += sent, c->big_left -= (size_t)sent;
        }
        c->out_from = c->out_to = 0;
        if (refill(c)) continue;
        watch(c, false);
        if (!c->streams) {
            if (c->closes) {
                drop(c);
                return false;
            }
            c->state = HEAD;
        }
        return true;
    }
}

static void answer(struct connection *c, const char *status, const char *type, const char *body, size_t size) {
    c->out_to = (size_t)snprintf(c->out, OUT_BYTES, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n", status, type, size);
    if (body) put(c, body, size);
    c->state = SENDING;
}

static void answer_json(struct connection *c, const char *body) { answer(c, "200 OK", "application/json", body, strlen(body)); }

static void begin_stream(struct connection *c, const char *spec, enum dialect dialect) {
    size_t size = (size_t)number_of(spec, "size", SMALLEST_CHUNK);
    if (size > LARGEST_CHUNK) size = LARGEST_CHUNK;
    struct template **t = &templates[dialect][size];
    if (!*t) {
        *t = grown(NULL, sizeof **t);
        template_make(*t, dialect, size);
    }
    c->template = *t;
    c->dialect = dialect;
    c->chunk = 0;
    c->chunks = (uint32_t)number_of(spec, "n", 1);
    c->rate = number_of(spec, "rate", 0);
    c->began = c->due = now_ns();
    c->streams = true;
    c->state = SENDING;
    c->out_to = (size_t)sprintf(c->out, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n",
                                dialect == SSE ? "text/event-stream" : "application/x-ndjson");
}

static int flag_of(double number) { return number >= 0 && number < MOST_FLAGS ? (int)number : 0; }

/* What routers ask an engine of type `http` (paths below /flag/) or `ollama` (header x-bench-flag). */
static bool answer_control(struct connection *c, const char *method, const char *path) {
    char body[512];
    const char *marked = header(c->head, "x-bench-flag");
    int flag = flag_of(marked ? strtod(marked, NULL) : 0);
    if (!strncmp(path, "/flag/", 6)) {
        char *rest;
        flag = flag_of(strtod(path + 6, &rest));
        if (!strncmp(rest, "/load", 5)) loaded[flag] = true;
        if (!strncmp(rest, "/unload", 7)) loaded[flag] = false;
        snprintf(body, sizeof body, "{\"data\":[%s]}", loaded[flag] ? "{\"id\":\"relay\"}" : "");
    } else if (!strncmp(path, "/api/generate", 13)) { /* without a prompt: load; keep_alive 0: unload */
        loaded[flag] = !c->unloads;
        snprintf(body, sizeof body, "{\"model\":\"native\",\"done\":true}");
    } else if (!strncmp(path, "/api/ps", 7)) {
        snprintf(body, sizeof body, "{\"models\":[%s]}", loaded[flag] ? "{\"name\":\"native\",\"model\":\"native\"}" : "");
    } else if (!strncmp(path, "/api/tags", 9)) {
        snprintf(body, sizeof body, "{\"models\":[{\"name\":\"native\",\"model\":\"native\"}]}");
    } else if (!strncmp(path, "/v1/models", 10)) {
        snprintf(body, sizeof body, "{\"object\":\"list\",\"data\":[{\"id\":\"relay\",\"object\":\"model\"}]}");
    } else if (!strncmp(path, "/bench/hang", 11)) {
        int id = (int)number_of(path + 11, "id", 0) % MOST_HANGS;
        snprintf(body, sizeof body, "{\"arrived\":%" PRIu64 ",\"closed\":%" PRIu64 "}", hangs[id].arrived, hangs[id].closed);
    } else if (!strcmp(method, "GET")) {
        snprintf(body, sizeof body, "{\"status\":\"ok\"}");
    } else {
        return false;
    }
    answer_json(c, body);
    return true;
}

static void respond(struct connection *c) {
    char method[16] = "", path[256] = "", body[1024];
    sscanf(c->head, "%15s %255s", method, path);
    const char *spec = header(c->head, "x-bench");
    if (!spec && answer_control(c, method, path)) return;
    if (spec && !strncmp(spec, "sse", 3)) begin_stream(c, spec, SSE);
    else if (spec && !strncmp(spec, "ndjson", 6)) begin_stream(c, spec, NDJSON);
    else if (spec && !strncmp(spec, "hang", 4)) {
        c->state = HANGING;
        c->hang = (int)number_of(spec, "id", 0) % MOST_HANGS;
        hangs[c->hang].arrived = now_ns();
        hangs[c->hang].closed = 0;
    } else if (spec && !strncmp(spec, "bytes", 5)) {
        size_t size = (size_t)number_of(spec, "n", 0);
        if (size > noise_size) {
            free(noise_bytes); /* only between answers: the load client asks for one size at a time */
            noise_bytes = noise(size);
            noise_size = size;
        }
        answer(c, "200 OK", "audio/wav", NULL, size);
        c->big = noise_bytes;
        c->big_left = size;
    } else {
        int size = answer_body(body, sizeof body, &c->body);
        answer(c, "200 OK", "application/json", body, (size_t)size);
    }
}

/* Take in what came. Pipelined requests do not occur: every proxy here has one request on a connection. */
static void take(struct connection *c, const char *data, size_t size) {
    if (c->state == SENDING || c->state == HANGING) return;
    if (c->state == HEAD) {
        size_t before = c->head_size;
        size_t fits = size < HEAD_BYTES - before ? size : HEAD_BYTES - before;
        memcpy(c->head + before, data, fits);
        c->head[before + fits] = 0;
        char *end = memmem(c->head, before + fits, "\r\n\r\n", 4);
        c->head_size = before + fits;
        if (!end) {
            if (c->head_size == HEAD_BYTES) drop(c);
            return;
        }
        size_t used = (size_t)(end + 4 - c->head) - before;
        end[4] = 0;
        c->head_size = 0;
        const char *length = header(c->head, "content-length");
        const char *connection = header(c->head, "connection");
        c->closes = connection && !strncasecmp(connection, "close", 5);
        c->body_left = length ? strtoull(length, NULL, 10) : 0;
        c->unloads = false;
        hash_start(&c->body);
        c->state = BODY;
        data += used;
        size -= used;
    }
    if (size > c->body_left) size = c->body_left;
    /* `keep_alive: 0` is how Ollama is told to unload; small bodies come in one piece */
    if (size && size < 512 && (memmem(data, size, "\"keep_alive\":0", 14) || memmem(data, size, "\"keep_alive\": 0", 15)))
        c->unloads = true;
    hash_feed(&c->body, data, size);
    c->body_left -= size;
    if (c->body_left) return;
    respond(c);
    if (c->state == SENDING) push(c);
}

static void serve_connection(int fd, uint32_t events) {
    static char data[READ_BYTES];
    struct connection *c = connections[fd];
    if (!c) return;
    if (events & EPOLLOUT && !push(c)) return;
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP))) return;
    while (connections[fd] == c) {
        ssize_t got = recv(fd, data, sizeof data, 0);
        if (got > 0) {
            take(c, data, (size_t)got);
            if ((size_t)got < sizeof data) return;
        } else if (got < 0 && errno == EINTR) {
            continue;
        } else if (got < 0 && errno == EAGAIN) {
            return;
        } else {
            drop(c);
            return;
        }
    }
}

static void welcome(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd >= MOST_CONNECTIONS) {
            close(fd);
            continue;
        }
        set_nodelay(fd);
        struct connection *c = calloc(1, sizeof *c);
        if (!c) die("memory");
        c->fd = fd;
        c->heap_at = -1;
        c->out = grown(NULL, OUT_BYTES);
        connections[fd] = c;
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

static void tick(void) {
    uint64_t expirations;
    while (read(timer, &expirations, sizeof expirations) > 0) {}
    armed = 0;
    uint64_t now = now_ns();
    while (heap_size && heap[0]->due <= now) {
        struct connection *c = heap[0];
        heap_remove(c);
        if (!c->waits_writable) push(c); /* else it goes on when the socket takes more */
    }
}

int main(int count_of_arguments, char **arguments) {
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int port = count_of_arguments == 2 ? atoi(arguments[1]) : 0;
    if (port < 1 || port > 65535) die("usage: upstream PORT");
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max < MOST_CONNECTIONS ? files.rlim_max : MOST_CONNECTIONS;
    setrlimit(RLIMIT_NOFILE, &files);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) die("listen");

    poller = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    int sources[] = {listener, timer};
    for (int i = 0; i < 2; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = sources[i]};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, sources[i], &event)) die("epoll");
    }
    for (;;) {
        struct epoll_event events[256];
        arm();
        int count = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) welcome(listener);
            else if (fd == timer) tick();
            else serve_connection(fd, events[i].events);
        }
    }
}
