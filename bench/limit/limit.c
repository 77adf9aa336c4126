/*
 * limit.c: receivers that do as little as can be done, to show what the machine allows. They are no receivers to use: they check
 * nothing, resume nothing and lose everything on any error.
 *
 *     limit discard|inline|thread|splice|commit|direct CONNINFO DIRECTORY SLOT START_LSN END_LSN SEGMENT_SIZE
 *
 *     discard   reads the stream and drops it: what the WAL sender can send
 *     inline    fallocate, pwrite; at a segment's end fdatasync, rename and fsync of the directory, before it reads on
 *     thread    the same, but what belongs to a segment's end is done by another thread, for up to 8 segments
 *     splice    from the socket to the file without a copy in user space; nothing is synced
 *     commit    what was read at once is flushed at once, and told to the server: pwrite and fdatasync in a file full of zeros
 *     direct    the same past the page cache: O_DIRECT and pwritev2 with RWF_DSYNC
 *
 * libpq connects; then the stream is read straight from its socket. START_LSN and END_LSN are at segment boundaries;
 * an empty START_LSN is the beginning of the segment in which the server is, an empty SLOT is none. SIGINT ends it.
 *
 * BSD-3-Clause. See LICENSE.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <libpq-fe.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* CopyData's own header, then that of XLogData: its type, start, end of WAL and time
 * (https://www.postgresql.org/docs/current/protocol-replication.html). */
enum { FRAME = 5, XLOGDATA = 25, KEEPALIVE = 18, BUFFER = 256 << 10, QUEUE = 8 };

static int sock, dir, pipe_in, pipe_out;
static uint64_t position, end, segment_size;
static bool writes, threaded, splices, commits, direct;
static uint64_t flushed;
static int file = -1;

static _Noreturn void die(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fputs("limit: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t lsn(const char *text)
{
    unsigned high, low;

    if (sscanf(text, "%X/%X", &high, &low) != 2)
        die("%s is no LSN", text);
    return (uint64_t)high << 32 | low;
}

/* The name of the segment that begins at start. */
static void segment_name(uint64_t start, char name[40])
{
    const uint64_t number = start / segment_size, per_id = (UINT64_C(1) << 32) / segment_size;

    snprintf(name, 40, "%08X%08X%08X", 1u, (unsigned)(number / per_id), (unsigned)(number % per_id));
}

/* ----------------------------------------------------------------------------------------------- a segment's end */

typedef struct finished
{
    int file;
    uint64_t start;
} finished;

static finished queue[QUEUE];
static unsigned queued, taken; /* counts */
static bool no_more;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static void finish(finished f)
{
    char name[40], partial[60];

    segment_name(f.start, name);
    snprintf(partial, sizeof(partial), "%s.partial", name);
    if (!splices && fdatasync(f.file) != 0)
        die("fdatasync: %s", strerror(errno));
    if (close(f.file) != 0 || renameat(dir, partial, dir, name) != 0)
        die("rename: %s", strerror(errno));
    if (!splices && fsync(dir) != 0)
        die("fsync: %s", strerror(errno));
}

static void *finisher(void *unused)
{
    pthread_mutex_lock(&mutex);
    for (;;)
    {
        finished f;

        while (taken == queued && !no_more)
            pthread_cond_wait(&changed, &mutex);
        if (taken == queued)
            break;
        f = queue[taken % QUEUE];
        pthread_mutex_unlock(&mutex);
        finish(f);
        pthread_mutex_lock(&mutex);
        taken++;
        pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&mutex);
    return unused;
}

static void segment_ends(void)
{
    const finished f = { file, position - segment_size };

    file = -1;
    if (!threaded)
    {
        finish(f);
        return;
    }
    pthread_mutex_lock(&mutex);
    while (queued - taken == QUEUE)
        pthread_cond_wait(&changed, &mutex);
    queue[queued++ % QUEUE] = f;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

/* So that a flush has no metadata to write. */
static void fill_with_zeros(void)
{
    static const char zeros[BUFFER];

    for (uint64_t at = 0; at < segment_size; at += BUFFER)
        if (pwrite(file, zeros, BUFFER, (off_t)at) != BUFFER)
            die("write: %s", strerror(errno));
    if (fdatasync(file) != 0 || fsync(dir) != 0)
        die("fsync: %s", strerror(errno));
    if (direct && fcntl(file, F_SETFL, O_DIRECT) != 0)
        die("O_DIRECT: %s", strerror(errno));
}

static void segment_begins(void)
{
    char name[40], partial[60];
    int error;

    segment_name(position, name);
    snprintf(partial, sizeof(partial), "%s.partial", name);
    file = openat(dir, partial, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0)
        die("%s: %s", partial, strerror(errno));
    if ((error = posix_fallocate(file, 0, (off_t)segment_size)) != 0)
        die("fallocate: %s", strerror(error));
    if (commits)
        fill_with_zeros();
}

/* ------------------------------------------------------------------------------------------------------ the WAL */

/* How many of length bytes still belong to the segment at position, whose file is open afterwards. */
static size_t fits(size_t length)
{
    const uint64_t left = segment_size - position % segment_size;

    if (file < 0)
        segment_begins();
    return length < left ? length : (size_t)left;
}

static void moved(size_t length)
{
    position += length;
    if (position % segment_size == 0)
        segment_ends();
}

static void write_wal(const char *data, size_t length)
{
    if (!writes)
    {
        position += length;
        return;
    }
    while (length > 0 && position < end)
    {
        size_t n = fits(length);
        const ssize_t written = pwrite(file, data, n, (off_t)(position % segment_size));

        if (written <= 0)
            die("write: %s", strerror(errno));
        moved((size_t)written);
        data += written;
        length -= (size_t)written;
    }
}

/* Direct writes are of whole blocks: the last one is kept, and written again with what follows. */
static void write_directly(const char *data, size_t length)
{
    enum { BLOCK = 4096 };
    static char block[BUFFER + BLOCK] __attribute__((aligned(BLOCK)));
    static size_t kept; /* bytes at the beginning of block */

    while (length > 0 && position < end)
    {
        const size_t n = fits(length);
        const size_t whole = (kept + n + BLOCK - 1) / BLOCK * BLOCK;
        const struct iovec piece = { block, whole };

        memcpy(block + kept, data, n);
        memset(block + kept + n, 0, whole - kept - n);
        if (pwritev2(file, &piece, 1, (off_t)(position % segment_size - kept), RWF_DSYNC) != (ssize_t)whole)
            die("write: %s", strerror(errno));
        kept += n;
        memmove(block, block + kept / BLOCK * BLOCK, kept % BLOCK);
        kept %= BLOCK;
        moved(n);
        data += n;
        length -= n;
    }
}

static void splice_wal(size_t length)
{
    while (length > 0 && position < end)
    {
        ssize_t in = splice(sock, NULL, pipe_in, NULL, fits(length), SPLICE_F_MOVE | SPLICE_F_MORE);

        if (in <= 0)
            die("splice from the socket: %s", in == 0 ? "the server has ended" : strerror(errno));
        length -= (size_t)in;
        while (in > 0)
        {
            loff_t offset = (loff_t)(position % segment_size);
            const ssize_t out = splice(pipe_out, NULL, file, &offset, (size_t)in, SPLICE_F_MOVE | SPLICE_F_MORE);

            if (out <= 0)
                die("splice to the file: %s", strerror(errno));
            in -= out;
            moved((size_t)out);
        }
    }
}

/* -------------------------------------------------------------------------------------------------- the stream */

static void send_all(const char *data, size_t length)
{
    while (length > 0)
    {
        const ssize_t n = send(sock, data, length, MSG_NOSIGNAL);

        if (n <= 0)
            die("send: %s", strerror(errno));
        data += n;
        length -= (size_t)n;
    }
}

/* Standby status update: written up to position. */
static void reply(void)
{
    char message[FRAME + 34] = { 'd', 0, 0, 0, 38, 'r' };
    const uint64_t written = htobe64(position), durable = htobe64(flushed);

    memcpy(message + FRAME + 1, &written, 8);
    memcpy(message + FRAME + 9, &durable, 8);
    send_all(message, sizeof(message));
}

static uint32_t length_of(const char *frame)
{
    uint32_t length;

    memcpy(&length, frame + 1, 4);
    return be32toh(length) + 1; /* of the whole frame */
}

/* What isn't WAL. */
static void other_message(const char *frame, uint32_t length)
{
    if (frame[0] == 'E')
        die("the server says: %.*s", (int)(length - FRAME - 1), frame + FRAME + 1);
    if (frame[0] == 'd' && frame[FRAME] == 'k' && frame[FRAME + KEEPALIVE - 1] != 0)
        reply();
}

static void receive_buffered(void)
{
    char *buffer = malloc(BUFFER);
    size_t from = 0, to = 0, wal = 0; /* wal: how many bytes of the last message's WAL are still to come */

    if (buffer == NULL)
        die("out of memory");
    while (position < end)
    {
        const ssize_t n = recv(sock, buffer + to, BUFFER - to, 0);

        if (n <= 0)
            die("recv: %s", n == 0 ? "the server has ended" : strerror(errno));
        to += (size_t)n;
        while (from < to)
        {
            uint32_t length;

            if (wal > 0)
            {
                const size_t here = wal < to - from ? wal : to - from;

                if (direct)
                    write_directly(buffer + from, here);
                else
                    write_wal(buffer + from, here);
                from += here;
                wal -= here;
                continue;
            }
            if (to - from < FRAME + XLOGDATA && (to - from <= FRAME || length_of(buffer + from) > to - from))
                break;
            length = length_of(buffer + from);
            if (buffer[from] == 'd' && buffer[from + FRAME] == 'w')
            {
                wal = length - FRAME - XLOGDATA;
                from += FRAME + XLOGDATA;
                continue;
            }
            if (length > BUFFER)
                die("a message of %u bytes", length);
            if (length > to - from)
                break;
            other_message(buffer + from, length);
            from += length;
        }
        memmove(buffer, buffer + from, to - from);
        to -= from;
        from = 0;
        if (commits && position > flushed)
        {
            if (!direct && file >= 0 && fdatasync(file) != 0)
                die("fdatasync: %s", strerror(errno));
            flushed = position;
            reply();
        }
    }
    free(buffer);
}

static void read_exactly(char *buffer, size_t length)
{
    if (recv(sock, buffer, length, MSG_WAITALL) != (ssize_t)length)
        die("recv: the server has ended");
}

static void receive_spliced(void)
{
    char frame[1024];
    int ends[2];

    if (pipe(ends) != 0 || fcntl(ends[0], F_SETPIPE_SZ, 1 << 20) < 0)
        die("pipe: %s", strerror(errno));
    pipe_out = ends[0];
    pipe_in = ends[1];
    while (position < end)
    {
        uint32_t length;

        read_exactly(frame, FRAME + 1);
        length = length_of(frame);
        if (frame[0] == 'd' && frame[FRAME] == 'w')
        {
            read_exactly(frame + FRAME + 1, XLOGDATA - 1);
            splice_wal(length - FRAME - XLOGDATA);
            continue;
        }
        if (length > sizeof(frame))
            die("a message of %u bytes", length);
        read_exactly(frame + FRAME + 1, length - FRAME - 1);
        other_message(frame, length);
    }
}

/* Sends START_REPLICATION on the socket and reads CopyBothResponse. */
static void start_replication(const char *slot, const char *start)
{
    char command[300], frame[1024];
    uint32_t length;
    int n;

    if (slot[0] != '\0')
        n = snprintf(command + FRAME, sizeof(command) - FRAME, "START_REPLICATION SLOT \"%s\" PHYSICAL %s TIMELINE 1", slot, start);
    else
        n = snprintf(command + FRAME, sizeof(command) - FRAME, "START_REPLICATION PHYSICAL %s TIMELINE 1", start);
    command[0] = 'Q';
    length = htobe32((uint32_t)n + 5);
    memcpy(command + 1, &length, 4);
    send_all(command, FRAME + (size_t)n + 1);
    do
    {
        read_exactly(frame, FRAME);
        if (length_of(frame) > sizeof(frame))
            die("a message of %u bytes", length_of(frame));
        read_exactly(frame + FRAME, length_of(frame) - FRAME);
        other_message(frame, length_of(frame));
    } while (frame[0] != 'W');
}

static void interrupted(int signal)
{
    (void)signal;
    _exit(0);
}

/* The beginning of the segment in which the server is. */
static const char *current_segment(PGconn *conn)
{
    static char text[40];
    PGresult *system = PQexec(conn, "IDENTIFY_SYSTEM");
    uint64_t start;

    if (PQresultStatus(system) != PGRES_TUPLES_OK)
        die("%s", PQerrorMessage(conn));
    start = lsn(PQgetvalue(system, 0, 2)) / segment_size * segment_size;
    PQclear(system);
    snprintf(text, sizeof(text), "%X/%X", (unsigned)(start >> 32), (unsigned)start);
    return text;
}

int main(int argc, char **argv)
{
    const char *start;
    const char *keywords[] = { "dbname", "replication", NULL };
    const char *values[] = { argc == 8 ? argv[2] : NULL, "true", NULL };
    const char *mode = argv[1];
    pthread_t thread;
    PGconn *conn;

    if (argc != 8)
        die("see the top of limit.c");
    writes = strcmp(mode, "discard") != 0;
    threaded = strcmp(mode, "thread") == 0;
    splices = strcmp(mode, "splice") == 0;
    signal(SIGINT, interrupted);
    direct = strcmp(mode, "direct") == 0;
    commits = direct || strcmp(mode, "commit") == 0;
    if (writes && !threaded && !splices && !commits && strcmp(mode, "inline") != 0)
        die("unknown mode %s", mode);
    end = lsn(argv[6]);
    segment_size = strtoull(argv[7], NULL, 10);
    if ((dir = open(argv[3], O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        die("%s: %s", argv[3], strerror(errno));
    conn = PQconnectdbParams(keywords, values, 1);
    if (PQstatus(conn) != CONNECTION_OK)
        die("%s", PQerrorMessage(conn));
    sock = PQsocket(conn);
    fcntl(sock, F_SETFL, fcntl(sock, F_GETFL) & ~O_NONBLOCK);

    start = argv[5][0] != '\0' ? argv[5] : current_segment(conn);
    position = flushed = lsn(start);
    start_replication(argv[4], start);
    if (threaded && pthread_create(&thread, NULL, finisher, NULL) != 0)
        die("no thread");
    if (splices)
        receive_spliced();
    else
        receive_buffered();
    if (threaded)
    {
        pthread_mutex_lock(&mutex);
        no_more = true;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&mutex);
        pthread_join(thread, NULL);
    }
    close(sock); /* without PQfinish, which would talk to a stream */
    return 0;
}
