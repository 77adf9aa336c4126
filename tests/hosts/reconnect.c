/* New connections for lost ones, with a scripted server: what a real one does not do at the right moment. */
#include "double.h"
#include "server.h"

#define END (SERVER_START + 3 * SERVER_SEGMENT)

typedef struct host
{
    receivewal *rw;
    server *next;           /* to be started for the next connection; NULL: there is none */
    int fd;                 /* the connection that is lent */
    io_double *with_io;     /* the next one's */
    int asked, stop_inside; /* stop_inside: stop before answering */
    int answer;
    unsigned char *ahead; /* read_ahead */
    size_t ahead_length;
    receivewal_io io;
    long long calls_before; /* of the double, when asked */
    char warnings[1000];
    size_t larger; /* answer with a struct of this size, as a host with a newer header */
    receivewal_reconnection seen;
} host;

static void on_log(void *ctx, receivewal_log_level level, const char *text)
{
    host *h = ctx;

    /* The library has copied what it was given. */
    if (h->asked > 0)
    {
        memset(&h->io, 0xff, sizeof(h->io));
        if (h->ahead != NULL)
            memset(h->ahead, 0xff, h->ahead_length);
    }
    if (level == RECEIVEWAL_LOG_WARNING)
        snprintf(h->warnings + strlen(h->warnings), sizeof(h->warnings) - strlen(h->warnings), "%s\n", text);
}

static int on_reconnect(void *ctx, const receivewal_reconnection *why, receivewal_connection *c)
{
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;
    host *h = ctx;

    h->asked++;
    h->seen = *why;
    if (c->size != sizeof(*c) || c->fd != -1 || why->size != sizeof(*why) || why->errmsg[0] == '\0')
        h->asked += 1000;
    if (receivewal_get_progress(h->rw, &progress) != RECEIVEWAL_OK || progress.state != RECEIVEWAL_STATE_RECONNECTING ||
        receivewal_dispatch(h->rw) != RECEIVEWAL_ERR_BUSY || receivewal_detach(h->rw) != RECEIVEWAL_ERR_BUSY)
        h->asked += 1000;
    close(h->fd);
    h->fd = -1;
    if (h->next != NULL)
    {
        h->fd = server_start(h->next, END + 1000, 0);
        if (h->larger > 0)
        {
            /* What assigning a larger INIT would do. */
            memset((char *)c + sizeof(*c), 0, h->larger - sizeof(*c));
            c->size = h->larger;
        }
        c->fd = h->fd;
        if (h->with_io != NULL)
        {
            double_init(h->with_io, h->fd, 5);
            h->with_io->wants = 20;
            h->io = double_io(h->with_io);
            c->io = &h->io;
        }
        if (h->ahead != NULL)
        {
            c->read_ahead = h->ahead;
            c->read_ahead_length = h->ahead_length;
        }
    }
    if (h->stop_inside)
        receivewal_stop(h->rw);
    return h->answer;
}

static receivewal_options options_for(host *h)
{
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;

    o.directory = new_directory();
    o.start_lsn = SERVER_START;
    o.end_lsn = END;
    o.no_sync = 1;
    o.events.ctx = h;
    o.events.log = on_log;
    o.events.reconnect = on_reconnect;
    return o;
}

/* A server that goes away after a segment and a half. */
static void begin(host *h, server *first, io_double *d)
{
    h->fd = server_start(first, SERVER_START + SERVER_SEGMENT * 3 / 2, 0);
    if (d == NULL)
        h->rw = attach(h->fd);
    else
    {
        double_init(d, h->fd, 3);
        h->rw = attach_io(d);
    }
}

static void *go_away(void *argument)
{
    sleep_ms(300);
    server_stop(argument);
    return NULL;
}

static pthread_t later(server *s)
{
    pthread_t thread;

    REQUIRE(pthread_create(&thread, NULL, go_away, s) == 0);
    return thread;
}

/* From plain to io, from io to plain, from io to io. */
static void kinds_of_connections(void)
{
    for (int kind = 0; kind < 8; kind++)
    {
        server first, second;
        io_double d1, d2;
        host h = { .next = &second, .with_io = kind & 2 ? &d2 : NULL };
        receivewal_status status;
        receivewal_options o;
        pthread_t thread;
        char title[100];
        int before, event_fd;

        before = descriptors();
        snprintf(title, sizeof(title), "from %s to %s, %s", kind & 1 ? "io" : "plain", kind & 2 ? "io" : "plain",
                 kind & 4 ? "in the background" : "blocking");
        begin(&h, &first, kind & 1 ? &d1 : NULL);
        o = options_for(&h);
        thread = later(&first);
        event_fd = receivewal_event_fd(h.rw);
        if (kind & 4)
        {
            struct pollfd p = { .fd = event_fd, .events = POLLIN };

            status = receivewal_start(h.rw, &o);
            REQUIRE(status == RECEIVEWAL_OK);
            status = RECEIVEWAL_PENDING;
            while (status == RECEIVEWAL_PENDING && poll(&p, 1, 10000) == 1)
                status = receivewal_dispatch(h.rw);
        }
        else
            status = receivewal_receive(h.rw, &o);
        pthread_join(thread, NULL);
        CHECK(title, status == RECEIVEWAL_OK && h.asked == 1 && h.seen.attempt == 1 && h.seen.status == RECEIVEWAL_ERR_CONNECTION,
              "status %d (%s), asked %d", (int)status, receivewal_errmsg(h.rw), h.asked);
        CHECK("the event descriptor stays", receivewal_event_fd(h.rw) == event_fd, "another one");
        CHECK("usable after a reconnect", receivewal_connection_usable(h.rw) == 1, "not so");
        if (kind & 1)
        {
            CHECK("the lost connection's io is left alone", !d1.misused, "%s", d1.how);
        }
        if (kind & 2)
            CHECK("the new connection's io is used well", !d2.misused && d2.read > 1000000, "%lld bytes, %s", d2.read, d2.misused ? d2.how : "");
        receivewal_detach(h.rw);
        server_stop(&second);
        close(h.fd);
        CHECK("nothing is left after a reconnect", descriptors() == before, "%d descriptors, not %d", descriptors(), before);
    }
}

/* A stop while the host connects. */
static void stop_inside(void)
{
    for (int io = 0; io <= 1; io++)
    {
        server first, second;
        io_double d;
        host h = { .next = &second, .stop_inside = 1, .with_io = io ? &d : NULL };
        int before = descriptors();
        receivewal_status status;
        receivewal_options o;
        pthread_t thread;

        begin(&h, &first, NULL);
        o = options_for(&h);
        thread = later(&first);
        status = receivewal_receive(h.rw, &o);
        pthread_join(thread, NULL);
        CHECK("a stop inside reconnect", status == RECEIVEWAL_ERR_STOPPED && h.asked == 1, "status %d", (int)status);
        CHECK("it is no reason for a warning about the new connection", strstr(h.warnings, "cannot be used") == NULL, "%s", h.warnings);
        receivewal_detach(h.rw);
        server_stop(&second);
        close(h.fd);
        CHECK("nothing is left after a stop inside reconnect", descriptors() == before, "%d descriptors, not %d", descriptors(), before);
    }
}

/* A stop comes while the question waits for a host that does not come: it is not asked then. */
static void stop_before_the_question(void)
{
    server first;
    host h = { .next = NULL };
    receivewal_status status;
    receivewal_options o;
    pthread_t thread;

    begin(&h, &first, NULL);
    o = options_for(&h);
    REQUIRE(receivewal_start(h.rw, &o) == RECEIVEWAL_OK);
    thread = later(&first);
    sleep_ms(2500); /* lost, and after at most a second asked */
    pthread_join(thread, NULL);
    receivewal_stop(h.rw);
    sleep_ms(300);
    status = receivewal_wait(h.rw, 10000);
    CHECK("a stop before the question", status == RECEIVEWAL_ERR_STOPPED && h.asked == 0, "status %d, asked %d", (int)status, h.asked);
    receivewal_detach(h.rw);
    close(h.fd);
}

/* read_ahead of a new connection is copied, and read before the connection. */
static void ahead_of_a_new_one(void)
{
    static const unsigned char left_over[] = "S\0\0\0\x0fname\0value\0Z\0\0\0\5I"; /* ParameterStatus, ReadyForQuery */
    unsigned char bytes[sizeof(left_over)];
    server first, second;
    host h = { .next = &second, .ahead = bytes, .ahead_length = sizeof(left_over) - 1 };
    receivewal_status status;
    receivewal_options o;
    pthread_t thread;

    memcpy(bytes, left_over, sizeof(bytes));
    begin(&h, &first, NULL);
    o = options_for(&h);
    thread = later(&first);
    status = receivewal_receive(h.rw, &o);
    pthread_join(thread, NULL);
    CHECK("a new connection with bytes read ahead", status == RECEIVEWAL_OK && h.asked == 1, "status %d (%s), asked %d", (int)status,
          receivewal_errmsg(h.rw), h.asked);
    receivewal_detach(h.rw);
    server_stop(&second);
    close(h.fd);
}

/* A host that was compiled with a newer header. */
static void newer_header(void)
{
    server first, second;
    host h = { .next = &second, .larger = sizeof(receivewal_connection) + 200 };
    receivewal_status status;
    receivewal_options o;
    pthread_t thread;

    begin(&h, &first, NULL);
    o = options_for(&h);
    thread = later(&first);
    status = receivewal_receive(h.rw, &o);
    pthread_join(thread, NULL);
    CHECK("a new connection in a larger struct", status == RECEIVEWAL_OK && h.asked == 1, "status %d (%s), asked %d", (int)status,
          receivewal_errmsg(h.rw), h.asked);
    receivewal_detach(h.rw);
    server_stop(&second);
    close(h.fd);
}

static void giving_up(void)
{
    server first;
    host h = { .answer = 7 };
    receivewal_status status;
    receivewal_options o;
    pthread_t thread;

    begin(&h, &first, NULL);
    o = options_for(&h);
    thread = later(&first);
    status = receivewal_receive(h.rw, &o);
    pthread_join(thread, NULL);
    CHECK("giving up", status == RECEIVEWAL_ERR_CONNECTION && h.asked == 1 && strstr(receivewal_errmsg(h.rw), "gave up") != NULL &&
          (strstr(receivewal_errmsg(h.rw), "server closed the connection") || strstr(receivewal_errmsg(h.rw), "Broken pipe")),
          "status %d (%s)", (int)status, receivewal_errmsg(h.rw));
    receivewal_detach(h.rw);
}

int main(void)
{
    alarm(500);
    int peer, fd = silent_connection(&peer);

    receivewal_detach(attach(fd)); /* the core opens descriptors of its own */
    close(fd);
    close(peer);
    kinds_of_connections();
    stop_inside();
    stop_before_the_question();
    ahead_of_a_new_one();
    newer_header();
    giving_up();
    return 0;
}
