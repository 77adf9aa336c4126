/*
 * server.h: a walsender of a few lines, on the other end of a socketpair, for what needs no real server: it knows one
 * cluster, answers the commands of a receive, and streams WAL that is valid as far as a receiver looks
 * (https://www.postgresql.org/docs/current/protocol-replication.html).
 */
#ifndef SERVER_H
#define SERVER_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>

#include "check.h"

#define SERVER_SYSTEM UINT64_C(7000000000000000001)
#define SERVER_SEGMENT (1u << 20)
#define SERVER_START (UINT64_C(1) << 20) /* WAL begins at 0/100000 */

typedef struct server
{
    int fd;
    _Atomic uint64_t end; /* how far there is WAL; it may grow */
    int pause;            /* microseconds between messages */
    _Atomic int commands; /* received so far */
    pthread_t thread;
} server;

static inline bool server_read(server *s, void *buffer, size_t size)
{
    for (size_t got = 0; got < size;)
    {
        ssize_t n = read(s->fd, (char *)buffer + got, size - got);

        if (n <= 0)
            return false;
        got += (size_t)n;
    }
    return true;
}

static inline bool server_write(server *s, const void *buffer, size_t size)
{
    for (size_t put = 0; put < size;)
    {
        ssize_t n = send(s->fd, (const char *)buffer + put, size - put, MSG_NOSIGNAL);

        if (n <= 0)
            return false;
        put += (size_t)n;
    }
    return true;
}

static inline unsigned char *put32(unsigned char *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        *p++ = (unsigned char)(v >> (24 - 8 * i));
    return p;
}

static inline unsigned char *put64(unsigned char *p, uint64_t v)
{
    return put32(put32(p, (uint32_t)(v >> 32)), (uint32_t)v);
}

static inline bool server_message(server *s, char kind, const void *body, size_t size)
{
    unsigned char *message = malloc(5 + size); /* in one piece: who reads may look for a whole ReadyForQuery */
    bool sent;

    REQUIRE(message != NULL);
    message[0] = (unsigned char)kind;
    memcpy(put32(message + 1, (uint32_t)size + 4), body, size);
    sent = server_write(s, message, 5 + size);
    free(message);
    return sent;
}

static inline bool server_ready(server *s, const char *tag)
{
    return server_message(s, 'C', tag, strlen(tag) + 1) && server_message(s, 'Z', "I", 1);
}

/* One row of text columns; NULL is NULL. */
static inline bool server_row(server *s, const char *const *columns, int count)
{
    unsigned char description[400] = { 0 }, row[400] = { 0 };
    unsigned char *d = description + 2, *r = row + 2;

    description[1] = row[1] = (unsigned char)count;
    for (int i = 0; i < count; i++)
    {
        *d++ = 'c';
        *d++ = '\0';
        d += 6;
        d = put32(d, 25); /* text */
        *d++ = 0xff;
        *d++ = 0xff;
        d = put32(d, 0xffffffff);
        d += 2;
        if (columns[i] == NULL)
        {
            r = put32(r, 0xffffffff);
            continue;
        }
        r = put32(r, (uint32_t)strlen(columns[i]));
        memcpy(r, columns[i], strlen(columns[i]));
        r += strlen(columns[i]);
    }
    return server_message(s, 'T', description, (size_t)(d - description)) && server_message(s, 'D', row, (size_t)(r - row)) &&
           server_ready(s, "SELECT");
}

static inline bool server_error(server *s, const char *state, const char *message, const char *detail, const char *hint)
{
    char body[400];
    int n = snprintf(body, sizeof(body), "SERROR%cVERROR%cC%s%cM%s%cD%s%cH%s%c", 0, 0, state, 0, message, 0, detail, 0, hint, 0);

    return server_message(s, 'E', body, (size_t)n + 1) && server_message(s, 'Z', "I", 1);
}

/* WAL from lsn on, at most to the segment's end: zeroes, but for the header of a segment's first page. */
static inline bool server_wal(server *s, uint64_t lsn, size_t size)
{
    unsigned char *message = calloc(1, 25 + size);
    unsigned char *p = message;
    bool sent;

    REQUIRE(message != NULL);
    *p++ = 'w';
    p = put64(put64(put64(p, lsn), atomic_load(&s->end)), 0);
    if (lsn % SERVER_SEGMENT == 0 && size >= 40)
    {
        const uint16_t magic = 0xD110, long_header = 2;
        const uint32_t timeline = 1, segment = SERVER_SEGMENT, block = 8192;
        const uint64_t system = SERVER_SYSTEM;

        memcpy(p, &magic, 2);
        memcpy(p + 2, &long_header, 2);
        memcpy(p + 4, &timeline, 4);
        memcpy(p + 8, &lsn, 8);
        memcpy(p + 24, &system, 8);
        memcpy(p + 32, &segment, 4);
        memcpy(p + 36, &block, 4);
    }
    sent = server_message(s, 'd', message, 25 + size);
    free(message);
    return sent;
}

/* Streams until the client ends COPY. */
static inline bool server_stream(server *s, uint64_t lsn)
{
    static const unsigned char copy_both[3] = { 0, 0, 0 };

    if (!server_message(s, 'W', copy_both, 3))
        return false;
    for (;;)
    {
        unsigned char header[5], body[1000];
        ssize_t n = recv(s->fd, header, 1, MSG_DONTWAIT);

        if (n == 0)
            return false;
        if (n == 1)
        {
            uint32_t length;

            if (!server_read(s, header + 1, 4))
                return false;
            length = ((uint32_t)header[1] << 24 | (uint32_t)header[2] << 16 | (uint32_t)header[3] << 8 | header[4]) - 4;
            if (length > sizeof(body) || !server_read(s, body, length))
                return false;
            if (header[0] == 'c')
                return server_message(s, 'c', "", 0) && server_message(s, 'C', "COPY 0", 7) && server_ready(s, "START_STREAMING");
            continue;
        }
        if (lsn < atomic_load(&s->end))
        {
            uint64_t size = atomic_load(&s->end) - lsn;
            uint64_t rest = SERVER_SEGMENT - lsn % SERVER_SEGMENT;

            size = size > rest ? rest : size;
            size = size > 131072 ? 131072 : size;
            if (!server_wal(s, lsn, size))
                return false;
            lsn += size;
            if (s->pause > 0)
                usleep((useconds_t)s->pause);
        }
        else
            usleep(1000);
    }
}

static inline void *server_main(void *argument)
{
    server *s = argument;

    for (;;)
    {
        unsigned char header[5];
        char sql[1000], lsn[40], slot[80];
        uint32_t length, high, low;
        bool sent;

        if (!server_read(s, header, 5))
            return NULL;
        length = ((uint32_t)header[1] << 24 | (uint32_t)header[2] << 16 | (uint32_t)header[3] << 8 | header[4]) - 4;
        if (length > sizeof(sql) || !server_read(s, sql, length) || header[0] != 'Q')
            return NULL;
        atomic_fetch_add(&s->commands, 1);
        receivewal_lsn_format(atomic_load(&s->end), lsn);
        if (strncmp(sql, "IDENTIFY_SYSTEM", 15) == 0)
            sent = server_row(s, (const char *const[]){ "7000000000000000001", "1", lsn, NULL }, 4);
        else if (strncmp(sql, "SHOW wal_segment_size", 21) == 0)
            sent = server_row(s, (const char *const[]){ "1MB" }, 1);
        else if (strncmp(sql, "SHOW data_directory_mode", 24) == 0)
            sent = server_row(s, (const char *const[]){ "0750" }, 1);
        else if (strncmp(sql, "SHOW ", 5) == 0)
            sent = server_row(s, (const char *const[]){ "1min" }, 1);
        else if (sscanf(sql, "READ_REPLICATION_SLOT %79s", slot) == 1)
            sent = server_row(s, (const char *const[]){ "physical", "0/100000", "1" }, 3);
        else if (sscanf(sql, "CREATE_REPLICATION_SLOT %79s", slot) == 1)
            sent = server_row(s, (const char *const[]){ "made", "0/100000", NULL, NULL }, 4);
        else if (sscanf(sql, "DROP_REPLICATION_SLOT %79s", slot) == 1)
            sent = server_error(s, "42704", "replication slot \"\xe9\" does not exist", "a \xff detail", "a hint");
        else if (sscanf(sql, "START_REPLICATION %x/%x", &high, &low) == 2)
            sent = server_stream(s, (uint64_t)high << 32 | low);
        else
            sent = server_error(s, "42601", "syntax error", "", "");
        if (!sent)
            return NULL;
    }
}

/* Starts a server; returns the client's descriptor. No signal of the process is ever handled on its thread. */
static inline int server_start(server *s, uint64_t end, int pause)
{
    int pair[2];
    sigset_t all, before;

    memset(s, 0, sizeof(*s));
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    s->fd = pair[1];
    s->pause = pause;
    atomic_store(&s->end, end);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    REQUIRE(pthread_create(&s->thread, NULL, server_main, s) == 0);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pair[0];
}

static inline void server_stop(server *s)
{
    shutdown(s->fd, SHUT_RDWR);
    pthread_join(s->thread, NULL);
    close(s->fd);
}

/* A new empty directory, whose name is not UTF-8; the name is good until the next call. */
static inline const char *new_directory(void)
{
    static char name[] = "wal-\xff-XXXXXX";

    strcpy(name, "wal-\xff-XXXXXX");
    REQUIRE(mkdtemp(name) != NULL);
    return name;
}

#endif /* SERVER_H */
