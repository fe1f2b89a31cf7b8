/* The load client: sends requests, checks every byte of the answers, and prints figures as one JSON object.
 *
 *     load KIND key=value ...
 *
 * KIND   request   plain requests in a closed loop on `conns` kept connections
 *        stream    SSE: `conns` streams of `n` chunks of `size` bytes, at `rate` a second or 0: unpaced
 *        ndjson    the same at /api/chat; with translated=1 the proxy makes the lines of SSE chunks
 *        upload    requests with a body of `bytes` bytes, `model` after the messages; before them with `early=1`
 *        download  answers of `bytes` bytes
 *        hangup    leaves before the first byte of an answer, `count` times; `upstream` is the upstream's own port
 *
 * port=PORT conns=N seconds=S (begin requests for so long) count=N (at most so many on each connection)
 * limit=S (end then, whatever is missing) stagger=S (spread the connections' starts) path=PATH model=NAME
 *
 * One thread, one epoll.
 */
#include "common.h"

#define MOST_SAMPLES (4u << 20)
#define MOST_LINE 8192

enum kind { REQUEST, STREAM, LINES, UPLOAD, DOWNLOAD, HANGUP };
enum framing { LENGTH, CHUNKED, UNTIL_CLOSE };
enum chunk_state { SIZE_LINE, DATA, DATA_END, TRAILER };

struct samples {
    uint32_t *ns_over_16; /* a 32-bit count of 16 ns: up to 68 s */
    size_t count, room;
};

struct client {
    int fd;
    bool connected, busy, ended, head_done, waits_writable;
    uint64_t starts_at, sent_at;
    uint64_t done;
    /* being sent */
    size_t sent;
    /* being received */
    char head[HEAD_BYTES + 1];
    size_t head_size;
    enum framing framing;
    uint64_t left;
    enum chunk_state chunk_state;
    char size_line[32];
    size_t size_line_size;
    int status;
    uint64_t position; /* in the body */
    uint32_t chunk;
    bool finished_line;
    char *line; /* a chunk of a stream, or a line, until it is whole */
    size_t line_size;
};

static struct {
    enum kind kind;
    int port, upstream, conns;
    double seconds, limit, stagger, rate;
    uint64_t count, n, size, bytes;
    bool translated, early;
    char path[128], model[64];
} options = {.conns = 1, .seconds = 1, .limit = 60, .count = UINT64_MAX, .n = 1, .size = SMALLEST_CHUNK};

static char *request, *expected;
static size_t request_size, expected_size;
static struct template chunk_template;
static struct samples latencies, first_bytes;
static uint64_t errors, answers, chunks, on_time, bytes_in, window_end, stop_starting, deadline;
static char first_error[256];
static int poller, active;
static struct client *clients;

static void sample(struct samples *s, uint64_t ns) {
    if (s->count == MOST_SAMPLES) return;
    if (s->count == s->room) {
        s->room = s->room ? 2 * s->room : 4096;
        s->ns_over_16 = grown(s->ns_over_16, s->room * sizeof *s->ns_over_16);
    }
    s->ns_over_16[s->count++] = ns / 16 > UINT32_MAX ? UINT32_MAX : (uint32_t)(ns / 16);
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, struct samples *s) {
    if (!s->count) {
        printf("\"%s\":null,", name);
        return;
    }
    qsort(s->ns_over_16, s->count, sizeof *s->ns_over_16, by_size);
#define QUANTILE(q) ((double)s->ns_over_16[(size_t)((double)(s->count - 1) * (q))] * 16 / 1000)
    printf("\"%s\":{\"count\":%zu,\"p50\":%.2f,\"p90\":%.2f,\"p99\":%.2f,\"max\":%.2f},", name, s->count, QUANTILE(0.5),
           QUANTILE(0.9), QUANTILE(0.99), QUANTILE(1));
}

static void fault(const char *what, const char *data, size_t size) {
    errors++;
    if (*first_error) return;
    size_t at = (size_t)snprintf(first_error, sizeof first_error, "%s", what);
    if (size > 120) size = 120;
    if (size) at += (size_t)snprintf(first_error + at, sizeof first_error - at, ": ");
    for (size_t i = 0; i < size && at + 1 < sizeof first_error; i++) {
        unsigned char byte = (unsigned char)data[i];
        first_error[at++] = byte < 32 || byte > 126 || byte == '"' || byte == '\\' ? '.' : (char)byte;
    }
    first_error[at < sizeof first_error ? at : sizeof first_error - 1] = 0;
}

/* ---- what is sent, and what is expected ---- */

static void make_request(void) {
    char spec[128];
    const char *stream = options.kind == STREAM || options.kind == LINES ? "true" : "false";
    switch (options.kind) {
    case STREAM:
    case LINES:
        snprintf(spec, sizeof spec, "%s n=%" PRIu64 " size=%" PRIu64 " rate=%g",
                 options.kind == STREAM || options.translated ? "sse" : "ndjson", options.n, options.size, options.rate);
        break;
    case DOWNLOAD: snprintf(spec, sizeof spec, "bytes n=%" PRIu64, options.bytes); break;
    default: snprintf(spec, sizeof spec, "json");
    }
    size_t image = options.kind == UPLOAD ? options.bytes : 0;
    char *body = grown(NULL, image + 1024);
    size_t size;
    if (image) {
        size = (size_t)(options.early ? sprintf(body, "{\"model\":\"%s\",", options.model) : sprintf(body, "{"));
        size += (size_t)sprintf(body + size, "\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"What is this?\"},"
                                     "{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,");
        static const char base64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        char *bytes = noise(image);
        for (size_t i = 0; i < image; i++) body[size++] = base64[(unsigned char)bytes[i] % 64];
        free(bytes);
        size += (size_t)sprintf(body + size, "\"}}]}],\"max_tokens\":16,\"stream\":false");
        if (!options.early) size += (size_t)sprintf(body + size, ",\"model\":\"%s\"", options.model);
        body[size++] = '}';
    } else {
        size = (size_t)sprintf(body,
                               "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"},"
                               "{\"role\":\"user\",\"content\":\"Why is the sky blue?\"}],\"max_tokens\":64,\"stream\":%s}",
                               options.model, stream);
    }
    request = grown(NULL, size + 1024);
    request_size = (size_t)sprintf(request,
                                   "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: relay-load\r\nAccept: */*\r\n"
                                   "Content-Type: application/json\r\nContent-Length: %zu\r\nx-bench: %s\r\n\r\n",
                                   options.path, options.port, size, spec);
    memcpy(request + request_size, body, size);
    request_size += size;
    if (options.kind == DOWNLOAD) {
        expected = noise(options.bytes);
        expected_size = options.bytes;
    } else if (options.kind == REQUEST || options.kind == UPLOAD) {
        struct hash sent;
        hash_start(&sent);
        hash_feed(&sent, body, size);
        expected = grown(NULL, 1024);
        expected_size = (size_t)answer_body(expected, 1024, &sent);
    } else {
        template_make(&chunk_template, options.kind == STREAM || options.translated ? SSE : NDJSON, options.size);
    }
    free(body);
}

/* ---- checking what comes ---- */

static void count_chunk(uint64_t stamp, uint64_t now) {
    chunks++;
    if (now <= window_end) on_time++;
    sample(&latencies, now > stamp ? now - stamp : 0);
}

/* One chunk of a stream is whole: it must be, to the byte, what the upstream sent. */
static bool check_chunk(struct client *c, uint64_t now) {
    static char wanted[LARGEST_CHUNK + 1];
    uint64_t stamp;
    if (!read_digits(c->line + chunk_template.mark + 10, 20, &stamp)) return false;
    memcpy(wanted, chunk_template.text, chunk_template.size);
    template_fill(wanted, &chunk_template, c->chunk, stamp);
    if (memcmp(wanted, c->line, chunk_template.size)) return false;
    c->chunk++;
    count_chunk(stamp, now);
    return true;
}

/* A stream, byte by byte: chunks of one size, then the tail. */
static bool take_stream(struct client *c, const char *data, size_t size, uint64_t now) {
    while (size) {
        if (c->chunk < options.n) {
            size_t wants = chunk_template.size - c->line_size;
            size_t n = size < wants ? size : wants;
            memcpy(c->line + c->line_size, data, n);
            c->line_size += n;
            data += n;
            size -= n;
            if (c->line_size < chunk_template.size) return true;
            c->line_size = 0;
            if (!check_chunk(c, now)) {
                fault("wrong bytes in a stream", c->line, chunk_template.size);
                return false;
            }
            if (c->chunk == options.n) c->position = 0;
        } else {
            if (c->position + size > chunk_template.tail_size || memcmp(chunk_template.tail + c->position, data, size)) {
                fault("wrong bytes at a stream's end", data, size);
                return false;
            }
            c->position += size;
            size = 0;
        }
    }
    return true;
}

/* A line that the proxy made of a chunk: its text must have come whole and in order. */
static bool check_line(struct client *c, uint64_t now) {
    static char wanted[LARGEST_CHUNK + 1];
    uint64_t stamp;
    c->line[c->line_size] = 0;
    const char *mark = strchr(c->line, '@');
    if (!mark) {
        c->finished_line = strstr(c->line, "\"done\":true") || strstr(c->line, "\"done\": true");
        return c->finished_line && c->chunk == options.n;
    }
    size_t wants = MARK_BYTES + chunk_template.pad_bytes;
    if ((size_t)(c->line + c->line_size - mark) < wants || !read_digits(mark + 10, 20, &stamp)) return false;
    template_fill(wanted, &chunk_template, c->chunk++, stamp);
    if (memcmp(wanted + chunk_template.mark, mark, wants)) return false;
    count_chunk(stamp, now);
    return true;
}

static bool take_lines(struct client *c, const char *data, size_t size, uint64_t now) {
    while (size) {
        const char *end = memchr(data, '\n', size);
        size_t n = end ? (size_t)(end + 1 - data) : size;
        if (c->line_size + n > MOST_LINE) {
            fault("a line too long", data, size);
            return false;
        }
        memcpy(c->line + c->line_size, data, n);
        c->line_size += n;
        data += n;
        size -= n;
        if (!end) return true;
        if (!check_line(c, now)) {
            fault("a wrong line", c->line, c->line_size);
            return false;
        }
        c->line_size = 0;
    }
    return true;
}

static bool take_body(struct client *c, const char *data, size_t size, uint64_t now) {
    bytes_in += size;
    if (c->status != 200) return true; /* told when it is whole */
    if (options.kind == STREAM || (options.kind == LINES && !options.translated)) return take_stream(c, data, size, now);
    if (options.kind == LINES) return take_lines(c, data, size, now);
    if (c->position + size > expected_size || memcmp(expected + c->position, data, size)) {
        fault("wrong bytes in an answer", data, size);
        return false;
    }
    c->position += size;
    return true;
}

static bool is_whole(const struct client *c) {
    if (options.kind == LINES && options.translated) return c->finished_line && !c->line_size;
    if (options.kind == STREAM || options.kind == LINES) return c->chunk == options.n && c->position == chunk_template.tail_size;
    return c->position == expected_size;
}

/* ---- connections ---- */

static void end_client(struct client *c) {
    if (c->ended) return;
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->ended = true;
    active--;
}

static void watch(struct client *c, bool writable) {
    if (c->waits_writable == writable) return;
    c->waits_writable = writable;
    struct epoll_event event = {.events = EPOLLIN | (writable ? EPOLLOUT : 0u), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
}

static int connect_to(int port, bool blocking) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    set_nodelay(fd);
    if (!blocking) set_nonblocking(fd);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    return fd;
}

static bool push(struct client *c) {
    while (c->sent < request_size) {
        ssize_t sent = send(c->fd, request + c->sent, request_size - c->sent, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR) continue;
            if (errno == EAGAIN || errno == ENOTCONN) {
                watch(c, true);
                return true;
            }
            fault("cannot send", strerror(errno), strlen(strerror(errno)));
            end_client(c);
            return false;
        }
        c->sent += (size_t)sent;
    }
    watch(c, false);
    return true;
}

static void begin(struct client *c) {
    uint64_t now = now_ns();
    if (now >= stop_starting && c->done) {
        end_client(c);
        return;
    }
    if (c->done >= options.count) {
        end_client(c);
        return;
    }
    c->sent = c->head_size = c->line_size = c->size_line_size = 0;
    c->head_done = c->finished_line = false;
    c->position = c->chunk = 0;
    c->status = 0;
    c->chunk_state = SIZE_LINE;
    c->sent_at = now;
    c->busy = true;
    push(c);
}

static void start(struct client *c) {
    c->fd = connect_to(options.port, false);
    if (c->fd < 0) {
        fault("cannot connect", NULL, 0);
        end_client(c);
        return;
    }
    c->connected = true;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
    begin(c);
}

static void finish(struct client *c, uint64_t now) {
    c->busy = false;
    c->done++;
    if (c->status != 200) {
        char what[64];
        snprintf(what, sizeof what, "status %d", c->status);
        fault(what, NULL, 0);
    } else if (!is_whole(c)) {
        fault("an answer that ended too early", NULL, 0);
    } else {
        answers++;
        if (options.kind != STREAM && options.kind != LINES) sample(&latencies, now - c->sent_at);
    }
    begin(c);
}

static bool read_head(struct client *c) {
    c->status = strncmp(c->head, "HTTP/1.1 ", 9) ? 0 : atoi(c->head + 9);
    const char *length = header(c->head, "content-length");
    const char *coding = header(c->head, "transfer-encoding");
    c->framing = coding && !strncasecmp(coding, "chunked", 7) ? CHUNKED : length ? LENGTH : UNTIL_CLOSE;
    c->left = c->framing == LENGTH ? strtoull(length, NULL, 10) : 0;
    c->head_done = true;
    if (c->status >= 200) return true;
    fault("not an HTTP/1.1 answer", c->head, strlen(c->head));
    return false;
}

/* Take the framing of a chunked body away. Returns 1 at its end, -1 where it is wrong, -2 where the body is, else 0. */
static int take_chunked(struct client *c, const char *data, size_t size, uint64_t now) {
    while (size) {
        if (c->chunk_state == DATA) {
            size_t n = size < c->left ? size : (size_t)c->left;
            if (!take_body(c, data, n, now)) return -2;
            data += n;
            size -= n;
            c->left -= n;
            if (!c->left) c->chunk_state = DATA_END;
            continue;
        }
        char byte = *data++;
        size--;
        if (byte == '\r') continue;
        if (byte != '\n') {
            if (c->chunk_state == DATA_END || c->size_line_size + 1 >= sizeof c->size_line) return -1;
            c->size_line[c->size_line_size++] = byte;
            continue;
        }
        c->size_line[c->size_line_size] = 0;
        if (c->chunk_state == DATA_END) {
            c->chunk_state = SIZE_LINE;
        } else if (c->chunk_state == SIZE_LINE) {
            char *end;
            c->left = strtoull(c->size_line, &end, 16);
            if (end == c->size_line) return -1;
            c->chunk_state = c->left ? DATA : TRAILER;
        } else if (!c->size_line_size) {
            return size ? -1 : 1; /* bytes after the end: nobody asked for them */
        }
        c->size_line_size = 0;
    }
    return 0;
}

static void take(struct client *c, const char *data, size_t size) {
    uint64_t now = now_ns();
    if (!c->busy) {
        fault("bytes that nobody asked for", data, size);
        end_client(c);
        return;
    }
    if (!c->head_done) {
        if (!c->head_size) sample(&first_bytes, now - c->sent_at);
        size_t before = c->head_size, fits = size < HEAD_BYTES - before ? size : HEAD_BYTES - before;
        memcpy(c->head + before, data, fits);
        c->head_size += fits;
        c->head[c->head_size] = 0;
        char *end = memmem(c->head, c->head_size, "\r\n\r\n", 4);
        if (!end) {
            if (c->head_size == HEAD_BYTES) {
                fault("a head too long", NULL, 0);
                end_client(c);
            }
            return;
        }
        size_t used = (size_t)(end + 4 - c->head) - before;
        end[4] = 0;
        if (!read_head(c)) {
            end_client(c);
            return;
        }
        data += used;
        size -= used;
    }
    if (c->framing == CHUNKED) {
        int outcome = take_chunked(c, data, size, now);
        if (outcome < 0) {
            if (outcome == -1) fault("a body whose chunks are wrong", NULL, 0);
            end_client(c);
        } else if (outcome) {
            finish(c, now);
        }
        return;
    }
    if (c->framing == LENGTH && size > c->left) {
        fault("bytes after the end", data, size);
        end_client(c);
        return;
    }
    if (size && !take_body(c, data, size, now)) {
        end_client(c);
        return;
    }
    if (c->framing == LENGTH) {
        c->left -= size;
        if (!c->left) finish(c, now);
    }
}

static void serve_client(struct client *c, uint32_t events) {
    static char data[READ_BYTES];
    if (c->ended) return;
    if (events & EPOLLOUT && !push(c)) return;
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    ssize_t got = recv(c->fd, data, sizeof data, 0);
    if (got > 0) {
        take(c, data, (size_t)got);
    } else if (got == 0 && c->busy && c->head_done && c->framing == UNTIL_CLOSE) {
        c->busy = false;
        c->done++;
        if (c->status == 200 && is_whole(c)) answers++;
        else fault("an answer that ended too early", NULL, 0);
        end_client(c);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        fault(got ? strerror(errno) : "the connection was closed", NULL, 0);
        end_client(c);
    }
}

/* ---- leaving before the first byte ---- */

static bool ask_upstream(int fd, int id, uint64_t *arrived, uint64_t *closed) {
    char text[1024];
    int size = snprintf(text, sizeof text, "GET /bench/hang?id=%d HTTP/1.1\r\nHost: upstream\r\n\r\n", id);
    if (send(fd, text, (size_t)size, MSG_NOSIGNAL) != size) return false;
    ssize_t got = recv(fd, text, sizeof text - 1, 0);
    if (got <= 0) return false;
    text[got] = 0;
    const char *body = strstr(text, "\r\n\r\n");
    return body && sscanf(body, " {\"arrived\":%" SCNu64 ",\"closed\":%" SCNu64 "}", arrived, closed) == 2;
}

static bool wait_for(int fd, int id, bool for_close, uint64_t *arrived, uint64_t *closed) {
    uint64_t until = now_ns() + (uint64_t)(options.limit * (double)NS);
    while (now_ns() < until) {
        if (!ask_upstream(fd, id, arrived, closed)) die("the upstream does not answer");
        if (for_close ? *closed : *arrived) return true;
        usleep(500);
    }
    return false;
}

static void hang_up(void) {
    static int id_base;
    id_base = (int)(now_ns() / 1000 % 900);
    int upstream = connect_to(options.upstream, true);
    if (upstream < 0) die("upstream");
    for (uint64_t i = 0; i < options.count; i++) {
        int id = id_base + (int)(i % 100);
        uint64_t arrived = 0, closed = 0, seen;
        char text[1024], body[256];
        ask_upstream(upstream, id, &seen, &closed);
        int fd = connect_to(options.port, true);
        if (fd < 0) {
            fault("cannot connect", NULL, 0);
            break;
        }
        int size = snprintf(body, sizeof body, "{\"model\":\"%s\",\"messages\":[{\"role\":\"user\",\"content\":\"hm\"}],\"stream\":false}", options.model);
        size = snprintf(text, sizeof text,
                        "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                        "x-bench: hang id=%d\r\n\r\n%s",
                        options.path, options.port, size, id, body);
        if (send(fd, text, (size_t)size, MSG_NOSIGNAL) != size) fault("cannot send", NULL, 0);
        uint64_t until = now_ns() + (uint64_t)(options.limit * (double)NS);
        do { /* an id may have been used before */
            if (!ask_upstream(upstream, id, &arrived, &closed)) die("the upstream does not answer");
            usleep(500);
        } while ((!arrived || arrived == seen) && now_ns() < until);
        if (!arrived || arrived == seen) {
            fault("the request did not reach the upstream", NULL, 0);
            close(fd);
            break;
        }
        usleep(20000);
        uint64_t left_at = now_ns();
        close(fd);
        answers++;
        if (!wait_for(upstream, id, true, &arrived, &closed)) {
            on_time = 0;
            chunks++; /* never, as far as anybody waited */
            break;
        }
        sample(&latencies, closed > left_at ? closed - left_at : 0);
    }
    close(upstream);
}

/* ---- the whole ---- */

static void read_options(int count, char **arguments) {
    static const char *kinds[] = {"request", "stream", "ndjson", "upload", "download", "hangup"};
    if (count < 2) die("usage: load KIND key=value ...");
    options.kind = HANGUP + 1;
    for (int i = 0; i < 6; i++)
        if (!strcmp(arguments[1], kinds[i])) options.kind = (enum kind)i;
    snprintf(options.path, sizeof options.path, "%s", options.kind == LINES ? "/api/chat" : "/v1/chat/completions");
    snprintf(options.model, sizeof options.model, "relay");
    for (int i = 2; i < count; i++) {
        char *value = strchr(arguments[i], '=');
        if (!value) die(arguments[i]);
        *value++ = 0;
        const char *key = arguments[i];
        double number = strtod(value, NULL);
        if (!strcmp(key, "port")) options.port = (int)number;
        else if (!strcmp(key, "upstream")) options.upstream = (int)number;
        else if (!strcmp(key, "conns")) options.conns = (int)number;
        else if (!strcmp(key, "seconds")) options.seconds = number;
        else if (!strcmp(key, "limit")) options.limit = number;
        else if (!strcmp(key, "stagger")) options.stagger = number;
        else if (!strcmp(key, "rate")) options.rate = number;
        else if (!strcmp(key, "count")) options.count = (uint64_t)number;
        else if (!strcmp(key, "n")) options.n = (uint64_t)number;
        else if (!strcmp(key, "size")) options.size = (uint64_t)number;
        else if (!strcmp(key, "bytes")) options.bytes = (uint64_t)number;
        else if (!strcmp(key, "translated")) options.translated = number != 0;
        else if (!strcmp(key, "early")) options.early = number != 0;
        else if (!strcmp(key, "path")) snprintf(options.path, sizeof options.path, "%s", value);
        else if (!strcmp(key, "model")) snprintf(options.model, sizeof options.model, "%s", value);
        else die(key);
    }
    if (options.kind > HANGUP || !options.port || options.conns < 1 || options.conns > 4096) die("options");
}

static uint64_t run(void) {
    uint64_t began = now_ns(), now = began;
    stop_starting = began + (uint64_t)(options.seconds * (double)NS);
    deadline = began + (uint64_t)(options.limit * (double)NS);
    double ideal = options.rate > 0 ? (double)options.n / options.rate + options.stagger + 1 : options.limit;
    window_end = began + (uint64_t)(ideal * (double)NS);
    poller = epoll_create1(EPOLL_CLOEXEC);
    clients = calloc((size_t)options.conns, sizeof *clients);
    if (!clients) die("memory");
    active = options.conns;
    int started = 0;
    for (int i = 0; i < options.conns; i++) {
        clients[i].fd = -1;
        clients[i].line = grown(NULL, MOST_LINE + 1);
        clients[i].starts_at = began + (uint64_t)(options.stagger * (double)NS * i / options.conns);
    }
    while (active && now < deadline) {
        struct epoll_event events[256];
        while (started < options.conns && clients[started].starts_at <= now) start(&clients[started++]);
        uint64_t next = started < options.conns ? clients[started].starts_at : deadline;
        int wait_ms = next > now ? (int)((next - now) / 1000000) : 0;
        int count = epoll_wait(poller, events, 256, wait_ms < 200 ? wait_ms : 200);
        for (int i = 0; i < count; i++) serve_client(events[i].data.ptr, events[i].events);
        now = now_ns();
    }
    return now - began;
}

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int count, char **arguments) {
    signal(SIGPIPE, SIG_IGN);
    read_options(count, arguments);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur < (rlim_t)options.conns + 64) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    uint64_t elapsed;
    double cpu; /* without what making the bodies costs */
    if (options.kind == HANGUP) {
        cpu = cpu_seconds();
        elapsed = now_ns();
        hang_up();
        elapsed = now_ns() - elapsed;
    } else {
        make_request();
        cpu = cpu_seconds();
        elapsed = run();
    }
    cpu = cpu_seconds() - cpu;
    printf("{");
    print_samples("latency_us", &latencies);
    print_samples("first_byte_us", &first_bytes);
    printf("\"answers\":%" PRIu64 ",\"errors\":%" PRIu64 ",\"first_error\":\"%s\",\"chunks\":%" PRIu64 ",\"chunks_on_time\":%" PRIu64
           ",\"bytes\":%" PRIu64 ",\"unfinished\":%d,\"elapsed_s\":%.6f,\"cpu_s\":%.6f}\n",
           answers, errors, first_error, options.kind == HANGUP ? 0 : chunks, on_time, bytes_in,
           options.kind == HANGUP ? (int)chunks : active, (double)elapsed / 1e9, cpu);
    return 0;
}
