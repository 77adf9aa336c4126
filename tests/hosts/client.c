/*
 * client.c: a host with libpq and a real server, driven by the Go tests. It receives, and says on standard output, one line each,
 * what it sees:
 *
 *     client CONNINFO DIRECTORY [NAME=VALUE...]
 *
 *     loop=epoll     in the background, with an event loop; loop=wait: with receivewal_wait; else it blocks
 *     io=no          lends only the descriptor, even if the connection is encrypted
 *     reconnect=N    gives new connections, and gives up at the N-th question; reconnect=wrong: gives one that cannot be used first
 *     conninfo2=...  the connection string of the second and later connections
 *     data=FOLDER    writes events.data there, each segment's into a file of its name, and says where it begins and how far it is
 *     pause=MS       takes so long for each of events.data; refuse=N: answers non-zero once it has had N bytes
 *     confirm=FILE   options.confirm, and confirms each LSN that is a line of FILE (a FIFO), or with "all" what was written;
 *                    confirm=data: what events.data brings
 *     temporary=NAME creates this slot first, temporary, and uses it
 *     convert=HOW    turns each complete segment X into X.zst.aes: in the callback, or by a process of its own
 *     slot=, end=, timeout=, synchronous=, slotwait=
 *
 * SIGINT ends the receive. What follows a clean end is a command of the host's own on the connection.
 */
#include <libpq-fe.h>
#include <limits.h>
#include <pthread.h>
#include <receivewal_openssl.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/epoll.h>

#include "check.h"

static const char *conninfo, *conninfo2;
static PGconn *conn;
static _Atomic(receivewal *) handle;
static int give_up_at;
static bool wrong_first, with_io = true;
static const char *data_folder, *confirm_file;
static int pause_ms;
static uint64_t refuse_at;
static const char *convert, *directory;

static void on_signal(int signo)
{
    receivewal *rw = atomic_load(&handle);

    (void)signo;
    if (rw != NULL)
        receivewal_stop(rw);
}

static void say(const char *what, const char *text)
{
    printf("%s %s\n", what, text);
    fflush(stdout);
}

static bool connect_to(const char *string)
{
    const char *keywords[] = { "dbname", "replication", "fallback_application_name", NULL };
    const char *values[] = { string, "true", "client", NULL };

    conn = PQconnectdbParams(keywords, values, 1);
    if (PQstatus(conn) == CONNECTION_OK)
        return true;
    say("unreachable", PQerrorMessage(conn));
    PQfinish(conn);
    conn = NULL;
    return false;
}

static void lend(receivewal_connection *c, receivewal_io *io)
{
    c->fd = PQsocket(conn);
    c->server_version = PQserverVersion(conn);
    if (PQsslInUse(conn))
    {
        printf("encrypted %s %s\n", PQsslAttribute(conn, "protocol"), PQsslAttribute(conn, "cipher"));
        if (with_io)
        {
            *io = receivewal_openssl_io(PQsslStruct(conn, "OpenSSL"));
            c->io = io;
        }
    }
}

static void on_log(void *ctx, receivewal_log_level level, const char *text)
{
    (void)ctx;
    say(level >= RECEIVEWAL_LOG_WARNING ? "warning" : "log", text);
}

/* As compressors and encryptors do it: a new file, and the old one is removed. */
static void convert_segment(const char *name)
{
    static const char script[] = "cat \"$0\" >\"$0.tmp\" && mv \"$0.tmp\" \"$0.zst.aes\" && rm \"$0\"";
    char path[PATH_MAX], converted[PATH_MAX];

    REQUIRE(snprintf(path, sizeof(path), "%s/%s", directory, name) < PATH_MAX);
    REQUIRE(snprintf(converted, sizeof(converted), "%s.zst.aes", path) < PATH_MAX);
    if (strcmp(convert, "process") == 0)
    {
        char *const args[] = { "sh", "-c", (char *)script, path, NULL };
        pid_t pid;

        REQUIRE(posix_spawn(&pid, "/bin/sh", NULL, NULL, args, NULL) == 0);
    }
    else
        REQUIRE(rename(path, converted) == 0);
}

static int on_completed(void *ctx, const receivewal_segment *segment)
{
    (void)ctx;
    say("completed", segment->name);
    if (convert != NULL)
        convert_segment(segment->name);
    return 0;
}

/* Into the segment's file; that of another timeline is another file. */
static void keep(const receivewal_data *data)
{
    char name[RECEIVEWAL_SEGMENT_NAME_LEN], path[PATH_MAX];
    const uint32_t size = 1u << 20; /* of the tests' servers */
    int fd;

    REQUIRE(receivewal_segment_name(data->timeline, data->lsn, size, name) == RECEIVEWAL_OK);
    REQUIRE(snprintf(path, sizeof(path), "%s/%s", data_folder, name) < PATH_MAX);
    REQUIRE(data->lsn % size + data->length <= size);
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    REQUIRE(fd >= 0 && pwrite(fd, data->data, data->length, (off_t)(data->lsn % size)) == (ssize_t)data->length);
    close(fd);
}

static int on_data(void *ctx, const receivewal_data *data)
{
    static receivewal_lsn next;
    static uint64_t bytes;
    char begin[RECEIVEWAL_LSN_LEN], end[RECEIVEWAL_LSN_LEN];

    (void)ctx;
    REQUIRE(data->size == sizeof(*data) && data->length > 0);
    bytes += data->length;
    receivewal_lsn_format(data->lsn, begin);
    if (data->lsn != next)
        say("begins", begin);
    if (refuse_at > 0 && bytes >= refuse_at)
    {
        say("refused", begin);
        return 1;
    }
    if (pause_ms > 0)
        nanosleep(&(struct timespec){ pause_ms / 1000, pause_ms % 1000 * 1000000L }, NULL);
    keep(data); /* at last: what is in the files has been taken, but for the end of this call */
    next = data->lsn + data->length;
    say("has", receivewal_lsn_format(next, end));
    if (confirm_file != NULL && strcmp(confirm_file, "data") == 0)
        REQUIRE(receivewal_confirm(atomic_load(&handle), next) == RECEIVEWAL_OK);
    return 0;
}

/* Confirms what is in a file, line by line. */
static void *confirm_lines(void *file)
{
    FILE *f = fopen(file, "r");
    char line[64];

    REQUIRE(f != NULL);
    while (fgets(line, sizeof(line), f) != NULL)
    {
        receivewal_lsn lsn;
        receivewal_status status;

        line[strcspn(line, "\n")] = '\0';
        if (strcmp(line, "all") == 0)
        {
            receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;

            REQUIRE(receivewal_get_progress(atomic_load(&handle), &progress) == RECEIVEWAL_OK);
            lsn = progress.written_lsn;
        }
        else
            REQUIRE(receivewal_lsn_parse(line, &lsn) == RECEIVEWAL_OK);
        status = receivewal_confirm(atomic_load(&handle), lsn);
        printf("confirm %s %d %s\n", line, (int)status, status == RECEIVEWAL_OK ? "" : receivewal_errmsg(NULL));
        fflush(stdout);
    }
    fclose(f);
    return NULL;
}

static int on_reconnect(void *ctx, const receivewal_reconnection *why, receivewal_connection *c)
{
    static receivewal_io io;

    (void)ctx;
    printf("asked %d %d [%s] %s\n", why->attempt, (int)why->status, why->sqlstate, why->errmsg);
    fflush(stdout);
    PQfinish(conn);
    conn = NULL;
    if (give_up_at > 0 && why->attempt >= give_up_at)
        return 1;
    if (wrong_first)
    {
        wrong_first = false;
        c->fd = open("/dev/null", O_RDWR);
        return 0;
    }
    if (!connect_to(conninfo2))
        return 0; /* c->fd is -1: later */
    lend(c, &io);
    return 0;
}

static receivewal_status in_an_event_loop(receivewal *rw)
{
    struct epoll_event event = { .events = EPOLLIN };
    int loop = epoll_create1(EPOLL_CLOEXEC);
    receivewal_status status = RECEIVEWAL_PENDING;

    REQUIRE(epoll_ctl(loop, EPOLL_CTL_ADD, receivewal_event_fd(rw), &event) == 0);
    while (status == RECEIVEWAL_PENDING)
        if (epoll_wait(loop, &event, 1, -1) == 1)
            status = receivewal_dispatch(rw);
    close(loop);
    return status;
}

int main(int argc, char **argv)
{
    receivewal_connection connection = RECEIVEWAL_CONNECTION_INIT;
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
    struct sigaction action = { .sa_handler = on_signal };
    const char *loop = "block", *temporary = NULL;
    pthread_t confirmer;
    receivewal_status status;
    receivewal_io io;
    receivewal *rw;
    PGresult *result;

    REQUIRE(argc >= 3);
    conninfo = conninfo2 = argv[1];
    o.directory = directory = argv[2];
    o.status_interval = 200; /* the tests wait for what the server hears */
    o.events.log = on_log;
    o.events.segment_completed = on_completed;
    for (int i = 3; i < argc; i++)
    {
        char *value = strchr(argv[i], '=');

        REQUIRE(value != NULL);
        *value++ = '\0';
        if (strcmp(argv[i], "loop") == 0)
            loop = value;
        else if (strcmp(argv[i], "io") == 0)
            with_io = false;
        else if (strcmp(argv[i], "reconnect") == 0)
        {
            o.events.reconnect = on_reconnect;
            give_up_at = atoi(value);
            wrong_first = strcmp(value, "wrong") == 0;
        }
        else if (strcmp(argv[i], "conninfo2") == 0)
            conninfo2 = value;
        else if (strcmp(argv[i], "slot") == 0)
            o.slot = value;
        else if (strcmp(argv[i], "end") == 0)
            REQUIRE(receivewal_lsn_parse(value, &o.end_lsn) == RECEIVEWAL_OK);
        else if (strcmp(argv[i], "timeout") == 0)
            o.receive_timeout = atoi(value);
        else if (strcmp(argv[i], "synchronous") == 0)
            o.synchronous = 1;
        else if (strcmp(argv[i], "slotwait") == 0)
            o.slot_wait = atoi(value);
        else if (strcmp(argv[i], "convert") == 0)
            convert = value;
        else if (strcmp(argv[i], "data") == 0)
        {
            data_folder = value;
            o.events.data = on_data;
        }
        else if (strcmp(argv[i], "pause") == 0)
            pause_ms = atoi(value);
        else if (strcmp(argv[i], "refuse") == 0)
            refuse_at = strtoull(value, NULL, 10);
        else if (strcmp(argv[i], "confirm") == 0)
        {
            confirm_file = value;
            o.confirm = 1;
        }
        else if (strcmp(argv[i], "temporary") == 0)
            o.slot = temporary = value;
        else
            REQUIRE(!"a known option");
    }
    sigaction(SIGINT, &action, NULL);
    if (!connect_to(conninfo))
        return 1;
    lend(&connection, &io);
    if (receivewal_attach(&connection, &rw) != RECEIVEWAL_OK)
    {
        say("refused", receivewal_errmsg(NULL));
        return 1;
    }
    atomic_store(&handle, rw);
    say("attached", "");
    if (temporary != NULL &&
        receivewal_create_slot(rw, temporary, RECEIVEWAL_SLOT_TEMPORARY | RECEIVEWAL_SLOT_RESERVE_WAL, NULL) != RECEIVEWAL_OK)
        say("no slot", receivewal_errmsg(rw));
    if (confirm_file != NULL && strcmp(confirm_file, "data") != 0)
        REQUIRE(pthread_create(&confirmer, NULL, confirm_lines, (void *)confirm_file) == 0);
    if (strcmp(loop, "block") == 0)
        status = receivewal_receive(rw, &o);
    else
    {
        status = receivewal_start(rw, &o);
        if (status == RECEIVEWAL_OK)
            status = strcmp(loop, "epoll") == 0 ? in_an_event_loop(rw) : receivewal_wait(rw, -1);
    }
    printf("status %d %s\n", (int)status, receivewal_errmsg(rw));
    receivewal_get_progress(rw, &progress);
    printf("bytes %llu reconnects %llu\n", (unsigned long long)progress.bytes, (unsigned long long)progress.reconnects);
    printf("usable %d\n", receivewal_connection_usable(rw));
    if (confirm_file == NULL) /* its thread may be at it for ever */
        atomic_store(&handle, NULL);
    REQUIRE(receivewal_detach(rw) == RECEIVEWAL_OK);
    fflush(stdout);
    if (conn != NULL)
    {
        result = PQexec(conn, "IDENTIFY_SYSTEM");
        say("sql", PQresultStatus(result) == PGRES_TUPLES_OK ? PQgetvalue(result, 0, 0) : PQerrorMessage(conn));
        PQclear(result);
        PQfinish(conn);
    }
    return status == RECEIVEWAL_OK || status == RECEIVEWAL_ERR_STOPPED ? 0 : 10 + (int)status;
}
