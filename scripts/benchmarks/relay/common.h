/* What the upstream and the load client have in common: a clock, a hash, and every byte that is sent and checked.
 *
 * Both make the same bodies from the same few numbers, so that the client can check each byte that a proxy
 * hands it against what the upstream must have sent.
 */
#ifndef RELAY_COMMON_H
#define RELAY_COMMON_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000ull
#define HEAD_BYTES 16384
#define READ_BYTES 262144
#define SMALLEST_CHUNK 220 /* the frame of a chunk, its number and its time leave little room for less */
#define LARGEST_CHUNK 4096

/* Which words a streamed answer is made of. */
enum dialect { SSE, NDJSON };

static inline void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static inline void *grown(void *old, size_t bytes) {
    void *made = realloc(old, bytes);
    if (!made) die("memory");
    return made;
}

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS + (uint64_t)t.tv_nsec;
}

/* ---- a hash of a body that comes in pieces: eight bytes at a time, not cryptographic ---- */

struct hash {
    uint64_t value, total;
    unsigned char tail[8];
};

static inline void hash_word(struct hash *h, uint64_t word) {
    h->value = (h->value ^ word) * 0x9e3779b97f4a7c15ull;
    h->value ^= h->value >> 29;
}

static inline void hash_start(struct hash *h) { memset(h, 0, sizeof *h); }

static inline void hash_feed(struct hash *h, const char *data, size_t length) {
    uint64_t word;
    while (length && h->total % 8) {
        h->tail[h->total++ % 8] = (unsigned char)*data++;
        length--;
        if (h->total % 8 == 0) {
            memcpy(&word, h->tail, 8);
            hash_word(h, word);
        }
    }
    for (; length >= 8; data += 8, length -= 8, h->total += 8) {
        memcpy(&word, data, 8);
        hash_word(h, word);
    }
    for (; length; length--) h->tail[h->total++ % 8] = (unsigned char)*data++;
}

static inline uint64_t hash_end(const struct hash *h) {
    struct hash last = *h;
    uint64_t word = 0;
    memcpy(&word, h->tail, h->total % 8);
    hash_word(&last, word);
    hash_word(&last, h->total);
    return last.value;
}

/* ---- bodies ---- */

/* The answer to a plain request: it says how much of the request's body came, and its hash. */
static inline int answer_body(char *to, size_t room, const struct hash *received) {
    return snprintf(to, room,
                    "{\"id\":\"chatcmpl-relay\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"relay\","
                    "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"received %" PRIu64
                    " bytes, %016" PRIx64 "\"},\"finish_reason\":\"stop\"}],"
                    "\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":8,\"total_tokens\":20}}",
                    received->total, hash_end(received));
}

/* Incompressible bytes: what an audio answer, or an image in a request, is made of. */
static inline char *noise(size_t bytes) {
    uint64_t *words = grown(NULL, bytes + 8);
    for (size_t i = 0; i <= bytes / 8; i++) {
        uint64_t z = (i + 1) * 0x9e3779b97f4a7c15ull;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        words[i] = z ^ (z >> 31);
    }
    return (char *)words;
}

/* One piece of a stream: `...@NUMBER@TIME@letters...`, always `size` bytes long. */
struct template {
    char text[LARGEST_CHUNK + 1];
    size_t size, mark, pad, pad_bytes; /* offsets of the mark and of the letters */
    char tail[512];
    size_t tail_size;
    size_t last_size; /* the last event of the tail, a chunk of its own */
};

#define MARK_BYTES 31 /* @, 8 digits, @, 20 digits, @ */

static inline void template_make(struct template *t, enum dialect dialect, size_t size) {
    const char *before = dialect == SSE
        ? "data: {\"id\":\"chatcmpl-relay\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"relay\","
          "\"choices\":[{\"index\":0,\"delta\":{\"content\":\""
        : "{\"model\":\"native\",\"created_at\":\"2026-01-01T00:00:00.000000Z\",\"message\":{\"role\":\"assistant\",\"content\":\"";
    const char *after = dialect == SSE ? "\"},\"finish_reason\":null}]}\n\n" : "\"},\"done\":false}\n";
    size_t frame = strlen(before) + MARK_BYTES + strlen(after);
    if (size < frame) size = frame;
    if (size > LARGEST_CHUNK) size = LARGEST_CHUNK;
    t->size = size;
    t->mark = strlen(before);
    t->pad = t->mark + MARK_BYTES;
    t->pad_bytes = size - frame;
    memset(t->text, ' ', size);
    memcpy(t->text, before, t->mark);
    memcpy(t->text + t->pad + t->pad_bytes, after, strlen(after));
    const char *stop = dialect == SSE
        ? "data: {\"id\":\"chatcmpl-relay\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"relay\","
          "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"
        : "";
    const char *last = dialect == SSE
        ? "data: [DONE]\n\n"
        : "{\"model\":\"native\",\"created_at\":\"2026-01-01T00:00:00.000000Z\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},"
          "\"done\":true,\"done_reason\":\"stop\",\"total_duration\":1}\n";
    t->last_size = strlen(last);
    t->tail_size = (size_t)snprintf(t->tail, sizeof t->tail, "%s%s", stop, last);
}

static inline void digits(char *to, int width, uint64_t value) {
    for (int i = width - 1; i >= 0; i--, value /= 10) to[i] = (char)('0' + value % 10);
}

/* Write number and time into a chunk, with letters that depend on the number. */
static inline void template_fill(char *chunk, const struct template *t, uint32_t number, uint64_t time) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz";
    char *mark = chunk + t->mark;
    mark[0] = mark[9] = mark[30] = '@';
    digits(mark + 1, 8, number);
    digits(mark + 10, 20, time);
    for (size_t i = 0; i < t->pad_bytes; i += 26) {
        size_t n = t->pad_bytes - i < 26 ? t->pad_bytes - i : 26;
        memcpy(chunk + t->pad + i, letters + number % 26, n);
    }
}

static inline bool read_digits(const char *from, int width, uint64_t *value) {
    *value = 0;
    for (int i = 0; i < width; i++) {
        if (from[i] < '0' || from[i] > '9') return false;
        *value = *value * 10 + (uint64_t)(from[i] - '0');
    }
    return true;
}

/* ---- sockets and heads ---- */

static inline void set_nodelay(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static inline void set_nonblocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

/* Find a header in a head that ends with a 0; returns its value's start, or NULL. */
static inline const char *header(const char *head, const char *name) {
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line && line[2] && line[2] != '\r'; line = strstr(line + 2, "\r\n")) {
        if (strncasecmp(line + 2, name, length) == 0 && line[2 + length] == ':') {
            const char *value = line + 3 + length;
            while (*value == ' ') value++;
            return value;
        }
    }
    return NULL;
}

/* Read `key=NUMBER` out of a text that ends with a line end or a 0. */
static inline double number_of(const char *text, const char *key, double otherwise) {
    size_t length = strlen(key);
    for (const char *at = text; at && *at && *at != '\r'; at++)
        if ((at == text || at[-1] == ' ' || at[-1] == '?' || at[-1] == '&') && strncmp(at, key, length) == 0 && at[length] == '=')
            return strtod(at + length + 1, NULL);
    return otherwise;
}

#endif
