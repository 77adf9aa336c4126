/*
 * The relay by itself, without a core: this program is the core at the other end of the pair. Linked with loader/relay.c and
 * what that needs, so that valgrind and the sanitizers see all that there is.
 */
#include <errno.h>
#include <sys/epoll.h>

#include "check.h"
#include "internal.h"

static int told; /* how often the core was told of a loss */
static char reason[600];

receivewal_status rw_core_lost(uint64_t id, const char *why)
{
    told += id == 42;
    snprintf(reason, sizeof(reason), "%s", why);
    return RECEIVEWAL_OK;
}

bool rw_forked(void)
{
    return false;
}

int rw_not_standard(int fd)
{
    return fd;
}

/* An endless peer: byte number n of what it sends is pattern(n), in pieces of every size. What it gets has to be the same. */
typedef struct peer
{
    unsigned seed;
    long long sent, limit, got;
    ptrdiff_t at_limit; /* the answer there */
    bool wrong, deaf;   /* deaf: it takes nothing */
} peer;

static unsigned char pattern(long long n)
{
    return (unsigned char)(n * 131 + n / 251);
}

static unsigned any(peer *p)
{
    p->seed = p->seed * 1103515245u + 12345u;
    return p->seed >> 16;
}

static ptrdiff_t peer_read(void *ctx, void *buffer, size_t length)
{
    peer *p = ctx;
    unsigned char *bytes = buffer;
    size_t n = 1 + any(p) % length;

    if (p->sent >= p->limit)
        return p->at_limit;
    if (any(p) % 4 == 0)
        return any(p) % 2 ? RECEIVEWAL_IO_WANT_READ : RECEIVEWAL_IO_WANT_WRITE;
    if ((long long)n > p->limit - p->sent)
        n = (size_t)(p->limit - p->sent);
    for (size_t i = 0; i < n; i++)
        bytes[i] = pattern(p->sent++);
    return (ptrdiff_t)n;
}

static ptrdiff_t peer_write(void *ctx, const void *buffer, size_t length)
{
    peer *p = ctx;
    const unsigned char *bytes = buffer;
    size_t n = 1 + any(p) % length;

    if (p->deaf || any(p) % 4 == 0)
        return any(p) % 2 ? RECEIVEWAL_IO_WANT_READ : RECEIVEWAL_IO_WANT_WRITE;
    for (size_t i = 0; i < n; i++)
        p->wrong |= bytes[i] != pattern(p->got++);
    return (ptrdiff_t)n;
}

typedef struct bench
{
    peer p;
    int host[2]; /* a socket that is always readable and writable: every want is granted at once */
    int core, poll_fd;
    rw_relay *relay;
} bench;

static void set_up(bench *b, long long limit, ptrdiff_t at_limit)
{
    receivewal_connection connection = RECEIVEWAL_CONNECTION_INIT;
    receivewal_io io = RECEIVEWAL_IO_INIT;

    *b = (bench){ .p = { .seed = 1, .limit = limit, .at_limit = at_limit }, .poll_fd = epoll_create1(EPOLL_CLOEXEC) };
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, b->host) == 0 && write(b->host[1], "x", 1) == 1);
    io.ctx = &b->p;
    io.read = peer_read;
    io.write = peer_write;
    connection.fd = b->host[0];
    connection.io = &io;
    b->relay = rw_relay_new(&connection, &b->core);
    REQUIRE(b->relay != NULL);
    rw_relay_serve(b->relay, 42);
    told = 0;
}

static void tear_down(bench *b)
{
    rw_relay_free(b->relay, b->poll_fd);
    close(b->host[0]);
    close(b->host[1]);
    close(b->core);
    close(b->poll_fd);
}

/* One round of the loop that the pump is. Returns whether there is more to do at once. */
static bool turn(bench *b)
{
    struct epoll_event ready[3];
    bool more = rw_relay_work(b->relay);
    int count;

    REQUIRE(rw_relay_watch(b->relay, b->poll_fd));
    count = epoll_wait(b->poll_fd, ready, 3, 0);
    for (int i = 0; i < count; i++)
        if (ready[i].data.u32 == RW_WATCH_HOST)
            rw_relay_ready(b->relay, ready[i].events);
    return more || count > 0;
}

/* Reads as the core would. Returns the number of bytes, 0 at the end, -1 where there is nothing now. */
static ssize_t core_reads(bench *b, long long *got, bool *wrong)
{
    unsigned char buffer[30000];
    ssize_t n = recv(b->core, buffer, 1 + any(&b->p) % sizeof(buffer), MSG_DONTWAIT);

    for (ssize_t i = 0; i < n; i++)
        *wrong |= buffer[i] != pattern((*got)++);
    return n;
}

static void both_ways(void)
{
    long long got = 0, put = 0;
    bool wrong = false;
    bench b;

    set_up(&b, 20000000, RECEIVEWAL_IO_WANT_READ);
    while (got < b.p.limit || b.p.got < 3000000)
    {
        turn(&b);
        while (core_reads(&b, &got, &wrong) > 0 && any(&b.p) % 3)
            ;
        if (put < 3000000)
        {
            unsigned char bytes[1000];
            size_t n = 1 + any(&b.p) % sizeof(bytes);

            if ((long long)n > 3000000 - put)
                n = (size_t)(3000000 - put);
            for (size_t i = 0; i < n; i++)
                bytes[i] = pattern(put + (long long)i);
            put += n == 0 ? 0 : send(b.core, bytes, n, MSG_DONTWAIT) > 0 ? (long long)n : 0;
        }
    }
    CHECK("both ways, every byte in its order", !wrong && !b.p.wrong && got == b.p.limit && b.p.got == put, "%lld, %lld", got, b.p.got);
    CHECK("the relay knows how much it has passed", rw_relay_passed(b.relay) == (uint64_t)got && rw_relay_empty(b.relay), "%lld",
          (long long)rw_relay_passed(b.relay));
    tear_down(&b);
}

static void back_pressure(void)
{
    long long got = 0, held;
    bool wrong = false, idle = false;
    bench b;

    set_up(&b, 100000000, RECEIVEWAL_IO_WANT_READ);
    for (int i = 0; i < 10000 && !idle; i++)
        idle = !turn(&b);
    held = b.p.sent;
    CHECK("a core that doesn't read holds the server back", idle && held < 1 << 20, "%lld bytes read, %s", held, idle ? "idle" : "busy");
    CHECK("a relay that is full is not empty", !rw_relay_empty(b.relay), "it is");
    while (got < held && core_reads(&b, &got, &wrong) > 0)
        turn(&b);
    CHECK("it goes on as soon as there is room", b.p.sent > held && !wrong, "%lld", b.p.sent);
    tear_down(&b);

    set_up(&b, 0, RECEIVEWAL_IO_WANT_READ);
    b.p.deaf = true;
    for (held = 0; held < 1 << 22; held += 1000)
    {
        static const unsigned char bytes[1000];

        turn(&b);
        if (send(b.core, bytes, sizeof(bytes), MSG_DONTWAIT) < 0)
            break;
    }
    CHECK("a host that doesn't write holds the core back", held < 1 << 20, "%lld bytes", held);
    tear_down(&b);
}

static void ends(const char *name, ptrdiff_t answer, int tells)
{
    long long got = 0, limit = 300000;
    bool wrong = false;
    char title[100];
    ssize_t n = -1;
    bench b;

    set_up(&b, limit, answer);
    /* The core reads nothing until the relay has seen the end. */
    for (int i = 0; i < 1000; i++)
        turn(&b);
    for (int i = 0; i < 1000 && n != 0; i++)
    {
        n = core_reads(&b, &got, &wrong);
        turn(&b);
    }
    snprintf(title, sizeof(title), "%s: the core gets all that was read, then the end", name);
    CHECK(title, n == 0 && got == limit && !wrong, "%lld bytes, then %zd", got, n);
    snprintf(title, sizeof(title), "%s: the core is told why", name);
    CHECK(title, told == tells && !rw_relay_open(b.relay), "told %d times: %s", told, reason);
    snprintf(title, sizeof(title), "%s: the core can still write", name);
    CHECK(title, send(b.core, "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1, "%s", strerror(errno));
    for (int i = 0; i < 100; i++)
        turn(&b);
    snprintf(title, sizeof(title), "%s: then nothing is left to do", name);
    CHECK(title, !turn(&b), "busy");
    tear_down(&b);
}

/* What a function wants decides what the relay waits for, and nothing else. */
static ptrdiff_t wish_read(void *ctx, void *buffer, size_t length)
{
    ptrdiff_t *wishes = ctx;

    (void)buffer;
    (void)length;
    wishes[2]++;
    return wishes[0];
}

static ptrdiff_t wish_write(void *ctx, const void *buffer, size_t length)
{
    ptrdiff_t *wishes = ctx;

    (void)buffer;
    (void)length;
    wishes[3]++;
    return wishes[1];
}

static void wants(void)
{
    static const ptrdiff_t both[] = { RECEIVEWAL_IO_WANT_READ, RECEIVEWAL_IO_WANT_WRITE };

    for (int i = 0; i < 16; i++)
    {
        ptrdiff_t wishes[4] = { both[i & 1], both[i >> 1 & 1], 0, 0 };
        const bool readable = i & 4, writing = i & 8;
        /* The socket is always writable, and readable as the case has it. */
        const bool read_again = wishes[0] == RECEIVEWAL_IO_WANT_WRITE || readable;
        const bool write_again = writing && (wishes[1] == RECEIVEWAL_IO_WANT_WRITE || readable);
        char byte;
        bench b;

        set_up(&b, 0, 0);
        rw_relay_free(b.relay, b.poll_fd);
        close(b.core);
        {
            receivewal_connection connection = RECEIVEWAL_CONNECTION_INIT;
            receivewal_io io = RECEIVEWAL_IO_INIT;

            io.ctx = wishes;
            io.read = wish_read;
            io.write = wish_write;
            connection.fd = b.host[0];
            connection.io = &io;
            b.relay = rw_relay_new(&connection, &b.core);
        }
        if (!readable)
            REQUIRE(recv(b.host[0], &byte, 1, 0) == 1);
        if (writing)
            REQUIRE(send(b.core, "x", 1, 0) == 1);
        for (int j = 0; j < 20; j++)
            turn(&b);
        CHECK("a function is called again when what it wants has come", (wishes[2] > 1) == read_again && (wishes[3] > 1) == write_again,
              "case %d: %td reads, %td writes", i, wishes[2], wishes[3]);
        tear_down(&b);
    }
}

int main(void)
{
    int left = descriptors();

    both_ways();
    back_pressure();
    wants();
    ends("end", 0, 0);
    ends("error", RECEIVEWAL_IO_ERROR, 1);
    ends("nonsense", -77, 1);
    CHECK("no descriptor is left", descriptors() == left, "%d, not %d", descriptors(), left);
    return 0;
}
